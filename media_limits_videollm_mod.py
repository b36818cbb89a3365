"""What a video may ask for, so that a small file cannot take much memory or time: checked before it is given."""

import io
import os
import struct
from dataclasses import dataclass

# boxes of an MP4 that hold others
NESTED = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"edts", b"udta", b"mvex"}
MAX_DEPTH = 16


@dataclass(frozen=True)
class MediaLimits:
    """
    Bounds of what is decoded; give others where yours are.

    Args:
        pixels (`int`): of a frame as it is coded. FFmpeg refuses larger ones before it allocates them.
        frames (`float`): of one recording, at the rate asked for, frames repeated while one stays on screen included.
        num_bytes (`int`): of all frames together where a whole video becomes one array.
        packets (`int`): of video in which at least one frame must come, and a hundred times as many of all streams.
        hold (`float`): seconds that a frame may stay on screen.
        samples (`int`): that the index of one track of an MP4 may list.
    """

    pixels: int = 8192 * 8192
    frames: float = 2**22
    num_bytes: int = 8 * 2**30
    packets: int = 10_000
    hold: float = 3600.0
    samples: int = 2**23


LIMITS = MediaLimits()


def check_index(source, name: str, limits: MediaLimits = LIMITS) -> None:
    """Refuse an MP4 whose tables claim more samples than it has bytes: FFmpeg would allocate the whole index.

    Args:
        source (path or binary file object): that can be sought; of others nothing is read.

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
        while position + 8 > ends[-1]:  # the end of a box, and of all that end there
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
            position = ends[-1]  # what FFmpeg cannot read of a box it leaves out
            continue
        values = header[body:]
        if tag == b"trak":
            plain_sound = False
        elif tag == b"stts" and len(values) >= 16:
            plain_sound = struct.unpack_from(">I4xI", values, 4) == (1, 1)  # uncompressed, which is indexed by chunks
        elif tag in (b"stsz", b"trun") and len(values) >= 12 and not plain_sound:
            (count,) = struct.unpack_from(">I", values, 8 if tag == b"stsz" else 4)
            claimed += count
            if claimed > size or count > limits.samples:
                raise ValueError(f"{name} lists {count} samples in {size} bytes: it is damaged, or made to do harm")
        end = min(position + length, ends[-1])
        if tag in NESTED and len(ends) < MAX_DEPTH:
            ends.append(end)
            position += body
        else:
            position = end


__all__ = ["LIMITS", "MediaLimits", "check_index"]
