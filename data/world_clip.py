"""Write a clip of the procedural world as a video file, with its ground truth next to it."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np

from .world import DOMAIN, narrated, world_stream

SUFFIXES = (".mp4", ".mkv", ".mov")


def write_clip(
    path: str | Path, seed: int, level: str = "basic", fps: float = 10.0, height: int = 384
) -> tuple[Path, Path]:
    """Write the stream of a seed.

    Args:
        path: of the video; the suffix chooses the container, and the folder must exist.
        seed, level: of the world.
        fps (`float`): frames per second of the video.
        height (`int`): pixels, even; frames are square.

    Returns:
        The paths of the video and of the truth: one line of JSON, `{"video": name, "fps", "turns": [{"time", "role",
        "content"}]}`, times in seconds.

    Raises:
        `ValueError`: for `fps` or `height` out of range, an unknown level or suffix.
        `OSError`: if the file cannot be written.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("writing a video needs PyAV: pip install av") from error
    if not 0 < fps <= 1000:
        raise ValueError(f"`fps` must be in (0, 1000], got {fps}")
    if not 16 <= height <= 8192 or height % 2:
        raise ValueError(f"`height` must be even and in [16, 8192], got {height}")
    path, stream = Path(path), world_stream(seed, level)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"`output` must end in {' or '.join(SUFFIXES)}, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of the output does not exist: {path.parent}")
    stream.frame_times(fps)
    with av.open(str(path), "w") as container:
        container.metadata["title"] = DOMAIN  # so that the file itself says what it shows
        video = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        video.width = video.height = height
        video.pix_fmt = "yuv420p"
        video.options = {"crf": "18"}
        for image in stream.frames(fps, height):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(video.encode())
    turns = [{"time": time, "role": "assistant", "content": text} for time, text in narrated(stream, fps)]
    truth = path.with_suffix(".jsonl")
    truth.write_text(json.dumps({"video": path.name, "fps": fps, "turns": turns}) + "\n", encoding="utf-8")
    return path, truth
