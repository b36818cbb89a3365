"""From a video file, URL or camera to frames and their times."""

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import numpy as np

DEFAULT_FPS = 2.0
LONGEST_HOLD = 3600.0  # seconds that a frame may stay on screen
CLOCK_JITTER = 1.0  # seconds by which timestamps may go back
MAX_PIXELS = 4096 * 2304  # of a decoded frame: 4K cinema; models see far fewer
INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # containers in which a key frame can be found by its time


def shown(value: Any) -> str:
    """`repr` on one line of at most 80 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def check_count(name: str, value: Any, minimum: int = 1) -> None:
    """Raise `ValueError` unless `value` is a whole number >= `minimum`. `bool` is not a number here."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise ValueError(f"{name} must be a whole number >= {minimum}, got {shown(value)}")


def check_fps(name: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is a finite number > 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number > 0, got {shown(value)}")


def is_video_source(video: Any) -> bool:
    """Whether `video` is something to decode: a path, a URL or a binary file object."""
    return isinstance(video, str | os.PathLike) or hasattr(video, "read")


def open_container(source, **options):
    """An `av` container and its video stream, for `iter_video_frames` and `video_duration`.

    Raises:
        `OSError`: if the source can not be read.
        `ValueError`: if it holds no video. A cover picture is none, nor is a text that could be drawn.
        `ImportError`: without PyAV.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("decoding a video needs PyAV: pip install av") from error
    name = source_name(source)
    if isinstance(source, str | os.PathLike):
        source = name
        if not options and "://" not in name:
            source = os.path.abspath(name)  # FFmpeg takes what stands before a colon for a protocol
            if os.path.isdir(name):
                raise IsADirectoryError(f"{name} is a directory, not a video")
            if not os.path.exists(name):
                raise FileNotFoundError(f"there is no video {name}")
            if not os.path.getsize(name) and os.path.isfile(name):
                raise ValueError(f"{name} is empty")
    elif hasattr(source, "seekable") and source.seekable():
        source.seek(0)  # a file may be read before, as to count frames
    with readable_errors(name):
        container = av.open(source, metadata_errors="replace", **options)
    pictures = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams or container.format.name == "tty":
        container.close()
        raise ValueError(f"there is no video stream in {name}")
    streams[0].thread_type = "AUTO"
    return container, streams[0]


@contextmanager
def readable_errors(name: str, doing: str = "decode") -> Iterator[None]:
    """Turn what FFmpeg says into an `OSError` or `ValueError` that names the file."""
    import av

    try:
        yield
    except av.FFmpegError as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"can not {doing} {name}: {error.strerror}") from error


def source_name(source) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else str(getattr(source, "name", source))


def video_duration(source, **options) -> float | None:
    """Seconds that the container states for its video, or None where it does not, as in a stream or a recording that
    was never finished. Raises as `open_container`."""
    container, stream = open_container(source, **options)
    with container:
        if stream.duration is not None:
            return float(stream.duration * stream.time_base)
        start = float((stream.start_time or 0) * stream.time_base)  # what follows are times of the end
        tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))  # of Matroska
        if tag:
            return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]) - start
        if container.duration is not None and len(container.streams) == 1:
            return container.duration / 1e6 - start
    return None


def iter_video_frames(
    source, fps: float | None = DEFAULT_FPS, first: int = 0, **options
) -> Iterator[tuple[np.ndarray, float]]:
    """Decode a video as a stream: for i = first, first + 1, ... the frame on screen `i / fps` seconds after its start.

    Timestamps decide, so any frame rate will do, a variable one too: a frame that stays on screen is repeated. A
    missing timestamp continues at the average rate, and so do timestamps that jump by more than an hour or go back by
    more than a second. Rotation metadata is applied. One frame is held at a time, and a
    frame of more than `MAX_PIXELS` is scaled down to that, aspect kept.

    Args:
        source (`str`, `os.PathLike` or binary file object): path, URL or file.
        fps (`float`, *optional*): frames per second; `None` gives every frame at its own time.
        first (`int`): number of the first frame at that rate. What lies before is skipped where the container allows
            it; the frames are the same as if it were decoded.
        options: passed to `av.open`, such as `format="v4l2"` for a camera.

    Yields:
        `(uint8 [H, W, 3], seconds)`; all frames have the size of the first.

    Raises:
        `OSError`: if the source can not be read.
        `ValueError`: if it holds no video that can be decoded, or `fps` is not a finite number > 0.
        `ImportError`: without PyAV.
    """
    if fps is not None:
        check_fps("`fps`", fps)
        check_count("`first`", first, minimum=0)
    container, stream = open_container(source, **options)
    with readable_errors(source_name(source)):
        origin = seek(container, stream, first / fps) if fps is not None and first else None
        if origin is None and first:  # from the beginning again
            container.close()
            container, stream = open_container(source, **options)
        with container:
            yield from _sample_frames(container, stream, fps, first, origin)


def seek(container, stream, seconds: float) -> tuple[float, tuple[int, int]] | None:
    """Go to the last key frame that is shown `seconds` after a video's first frame or before.

    Returns:
        `(time stamp of the first frame in seconds, its width and height)`, or None if the frames from there on might
        differ from those that are decoded from the beginning.
    """
    import av

    if container.format.name not in INDEXED:
        return None
    try:
        head = next(container.decode(stream), None)
        if head is None or head.pts is None:
            return None
        wanted = head.pts + int(seconds / stream.time_base)
        for earlier in (0, 1, 4, 16):  # seconds: containers are sought by when frames are decoded, not shown
            target = max(head.pts, wanted - int(earlier / stream.time_base))
            container.seek(target, stream=stream)
            key = next(container.demux(stream)).pts
            if key is not None and key <= wanted:
                break
        else:
            return None
        container.seek(target, stream=stream)
        # frames that refer to what lies before the key frame come before it, and are not shown
        frame = next((frame for frame in container.decode(stream) if frame.pts is None or frame.pts >= key), None)
        if frame is None or frame.pts != key or not frame.key_frame or frame.is_corrupt:
            return None
        container.seek(target, stream=stream)
    except av.FFmpegError:
        return None
    return float(head.pts * head.time_base), (head.width, head.height)


def limited_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of at most `MAX_PIXELS` together."""
    scale = min(1.0, math.sqrt(MAX_PIXELS / (width * height)))
    return max(1, int(width * scale)), max(1, int(height * scale))


def _sample_frames(
    container, stream, fps: float | None, first: int, origin: tuple[float, tuple[int, int]] | None
) -> Iterator[tuple[np.ndarray, float]]:
    step = 1 / float(stream.average_rate or stream.guessed_rate or 25)
    tolerance = 5e-4  # some containers round timestamps to milliseconds
    first_seconds = frame = size = None
    time, index = 0.0, 0
    if origin is not None:
        first_seconds, size = origin[0], limited_size(*origin[1])
        index = first

    def image() -> np.ndarray:
        pixels = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
        return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))

    for next_frame in container.decode(stream):
        seconds = None if next_frame.pts is None else float(next_frame.pts * next_frame.time_base)
        if frame is None and origin is not None:
            time = seconds - first_seconds
        elif frame is None:
            size = limited_size(next_frame.width, next_frame.height)
        elif seconds is None or first_seconds is None:
            time += step
        elif -CLOCK_JITTER <= seconds - first_seconds - time <= LONGEST_HOLD:
            time = max(time, seconds - first_seconds)
        else:  # a clock that was set anew, as where recordings were joined
            time += step
            first_seconds = seconds - time
        if first_seconds is None and seconds is not None:
            first_seconds = seconds - time
        while fps is not None and frame is not None and index / fps < time - tolerance:
            if index >= first:
                yield image(), index / fps
            index += 1
        frame = next_frame
        if fps is None:
            yield image(), time
    if fps is not None and frame is not None:
        end = time + (float(frame.duration * frame.time_base) if frame.duration else step)
        while index == 0 or index / fps < end - tolerance:
            if index >= first:
                yield image(), index / fps
            index += 1


def decode_video(
    source, fps: float | None = DEFAULT_FPS, num_frames: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Frames of a video as from `iter_video_frames`, and their times. Only sampled frames are kept in memory.

    Args:
        num_frames (`int`, *optional*): instead of `fps`, this many frames evenly spread; they are counted first.

    Returns:
        `(uint8 [F, H, W, 3], float64 [F] seconds)`.

    Raises:
        as `iter_video_frames`; `ValueError` too for no frames at all or fewer than `num_frames`.
    """
    wanted = None
    if num_frames is not None:
        fps, total = None, sum(1 for _ in iter_video_frames(source, None))
        if not 1 <= num_frames <= total:
            raise ValueError(f"`num_frames` must be in [1, {total}], the frames of {shown(source)}, got {num_frames}")
        wanted = {index * total // num_frames for index in range(num_frames)}
    frames = iter_video_frames(source, fps)
    sampled = [frame for index, frame in enumerate(frames) if wanted is None or index in wanted]
    if not sampled:
        raise ValueError(f"there is no frame in {shown(source)}")
    images, times = zip(*sampled, strict=True)
    return np.stack(images), np.array(times)


__all__ = ["decode_video", "iter_video_frames", "video_duration"]
