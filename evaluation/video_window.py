"""Which frames of a video a model sees, by number: frame `i` is the one on screen at `i / fps` seconds."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ..data.frames import TOLERANCE, video_seconds
from ..decoding import iter_video_frames


def frames_between(since: float, time: float, fps: float, count: int) -> range:
    """The frames at times from `since` to `time`, both included, of the `count` frames of a video; the one on screen
    at `time` if there is none between. Times beyond the end mean the end."""
    stop = min(count, math.floor(time * fps + TOLERANCE) + 1)
    return range(min(math.ceil(since * fps - TOLERANCE), stop - 1), stop)


def count_frames(video: str, fps: float) -> int:
    """Frames of a video at `fps`, as its container states its duration.

    Raises:
        `ValueError`, `OSError`: for a video that cannot be decoded.
    """
    return max(1, math.ceil(video_seconds(video) * fps - TOLERANCE))


def spaced(frames: range, most: int | None) -> Sequence[int]:
    """At most `most` of the frames, evenly spaced, with the first and the last."""
    if most is None or len(frames) <= most:
        return frames
    if most == 1:
        return frames[-1:]
    return [frames[round(index)] for index in np.linspace(0, len(frames) - 1, most)]


def images_of(video: str, fps: float, frames: Sequence[int]) -> Iterator[np.ndarray]:
    """Decode frames, given in ascending order: uint8 `[H, W, 3]` each.

    Raises:
        `ValueError`: as `iter_video_frames`.
    """
    if not frames:
        return
    wanted = set(frames)
    for index, (image, _) in enumerate(iter_video_frames(video, fps, frames[0]), frames[0]):
        if index in wanted:
            yield image
        if index >= frames[-1]:
            return
