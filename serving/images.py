"""From the bytes that a client sends to a frame: JPEG, PNG or WebP, as they are or in a data URL.

Sizes are checked before anything is decoded. Decode in another thread than the event loop's.
"""

import base64
import binascii
import io
import re
import struct
import warnings

import numpy as np
from PIL import Image, ImageOps

from ..containers import MAX_PIXELS
from .errors import ApiError

FORMATS = ("JPEG", "PNG", "WEBP")
DATA_URL = re.compile(r"data:image/(jpeg|jpg|png|webp);base64,", re.IGNORECASE)
HEADER = struct.Struct(">4sd")  # of a binary message: MAGIC, and the frame's time in seconds
MAGIC = b"VMF1"
LONGEST_SIDE = 200  # ratio of the sides


def bytes_of_data_url(url: str) -> bytes:
    """The image in a data URL such as `data:image/jpeg;base64,...`. Raises `ApiError`."""
    match = DATA_URL.match(url)
    if match is None:
        raise ApiError(
            "invalid_image_url",
            "an image must be a data URL that begins with data:image/jpeg;base64, (or png, or webp)",
            param="image_url",
        )
    try:
        return base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError("invalid_image_url", f"the data URL is not valid base64: {error}", param="image_url") from None


def split_message(message: bytes) -> tuple[float, bytes]:
    """The time and the image of a binary message: the four bytes `VMF1`, the time as a big-endian float64, the image.
    Raises `ApiError`."""
    if len(message) <= HEADER.size or message[:4] != MAGIC:
        raise ApiError(
            "invalid_frame_message",
            "a binary message must be VMF1 in ASCII, the time in seconds as a big-endian float64, and the bytes of an "
            "image",
        )
    return HEADER.unpack_from(message)[1], message[HEADER.size :]


def decode_image(content: bytes | str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image, upright and in RGB.

    Args:
        content (`bytes` or `str`): the file, or a data URL.
        max_pixels (`int`): a larger image is refused before it is decoded.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        `ApiError`: for anything that is no whole JPEG, PNG or WebP within the limits.
    """
    if isinstance(content, str):
        content = bytes_of_data_url(content)
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                message = f"the image has {width} x {height} pixels, the limit is {max_pixels}"
                raise ApiError("image_too_large", message, 413, param="image")
            if max(width, height) > LONGEST_SIDE * min(width, height):
                message = f"the image is {width} x {height}: one side is over {LONGEST_SIDE} times the other"
                raise ApiError("invalid_image", message, param="image")
            # Copies of an image take longer than decoding it, and keep the interpreter from the model's thread.
            ImageOps.exif_transpose(image, in_place=True)
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except ApiError:
        raise
    except Image.DecompressionBombError:
        message = f"the image has far more than {max_pixels} pixels, the limit"
        raise ApiError("image_too_large", message, 413, param="image") from None
    except Exception:  # Pillow's decoders raise many kinds for damaged files
        message = "the image cannot be decoded: it must be a whole JPEG, PNG or WebP"
        raise ApiError("invalid_image", message, param="image") from None


__all__ = ["HEADER", "MAGIC", "decode_image", "split_message"]
