"""Real compression of frames, as webcams, phones and networks do it: JPEG and H.264."""

import io

import numpy as np
from PIL import Image


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """An RGB image after JPEG of a quality in [1, 95]."""
    file = io.BytesIO()
    image.save(file, "jpeg", quality=quality)
    return Image.open(file).convert("RGB")


def as_h264(frames: np.ndarray, fps: float, quality: int) -> np.ndarray:
    """Frames after H.264.

    Args:
        frames: uint8 `[F, H, W, 3]`.
        fps: frames per second.
        quality: constant rate factor of x264: 18 is good, 40 is bad.

    Returns:
        uint8 `[F, H, W, 3]`.
    """
    import av

    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), "edge")  # colours are of 2 x 2 pixels
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        video = output.add_stream("libx264", rate=max(1, round(fps)))
        video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        video.options = {
            "crf": str(quality),
            "preset": "ultrafast",
            "threads": "1",
        }  # one thread: the same bytes again
        for frame in frames:
            output.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(video.encode())
    file.seek(0)
    with av.open(file, "r") as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(decoded)[:, :height, :width]
