"""The procedural world as data sets: streams to narrate, and frames whose cells are to be classified."""

import random
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

from .frames import input_size
from .turns import encode_example
from .world import conversation, texts, world_stream
from .world_basic import KINDS


@dataclass
class WorldData:
    """The streams of the world to train on.

    Args:
        level (`str` or `dict[str, float]`): of the world, or several levels with their shares of the streams, such as
            `{basic: 2, hard: 1}`. The level of a stream depends on its seed only.
        first_seed, num_streams (`int`): seeds `first_seed .. first_seed + num_streams - 1`.
        fps (`float` or `list[float]`): frames per second; of several, a stream has the one that its seed chooses.
        num_questions (`int`): per stream.
    """

    level: str | dict[str, float] = "basic"
    first_seed: int = 1_000_000_000
    num_streams: int = 1_000_000
    fps: float | list[float] = 2.0
    num_questions: int = 2

    def __post_init__(self):
        if self.num_streams < 1:
            raise ValueError(f"`num_streams` must be at least 1, got {self.num_streams}")
        valid = isinstance(self.level, str | dict) and self.shares
        if not valid or not all(is_share(share) for share in self.shares.values()):
            raise ValueError(f"`level` must be a level, or levels with shares above 0, got {self.level!r}")
        streams = [world_stream(self.first_seed, level) for level in self.shares]
        if not self.rates:
            raise ValueError(f"`fps` must be a number, or a list of some, got {self.fps!r}")
        for rate in self.rates:
            streams[0].frame_times(rate)  # checks it
        shortest = min(int(stream.SECONDS[0] * min(self.rates)) for stream in streams)
        if not 0 <= self.num_questions <= shortest:
            raise ValueError(
                f"`num_questions` must be in [0, {shortest}], the frames of the shortest stream, "
                f"got {self.num_questions}"
            )

    @property
    def shares(self) -> dict[str, float]:
        """Level -> share of the streams. Shares need not add up to 1."""
        return self.level if isinstance(self.level, dict) else {self.level: 1.0}

    @property
    def rates(self) -> list[float]:
        return self.fps if isinstance(self.fps, list) else [self.fps]

    def fps_of(self, stream) -> float:
        """Frames per second of a stream."""
        return random.Random(f"fps/{stream.seed}").choice(self.rates)

    def stream(self, index: int):
        seed, levels = self.first_seed + index, list(self.shares)
        if len(levels) > 1:
            levels = random.Random(f"level/{seed}").choices(levels, list(self.shares.values()))
        return world_stream(seed, levels[0])

    def texts(self) -> list[str]:
        """Text of some streams of each level, to train a tokenizer on."""
        seeds = range(self.first_seed, self.first_seed + min(500, self.num_streams))
        return [text for level in self.shares for text in texts(seeds, level)]


def is_share(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


class WorldDataset(Dataset):
    """Examples by index. A negative index counts from the end, as in a list."""

    data: WorldData

    def __len__(self) -> int:
        return self.data.num_streams

    def __getitem__(self, index: int) -> dict:
        place = range(len(self))[index]  # raises `IndexError`, which ends a `for` loop
        return self.example(self.data.stream(place))

    def example(self, stream) -> dict:
        raise NotImplementedError


class WorldStreams(WorldDataset):
    """An example has `input_ids`, `labels` and `turns` of one stream, its distinct frames as uint8 `frames`
    `[E, 3, H, W]`, and
    int64 `frame_index` `[F]`, the index of each frame of the stream among them."""

    def __init__(self, data: WorldData, processor):
        self.data, self.processor = data, processor
        self.height = input_size(processor.video_processor)[0]

    def example(self, stream) -> dict:
        fps = self.data.fps_of(stream)
        messages = conversation(stream, fps, self.data.num_questions)
        frames, index = stream.distinct(fps, self.height)
        return {
            **encode_example(messages, self.processor, stream.frame_times(fps)),
            "frames": torch.from_numpy(frames).permute(0, 3, 1, 2),
            "frame_index": torch.from_numpy(index),
        }


class WorldCells(WorldDataset):
    """An example has the distinct frames of a stream as uint8 `frames` `[E, 3, H, W]`, and int64 `labels`
    `[E, h * w, KINDS]`: the state, below `NUM_STATES`, of each kind in each cell of the grid; 0 means absent.

    Raises:
        `ValueError`: for levels that show other things than `KINDS`.
    """

    def __init__(self, data: WorldData, height: int, grid: tuple[int, int]):
        if other := [level for level in data.shares if world_stream(data.first_seed, level).kinds != KINDS]:
            raise ValueError(f"cells of frames are classified by the {len(KINDS)} coloured shapes, which {other} lack")
        self.data, self.height, self.grid = data, height, tuple(grid)

    def example(self, stream) -> dict:
        return {
            "frames": torch.from_numpy(stream.drawn(self.height)).permute(0, 3, 1, 2),
            "labels": torch.from_numpy(stream.states(self.grid)).flatten(1, 2).long(),
        }


def collate_cells(examples: list[dict]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([example[name] for example in examples]) for name in ("frames", "labels")}
