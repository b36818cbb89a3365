"""Streams of the hard levels as tensors on a device: encoded once for all runs, drawn when a batch needs them."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import cast

import numpy as np
import torch

from ..processing_videollm_mod import VideoLLMMoDProcessor
from .files import written_whole
from .world import conversation, texts, world_stream
from .world_hard import HardStream, split_seeds, sprites

CELL = 8  # pixels, one patch
FPS = 2.0


def hard_stream(seed: int, level: str) -> HardStream:
    """`world_stream` of a hard level."""
    return cast(HardStream, world_stream(seed, level))


def grid_of(level: str) -> int:
    """Number of rows and of columns of a hard level's grid."""
    return hard_stream(0, level).GRID


def training_texts(level: str = "hard", count: int = 300) -> list[str]:
    """Text of `count` streams of the training split, to train a tokenizer on."""
    return texts(split_seeds("train", count), level)


def encode(job: tuple[str, range, VideoLLMMoDProcessor]) -> list[tuple]:
    """`(ids, labels, codes of the cells of all frames, depths of the narrations)` of streams, with one placeholder per
    frame."""
    level, seeds, processor = job
    encoded = []
    for seed in seeds:
        stream = hard_stream(seed, level)
        ids, labels, *_ = processor.encode_conversation(conversation(stream, FPS, num_questions=0, opening=False))
        encoded.append((ids, labels, stream.codes()[stream.shown(FPS)], stream.depths))
    return encoded


def encode_all(jobs: list) -> Iterator[list[tuple]]:
    """`encode` each job, in spawned processes: a fork would not have the threads that torch may have started here."""
    processes = min(len(jobs), os.cpu_count() or 1)
    if processes < 2:
        yield from map(encode, jobs)
        return
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(encode, jobs)


def encoded_streams(level: str, split: str, count: int, processor, folder: Path) -> list[list[torch.Tensor]]:
    """Streams of a split in groups of one shape: each is `[ids, labels, codes, depths]`, with one row per stream."""
    folder.mkdir(parents=True, exist_ok=True)
    processor = VideoLLMMoDProcessor(processor.video_processor, processor.tokenizer, num_frame_tokens=1)
    seeds = split_seeds(split, count)
    jobs = [(level, seeds[i : i + 250], processor) for i in range(0, count, 250)]
    first = [(*stream[:2], stream[2].tolist()) for stream in encode((level, seeds[:10], processor))]
    version = hashlib.sha256(repr(first).encode()).hexdigest()[:8]  # of world and tokenizer
    path = folder / f"{level}_{split}_{count}_{version}.pt"
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process encodes, the others wait
        if not path.exists():
            groups: dict[tuple, list] = {}
            for stream in (stream for part in encode_all(jobs) for stream in part):
                groups.setdefault((len(stream[0]), len(stream[2]), len(stream[3])), []).append(stream)
            dtypes = (np.int16, np.int16, np.uint8, np.uint8)
            stacked = [
                [torch.from_numpy(np.array(x, dtype=t)) for x, t in zip(zip(*rows, strict=True), dtypes, strict=True)]
                for rows in groups.values()
            ]
            with written_whole(path) as partial:
                torch.save(stacked, partial)
    return torch.load(path)


class Streams:
    """Streams on a device, in groups of one shape so that batches need no padding."""

    def __init__(self, groups: list[list[torch.Tensor]], num_frame_tokens: int, video_token_id: int, device: str):
        self.groups = []
        for ids, labels, codes, depths in groups:
            counts = torch.where(ids == video_token_id, num_frame_tokens, 1).flatten()
            long = [x.flatten().repeat_interleave(counts).view(len(ids), -1).long() for x in (ids, labels)]
            self.groups.append([x.to(device) for x in (*long, codes, depths)])

    def batches(self, batch_size: int, rng: np.random.Generator | None = None):
        """Batches `(ids, labels, codes, depths)` of one epoch. With `rng` they are shuffled, and all are full."""
        plan = []
        for group in self.groups:
            size = len(group[0])
            order = np.arange(size) if rng is None else rng.permutation(size)
            stop = size if rng is None else size // batch_size * batch_size
            plan += [(group, order[i : i + batch_size]) for i in range(0, stop, batch_size)]
        if not plan:
            raise ValueError(f"`batch_size` {batch_size} is larger than every group of streams of one shape")
        for i in range(len(plan)) if rng is None else rng.permutation(len(plan)):
            group, rows = plan[i]
            index = torch.from_numpy(rows).to(group[0].device)
            yield tuple(x[index] for x in group)


def pixels(bank: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The frames of a batch, as a processor would make them, `[B * F, 3, h * p, w * p]`.

    Args:
        bank: normalised sprites, float `[codes, p, p, 3]`.
        codes: of the cells, uint8 `[B, F, h, w]`.
    """
    cells = bank[codes.flatten(0, 1).long()]
    frames, h, w, p, _, _ = cells.shape
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(frames, 3, h * p, w * p)


def normalised_sprites(processor, device: str) -> torch.Tensor:
    video = processor.video_processor
    mean, std = torch.tensor(video.image_mean), torch.tensor(video.image_std)
    return ((torch.from_numpy(sprites(CELL)) * video.rescale_factor - mean) / std).to(device)
