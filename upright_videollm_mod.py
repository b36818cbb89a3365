"""Pixels as they are meant to be seen: of a decoded frame turned, mirrored, of square pixels, not too large."""

import math
import struct

import numpy as np

MAX_PIXELS = 4096 * 2304  # of a decoded frame: 4K cinema; models see far fewer
MAX_PIXEL_SHAPE = 16  # times as wide as high, or the other way; of others a pixel is taken for square


def limited_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of at most `MAX_PIXELS` together."""
    scale = min(1.0, math.sqrt(MAX_PIXELS / (width * height)))
    return max(1, int(width * scale)), max(1, int(height * scale))


class Upright:
    """Pixels of decoded frames as they are meant to be seen: square, turned and mirrored as their metadata say, all of
    the size of the first and of at most `MAX_PIXELS`. A frame of another shape gets black bars."""

    def __init__(self):
        self._size: tuple[int, int] | None = None  # width and height of what comes out
        self._codec, self._stated = None, None

    def begin(self, stream) -> None:
        """What comes next are frames of this stream. The shape of pixels that a container states is that of the whole
        stream; where it states none, the codec does, and may change it midway."""
        self._codec, self._stated = stream.codec_context, stream.sample_aspect_ratio
        if self._stated == self._codec.sample_aspect_ratio:
            self._stated = None

    def see(self, frame) -> tuple[tuple[int, int], tuple[bool, bool, bool]]:
        """Width and height of an `av.VideoFrame` in square pixels, not turned yet, and its `orientation`. The first is
        the measure of all."""
        shape = self._codec.sample_aspect_ratio if self._stated is None else self._stated
        shape = float(shape) if shape else 1.0
        wide = frame.width * shape if 1 / MAX_PIXEL_SHAPE <= shape <= MAX_PIXEL_SHAPE else frame.width
        size, turned = (max(1, round(wide)), frame.height), orientation(frame)
        if self._size is None:
            self._size = limited_size(*size)[:: -1 if turned[0] else 1]
        return size, turned

    def __call__(self, frame) -> np.ndarray:
        """uint8 `[H, W, 3]` of an `av.VideoFrame`."""
        size, (transposed, mirrored, upside_down) = self.see(frame)
        room = self._size[:: -1 if transposed else 1]
        scales = [space / side for space, side in zip(room, size, strict=True)]
        fitting = tuple(max(1, round(side * min(scales))) for side in size)
        size = room if max(scales) <= 1.02 * min(scales) else fitting  # what differs by less differs by rounding
        # threads of a scaler that is freed in a forked process, as of a data loader, are waited for for ever
        pixels = frame.to_ndarray(format="rgb24", width=size[0], height=size[1], threads=1)
        pixels = pixels.transpose(1, 0, 2) if transposed else pixels
        pixels = pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
        bars = [space - side for space, side in zip(self._size[::-1], pixels.shape[:2], strict=True)]
        if any(bars):
            pixels = np.pad(pixels, [*((bar // 2, bar - bar // 2) for bar in bars), (0, 0)])
        return np.ascontiguousarray(pixels)


def orientation(frame) -> tuple[bool, bool, bool]:
    """Whether an `av.VideoFrame` is to be transposed, and then mirrored from left to right, and upside down: the one
    of eight ways nearest to its display matrix. What is coded at `(x, y)` is shown at `(a x + c y, b x + d y)`."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 gives none of them where it does not know one, as the EXIF of photographs
        return ((False, False, False), (True, False, True), (False, True, True), (True, True, False))[
            round(frame.rotation / 90) % 4
        ]
    if matrix is None:
        return False, False, False
    a, b, _, c, d, *_ = struct.unpack_from("=9i", bytes(matrix))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


__all__ = ["MAX_PIXELS", "Upright", "limited_size"]
