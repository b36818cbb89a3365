"""What is on the screen is what comes out: colours, orientation, shape of pixels, the right track."""

import gc
import multiprocessing
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from videollm_mod import decoding
from videollm_mod.decoding import decode_video, iter_video_frames
from videollm_mod.sources.live_source import LiveSource

# PyAV -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["14.4.0", "17.1.0", "9.0"])
def test_an_old_pyav_is_named(monkeypatch, version):
    monkeypatch.setattr(av, "__version__", version)
    with pytest.raises(ImportError, match=f"needs PyAV 18 or newer, {version} is installed: pip install --upgrade av"):
        decode_video("a.mp4")


def test_tags_of_any_encoding(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "caf#"
        stream = container.add_stream("ffv1", rate=2)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "bgr0"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"caf#", "café".encode("latin-1")))
    assert len(decode_video(path)[0]) == 1


# Colours ----------------------------------------------------------------------------------------------------------

BT601, BT709, LIMITED, FULL = 6, 1, 1, 2  # as FFmpeg numbers them


def luma_and_chroma(rgb: tuple[int, int, int], space: int, full: bool) -> list[int]:
    """Y, Cb and Cr of a colour, by the standards' formulas."""
    of_red, of_blue = {BT601: (0.299, 0.114), BT709: (0.2126, 0.0722)}[space]
    red, green, blue = (value / 255 for value in rgb)
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    chroma = [(value - luma) / (2 - 2 * of) for value, of in ((blue, of_blue), (red, of_red))]
    if full:
        return [round(255 * luma), *(round(128 + 255 * value) for value in chroma)]
    return [round(16 + 219 * luma), *(round(128 + 224 * value) for value in chroma)]


@pytest.mark.parametrize("colour", [(251, 0, 0), (20, 190, 40), (30, 60, 220), (128, 128, 128), (250, 250, 250)])
@pytest.mark.parametrize("space", [BT601, BT709])
@pytest.mark.parametrize("colour_range", [LIMITED, FULL])
def test_colours(tmp_path, colour, space, colour_range):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.width, stream.height, stream.pix_fmt, stream.options = 32, 32, "yuv420p", {"qp": "0"}
        stream.codec_context.colorspace, stream.codec_context.color_range = space, colour_range
        frame = av.VideoFrame(32, 32, "yuv420p")
        frame.colorspace, frame.color_range = space, colour_range
        for plane, value in zip(frame.planes, luma_and_chroma(colour, space, colour_range == FULL), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    ((image,), _) = decode_video(path)
    assert np.abs(image.astype(int) - colour).max() <= 4


# Orientation -------------------------------------------------------------------------------------------------------

CORNERS = {"r": (200, 30, 30), "g": (30, 200, 30), "b": (30, 30, 200), "w": (220, 220, 220)}
ONE, EVEN = 0x10000, 1 << 30  # of fixed point numbers
# a, b, c, d: what is coded at (x, y) is shown at (a x + c y, b x + d y); the corners that are then seen, row by row
ORIENTATIONS = {
    "as it is": ((1, 0, 0, 1), "rg bw"),
    "mirrored": ((-1, 0, 0, 1), "gr wb"),
    "upside down, mirrored": ((1, 0, 0, -1), "bw rg"),
    "half a turn": ((-1, 0, 0, -1), "wb gr"),
    "a quarter clockwise": ((0, 1, -1, 0), "br wg"),
    "a quarter back": ((0, -1, 1, 0), "gw rb"),
    "transposed": ((0, 1, 1, 0), "rb gw"),
    "transposed the other way": ((0, -1, -1, 0), "wg br"),
}


def with_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """An MP4 whose first track is shown by another matrix."""
    content = bytearray(path.read_bytes())
    values = (a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, EVEN)
    struct.pack_into(">9i", content, content.index(b"tkhd") + 4 + 40, *values)
    path.write_bytes(content)
    return path


def four_corners(height: int, width: int) -> np.ndarray:
    """uint8 `[H, W, 3]`."""
    image = np.zeros((height, width, 3), np.uint8)
    rows, columns = (slice(0, height // 2), slice(height // 2, None)), (slice(0, width // 2), slice(width // 2, None))
    for index, colour in enumerate(CORNERS.values()):
        image[rows[index // 2], columns[index % 2]] = colour
    return image


def write(path: Path, images: list, codec: str = "libx264", pixel_shape=None, rate: int = 5, **options: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", options
        if pixel_shape is not None:
            stream.codec_context.sample_aspect_ratio = Fraction(pixel_shape)
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def corners(image: np.ndarray) -> str:
    """The names of the colours in the middle of each quarter, row by row."""
    height, width = image.shape[:2]
    seen = ""
    for row in (height // 4, 3 * height // 4):
        for column in (width // 4, 3 * width // 4):
            distances = {name: np.abs(image[row, column].astype(int) - of).sum() for name, of in CORNERS.items()}
            seen += min(distances, key=distances.get)
    return f"{seen[:2]} {seen[2:]}"


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_all_eight_orientations(tmp_path, monkeypatch, name):
    matrix, seen = ORIENTATIONS[name]
    size = (64, 96) if matrix[0] else (96, 64)
    path = with_matrix(write(tmp_path / "a.mp4", [four_corners(64, 96)] * 20, g="5"), *matrix)
    frames, _ = decode_video(path, fps=5)
    assert frames.shape[1:3] == size and corners(frames[0]) == seen
    jumps, seek = [], decoding.seek
    monkeypatch.setattr(decoding, "seek", lambda *args: (jumps.append(seek(*args)), jumps[-1])[1])
    assert np.array_equal([frame for frame, _ in iter_video_frames(path, 5, first=12)], frames[12:]) and jumps[0]
    live = LiveSource("a", lambda: decoding.open_container(path), 5, reconnect=False)
    assert [corners(frame.image) for frame in live][::10] == [seen] * 2


@pytest.mark.parametrize("number, seen", [(1, "rg bw"), (3, "wb gr"), (6, "br wg"), (8, "gw rb")])
def test_the_orientation_of_a_photograph(tmp_path, number, seen):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = number, "Camera"
    Image.fromarray(four_corners(64, 96)).save(tmp_path / "a.jpg", exif=exif)
    assert corners(decode_video(tmp_path / "a.jpg")[0][0]) == seen


# Shape of pixels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, codec, size, shape, seen",
    [
        ("a.mp4", "libx264", (96, 48), "2/1", (96, 96)),
        ("a.mp4", "libx264", (96, 192), "1/2", (96, 96)),
        ("a.mkv", "mpeg4", (96, 72), "4/3", (96, 96)),
        ("a.ts", "libx264", (96, 108), "8/9", (96, 96)),
        ("a.ts", "mpeg2video", (96, 96), "4/3", (96, 128)),  # MPEG-2 knows a few shapes of the whole picture
        ("a.mpg", "mpeg2video", (96, 96), "16/9", (96, 171)),
    ],
)
def test_pixels_that_are_not_square(tmp_path, name, codec, size, shape, seen):
    path = write(tmp_path / name, [four_corners(*size)] * 5, codec, shape)
    frames, _ = decode_video(path)
    assert frames.shape == (2, *seen, 3) and corners(frames[0]) == "rg bw"
    live = LiveSource("a", lambda: decoding.open_container(path), 2, reconnect=False)
    assert [frame.image.shape for frame in live] == [(*seen, 3)] * 2


def test_pixel_shape_stated_only_by_the_container(tmp_path):
    path = write(tmp_path / "a.mp4", [four_corners(96, 48)] * 5)
    frames, _ = decode_video(with_matrix(path, 2, 0, 0, 1))  # twice as wide
    assert frames.shape == (2, 96, 96, 3) and corners(frames[0]) == "rg bw"


def test_pixels_that_are_not_square_in_a_turned_large_video_that_is_sought(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 96 * 48)
    path = write(tmp_path / "a.mp4", [four_corners(96, 96)] * 20, pixel_shape=2, g="5")
    frames, _ = decode_video(with_matrix(path, 0, 1, -1, 0), fps=5)
    assert frames.shape[1:] == (96, 48, 3) and corners(frames[0]) == "br wg"
    jumps, seek = [], decoding.seek
    monkeypatch.setattr(decoding, "seek", lambda *args: (jumps.append(seek(*args)), jumps[-1])[1])
    assert np.array_equal([frame for frame, _ in iter_video_frames(path, 5, first=12)], frames[12:]) and jumps[0]


@pytest.mark.parametrize("second", [((96, 96), "2/1"), ((48, 96), "1/1"), ((192, 96), "4/1")])
def test_a_video_that_gets_wider_midway_gets_bars(tmp_path, second):
    """A broadcast changes from a narrow to a wide picture: what is square stays square."""
    size, shape = second
    parts = [((96, 96), "1/1"), (size, shape)]
    content = [
        write(tmp_path / f"{index}.ts", [four_corners(*size)] * 10, "mpeg2video", shape).read_bytes()
        for index, (size, shape) in enumerate(parts)
    ]
    (tmp_path / "a.ts").write_bytes(b"".join(content))
    frames, _ = decode_video(tmp_path / "a.ts", fps=5)
    assert frames.shape[1:] == (96, 96, 3) and len(frames) >= 19  # the decoder may lose one where the size changes
    assert corners(frames[2]) == corners(frames[-1][24:-24]) == "rg bw"
    assert (frames[-1][:22].max(), frames[-1][-22:].max()) == (0, 0)


@pytest.mark.parametrize("shape", ["1/1000", "1000/1"])
def test_pixels_of_absurd_shape_are_treated_as_square(tmp_path, shape):
    assert decode_video(write(tmp_path / "a.mkv", [four_corners(32, 32)], pixel_shape=shape))[0].shape == (
        1,
        32,
        32,
        3,
    )


# Tracks -------------------------------------------------------------------------------------------------------------

GREY, DEFAULT = np.full((32, 32, 3), 90, np.uint8), av.stream.Disposition.default


def tracks(path: Path, counts: tuple[int, ...], default: tuple[bool, ...] = ()) -> Path:
    """So many frames in tracks beside each other: the last track shows four corners, the others are grey."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("mpeg4" if index else "mjpeg", rate=10) for index in range(len(counts))]
        for index, stream in enumerate(streams):
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p" if index else "yuvj420p"
            stream.options = {"q": "2"}
            if default:
                stream.disposition = DEFAULT if default[index] else 0
        for number in range(max(counts)):
            for stream, count in zip(streams, counts, strict=True):
                image = four_corners(32, 32) if stream is streams[-1] else GREY
                if number < count:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for stream, count in zip(streams, counts, strict=True):
            container.mux(stream.encode() if count else [])
        container.start_encoding()
    return path


class Pipe:
    """A file that cannot be sought."""

    def __init__(self, path: Path):
        self.name, self.read = "pipe", open(path, "rb").read  # noqa: SIM115


@pytest.mark.parametrize(
    "name, counts, default",
    [
        ("a.mkv", (1, 20), ()),
        ("a.mkv", (1, 20), (True, False)),
        ("a.mkv", (20, 20), (False, True)),
        ("a.mkv", (0, 20), ()),
        ("a.mkv", (0, 1, 20), (True, True, False)),
        ("a.mp4", (1, 20), ()),
        ("a.mp4", (0, 20), ()),
        ("a.mp4", (20, 20), (False, True)),
    ],
)
def test_the_right_track(tmp_path, name, counts, default):
    path = tracks(tmp_path / name, counts, default)
    frames, times = decode_video(path)
    assert corners(frames[0]) == "rg bw" and times.tolist() == [0, 0.5, 1, 1.5]
    part = list(iter_video_frames(path, 2, first=2))
    assert np.array_equal([frame for frame, _ in part], frames[2:]) and [time for _, time in part] == [1, 1.5]
    live = LiveSource("a", lambda: decoding.open_container(path), 2, reconnect=False)
    assert corners(next(iter(live)).image) == "rg bw"
    if name == "a.mkv":  # an .mp4 has its index at the end
        assert np.array_equal(decode_video(Pipe(path))[0], frames)


def without(path: Path, source: Path, *numbers: int) -> Path:
    """A transport stream without the packets of some of its tracks, 0x100, 0x101, ... The first is no video there."""
    content = source.read_bytes()
    packets = [content[begin : begin + 188] for begin in range(0, len(content), 188)]
    path.write_bytes(b"".join(x for x in packets if ((x[1] & 31) << 8 | x[2]) not in numbers))
    return path


def test_an_announced_track_without_packets_is_not_chosen(tmp_path):
    path = without(tmp_path / "a.ts", tracks(tmp_path / "whole.ts", (0, 20, 20)), 0x101)
    for source in (path, Pipe(path)):
        frames, _ = decode_video(source)
        assert len(frames) == 4 and corners(frames[0]) == "rg bw"


def test_the_first_of_equal_tracks_and_a_picture_alone(tmp_path):
    assert len(decode_video(tracks(tmp_path / "a.mkv", (20, 20)))[0]) == 4
    assert decode_video(tmp_path / "a.mkv")[0][0].std() < 9  # grey
    frames, _ = decode_video(tracks(tmp_path / "b.mkv", (0, 1)))
    assert len(frames) == 1 and corners(frames[0]) == "rg bw"


@pytest.mark.parametrize("empty", [(0x101,), (0x101, 0x102)])
@pytest.mark.parametrize("fps", [None, 2.0])
def test_no_frame_at_all_is_an_error(tmp_path, empty, fps):
    path = without(tmp_path / "a.ts", tracks(tmp_path / "whole.ts", (0, 20, 20)[: 1 + len(empty)]), *empty)
    for source, name in ((path, r".*a\.ts"), (Pipe(path), "pipe")):
        with pytest.raises(ValueError, match=f"there is no frame in {name}"):
            list(iter_video_frames(source, fps))


# Formats -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.avif", "a.webp"])
@pytest.mark.parametrize("as_file", [False, True])
def test_animated_pictures_are_read_or_named(tmp_path, name, as_file):
    images = [Image.fromarray(np.full((32, 48, 3), 40 + 50 * number, np.uint8)) for number in range(4)]
    try:
        images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=500)
    except (KeyError, OSError):
        pytest.skip(f"this build of Pillow writes no {name[2:]}")
    with open(tmp_path / name, "rb") as file:
        source = file if as_file else tmp_path / name
        if name == "a.webp" and int(av.__version__.partition(".")[0]) < 19:
            with pytest.raises(ValueError, match=r"a\.webp is an animated WebP, which PyAV .* convert it, as by"):
                decode_video(source)
        else:
            frames, times = decode_video(source, fps=None)
            assert np.abs(frames[:, 16, 24, 0] - [40.0, 90, 140, 190]).max() <= 3 and times.tolist() == [
                0,
                0.5,
                1,
                1.5,
            ]


def test_one_webp_picture(tmp_path):
    Image.fromarray(four_corners(64, 96)).save(tmp_path / "a.webp")
    assert corners(decode_video(tmp_path / "a.webp")[0][0]) == "rg bw"


def test_dash_is_named(tmp_path):
    path = tmp_path / "a.mpd"
    path.write_text('<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>')
    with pytest.raises(
        ValueError, match=r"a\.mpd is a DASH manifest, which PyAV cannot read: .* `ffmpeg -i .*a\.mpd -c copy"
    ):
        decode_video(path)


# Processes --------------------------------------------------------------------------------------------------------


def test_frames_are_freed_in_a_forked_process(tmp_path):
    """As by a data loader's worker: its parent's threads are not there, and whoever waits for one does for ever."""
    path, held = tmp_path / "a.mp4", []
    write(path, [np.zeros((64, 96, 3), np.uint8)] * 2)
    with av.open(str(path)) as container:
        transform = decoding.DisplayTransform()
        transform.begin(container.streams.video[0])
        for frame in container.decode(video=0):
            transform(frame)
            held.append([frame, held])  # in a circle, which only a collection frees

    def free() -> None:
        held.clear()
        gc.collect()

    process = multiprocessing.get_context("fork").Process(target=free)
    process.start()
    process.join(60)
    hangs = process.is_alive()
    process.kill()
    assert not hangs and process.exitcode == 0
