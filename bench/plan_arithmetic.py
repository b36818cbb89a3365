"""The arithmetic of `bench plan`: from measured rates to fleets of GPUs and a million hours of video."""

import math
import re

import torch

from ..cache import SPARE
from .growth_cases import WORKING_BYTES

GEOMETRY, TOKENS, KEEP_RATIO = "llama3-8b", 10, 0.2
FPS, SOURCE_FPS = 2, 30  # frames per second that the model watches, and that a video file holds
HOURS, FLEETS = 1_000_000, (1, 8, 64)


def live_streams(frames_per_second: float) -> int:
    """How many streams one GPU keeps up with."""
    return math.floor(frames_per_second / FPS)


def frames_held(memory: float, weights: float, streams: int, bytes_per_frame: float) -> int:
    """How many frames each of the streams of one GPU can remember. Caches allocate more than they hold."""
    free = memory - weights - WORKING_BYTES
    return max(0, math.floor(free / (streams * bytes_per_frame * (1 + 1 / SPARE))))


def gpu_hours(hours: float, frames_per_second: float) -> float:
    """GPU hours for so many hours of recorded video."""
    return hours * FPS / frames_per_second


def decoding_cores(frames_per_second: float, decode_ms: float) -> float:
    """CPU cores that decode video for one GPU. Every frame of a file has to be decoded."""
    return frames_per_second / FPS * SOURCE_FPS * decode_ms / 1000


def training_efficiency(speedup_of_2: float, gpus: int) -> float:
    """Share of ideal scaling, if every doubling of the GPUs costs as much as the first."""
    return (speedup_of_2 / 2) ** math.log2(gpus)


def feature_bytes(hours: float, width: int) -> float:
    """Bytes of the bfloat16 features of so many hours of video."""
    return hours * 3600 * FPS * TOKENS * width * torch.bfloat16.itemsize


def sample_tokens(sample: str) -> tuple[int, int]:
    """Tokens and frames of a training sample (`RandomStreams`), from its description.

    Raises:
        `ValueError`: for another description.
    """
    found = re.match(r"(\d+) frames of (\d+) tokens, a reply of (\d+) words after every (\d+)th", sample)
    if found is None:
        raise ValueError(f"the sample must be described as `RandomStreams` does, got {sample!r}")
    frames, tokens, words, every = map(int, found.groups())
    replies = math.ceil(frames / every)
    # one token after each frame, a start and an end for each reply, and one token at the start of the sequence
    return 1 + frames * (tokens + 1) + replies * (1 + words + 1), frames
