"""Streams of the procedural world for `nano_run`: made once by many processes, then kept on the device for batches.

Shapes: F frames of all streams, E distinct frames, N vision tokens per frame, Dv hidden size of the vision tower, B
streams of a batch, T tokens of its longest stream.
"""

import os
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..containers import IGNORE_INDEX
from ..data.turns import encode_example
from ..data.world import conversation, world_stream
from ..data.world_hard import split_seeds

CHUNK = 64  # streams that a process makes together


class Chunks(Dataset):
    """Streams `CHUNK` at a time, the levels in turn: `ids`, `labels`, `tokens` (of each stream), `shown` (which of its
    own distinct frames each frame is), `counts` (frames, and distinct frames, of each stream); `frames` and `states`,
    of the distinct ones. Of each level the first `skip` streams of the split are left out."""

    def __init__(self, levels: dict[str, int], processor, grid, fps: float, num_questions: int, split="train", skip=0):
        self.processor, self.grid, self.fps, self.num_questions = processor, grid, fps, num_questions
        jobs = {level: split_seeds(split, skip + count)[skip:] for level, count in levels.items()}
        self.jobs = [
            (level, seeds[first : first + CHUNK])
            for first in range(0, max(map(len, jobs.values())), CHUNK)
            for level, seeds in jobs.items()
            if first < len(seeds)
        ]

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        level, seeds = self.jobs[index]
        parts = {name: [] for name in ("ids", "labels", "tokens", "shown", "counts", "frames", "states")}
        for seed in seeds:
            stream = world_stream(seed, level)
            example = encode_example(conversation(stream, self.fps, self.num_questions), self.processor)
            ids, labels = example["input_ids"], example["labels"]
            shown, frames = stream.shown(self.fps), stream.drawn(self.processor.video_processor.size["height"])
            parts["ids"].append(np.array(ids, dtype=np.int16))
            parts["labels"].append(np.array([IGNORE_INDEX, *labels[1:]], dtype=np.int16))
            parts["tokens"].append([len(ids)])
            parts["shown"].append(shown)
            parts["counts"].append([(len(shown), len(frames))])
            parts["frames"].append(frames.transpose(0, 3, 1, 2))
            parts["states"].append(stream.states(self.grid).reshape(len(frames), self.grid[0] * self.grid[1], -1))
        dtypes = {"frames": np.uint8, "states": np.uint8}
        return {
            name: torch.from_numpy(np.concatenate(x).astype(dtypes.get(name, np.int64))) for name, x in parts.items()
        }


@dataclass
class StreamBank:
    """All streams. Frames stay in chunks, since memory may not hold them twice."""

    device: str
    pad_token_id: int
    chunks: list[dict[str, torch.Tensor]] = field(default_factory=list)
    features: torch.Tensor | None = None  # [E, N, Dv], of `encode`

    @classmethod
    def make(cls, chunks: Chunks, device: str, pad_token_id: int, workers: int | None = None) -> "StreamBank":
        bank = cls(device, pad_token_id)
        workers = os.cpu_count() - 2 if workers is None else workers
        loader = DataLoader(
            chunks, batch_size=None, num_workers=max(0, workers), prefetch_factor=4 if workers > 0 else None
        )
        for chunk in tqdm(loader, desc="streams", unit="chunk", mininterval=5):
            bank.chunks.append({**chunk, "frames": chunk["frames"].to(device), "states": chunk["states"].to(device)})
        together = {
            name: np.concatenate([chunk[name] for chunk in bank.chunks]) for name in ("tokens", "shown", "counts")
        }
        bank.tokens, (bank.num_frames, distinct) = together["tokens"], together["counts"].T
        bank.first_token, bank.first_frame = (np.cumsum(x) - x for x in (bank.tokens, bank.num_frames))
        bank.shown = together["shown"] + (np.cumsum(distinct) - distinct).repeat(bank.num_frames)
        bank.ids, bank.labels = (
            torch.cat([chunk[name] for chunk in bank.chunks]).to(device) for name in ("ids", "labels")
        )
        return bank

    def pictures(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 frames `[E, 3, H, W]` of the first `count` chunks, and the states `[E, h * w, kinds]` of their
        cells."""
        return tuple(torch.cat([chunk[name] for chunk in self.chunks[:count]]) for name in ("frames", "states"))

    def encode(self, encode) -> None:
        """Replace all frames by their features, `encode(frames)`."""
        self.features = torch.cat([encode(chunk.pop("frames")) for chunk in self.chunks])

    def epoch(self, batch_size: int, rng: np.random.Generator):
        """Batches of all streams in random order. The streams of a batch have the same length, so no mask is needed.
        Only the remainders of each length are padded."""
        order = rng.permutation(len(self.tokens))
        order = order[np.argsort(self.tokens[order], kind="stable")]
        batches, left = [], []
        for alike in np.split(order, np.flatnonzero(np.diff(self.tokens[order])) + 1):
            whole = len(alike) // batch_size * batch_size
            batches += np.split(alike[:whole], whole // batch_size) if whole else []
            left.append(alike[whole:])
        left = np.concatenate(left)
        batches += [left[i : i + batch_size] for i in range(0, len(left), batch_size)]
        for index in rng.permutation(len(batches)):
            yield self.batch(batches[index])

    def batch(self, streams: np.ndarray) -> dict[str, torch.Tensor]:
        """Inputs of the model for `streams`, int64 `[B]`, padded on the left."""
        tokens, frames = self.tokens[streams], self.num_frames[streams]
        place = np.arange(tokens.max()) - (tokens.max() - tokens)[:, None]
        valid = torch.from_numpy(place >= 0).to(self.device)
        place = torch.from_numpy(self.first_token[streams][:, None] + place.clip(0)).to(self.device)
        rows = np.arange(frames.sum()) + (self.first_frame[streams] - (np.cumsum(frames) - frames)).repeat(frames)
        return {
            "input_ids": torch.where(valid, self.ids[place], self.pad_token_id),
            "labels": torch.where(valid, self.labels[place], IGNORE_INDEX),
            "attention_mask": None if valid.all() else valid.long(),
            "video_features": self.features[torch.from_numpy(self.shown[rows]).to(self.device)].float(),
        }
