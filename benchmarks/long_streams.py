"""Endless streams for benchmarks on a CPU: scenes of the procedural world, repeated."""

import ctypes
import hashlib
import os
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor

from ..data.world import world_stream

ROOT = Path(__file__).resolve().parent.parent


def nano(folder: Path = ROOT) -> tuple:
    """The bundled model, or another checkpoint, in float32 and its processor, on one thread. The features of each
    picture are cached: the vision tower sees one frame at a time, so its cost cannot grow."""
    torch.set_num_threads(1)
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    encode, seen = model.encode_frames, {}

    def encode_frames(pixels: torch.Tensor):
        keys = [hashlib.sha1(frame.contiguous().numpy()).digest() for frame in pixels]
        new = [index for index, key in enumerate(keys) if key not in seen]
        out = encode(pixels[new or [0]])
        seen.update({keys[index]: tokens.clone() for index, tokens in zip(new, out.pooler_output, strict=False)})
        out.pooler_output = torch.stack([seen[key] for key in keys])
        while len(seen) > 4096:
            del seen[next(iter(seen))]
        return out

    model.encode_frames = encode_frames
    return model, VideoLLMMoDProcessor.from_pretrained(folder)


def scenes(count: int, seed: int = 0) -> np.ndarray:
    """uint8 `[count, 96, 96, 3]`: successive scenes, one event apart."""
    drawn = []
    while sum(map(len, drawn)) < count:
        drawn.append(world_stream(seed).drawn(96))
        seed += 1
    return np.concatenate(drawn)[:count]


def held_scenes(count: int, hold: int, seed: int = 0) -> np.ndarray:
    """uint8 `[count * hold, 96, 96, 3]`: each scene is shown for `hold` frames."""
    return scenes(count, seed).repeat(hold, axis=0)


def rss_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def held_bytes() -> int:
    """Resident memory after glibc has returned what it keeps for later; frames of many sizes leave gaps."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return rss_bytes()


def blocks(frames: np.ndarray, size: int):
    """Endless blocks of `size` frames from a stream that repeats `frames`. `size` must divide their number."""
    return cycle(np.split(frames, len(frames) // size))
