"""From what a camera library returns to a data URL."""

import base64
import io
from typing import Any

from PIL import Image

KINDS = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"RIFF": "webp"}


def encode(image: Any, quality: int = 90) -> str:
    """A data URL.

    Args:
        image: uint8 `[H, W, 3]`, RGB, of numpy or another library with the array interface; an image of PIL; or the
            bytes of a JPEG, PNG or WebP, which are sent as they are. OpenCV's frames are BGR: `frame[..., ::-1]`.
        quality (`int`): of the JPEG that is made of pixels.

    Raises:
        `ValueError`: for anything else.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        content = bytes(image)
        kind = next((name for start, name in KINDS.items() if content.startswith(start)), None)
        if kind is None:
            raise ValueError("the bytes of an image must be those of a JPEG, PNG or WebP")
    else:
        if not isinstance(image, Image.Image):
            image = of_array(image)
        image.convert("RGB").save(file := io.BytesIO(), "jpeg", quality=quality)
        kind, content = "jpeg", file.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def of_array(array: Any) -> Image.Image:
    interface = getattr(array, "__array_interface__", {})
    shape, kind = tuple(interface.get("shape", ())), interface.get("typestr", type(array).__name__)
    if len(shape) != 3 or shape[2] != 3 or kind != "|u1":
        got = f"{kind} {list(shape)}"
        raise ValueError(f"a frame must be uint8 [H, W, 3], an image of PIL or the bytes of one, got {got}")
    return Image.fromarray(array)


__all__ = ["encode"]
