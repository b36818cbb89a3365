"""Images that clients send become frames."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from videollm_mod.serving.images import decode_image

PICTURE = np.random.default_rng(3).integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_frames_are_upright(kind, orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(PICTURE).save(file := io.BytesIO(), kind, exif=exif)
    frame = decode_image(file.getvalue())
    assert np.array_equal(frame, ImageOps.exif_transpose(Image.open(file)).convert("RGB"))
    assert frame.shape[:2] == ((9, 6) if orientation in (5, 6, 7, 8) else (6, 9))
    assert frame.flags.writeable and frame.flags.c_contiguous  # as torch wants them


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_frames_are_in_colour(mode):
    image = Image.fromarray(PICTURE)
    image = Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)
    image.save(file := io.BytesIO(), "jpeg" if mode == "CMYK" else "png")
    frame = decode_image(file.getvalue())
    assert frame.shape == (6, 9, 3) and frame.dtype == np.uint8
    assert np.array_equal(frame, Image.open(file).convert("RGB"))
