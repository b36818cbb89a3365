"""From a video file, URL or camera to frames and their times."""

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import numpy as np

from .media_limits_videollm_mod import LIMITS, MediaLimits, check_index
from .upright_videollm_mod import MAX_PIXELS, Upright

DEFAULT_FPS = 2.0
HIGHEST_RATE = 1000.0  # frames per second that a container may state; with more its clock is not believed
CLOCK_JITTER = 1.0  # seconds by which timestamps may go back
CLOCK_JUMP = 10.0  # seconds from frame to frame that are a jump of the clock where the format says that it may
OLDEST_AV = 18  # of PyAV: those before read colours wrongly or lack what is needed
AHEAD = (250, 2**26)  # packets of a video stream, and bytes of all, in which to look for a better one
INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # containers in which a key frame can be found by its time
# groups: the scheme (also nested, or with one slash, as a `Path` has it), the rest, and its host, path and query
SCHEME = r"(?:[a-z][\w+.-]*:)+//|[a-z][\w+.-]+:/"
ADDRESS = re.compile(rf"({SCHEME})(([^/?#]*)([^?#]*)(.*))", re.IGNORECASE | re.DOTALL)


def shown(value: Any) -> str:
    """`repr` on one line of at most 80 characters, an address in it as `source_name` gives it, or cut off."""
    is_address = isinstance(value, str | os.PathLike) and ADDRESS.fullmatch(str(value))
    text = repr(source_name(value)) if is_address else re.sub(rf"((?i:{SCHEME})).*", r"\1…", repr(value))
    text = " ".join(text.split())
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


def pyav():
    """PyAV.

    Raises:
        `ImportError`: without it, or where it is too old.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("decoding a video needs PyAV: pip install av") from error
    if av_release(av) < OLDEST_AV:
        needed = f"decoding a video needs PyAV {OLDEST_AV} or newer, {av.__version__} is installed"
        raise ImportError(f"{needed}: pip install --upgrade av")
    return av


def av_release(av) -> int:
    return int(av.__version__.partition(".")[0])


def open_container(source, limits: MediaLimits = LIMITS, **options):
    """An `av` container and its video stream, for `iter_video_frames` and `video_duration`.

    Of several video streams it is the default one, else the first; a still picture, or a stream that is announced and
    does not come, only if there is no other. A file may name other files, as playlists do, but no address: those are
    opened for URLs only.

    Raises:
        `OSError`: if the source cannot be read.
        `ValueError`: if it holds no video, or more than the limits allow. A cover picture is none, nor is a text that
            could be drawn.
        `ImportError`: without PyAV, or with an old one.
    """
    av = pyav()
    if isinstance(source, str | os.PathLike):
        source = local_path(os.fspath(source))
    name, demuxer = source_name(source), {}
    if isinstance(source, str):
        if not options and "://" not in source:
            demuxer["protocol_whitelist"] = "file,crypto,data"
            if not os.path.exists(source):
                raise FileNotFoundError(f"there is no video {name}")
            source = os.path.abspath(source)  # FFmpeg takes what stands before a colon for a protocol
            if os.path.isdir(source):
                raise IsADirectoryError(f"{name} is a directory, not a video")
            if not os.path.getsize(source) and os.path.isfile(source):
                raise ValueError(f"{name} is empty")
    elif hasattr(source, "seekable") and source.seekable():
        source.seek(0)  # a file may be read before, as to count frames
    check_index(source, name, limits)
    demuxer |= {"max_pixels": str(limits.pixels), **options.pop("options", {})}  # while it is looked at
    if av_release(av) < 19:  # from then on names and tags of any encoding are read
        options["metadata_errors"] = "replace"
    try:
        with readable_errors(name):
            container = av.open(source, options=demuxer, **options)
    except ValueError as error:
        if is_manifest(source, name):
            advice = f"make one file of it, as by `ffmpeg -i {name} -c copy video.mp4`"
            raise ValueError(f"{name} is of DASH, which PyAV cannot read: {advice}") from error
        raise
    pictures = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams or container.format.name == "tty":
        container.close()
        raise ValueError(f"there is no video stream in {name}")
    streams = [stream for stream in streams if stream.codec_context is not None] or streams
    streams.sort(key=lambda stream: not stream.disposition & av.stream.Disposition.default)
    stream = streams[0]
    if len(streams) > 1:
        container = ReadAhead(container)
        with readable_errors(name):
            stream = container.moving(streams)
    if stream.codec_context is None:
        container.close()
        raise ValueError(f"cannot decode {name}: there is no decoder for its video")
    if stream.codec_context.name == "webp" and is_animated_webp(beginning(source)):
        container.close()
        advice = "take PyAV 19 (Python 3.12 or newer), or convert it, as by `magick a.webp a.gif`"
        raise ValueError(f"{name} is an animated WebP, which PyAV {av.__version__} cannot decode: {advice}")
    stream.codec_context.options = {"max_pixels": str(limits.pixels)}  # while it is decoded
    # frames in work, one a thread, are the largest part of the memory that a large video takes
    large = stream.width * stream.height > MAX_PIXELS
    stream.thread_type, stream.thread_count = ("NONE", 1) if large else ("AUTO", 0)
    return container, stream


def beginning(source) -> bytes:
    """The first bytes of a file; none of what cannot be sought."""
    if isinstance(source, str):
        if not os.path.isfile(source):
            return b""
        with open(source, "rb") as file:
            return file.read(2048)
    if not (hasattr(source, "seekable") and source.seekable()):
        return b""
    source.seek(0)
    content = source.read(2048)
    source.seek(0)
    return content


def is_animated_webp(content: bytes) -> bool:
    return content[8:16] == b"WEBPVP8X" and len(content) > 20 and bool(content[20] & 2)


def is_manifest(source, name: str) -> bool:
    """Whether a source is what lists the parts of a DASH stream, which only some builds of FFmpeg can read."""
    return b"<MPD" in beginning(source) or ("://" in name and re.split("[?#]", name)[0].lower().endswith(".mpd"))


class ReadAhead:
    """An `av` container that has been looked into: the packets that were read come once more, then the rest."""

    def __init__(self, container):
        self._container, self._packets = container, []

    def __getattr__(self, name: str):
        return getattr(self._container, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._container.close()

    def moving(self, streams: list):
        """The first of the streams that is more than one picture, as far as is seen within `AHEAD`; else one that is a
        picture, else the first."""
        seen, num_bytes = dict.fromkeys((stream.index for stream in streams), 0), 0
        for packet in self._container.demux():
            if not packet.size:  # that marks the end
                continue
            self._packets.append(packet)
            num_bytes += packet.size
            if packet.stream.index in seen:
                seen[packet.stream.index] += 1
            if seen[streams[0].index] == 2 or max(seen.values()) == AHEAD[0] or num_bytes > AHEAD[1]:
                break
        return next(stream for most in (2, 1, 0) for stream in streams if seen[stream.index] >= most)

    def demux(self, *streams):
        packets, self._packets = self._packets, []
        wanted = {stream.index for stream in streams or self._container.streams}
        yield from (packet for packet in packets if packet.stream.index in wanted)
        yield from self._container.demux(*streams)

    def decode(self, stream):
        for packet in self.demux(stream):
            yield from packet.decode()

    def seek(self, *arguments, **options) -> None:
        self._packets = []
        self._container.seek(*arguments, **options)


@contextmanager
def opened(container, stream) -> Iterator[None]:
    """Close them in the end, whatever is still being decoded: a decoder's thread that reports an error waits for the
    interpreter, which would wait for the thread."""
    try:
        yield
    finally:
        if stream.codec_context.is_open:
            stream.codec_context.flush_buffers()
        container.close()


@contextmanager
def readable_errors(name: str, doing: str = "decode") -> Iterator[None]:
    """Turn what FFmpeg says into an `OSError` or `ValueError` that names the file."""
    import av

    try:
        yield
    except av.FFmpegError as error:
        if "max pixel count" in str(error.log):
            raise ValueError(f"cannot {doing} {name}: its frames have too many pixels for `MediaLimits`") from error
        kind = OSError if isinstance(error, OSError) else ValueError
        cause = None if "://" in str(error.filename) else error  # it shows the whole address
        raise kind(f"cannot {doing} {name}: {error.strerror}") from cause


def source_name(source) -> str:
    """What to call a source: its path, or its file's name. Of an address only what holds no secret, as far as can be
    known: the host, and the last part of its path where that looks like the name of a file or is short and alone."""
    if not isinstance(source, str | os.PathLike):
        return str(getattr(source, "name", source))
    source = os.fspath(source)
    address = ADDRESS.fullmatch(source)
    if address is None:
        return source
    scheme, _, host, path, query = address.groups()
    if "@" in path or ("@" in query and ":" in host):
        return scheme + "…"  # a password with a slash or a question mark in it, or an @ in a path: nobody knows
    *folders, name = path.split("/")
    short = "" if scheme.lower().startswith("rtmp") else r"|[\w.-]{0,16}"  # there a name is a key
    if not re.fullmatch(r"[\w.%+-]+\.\w{1,5}" + ("" if len(folders) > 1 else short), name):
        name = "…"
    hidden = "…/" if len(folders) > 1 else ""
    return scheme + host.rpartition("@")[2] + ("/" + hidden + name if folders else "") + ("?…" if query else "")


def local_path(source: str) -> str:
    """The path that a `file://` address stands for; any other source as it is.

    Raises:
        `ValueError`: if it is of another machine.
    """
    from urllib.request import url2pathname  # slow to import

    address = re.fullmatch(r"file://([^/]*)(/?.*)", source, re.IGNORECASE | re.DOTALL)
    if address is None:
        return source
    if address[1].lower() not in ("", "localhost") or not address[2]:
        raise ValueError(f"a `file://` address must be `file:///` and a path of this machine, got {shown(source)}")
    return url2pathname(address[2])


def video_duration(source, **options) -> float | None:
    """Seconds that the container states for its video, or None where it does not, as in a recording that was never
    finished, or where FFmpeg makes them up, as of a transport stream. Raises as `open_container`."""
    container, stream = open_container(source, **options)
    with container:
        return stated_duration(container, stream)


def measured_duration(source, limits: MediaLimits = LIMITS, **options) -> float:
    """Seconds that a video lasts, by decoding all of it. Raises as `iter_video_frames`."""
    container, stream = open_container(source, limits, **options)
    name = source_name(source)
    with opened(container, stream), readable_errors(name):
        clock = FrameClock(container, stream, limits)
        for frame in decoded_frames(container, stream, name, limits):
            clock(frame)
        if clock.last is None:
            raise ValueError(f"there is no frame in {name}")
        return clock.end


def has_flag(container, *names: str) -> bool:
    """Whether FFmpeg has one of these flags, `av.format.Flags`, for the format of a container."""
    import av

    return any(container.format.flags & av.format.Flags[name].value for name in names)


def stated_duration(container, stream) -> float | None:
    """`video_duration` of what is open already."""
    fragments = container.format.name == INDEXED[0] and not stream.frames  # of which FFmpeg adds up the first
    if fragments or has_flag(container, "ts_discont", "no_timestamps"):
        return None
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    start = float((stream.start_time or 0) * stream.time_base)  # what follows are times of the end
    tag = re.fullmatch(r"(\d{1,9}):(\d{1,9}):(\d{1,9}(?:\.\d+)?)", stream.metadata.get("DURATION", ""))  # of Matroska
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]) - start
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / 1e6 - start
    return None


def iter_video_frames(
    source, fps: float | None = DEFAULT_FPS, first: int = 0, limits: MediaLimits = LIMITS, **options
) -> Iterator[tuple[np.ndarray, float]]:
    """Decode a video as a stream: for i = first, first + 1, ... the frame on screen `i / fps` seconds after its start.

    Timestamps decide, so any frame rate will do, a variable one too: a frame that stays on screen is repeated; see
    `FrameClock` for those that cannot be right. Frames are turned, mirrored and scaled to square pixels as their
    metadata say. One frame is held at a time, and a frame of more than `MAX_PIXELS` is scaled down to that, aspect
    kept.

    Args:
        source (`str`, `os.PathLike` or binary file object): path, URL or file.
        fps (`float`, *optional*): frames per second; `None` gives every frame at its own time.
        first (`int`): number of the first frame at that rate. What lies before is skipped where the container allows
            it; the frames are the same as if it were decoded.
        limits (`MediaLimits`): what the source may ask for.
        options: passed to `av.open`, such as `format="v4l2"` for a camera.

    Yields:
        `(uint8 [H, W, 3], seconds)`; all frames have the size of the first.

    Raises:
        `OSError`: if the source cannot be read.
        `ValueError`: if it holds no video that can be decoded or passes a limit, or `fps` is not a finite number > 0.
        `ImportError`: without PyAV.
    """
    if fps is not None:
        check_fps("`fps`", fps)
        check_count("`first`", first, minimum=0)
    container, stream = open_container(source, limits, **options)
    name, origin = source_name(source), None
    if fps is not None and first:
        with readable_errors(name):
            origin = seek(container, stream, first / fps)
        if origin is None:  # from the beginning again
            with opened(container, stream):
                pass
            container, stream = open_container(source, limits, **options)
    yield from sample_container(container, stream, fps, name, limits, first, origin)


def seek(container, stream, seconds: float) -> tuple[float, Upright] | None:
    """Go to the last key frame that is shown `seconds` after a video's first frame or before.

    Returns:
        The time stamp of the first frame in seconds, and an `Upright` that has seen it; None if the frames from there
        on might differ from those that are decoded from the beginning.
    """
    import av

    if container.format.name not in INDEXED:
        return None
    upright = Upright()
    upright.begin(stream)
    try:
        head = next(container.decode(stream), None)
        if head is None or head.pts is None:
            return None
        upright.see(head)
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
    return float(head.pts * head.time_base), upright


def sample_container(
    container,
    stream,
    fps: float | None,
    name: str,
    limits: MediaLimits = LIMITS,
    first: int = 0,
    origin: tuple[float, Upright] | None = None,
) -> Iterator[tuple[np.ndarray, float]]:
    """`iter_video_frames` of what is open already, and maybe sought; it is closed in the end."""
    with opened(container, stream), readable_errors(name):
        frames = _sample_frames(container, stream, fps, name, limits, first, origin)
        for index, frame in enumerate(frames):
            if index >= limits.frames:
                at = "" if fps is None else f" at {fps:g} frames per second"
                raise ValueError(f"{name} holds more than {limits.frames} frames{at}, the most that are taken")
            yield frame


def decoded_frames(container, stream, name: str, limits: MediaLimits = LIMITS) -> Iterator:
    """The `av.VideoFrame`s of a stream.

    Raises:
        `ValueError`: where packets come that hold none, on and on.
    """
    own = others = 0
    for packet in container.demux():
        if packet.stream.index == stream.index:
            own += 1
            if not packet.size and packet.dts is not None:  # the frame before stays on screen
                continue
            for frame in packet.decode():
                yield frame
                own = others = 0
        else:
            others += 1
        if own > limits.packets or others > 100 * limits.packets:
            raise ValueError(f"{name} holds {own + others} packets without a frame, more than are taken")


def frame_seconds(frame, stream) -> float | None:
    """The timestamp of an `av.VideoFrame`, None if it has none."""
    time_base = frame.time_base or stream.time_base
    return None if frame.pts is None or not time_base else float(frame.pts * time_base)


def usual_step(stream, limits: MediaLimits = LIMITS) -> float:
    """Seconds from frame to frame as the container states them, if that can be believed."""
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    return 1 / rate if 1 / limits.hold <= rate <= HIGHEST_RATE else 1 / 25


class FrameClock:
    """Seconds from a video's first frame on for each of its frames, never going back.

    A missing timestamp continues at the average rate, and so does one that goes back by more than a second or jumps by
    more than an hour (in transport streams and the like by 10 seconds), as where recordings were joined: what follows
    goes by the clock that was set anew.

    Args:
        begin (`float`, *optional*): the time stamp of the first frame, where that is not the first one to come.
    """

    def __init__(self, container, stream, limits: MediaLimits = LIMITS, begin: float | None = None):
        self._stream, self._begin, self._sought = stream, begin, begin is not None
        self.step, self.time, self.last = usual_step(stream, limits), 0.0, None
        self._hold = limits.hold  # what is longer between two frames is a jump
        self._jump = min(limits.hold, CLOCK_JUMP) if has_flag(container, "ts_discont") else limits.hold

    def __call__(self, frame) -> float:
        seconds, is_first = frame_seconds(frame, self._stream), self.last is None
        self.last = frame
        if is_first:
            if self._sought:
                self.time = seconds - self._begin
        elif seconds is None or self._begin is None:
            self.time += self.step
        elif -CLOCK_JITTER <= seconds - self._begin - self.time <= self._jump:
            self.time = max(self.time, seconds - self._begin)
        else:
            self.time += self.step
            self._begin = seconds - self.time
        if self._begin is None and seconds is not None:
            self._begin = seconds - self.time
        return self.time

    @property
    def end(self) -> float:
        """When the last frame leaves the screen."""
        lasts = float(self.last.duration * (self.last.time_base or 0)) if self.last.duration else self.step
        return self.time + (lasts if lasts <= self._hold else self.step)


def _sample_frames(
    container,
    stream,
    fps: float | None,
    name: str,
    limits: MediaLimits,
    first: int,
    origin: tuple[float, Upright] | None,
) -> Iterator[tuple[np.ndarray, float]]:
    begin, upright = (None, Upright()) if origin is None else origin
    if origin is None:
        upright.begin(stream)
    clock = FrameClock(container, stream, limits, begin)
    tolerance = 5e-4  # some containers round timestamps to milliseconds
    frame, index = None, 0 if origin is None else first
    for next_frame in decoded_frames(container, stream, name, limits):
        time = clock(next_frame)
        while fps is not None and frame is not None and index / fps < time - tolerance:
            if index >= first:
                yield upright(frame), index / fps
            index += 1
        frame = next_frame
        if fps is None:
            yield upright(frame), time
    if frame is None and origin is None:
        raise ValueError(f"there is no frame in {name}")
    if fps is not None and frame is not None:
        while index == 0 or index / fps < clock.end - tolerance:
            if index >= first:
                yield upright(frame), index / fps
            index += 1


def decode_video(
    source, fps: float | None = DEFAULT_FPS, num_frames: int | None = None, limits: MediaLimits = LIMITS
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
        fps, total = None, sum(1 for _ in iter_video_frames(source, None, limits=limits))
        if not 1 <= num_frames <= total:
            raise ValueError(f"`num_frames` must be in [1, {total}], the frames of {shown(source)}, got {num_frames}")
        wanted = {index * total // num_frames for index in range(num_frames)}
    sampled, num_bytes = [], 0
    for index, frame in enumerate(iter_video_frames(source, fps, limits=limits)):
        if wanted is None or index in wanted:
            sampled.append(frame)
            num_bytes += frame[0].nbytes
            if num_bytes > limits.num_bytes:
                size = f"{limits.num_bytes / 2**30:g} GiB"
                raise ValueError(f"the frames of {shown(source)} take more than {size}; take fewer of them")
    images, times = zip(*sampled, strict=True)
    return np.stack(images), np.array(times)


__all__ = ["decode_video", "iter_video_frames", "measured_duration", "video_duration"]
