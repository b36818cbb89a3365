"""Seeking to a part of a video gives the same frames as decoding from the beginning."""

import random
from fractions import Fraction
from itertools import islice

import av
import numpy as np
import pytest
from fresh_process import ROOT
from video_files import moving

from videollm_mod import decoding

KINDS = {
    # file name, codec, options, whether seeking works
    "x264": ("a.mp4", "libx264", {"g": "12", "bf": "3"}, True),
    "open groups": ("a.mp4", "libx264", {"g": "10", "bf": "3", "x264-params": "open-gop=1:b-pyramid=normal"}, True),
    "x265": ("a.mp4", "libx265", {"x265-params": "keyint=12:open-gop=1:bframes=4:log-level=none"}, True),
    "one key frame": ("a.mkv", "libx264", {"g": "9999"}, True),
    "vp9": ("a.webm", "libvpx-vp9", {"g": "15", "deadline": "realtime", "cpu-used": "8"}, True),
    "mpeg4": ("a.mov", "mpeg4", {"g": "8", "bf": "2"}, True),
    "no key frames": ("a.mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=20:bframes=0"}, None),
    "stream": ("a.ts", "libx264", {"g": "12", "bf": "3"}, False),
    "avi": ("a.avi", "mpeg4", {"g": "8"}, False),
}


def write(path, codec: str, options: dict, seed: int, variable: bool):
    """120 frames at 10 fps, or at given times, which do not start at 0."""
    rng, time = random.Random(seed), 5000 * variable
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 48, "yuv420p", options
        if variable:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, image in enumerate(moving(120, 48, 64, seed)):
            frame = av.VideoFrame.from_ndarray(np.roll(image, 7 * index, axis=1), format="rgb24")
            if variable:
                frame.pts, frame.time_base = time, Fraction(1, 1000)
                time += rng.choice([40, 100, 130, 900])
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


@pytest.mark.parametrize(
    ("kind", "variable"), [(k, v) for k in KINDS for v in (False, True) if not (v and KINDS[k][1] == "mpeg4")]
)
def test_seeking_gives_the_frames_of_a_full_decode(tmp_path, monkeypatch, kind, variable):
    name, codec, options, sought = KINDS[kind]
    path = write(tmp_path / name, codec, options, seed=len(kind), variable=variable)
    jumps, seek = [], decoding.seek
    monkeypatch.setattr(decoding, "seek", lambda *args: (jumps.append(seek(*args)), jumps[-1])[1])
    rng = random.Random(1)
    for fps in (2.0, 7.3, 10.0):
        whole = list(decoding.iter_video_frames(path, fps))
        assert not jumps
        for first in {1, len(whole) - 1, len(whole), *rng.sample(range(1, len(whole)), 6)}:
            part = list(islice(decoding.iter_video_frames(path, fps, first), 5))
            assert [time for _, time in part] == [time for _, time in whole[first : first + 5]]
            assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(part, whole[first:], strict=False)), first
        if sought is not None:
            assert {jump is not None for jump in jumps} == {sought}
        jumps.clear()


def test_seeking_does_not_decode_from_the_beginning(monkeypatch):
    path, jumps, seek = str(ROOT / "media" / "cup.mp4"), [], decoding.seek
    monkeypatch.setattr(decoding, "seek", lambda *args: (jumps.append(seek(*args)), jumps[-1])[1])
    whole = list(decoding.iter_video_frames(path, 2.0))
    for first in range(5, len(whole) + 1, 7):
        part = list(decoding.iter_video_frames(path, 2.0, first))
        assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(part, whole[first:], strict=True))
    assert len(jumps) > 1 and all(jumps)


def test_wrong_frame_numbers_give_a_clear_error():
    with pytest.raises(ValueError, match="`first` must be a whole number of at least 0, got -1"):
        next(decoding.iter_video_frames("x.mp4", 2.0, -1))
