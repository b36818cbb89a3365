"""Frames of a video file at the model's input size, decoded in small batches.

Frame `i` is the one on screen `i / fps` seconds after the video's first frame, whichever part of the video is read.
So row `i` of extracted features always belongs to the decoded frame `i`.

Shapes: `F` frames, `H` and `W` pixels of the processor's size.
"""

import math
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from ..containers import video_duration
from ..decoding import iter_video_frames, measured_duration

if TYPE_CHECKING:  # files are validated without waiting for torch
    import torch

TOLERANCE = 1e-6  # seconds or frames: times such as 0.1 * 3 count as multiples of the frame interval


def frame_range(fps: float, start: float | None = None, end: float | None = None) -> tuple[int, int | None]:
    """Indices `(first, stop)` of the frames with `start <= time < end` (seconds), or of the one on screen at `start`
    if there are none. `stop` is None without `end`."""
    first = math.ceil((start or 0.0) * fps - TOLERANCE)
    if end is None:
        return first, None
    stop = math.ceil(end * fps - TOLERANCE)
    if stop <= first:
        first = int((start or 0.0) * fps + TOLERANCE)
    return first, max(stop, first + 1)


def input_size(video_processor) -> list[int]:
    """Height and width of the frames that the model takes."""
    return video_processor.frame_size or [video_processor.size[name] for name in ("height", "width")]


def iter_frames(
    video: str, fps: float, video_processor, first: int = 0, stop: int | None = None, batch_size: int = 16
) -> Iterator["torch.Tensor"]:
    """Decode the frames `first <= i < stop` of a video, `batch_size` at a time.

    Yields:
        uint8 `[f, 3, H, W]`, `f <= batch_size`: resized and letterboxed as `video_processor` does, then rounded.

    Raises:
        as `iter_video_frames`.
    """
    import torch

    from ..video_processing_videollm_mod import resize_frames

    count = None if stop is None else max(0, stop - first)
    frames = islice((frame for frame, _ in iter_video_frames(video, fps, first)), count)
    while batch := list(islice(frames, batch_size)):
        pixels = torch.from_numpy(np.stack(batch)).movedim(-1, 1)
        if video_processor.as_pictures or video_processor.do_center_crop:  # as another family resizes them
            options = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
            resized = video_processor(pixels, **options)["pixel_values_videos"]
            pixels = resized.clamp(0, 255).round().to(torch.uint8)
        elif video_processor.do_resize:
            size, resample, do_pad = video_processor.size, video_processor.resample, video_processor.do_pad
            pixels = resize_frames(pixels.float(), size, resample, do_pad).clamp(0, 255).round().to(torch.uint8)
        yield pixels.contiguous()


def read_frames(
    video: str, fps: float, video_processor, first: int = 0, stop: int | None = None, batch_size: int = 16
) -> "torch.Tensor":
    """All frames that `iter_frames` yields, uint8 `[F, 3, H, W]`.

    Raises:
        `ValueError`: if there are none; and as `iter_video_frames`.
    """
    import torch

    chunks = list(iter_frames(video, fps, video_processor, first, stop, batch_size))
    if not chunks:
        raise ValueError(f"{video} ends before {first / fps} seconds, where the part to read starts")
    return torch.cat(chunks)


def video_seconds(video: str) -> float:
    """Duration of a video in seconds, as its container states it; the first frame is decoded as a check. A video that
    states no duration is decoded to its end.

    Raises:
        as `iter_video_frames`.
    """
    seconds = video_duration(video)
    if seconds is None:
        return measured_duration(video)
    frames = iter_video_frames(video, fps=None)
    next(frames)
    frames.close()
    return seconds
