"""What is on the screen is what comes out: colours, orientation, shape of pixels, the right track."""

import av
import numpy as np
import pytest

from videollm_mod.decoding_videollm_mod import decode_video

# PyAV ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["14.4.0", "17.1.0", "9.0"])
def test_an_old_pyav_is_named(monkeypatch, version):
    monkeypatch.setattr(av, "__version__", version)
    with pytest.raises(ImportError, match=f"needs PyAV 18 or newer, {version} is installed: pip install --upgrade av"):
        decode_video("a.mp4")


def test_tags_of_any_encoding(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "caf#"
        stream = container.add_stream("ffv1", rate=2)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "bgr0"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"caf#", "café".encode("latin-1")))
    assert len(decode_video(path)[0]) == 1


# Colours -------------------------------------------------------------------------------------------------------------

BT601, BT709, LIMITED, FULL = 6, 1, 1, 2  # as FFmpeg numbers them


def luma_and_chroma(rgb: tuple[int, int, int], space: int, full: bool) -> list[int]:
    """Y, Cb and Cr of a colour, by the standards' formulas."""
    of_red, of_blue = {BT601: (0.299, 0.114), BT709: (0.2126, 0.0722)}[space]
    red, green, blue = (value / 255 for value in rgb)
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    chroma = [(value - luma) / (2 - 2 * of) for value, of in ((blue, of_blue), (red, of_red))]
    if full:
        return [round(255 * luma), *(round(128 + 255 * value) for value in chroma)]
    return [round(16 + 219 * luma), *(round(128 + 224 * value) for value in chroma)]


@pytest.mark.parametrize("colour", [(251, 0, 0), (20, 190, 40), (30, 60, 220), (128, 128, 128), (250, 250, 250)])
@pytest.mark.parametrize("space", [BT601, BT709])
@pytest.mark.parametrize("colour_range", [LIMITED, FULL])
def test_colours(tmp_path, colour, space, colour_range):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.width, stream.height, stream.pix_fmt, stream.options = 32, 32, "yuv420p", {"qp": "0"}
        stream.codec_context.colorspace, stream.codec_context.color_range = space, colour_range
        frame = av.VideoFrame(32, 32, "yuv420p")
        frame.colorspace, frame.color_range = space, colour_range
        for plane, value in zip(frame.planes, luma_and_chroma(colour, space, colour_range == FULL), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    ((image,), _) = decode_video(path)
    assert np.abs(image.astype(int) - colour).max() <= 4
