"""Opens a source of frames: a file, a URL, a camera, or standard input."""

import itertools
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..containers import (
    LIMITS,
    MediaLimits,
    local_path,
    open_container,
    shown,
    source_name,
    stated_duration,
    video_duration,
)
from ..decoding import iter_video_frames, sample_container
from .http_body import HttpBody
from .live_source import LiveSource, is_recording

TIMEOUT = 8.0  # seconds within which a network source must answer
PROMPT = {"analyzeduration": "300000", "fflags": "nobuffer"}  # FFmpeg analyses 0.3 s before it gives frames
FILE_SERVERS = ("http://", "https://", "ftp://", "ftps://", "sftp://")
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}


@dataclass
class Source:
    """An opened video whose first frame has been decoded.

    Args:
        name (`str`): for messages.
        frames: iterator over `(uint8 [H, W, 3], seconds)`.
        duration (`float`, *optional*): seconds, as stated by the container.
        live (`LiveSource`, *optional*): a live source, which replaces `frames`.
        one_by_one (`bool`): frames come slowly and are not gathered into blocks.
    """

    name: str
    frames: Iterator[tuple[np.ndarray, float]]
    duration: float | None = None
    live: LiveSource | None = None
    one_by_one: bool = False


def open_source(source: str, fps: float, when_behind: str | None = None, limits: MediaLimits = LIMITS) -> Source:
    """Open a path, a URL, `webcam:N`, or `-` for standard input, which takes any container that needs no seeking, such
    as the output of `ffmpeg -i FILE -f yuv4mpegpipe -`.

    Cameras and network streams are live. So is a file on a web server that does not state its length, and standard
    input with `when_behind="drop"`; otherwise standard input waits for the model, as a file does.

    Args:
        when_behind (`str`, *optional*): `"drop"` or `"wait"`, see `LiveWatch`.
        limits (`MediaLimits`): limits of a recording.

    Raises:
        `OSError`: if the source cannot be reached or read.
        `ValueError`: if it holds no video, or if frames of a recording are to be dropped.
    """
    source = local_path(source)
    name, duration, live = source_name(source), None, None
    frames: Iterator[tuple[np.ndarray, float]] = iter(())
    if source == "-":
        if sys.stdin is None:
            raise OSError("standard input is closed")
        name = "standard input"
        if when_behind == "drop":
            live = LiveSource(name, lambda: open_container(sys.stdin.buffer), fps, reconnect=False)
            return Source(name, iter(()), live=live)
        frames = iter_video_frames(sys.stdin.buffer, fps, limits=replace(limits, frames=math.inf))
    elif of_server(source):
        container, stream = open_address(source, limits)
        if is_recording(container, stream):
            hls = container.format.name == "hls"  # a playlist, whose duration is the sum of its parts
            duration = container.duration / 1e6 if hls else stated_duration(container, stream)
            frames = sample_container(container, stream, fps, name, limits)
        else:
            container.close()
            live = open_live(source, fps)
    elif source.startswith("webcam:") or "://" in source:
        live = open_live(source, fps)
    else:
        duration = video_duration(source, limits=limits)
        frames = iter_video_frames(source, fps, limits=limits)
    if live is None and when_behind == "drop":
        raise ValueError(f"{name} is a recording; no frames of a recording are dropped")
    if live is not None:
        live.probe()  # it is opened again once the model is loaded
        return Source(name, iter(()), live=live)
    return Source(name, itertools.chain([next(frames)], frames), duration, one_by_one=source == "-")


def open_live(source: str, fps: float, reconnect: bool = True) -> LiveSource:
    """A `LiveSource` of a camera, `webcam:N`, or of the URL of a stream. It is opened when frames are taken from it.

    Raises:
        `ValueError`: if `source` is neither.
    """
    name = source_name(source)
    if source.startswith("webcam:"):
        camera = re.fullmatch(r"webcam:(\d{1,3})", source, re.ASCII)
        if camera is None:
            raise ValueError(f"a camera is `webcam:` and its number, as webcam:0, got {source}")
        driver, device = CAMERAS.get(sys.platform, CAMERAS["linux"])
        address = device.format(camera[1])
        return LiveSource(name, lambda: open_container(address, format=driver), fps, reconnect=reconnect)
    if "://" not in source:
        raise ValueError(f"a live source is `webcam:N` or a URL, got {shown(source)}")
    served = of_server(source)
    return LiveSource(name, lambda: open_address(source), fps, reconnect=reconnect, endless=not served, paced=served)


def of_server(source: str) -> bool:
    """Whether the address is that of a file server: its files may be recordings, and their end is the end."""
    return source.lower().startswith(FILE_SERVERS)


def open_address(source: str, limits: MediaLimits = LIMITS) -> tuple:
    """`open_container` for a URL."""
    container, stream = open_container(source, limits, **network_options(source))
    whole = (container.size or 0) > 0 or container.format.name in ("hls", "dash")
    if whole or not source.lower().startswith(("http://", "https://")):
        return container, stream
    container.close()
    try:
        body = HttpBody(source, TIMEOUT)
    except OSError:  # a login or certificate that only FFmpeg accepts
        return open_container(source, limits, **network_options(source))
    return open_container(body, limits)


def network_options(source: str) -> dict:
    """Options of `av.open` for a URL."""
    options = {}
    if source.startswith("rtsp"):
        options = {"rtsp_transport": "tcp", **PROMPT}
    elif source.lower().startswith(("http://", "https://")):
        options = {
            "reconnect": "1",
            "reconnect_delay_max": "4",
        }  # continue a download of known length that was cut off
    return {"timeout": TIMEOUT, "options": options}


__all__ = ["Source", "open_live", "open_source"]
