"""The video processor: frames of any kind and size, and the decoding of files and streams."""

import io
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_processing import PROCESSORS, N, noise

from videollm_mod import video_processing_videollm_mod
from videollm_mod.decoding import decode_video, iter_video_frames
from videollm_mod.video_processing_videollm_mod import VideoLLMMoDVideoProcessor


def pixels(videos, size=(8, 8), **options) -> torch.Tensor:
    size = {"height": size[0], "width": size[1]} if isinstance(size, tuple) else size
    return VideoLLMMoDVideoProcessor(size=size)(videos, return_tensors="pt", **options)["pixel_values_videos"]


@pytest.mark.parametrize("height, width", [(1, 1), (3, 1), (1, 3), (5, 7), (20, 9), (8, 8)])
def test_all_kinds_of_frames_are_the_same(height, width):
    frames = noise(4, height, width, 3)
    expected = pixels(frames)
    assert expected.shape == (4, 3, 8, 8) and expected.dtype == torch.float32
    first = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))
    for same in (
        torch.from_numpy(frames),
        torch.from_numpy(first).movedim(1, -1),
        [Image.fromarray(frame) for frame in frames],
        list(frames),
        [[frames[:1], frames[1:]], []],
        [frame[None] for frame in frames],
        frames.astype(np.int64),
        frames[::-1].copy()[::-1],
        np.frombuffer(frames.tobytes(), np.uint8).reshape(frames.shape),
    ):
        assert torch.equal(pixels(same), expected)
    assert torch.equal(pixels(first, input_data_format="channels_first"), expected)
    if width != 3:  # [F, 3, H, 3] is taken as channels-last
        assert torch.equal(pixels(first), expected)
    for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-5), (np.float16, 1e-2)):
        torch.testing.assert_close(pixels((frames / 255).astype(dtype)), expected, rtol=0, atol=tolerance)


def test_many_frames_are_the_same_as_one_by_one():
    frames = noise(37, 11, 6, 3)
    one_by_one = torch.cat([pixels(frame[None]) for frame in frames])
    torch.testing.assert_close(pixels(frames), one_by_one, rtol=0, atol=1e-5)  # of values up to 1


def test_letterbox():
    def white(height, width, **options):
        return pixels(np.full((1, height, width, 3), 255, np.uint8), **options)[0, 0] > 0.99

    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    assert torch.equal(white(10, 40, size=(16, 16)), (rows >= 6) & (rows < 10))
    assert torch.equal(white(40, 20, size=(16, 16)), (columns >= 4) & (columns < 12))
    assert white(40, 10, size=(16, 32)).sum() == 16 * 4
    assert white(1, 1000).sum() == 8
    assert white(10, 40, do_pad=False).all()


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("size", [(9, 13), (60, 50)])
def test_resizing_agrees_with_pil(resample, size):
    frame = np.array(Image.fromarray(noise(6, 8, 3)).resize((40, 30), 3))
    ours = pixels(frame[None], size=size, resample=resample, do_pad=False, do_normalize=False)[0] * 255
    theirs = np.array(Image.fromarray(frame).resize((size[1], size[0]), resample)).transpose(2, 0, 1)
    assert np.abs(ours.numpy() - theirs).max() < 1.5  # PIL rounds twice


def test_rescaling_and_normalising_can_be_changed():
    frames = noise(2, 8, 8, 3)
    raw = torch.from_numpy(frames).movedim(-1, 1).float()
    assert torch.equal(pixels(frames, do_rescale=False, do_normalize=False), raw)
    torch.testing.assert_close(pixels(frames, do_normalize=False), raw / 255)
    changed = pixels(frames, image_mean=[0.1, 0.2, 0.3], image_std=0.5)
    torch.testing.assert_close(changed, (raw / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.5)
    assert pixels(frames * 1000.0 - 5, do_rescale=False).max() > 1000
    assert pixels(noise(2, 5, 6, 3), do_resize=False).shape == (2, 3, 5, 6)


@pytest.mark.parametrize(
    "frames, options, error",
    [
        (np.zeros((0, 4, 4, 3), np.uint8), {}, r"not empty, got the shape \[0, 4, 4, 3\]"),
        (np.zeros((2, 0, 4, 3), np.uint8), {}, r"\[2, 0, 4, 3\]"),
        (np.zeros((2, 4, 4, 4), np.uint8), {}, r"\[2, 4, 4, 4\]"),
        (np.zeros((4, 4, 3), np.uint8), {}, r"\[4, 4, 3\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), {"input_data_format": "channels_first"}, "must be channels_first"),
        (np.full((1, 2, 2, 3), np.nan), {}, "finite"),
        (np.full((1, 2, 2, 3), np.inf), {"do_rescale": False}, "finite"),
        (np.full((1, 2, 2, 3), 200.0), {}, r"in \[0, 1\], got values from 200.0 to 200.0"),
        (np.full((1, 2, 2, 3), -1), {}, r"in \[0, 255\], got values from -1.0"),
        (np.full((1, 2, 2, 3), "a"), {}, "a video must be"),
        ([], {}, "empty"),
        ([[]], {}, "empty"),
        (3, {}, "`videos` must be .* got 3"),
        ([Image.new("RGB", (3, 3)), Image.new("RGB", (4, 3))], {}, "one shape"),
        ([noise(1, 4, 4, 3), noise(1, 5, 4, 3)], {"do_resize": False}, "different sizes"),
        (noise(1, 4, 4, 3), {"resample": 0}, "`resample` must be one of"),
        (noise(1, 4, 4, 3), {"size": {"shortest_edge": 4}}, "`size` must be"),
        (noise(1, 4, 4, 3), {"do_center_crop": True}, "`crop_size` must be"),
    ],
)
def test_bad_frames(frames, options, error):
    with pytest.raises(ValueError, match=error):
        pixels(frames, **options)


def encode(path, times, size=(6, 4), codec="png", rotation=0, frame=None, rate=10, container=None) -> str:
    """Write frames shown from `times` (ms); frame i is of the grey level 10 i, or `frame`."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = {"png": "rgb24", "ffv1": "bgr0", "libx264": "yuv420p"}[codec]
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for index, time in enumerate(times):
            image = np.full((size[1], size[0], 3), 10 * index, np.uint8) if frame is None else frame
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts, picture.time_base = time, Fraction(1, 1000)
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    return str(path)


def shown_at(path, fps) -> tuple[list, list]:
    frames, times = decode_video(path, fps)
    assert frames.dtype == np.uint8 and times.dtype == np.float64
    return (frames[:, 0, 0, 0] // 10).tolist(), times.tolist()


def test_sampling_by_time(tmp_path):
    path = encode(tmp_path / "steady.mov", range(0, 1000, 100))
    assert shown_at(path, 2) == ([0, 5], [0, 0.5])
    assert shown_at(path, 10)[0] == list(range(10))
    assert shown_at(path, 20)[0] == [i // 2 for i in range(20)]
    assert shown_at(path, 0.1) == ([0], [0])
    assert shown_at(path, None)[0] == list(range(10))
    assert (decode_video(path, num_frames=4)[0][:, 0, 0, 0] // 10).tolist() == [0, 2, 5, 7]


def test_sampling_a_variable_frame_rate_that_starts_late(tmp_path):
    path = encode(tmp_path / "variable.mkv", [5000, 5100, 5150, 6000, 6010, 8000], codec="ffv1")
    assert shown_at(path, 1) == ([0, 3, 4, 5], [0, 1, 2, 3])
    assert shown_at(path, 2)[0] == [0, 2, 3, 4, 4, 4, 5]
    frames, times = shown_at(path, None)
    assert frames == list(range(6))
    assert times == pytest.approx([0, 0.1, 0.15, 1, 1.01, 3])


@settings(max_examples=15)
@given(gaps=st.lists(st.integers(20, 700), min_size=1, max_size=8), fps=st.sampled_from([0.7, 1, 2, 3.3, 12.5]))
def test_sampling_shows_the_last_frame_that_has_begun(tmp_path_factory, gaps, fps):
    begins = np.concatenate([[0], np.cumsum(gaps)]).tolist()
    path = encode(tmp_path_factory.mktemp("video") / "x.mkv", begins, size=(2, 2), codec="ffv1")
    frames, times = shown_at(path, fps)
    assert times == pytest.approx([i / fps for i in range(len(times))])
    assert frames == [max(i for i, begin in enumerate(begins) if begin <= 1000 * t + 0.5) for t in times]
    assert times[-1] <= begins[-1] / 1000 + 0.1 and times[-1] + 1 / fps > begins[-1] / 1000


def test_missing_timestamps(tmp_path):
    path = encode(tmp_path / "raw.h264", range(0, 2000, 100), size=(16, 16), codec="libx264", container="h264")
    frames, times = decode_video(path, None)
    assert len(frames) == 20
    assert np.ptp(np.diff(times)) < 1e-9 and np.diff(times)[0] > 0


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 3), (5, 7)])
def test_odd_sizes(tmp_path, size):
    path = encode(tmp_path / "odd.mov", range(0, 1000, 100), size=size)
    frames, _ = decode_video(path)
    assert frames.shape == (2, size[1], size[0], 3)
    assert pixels(path).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("clockwise", [0, 90, 180, 270])
def test_rotation_metadata(tmp_path, clockwise):
    image = noise(4, 6, 3)
    path = encode(tmp_path / "turned.mov", [0], frame=image, rotation=-clockwise if clockwise < 270 else 90)
    frames, _ = decode_video(path)
    assert np.array_equal(frames[0], np.rot90(image, -clockwise // 90))


def test_files_and_streams(tmp_path):
    path = encode(tmp_path / "x.mov", range(0, 1000, 100))
    expected, _ = decode_video(path)
    with open(path, "rb") as file:
        for _ in range(2):
            assert np.array_equal(decode_video(file)[0], expected)
    assert np.array_equal(decode_video(io.BytesIO((tmp_path / "x.mov").read_bytes()))[0], expected)
    assert np.array_equal(decode_video(tmp_path / "x.mov")[0], expected)
    frame, time = next(iter_video_frames(path))
    assert np.array_equal(frame, expected[0]) and time == 0


def test_videos_that_cannot_be_decoded(tmp_path):
    import av

    (tmp_path / "text.mp4").write_text("no video")
    with av.open(str(tmp_path / "sound.wav"), "w") as file:
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        file.mux(file.add_stream("pcm_s16le", rate=8000).encode(sound))
    whole = encode(tmp_path / "whole.mov", range(0, 500, 100))
    (tmp_path / "cut.mov").write_bytes((tmp_path / "whole.mov").read_bytes()[:200])
    for source, kind in [
        (tmp_path / "nothing.mp4", FileNotFoundError),
        (tmp_path, IsADirectoryError),
        (tmp_path / "text.mp4", ValueError),
        (tmp_path / "sound.wav", ValueError),
        (tmp_path / "cut.mov", ValueError),
    ]:
        with pytest.raises(kind) as caught:
            decode_video(source)
        assert str(source) in str(caught.value) and "\n" not in str(caught.value)
    for fps in (0, -1, float("nan"), float("inf"), "2"):
        with pytest.raises(ValueError, match=f"`fps` must be a finite number > 0, got {fps!r}"):
            decode_video(whole, fps)
    with pytest.raises(ValueError, match=r"`num_frames` must be in \[1, 5\]"):
        decode_video(whole, num_frames=6)


def test_rate_of_a_path_in_a_conversation(tmp_path):
    path = encode(tmp_path / "x.mov", range(0, 1000, 100))
    processor = PROCESSORS["bytes"]

    def num_frames(block=None, **options):
        messages = [{"role": "stream", "content": [{"type": "video", "video": path, **(block or {})}]}]
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
        count = inputs["input_ids"][0].count(processor.video_token_id)
        assert count == N * len(inputs["pixel_values_videos"])
        return count // N

    assert num_frames() == 2
    assert num_frames({"fps": 5}) == num_frames(fps=5) == num_frames({"fps": 5}, fps=1) == 5
    assert num_frames(processor_kwargs={"num_frames": 3}) == 3
    assert num_frames(do_sample_frames=False) == 10
    frames = noise(7, 4, 4, 3)
    assert num_frames({"video": frames, "fps": 1}) == 7
    inputs = processor(text="[<v>]", videos=path, fps=5)
    assert np.shape(inputs["pixel_values_videos"])[0] == 5


@pytest.mark.parametrize("constant", ["of_channels", "resizing", "scale_and_shift"])
def test_constants_made_in_inference_mode_let_gradients_through(constant):
    function, thrice = getattr(video_processing_videollm_mod, constant), (0.5, 0.5, 0.5)
    arguments = {
        "of_channels": (thrice,),
        "resizing": (8, 4, (1, 2), "bilinear"),
        "scale_and_shift": (1, thrice, thrice),
    }
    arguments = arguments[constant]
    function.cache_clear()
    with torch.inference_mode():
        kept = function(*arguments, torch.device("cpu"))
    frames = torch.rand(2, 3, 8, 8, requires_grad=True)
    made = {
        "of_channels": lambda: frames / kept,
        "resizing": lambda: kept @ frames,
        "scale_and_shift": lambda: torch.addcmul(kept[1], frames, kept[0]),
    }
    made[constant]().sum().backward()
    assert frames.grad.isfinite().all() and kept is function(*arguments, torch.device("cpu"))
