"""Malicious videos: each is refused or read within limits, before much memory is allocated."""

import io
import json
import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from fresh_process import ROOT
from video_files import moving, write_sound, write_video
from waiting import PATIENCE

from videollm_mod.containers import LIMITS, MediaLimits, check_index, video_duration
from videollm_mod.data.jsonl import validate
from videollm_mod.decoding import decode_video, iter_video_frames

READ = """
import resource, sys
from videollm_mod.containers import video_duration
from videollm_mod.decoding import iter_video_frames
import av
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    video_duration(sys.argv[1])
    for _ in iter_video_frames(sys.argv[1]): pass
    print("read")
except ValueError as error:
    print("refused:", error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def read_apart(path: Path) -> tuple[str, float]:
    """The outcome of reading a file in a new process, and the additional memory it used, in MiB."""
    done = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, timeout=PATIENCE)
    outcome, kilobytes = done.stdout.strip().splitlines()
    return outcome, int(kilobytes) / 1024


def bomb_png(path: Path, width: int, height: int) -> Path:
    """A valid image of black pixels with a thousandth of their bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, rows = zlib.compressobj(9), []
    for _ in range(height):
        rows.append(packer.compress(bytes(1 + (width + 7) // 8)))
    rows.append(packer.flush())
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", b"".join(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def altered(path: Path, tag: bytes, offset: int, *values: int) -> Path:
    """An MP4 with changed 32-bit numbers at an offset in the first box of a kind."""
    content = bytearray(path.read_bytes())
    struct.pack_into(f">{len(values)}I", content, content.index(tag) + 4 + offset, *values)
    path.write_bytes(content)
    return path


@pytest.fixture
def clip(tmp_path) -> Path:
    return write_video(tmp_path / "a.mp4", moving(8, 48, 64), "mjpeg")


def test_huge_frames_are_refused_before_decoding(tmp_path):
    outcome, megabytes = read_apart(bomb_png(tmp_path / "a.png", 20_000, 20_000))
    assert outcome.startswith("refused: cannot decode") and megabytes < 60


def test_pixel_limit_can_be_set(clip):
    assert len(list(iter_video_frames(clip))) == 2
    with pytest.raises(ValueError, match="cannot decode"):
        list(iter_video_frames(clip, limits=MediaLimits(pixels=48 * 64 - 1)))


@pytest.mark.parametrize("size", [(1, 40_000), (40_000, 1)])
def test_thin_frames_are_scaled_down(tmp_path, size):
    (frame,) = [frame for frame, _ in iter_video_frames(bomb_png(tmp_path / "a.png", *size))]
    assert frame.size <= 3 * 4096 * 2304


def test_index_with_more_samples_than_bytes_is_refused(clip):
    content = clip.read_bytes()
    altered(clip, b"stsz", 4, 1, 30_000_000)
    altered(clip, b"stsc", 8, 1, 30_000_000, 1)
    outcome, megabytes = read_apart(clip)
    assert "lists 30000000 samples in" in outcome and megabytes < 60  # otherwise gigabytes
    with pytest.raises(ValueError, match="damaged or malicious"):
        decode_video(io.BytesIO(clip.read_bytes()))
    clip.write_bytes(content)
    check_index(clip, "clip")
    with pytest.raises(ValueError, match="lists 8 samples"):
        check_index(clip, "clip", MediaLimits(samples=7))


def test_index_with_too_many_fragments_is_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving(8, 48, 64), "libx264", movflags="frag_keyframe+empty_moov")
    check_index(path, "clip")
    altered(path, b"trun", 4, 2**31)
    with pytest.raises(ValueError, match="lists 2147483648 samples"):
        check_index(path, "clip")


def test_partial_recordings_and_pcm_audio_pass_the_index_check(tmp_path, clip):
    with av.open(str(tmp_path / "pcm.mov"), "w") as container:
        sound = container.add_stream("pcm_s16le", rate=48000)
        for _ in range(100):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.int16), format="s16", layout="stereo")
            frame.sample_rate = 48000
            container.mux(sound.encode(frame))
    content = (tmp_path / "pcm.mov").read_bytes()
    for path in (tmp_path / "pcm.mov", write_sound(tmp_path / "sound.mp4", cover=True), clip):
        check_index(path, "whole")
    content = content[:-2000] if content.index(b"moov") < len(content) // 2 else content[-2000:]
    check_index(io.BytesIO(content), "a part")


@pytest.mark.parametrize(
    "loop", [b"\0\0\0\x08moov", b"\0\0\0\x08trak" * 500, b"\0\0\0\1moov" + b"\0" * 8, b"\0\0\0\0"]
)
def test_deeply_nested_boxes_terminate(loop):
    check_index(io.BytesIO(loop * 200), "boxes")
    nested = b""
    for _ in range(2000):
        nested = struct.pack(">I", len(nested) + 8) + b"trak" + nested
    check_index(io.BytesIO(nested), "nested")


def test_packets_without_frames_terminate(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(moving(1, 48, 64)[0], format="rgb24")
        (packet, *_) = [*stream.encode(frame), *stream.encode()]
        for index in range(400):
            empty = av.Packet(b"\0\0\0\1\x0c\xff") if index else packet  # a NAL unit of filler
            empty.stream, empty.pts, empty.dts, empty.time_base = stream, index, index, Fraction(1, 25)
            container.mux(empty)
    with pytest.raises(ValueError, match="cannot decode|packets without a frame"):
        list(iter_video_frames(path, limits=MediaLimits(packets=100)))


def test_frames_beyond_the_limit_are_refused(clip):
    frames = iter_video_frames(clip, 1000, limits=MediaLimits(frames=5))
    assert [time for _, time in (next(frames) for _ in range(5))] == [0, 0.001, 0.002, 0.003, 0.004]
    with pytest.raises(ValueError, match="holds more than 5 frames at 1000 frames per second"):
        next(frames)
    with pytest.raises(ValueError, match="take more than 9.31323e-07 GiB; take fewer"):
        decode_video(clip, limits=MediaLimits(num_bytes=1000))


@pytest.mark.parametrize("hours", [0.9, 50, 20_000])
def test_frame_has_a_maximum_duration(tmp_path, hours):
    """Frames are repeated for at most an hour, however far apart timestamps are."""
    times = [index / 10 for index in range(8)] + [hours * 3600 + index / 10 for index in range(8)]
    path = write_video(tmp_path / "a.mkv", moving(16, 16, 16), "mjpeg", times=times)
    assert sum(1 for _ in iter_video_frames(path, 0.1)) <= 1 + hours * 360
    assert sum(1 for _ in iter_video_frames(path, 0.1)) <= 361


def test_absurd_rates_and_durations_are_handled(clip):
    altered(clip, b"stts", 8, 2**31 - 1)  # ticks per frame
    for box in (b"mdhd", b"mvhd"):
        altered(clip, box, 12, 1, 2**31)  # ticks per second, and the duration
    assert video_duration(clip) is not None
    assert sum(1 for _ in iter_video_frames(clip, 0.1)) <= 8 * 0.1 * LIMITS.hold
    path = write_video(clip.with_name("a.mkv"), moving(3, 16, 16), "mjpeg")
    path.write_bytes(path.read_bytes().replace(b"00:00:0", b"99999999999:0"[:7]))
    assert video_duration(path) is None or video_duration(path) >= 0


MATRICES = [[0] * 9, [2**31 - 1] * 9, [2**31] * 9, [0x10000, 0x10000, 0, 0x10000, 0x10000, 0, 0, 0, 2**30]]


@pytest.mark.parametrize("matrix", MATRICES)
def test_degenerate_rotation_matrices_are_ignored(clip, matrix):
    altered(clip, b"tkhd", 40, *matrix)
    assert len(list(iter_video_frames(clip))) == 2


def test_file_cannot_open_urls(tmp_path):
    """Otherwise a playlist with a video's name could make this machine connect to others."""
    import socket
    import threading

    called = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def wait():
            try:
                server.accept()[0].close()
                called.set()
            except OSError:  # shut down without a connection
                pass

        thread = threading.Thread(target=wait)
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        for name, content in {
            "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{address}\n#EXT-X-ENDLIST\n",
            "a.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{address}\n#EXT-X-ENDLIST\n",
            "a.ffconcat": f"ffconcat version 1.0\nfile {address}\n",
        }.items():
            (tmp_path / name).write_text(content)
            with pytest.raises((ValueError, OSError)):
                list(iter_video_frames(tmp_path / name))
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert not called.is_set()


def test_long_jsonl_lines_and_texts_are_faults(tmp_path, monkeypatch):
    from videollm_mod.data import jsonl

    path = tmp_path / "a.jsonl"
    turn = {"time": 0, "role": "assistant", "content": "a" * 2**20}
    path.write_text(json.dumps({"video": "a.mp4", "turns": [turn]}) + "\n")
    (fault,) = validate(path, media=False)
    assert str(fault) == "1: turns[0].content: it has 1048576 characters; at most 20000"
    monkeypatch.setattr(jsonl, "MAX_LINE", 1000)
    (fault,) = validate(path, media=False)
    assert str(fault) == "1: line: it has more than 1000 bytes; one JSON object on one line"


def test_closing_while_threads_decode_terminates(tmp_path):
    """Decoder threads that report an error used to deadlock with the interpreter."""
    code = (
        "import av, sys; av.logging.set_level(av.logging.PANIC)\n"
        "from videollm_mod.decoding import iter_video_frames\n"
        "for _ in range(8):\n    frames = iter_video_frames(sys.argv[1], None)\n    next(frames)\n    frames.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, ROOT / "media" / "cup.mp4"], timeout=PATIENCE)
    assert done.returncode == 0


def test_documented_limits_are_the_real_ones():
    said = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for name, value in vars(LIMITS).items():
        assert f"`{name}`" in said, name
        assert f"{value:,.0f}" in said or str(value) in said, name
