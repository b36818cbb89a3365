"""Where the frames come from: a file, a URL, a camera, or standard input."""

import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..decoding_videollm_mod import iter_video_frames, video_duration

TIMEOUT = 8.0  # seconds in which a network source must answer
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}


@dataclass
class Source:
    """An opened video whose first frame has been decoded.

    Args:
        name (`str`): for messages.
        frames: iterator over `(uint8 [H, W, 3], seconds)`.
        duration (`float`, *optional*): seconds, as the container states it.
        live (`bool`): frames come as they happen.
    """

    name: str
    frames: Iterator[tuple[np.ndarray, float]]
    duration: float | None = None
    live: bool = False


def open_source(source: str, fps: float) -> Source:
    """Open a path, a URL, `webcam:N`, or `-`: any container that needs no seeking, such as what
    `ffmpeg -i FILE -f yuv4mpegpipe -` writes.

    Raises:
        `OSError`: if it cannot be reached or read.
        `ValueError`: if there is no video in it.
    """
    name, options, live, duration = source, {}, False, None
    camera = re.fullmatch(r"webcam:(\d+)", source)
    if camera:
        driver, device = CAMERAS.get(sys.platform, CAMERAS["linux"])
        source, options, live = device.format(camera[1]), {"format": driver}, True
    elif source.startswith("webcam:"):
        raise ValueError(f"a camera is `webcam:` and its number, as webcam:0, got {source}")
    elif source == "-":
        if sys.stdin is None:
            raise OSError("standard input is closed")
        source, name, live = sys.stdin.buffer, "standard input", True
    elif "://" in source:
        live = source.startswith(("rtsp", "rtmp", "udp", "srt"))
        options = {"timeout": TIMEOUT}
        if source.startswith("rtsp"):
            options["options"] = {"rtsp_transport": "tcp"}
    else:
        duration = video_duration(source)
    frames = iter_video_frames(source, fps, **options)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"there is no frame in {name}")
    return Source(name, itertools.chain([first], frames), duration, live)


__all__ = ["Source", "open_source"]
