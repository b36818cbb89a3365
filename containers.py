"""Opening a video: the names of files and addresses, the choice of its stream, and limits of its size.

`MediaLimits` are checked before anything is decoded, so that a small file cannot use much memory or time.
"""

import io
import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

IGNORE_INDEX = -100  # label of a token that nothing learns to predict
MAX_PIXELS = 4096 * 2304  # of a decoded frame: 4K cinema; models see far fewer
OLDEST_AV = 18  # release of PyAV: older ones read colours wrongly or lack features
AHEAD = (250, 2**26)  # packets of a video stream, and bytes of all streams, that are read to choose a stream
INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # containers in which a key frame can be found by its time
# groups: the scheme (also nested, or with one slash, as in a `Path`), the rest, and its host, path and query
SCHEME = r"(?:[a-z][\w+.-]*:)+//|[a-z][\w+.-]+:/"
ADDRESS = re.compile(rf"({SCHEME})(([^/?#]*)([^?#]*)(.*))", re.IGNORECASE | re.DOTALL)


# boxes of an MP4 that contain other boxes
NESTED = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"edts", b"udta", b"mvex"}
MAX_DEPTH = 16


@dataclass(frozen=True)
class MediaLimits:
    """
    Limits of what is decoded. Pass other limits where your videos need them.

    Args:
        pixels (`int`): of a coded frame. FFmpeg refuses larger frames before it allocates them.
        frames (`float`): of one recording at the requested rate, including those that repeat the frame on screen.
        num_bytes (`int`): of all frames together, where a whole video becomes one array.
        packets (`int`): of video without a frame, or a hundred times as many of all streams.
        hold (`float`): seconds that a frame may stay on screen.
        samples (`int`): in the index of one track of an MP4.
    """

    pixels: int = 8192 * 8192
    frames: float = 2**22
    num_bytes: int = 8 * 2**30
    packets: int = 10_000
    hold: float = 3600.0
    samples: int = 2**23


LIMITS = MediaLimits()


def check_index(source, name: str, limits: MediaLimits = LIMITS) -> None:
    """Refuse an MP4 whose index claims more samples than the file has bytes: FFmpeg would allocate all of it.

    Args:
        source (path or binary file object): is not read if it cannot be sought.

    Raises:
        `ValueError`: naming the claim.
    """
    if isinstance(source, str | os.PathLike):
        if not os.path.isfile(source):
            return  # a device or a pipe
        with open(source, "rb") as file:
            _check_boxes(file, os.path.getsize(source), name, limits)
    elif hasattr(source, "seekable") and source.seekable():
        start = source.tell()
        size = source.seek(0, io.SEEK_END)
        source.seek(0)
        _check_boxes(source, size, name, limits)
        source.seek(start)


def _check_boxes(file, size: int, name: str, limits: MediaLimits) -> None:
    claimed, plain_sound = 0, False
    ends, position = [size], 0
    while True:
        while position + 8 > ends[-1]:  # the end of a box, and of its parents that end there too
            position = ends.pop()
            if not ends:
                return
        file.seek(position)
        header = file.read(48)
        if len(header) < 8:
            return
        length, tag = struct.unpack_from(">I4s", header)
        body = 8
        if length == 1 and len(header) >= 16:
            (length,), body = struct.unpack_from(">Q", header, 8), 16
        elif length == 0:
            length = ends[-1] - position
        if length < body or not all(32 <= byte < 127 or byte == 0xA9 for byte in tag):
            if len(ends) == 1:
                return
            position = ends[-1]  # FFmpeg skips the rest of a box that it cannot read
            continue
        values = header[body:]
        if tag == b"trak":
            plain_sound = False
        elif tag == b"stts" and len(values) >= 16:
            plain_sound = struct.unpack_from(">I4xI", values, 4) == (1, 1)  # uncompressed sound is indexed by chunks
        elif tag in (b"stsz", b"trun") and len(values) >= 12 and not plain_sound:
            (count,) = struct.unpack_from(">I", values, 8 if tag == b"stsz" else 4)
            claimed += count
            if claimed > size or count > limits.samples:
                raise ValueError(f"{name} lists {count} samples in {size} bytes: it is damaged or malicious")
        end = min(position + length, ends[-1])
        if tag in NESTED and len(ends) < MAX_DEPTH:
            ends.append(end)
            position += body
        else:
            position = end


def shown(value: Any) -> str:
    """`repr` on one line of at most 80 characters. An address in it is shown as by `source_name`, or cut off."""
    is_address = isinstance(value, str | os.PathLike) and ADDRESS.fullmatch(str(value))
    text = repr(source_name(value)) if is_address else re.sub(rf"((?i:{SCHEME})).*", r"\1…", repr(value))
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."


def is_whole(value: Any) -> bool:
    """Whether `value` is a whole number. `bool` is not a number here."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether `value` is a real number. `bool` is not a number here."""
    return isinstance(value, Real) and not isinstance(value, bool)


def plain_float(text: str) -> float:
    """`float` of plain digits: `float` itself also takes `1_0` and the digits of all scripts, which nobody means."""
    if "_" in text or not text.isascii():
        raise ValueError(f"could not convert string to float: {shown(text)}")
    return float(text)


def plain_int(text: str) -> int:
    """`int` of plain digits."""
    if "_" in text or not text.isascii():
        raise ValueError(f"invalid literal for int: {shown(text)}")
    return int(text)


def check_count(name: str, value: Any, minimum: int = 1) -> None:
    """Raise `ValueError` unless `value` is a whole number of at least `minimum`."""
    if not is_whole(value) or value < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, got {shown(value)}")


def check_fps(name: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is a finite number > 0."""
    if not is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number > 0, got {shown(value)}")


def check_finite(name: str, frames: Any) -> None:
    """Raise `ValueError` if a frame of a tensor `[F, ...]` holds nan or infinity, naming the first of these frames."""
    finite = frames.isfinite().flatten(1).all(1)
    if not finite.all():
        bad = (~finite).nonzero().flatten().tolist()
        raise ValueError(f"`{name}` must be finite, got nan or infinity in frames {bad[:10]} of {frames.shape[0]}")


def is_video_source(video: Any) -> bool:
    """Whether `video` has to be decoded: a path, a URL or a binary file object."""
    return isinstance(video, str | os.PathLike) or hasattr(video, "read")


def pyav():
    """The module `av`, imported.

    Raises:
        `ImportError`: without PyAV, or if it is too old.
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

    Of several video streams it takes the default one, else the first. A still picture, or a stream without packets, is
    taken only if there is no other. A file may refer to other files, as playlists do, but not to addresses; only a URL
    may refer to addresses.

    Raises:
        `OSError`: if the source cannot be read.
        `ValueError`: if it holds no video, or more than the limits allow. Cover pictures and text are no videos.
        `ImportError`: without PyAV, or if it is too old.
    """
    av = pyav()
    if isinstance(source, str | os.PathLike):
        source = local_path(os.fspath(source))
    name, demuxer = source_name(source), {}
    if isinstance(source, str):
        if not options and "://" not in source:
            demuxer["protocol_whitelist"] = "file,crypto,data"
            source = checked_file(source, name)
    elif hasattr(source, "seekable") and source.seekable():
        source.seek(0)  # the file may have been read before, such as to count frames
    check_index(source, name, limits)
    demuxer |= {"max_pixels": str(limits.pixels), **options.pop("options", {})}  # for probing
    if av_release(av) < 19:  # later releases read names and tags of any encoding
        options["metadata_errors"] = "replace"
    try:
        with readable_errors(name):
            container = av.open(source, options=demuxer, **options)
    except ValueError as error:
        if is_manifest(source, name):
            advice = f"make one file of it, as by `ffmpeg -i {name} -c copy video.mp4`"
            raise ValueError(f"{name} is a DASH manifest, which PyAV cannot read: {advice}") from error
        raise
    container, stream = choose_stream(av, container, name)
    if stream.codec_context.name == "webp" and is_animated_webp(beginning(source)):
        container.close()
        advice = "take PyAV 19 (Python 3.12 or newer), or convert it, as by `magick a.webp a.gif`"
        raise ValueError(f"{name} is an animated WebP, which PyAV {av.__version__} cannot decode: {advice}")
    stream.codec_context.options = {"max_pixels": str(limits.pixels)}  # for decoding
    # every thread decodes a frame of its own, and these use most of the memory of a large video
    large = stream.width * stream.height > MAX_PIXELS
    stream.thread_type, stream.thread_count = ("NONE", 1) if large else ("AUTO", 0)
    return container, stream


def checked_file(path: str, name: str) -> str:
    """The absolute path of a video file. Raises an error if there is none, or it is a directory or empty."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no video {name}")
    path = os.path.abspath(path)  # FFmpeg takes what stands before a colon for a protocol
    if os.path.isdir(path):
        raise IsADirectoryError(f"{name} is a directory, not a video")
    if not os.path.getsize(path) and os.path.isfile(path):
        raise ValueError(f"{name} is empty")
    return path


def choose_stream(av, container, name: str) -> tuple:
    """The video stream of an open container, and the container, which may have been read ahead. Closes it and raises
    `ValueError` if it holds no video that can be decoded."""
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
    return container, stream


def beginning(source) -> bytes:
    """The first bytes of a file; empty for a source that cannot be sought."""
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
    """Whether a source is the manifest of a DASH stream, which only some builds of FFmpeg can read."""
    return b"<MPD" in beginning(source) or ("://" in name and re.split("[?#]", name)[0].lower().endswith(".mpd"))


class ReadAhead:
    """An `av` container whose first packets were read: it yields these again, then the rest."""

    def __init__(self, container):
        self._container, self._packets = container, []

    def __getattr__(self, name: str):
        return getattr(self._container, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._container.close()

    def moving(self, streams: list):
        """The first of the streams that has more than one packet within `AHEAD`; else one that has a packet, else the
        first."""
        seen, num_bytes = dict.fromkeys((stream.index for stream in streams), 0), 0
        for packet in self._container.demux():
            if not packet.size:  # marks the end
                continue
            self._packets.append(packet)
            num_bytes += packet.size
            if packet.stream.index in seen:
                seen[packet.stream.index] += 1
            if seen[streams[0].index] == 2 or max(seen.values()) == AHEAD[0] or num_bytes > AHEAD[1]:
                break
        return next(stream for least in (2, 1, 0) for stream in streams if seen[stream.index] >= least)

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
    """Close the container at the end, also while it decodes. The decoder is flushed first: a thread of it that reports
    an error waits for the interpreter, which would wait for the thread."""
    try:
        yield
    finally:
        if stream.codec_context.is_open:
            stream.codec_context.flush_buffers()
        container.close()


@contextmanager
def readable_errors(name: str, doing: str = "decode") -> Iterator[None]:
    """Turn errors of FFmpeg into an `OSError` or `ValueError` that names the file."""
    import av

    try:
        yield
    except av.FFmpegError as error:
        if "max pixel count" in str(error.log):
            raise ValueError(f"cannot {doing} {name}: its frames have too many pixels for `MediaLimits`") from error
        kind = OSError if isinstance(error, OSError) else ValueError
        cause = None if "://" in str(error.filename) else error  # the error would show the whole address
        raise kind(f"cannot {doing} {name}: {error.strerror}") from cause


def source_name(source) -> str:
    """The name of a source in messages: its path, or the name of a file object. Of an address only the parts that
    should hold no secret: the host, and the last part of its path if that looks like a file name or is short and the
    only part."""
    if not isinstance(source, str | os.PathLike):
        return str(getattr(source, "name", source))
    source = os.fspath(source)
    address = ADDRESS.fullmatch(source)
    if address is None:
        return source
    scheme, _, host, path, query = address.groups()
    if "@" in path or "@" in query:
        return scheme + "…"  # the host may be the beginning of a password with a slash, a `?` or a `#` in it
    *folders, name = path.split("/")
    short = "" if scheme.lower().startswith("rtmp") else r"|[\w.-]{0,16}"  # there a name is a key
    if not re.fullmatch(r"[\w.%+-]+\.\w{1,5}" + ("" if len(folders) > 1 else short), name):
        name = "…"
    hidden = "…/" if len(folders) > 1 else ""
    return scheme + host.rpartition("@")[2] + ("/" + hidden + name if folders else "") + ("?…" if query else "")


def local_path(source: str) -> str:
    """The path of a `file://` address; any other source is returned as it is.

    Raises:
        `ValueError`: if the address is on another machine.
    """
    from urllib.request import url2pathname  # slow to import

    address = re.fullmatch(r"file://([^/]*)(/?.*)", source, re.IGNORECASE | re.DOTALL)
    if address is None:
        return source
    if address[1].lower() not in ("", "localhost") or not address[2]:
        raise ValueError(f"a `file://` address must be `file:///` and a path of this machine, got {shown(source)}")
    return url2pathname(address[2])


def video_duration(source, **options) -> float | None:
    """The duration in seconds that the container states for its video. None if it states none, such as an unfinished
    recording, or if FFmpeg estimates it, such as for a transport stream. Raises as `open_container`."""
    container, stream = open_container(source, **options)
    with container:
        return stated_duration(container, stream)


def has_flag(container, *names: str) -> bool:
    """Whether FFmpeg has one of these flags, `av.format.Flags`, for the format of a container."""
    import av

    return any(container.format.flags & av.format.Flags[name].value for name in names)


def stated_duration(container, stream) -> float | None:
    """`video_duration` of an open container."""
    fragments = container.format.name == INDEXED[0] and not stream.frames  # FFmpeg counts only the first one
    if fragments or has_flag(container, "ts_discont", "no_timestamps"):
        return None
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    start = float((stream.start_time or 0) * stream.time_base)  # the values below are end times
    tag = re.fullmatch(r"(\d{1,9}):(\d{1,9}):(\d{1,9}(?:\.\d+)?)", stream.metadata.get("DURATION", ""))  # of Matroska
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]) - start
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / 1e6 - start
    return None


ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
ONES += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(number: int) -> str:
    """A whole number below a million in English, such as "one hundred and twenty-one"."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10 - 2] + (f"-{ONES[number % 10]}" if number % 10 else "")
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    whole, rest = divmod(number, size)
    link = "" if not rest else " and " if rest < 100 else " " if size == 100 else ", "
    return f"{in_words(whole)} {name}{link}{in_words(rest) if rest else ''}"


def clock(seconds: float) -> str:
    """A time as `MM:SS`."""
    return f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"


__all__ = [
    "LIMITS",
    "MediaLimits",
    "check_count",
    "check_finite",
    "check_fps",
    "is_number",
    "is_video_source",
    "is_whole",
    "open_container",
    "plain_float",
    "plain_int",
    "shown",
    "source_name",
    "video_duration",
]
