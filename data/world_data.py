"""The procedural world as data sets: streams to narrate, and frames whose cells are to be named."""

from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

from .turns import encode_example
from .world import conversation, texts, world_stream


@dataclass
class WorldData:
    """Which streams of the world are learned from.

    Args:
        level (`str`): of the world.
        first_seed, num_streams (`int`): seeds `first_seed .. first_seed + num_streams - 1`.
        fps (`float`): frames per second.
        num_questions (`int`): asked in each stream.
    """

    level: str = "basic"
    first_seed: int = 1_000_000_000
    num_streams: int = 1_000_000
    fps: float = 2.0
    num_questions: int = 2

    def __post_init__(self):
        if self.num_streams < 1:
            raise ValueError(f"`num_streams` must be at least 1, got {self.num_streams}")
        stream = self.stream(0)
        stream.frame_times(self.fps)  # says what is wrong with the rate
        shortest = int(stream.SECONDS[0] * self.fps)
        if not 0 <= self.num_questions <= shortest:
            raise ValueError(
                f"`num_questions` must be in [0, {shortest}], the frames of the shortest stream, "
                f"got {self.num_questions}"
            )

    def stream(self, index: int):
        return world_stream(self.first_seed + index, self.level)

    def texts(self) -> list[str]:
        """What is said in some of these streams, for a tokenizer."""
        return texts(range(self.first_seed, self.first_seed + min(500, self.num_streams)), self.level)


class WorldStreams(Dataset):
    """Example: `input_ids` and `labels` of one stream, uint8 `frames` `[E, 3, H, W]`, those that differ, and int64
    `frame_index` `[F]`, which of them each frame of the stream is."""

    def __init__(self, data: WorldData, processor):
        self.data, self.processor = data, processor
        self.height = processor.video_processor.size["height"]

    def __len__(self) -> int:
        return self.data.num_streams

    def __getitem__(self, index: int) -> dict:
        stream, fps = self.data.stream(index), self.data.fps
        messages = conversation(stream, fps, self.data.num_questions)
        input_ids, labels = encode_example(messages, self.processor)
        return {
            "input_ids": input_ids,
            "labels": labels,
            "frames": torch.from_numpy(stream.drawn(self.height)).permute(0, 3, 1, 2),
            "frame_index": torch.from_numpy(stream.shown(fps)),
        }


class WorldCells(Dataset):
    """Example: uint8 `frames` `[E, 3, H, W]`, one a change of a stream, and int64 `labels` `[E, h * w]`: what each
    cell of the grid holds, 0 for nothing."""

    def __init__(self, data: WorldData, height: int, grid: tuple[int, int]):
        self.data, self.height, self.grid = data, height, tuple(grid)

    def __len__(self) -> int:
        return self.data.num_streams

    @property
    def num_kinds(self) -> int:
        """Kinds of things a cell may hold, nothing among them."""
        return self.data.stream(0).NUM_KINDS

    def __getitem__(self, index: int) -> dict:
        stream = self.data.stream(index)
        return {
            "frames": torch.from_numpy(stream.drawn(self.height)).permute(0, 3, 1, 2),
            "labels": torch.from_numpy(stream.cells(self.grid)).flatten(1),
        }


def collate_cells(examples: list[dict]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([example[name] for example in examples]) for name in ("frames", "labels")}
