"""The streams to evaluate on, from a JSONL file or the procedural world.

Shapes: F frames, H and W pixels, N vision tokens per frame, Dv hidden size of the vision tower.
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from tqdm import tqdm

from ..data import jsonl
from ..data.files import hash_ends
from ..data.frames import input_size
from ..data.streams import StreamExamples, check_features
from ..data.world import LEVELS, conversation, world_stream
from ..data.world_hard import split_seeds
from ..data.world_tasks import HardTasksStream
from .tasks import STREAMING, check_turns

WORLD_FPS = 2.0
ANSWER_STREAMS = 1000  # streams of the world that are read to find all possible answers


@dataclass
class Example:
    """
    Args:
        messages: the conversation, with `num_frames` instead of frames.
        frames (uint8 `[F, 3, H, W]`, or features `[F, N, Dv]`).
        times (float64 `[F]`): times of the frames, seconds.
        fps (`float`): frames per second.
    """

    messages: list[dict]
    frames: torch.Tensor
    times: np.ndarray
    fps: float


class JsonlSource:
    """The streams of a JSONL file (`data.jsonl`), or the first `count` of them.

    Raises:
        `ValueError`: for faults in the file, lines that do not fit the task, or no replies.
        `OSError`: if the file, or a video or features file named in it, does not exist.
    """

    def __init__(self, path: Path, task: str, count: int | None = None):
        jsonl.check(path)
        if gone := jsonl.missing_media(path):
            raise jsonl.missing_error(path, gone)
        lines = list(jsonl.read_streams(path))
        self.path, self.lines = path, lines[:count]
        for line in lines:
            try:
                check_turns(task, line["turns"])
            except ValueError as error:
                raise ValueError(f"{path}:{line['line']}: {error}") from error
        self.has_answer = task not in STREAMING
        # from all lines, not only the first `count`
        self.answers = [] if task in STREAMING else [line["turns"][-1]["content"] for line in lines]
        if not any(turn["role"] == "assistant" for line in self.lines for turn in line["turns"]):
            raise ValueError(f"{path} has no replies, so there is nothing to compare with")

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def about(self) -> dict:
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        media = hashlib.sha256()
        for file in dict.fromkeys(line.get("video") or line["features"] for line in self.lines):
            media.update(b"" if "://" in file else hash_ends(Path(file)))
        return {"file": self.path.name, "sha256": digest, "media": media.hexdigest()[:16], "streams": len(self)}

    def open(self, model, processor) -> None:
        """Get ready to give examples for a model."""
        check_features(self.path, model, processor.video_processor)
        self.examples = StreamExamples(str(self.path), processor)

    def __getitem__(self, index: int) -> Example:
        messages, tensors, times, fps = self.examples.read(self.lines[index])
        (frames,) = tensors.values()
        end = times[-1] + 1 / fps
        if late := [turn["time"] for turn in self.lines[index]["turns"] if turn.get("time", 0) > end]:
            where = f"{self.path}:{self.lines[index]['line']}"
            tqdm.write(
                f"{where}: the turns at {late} s are after the end at {end:g} s, and are moved to the last frame",
                file=sys.stderr,
            )
        if self.has_answer:  # drop the frames after the answer
            while messages[-1]["role"] == "stream":
                messages = messages[:-1]
            count = sum(message.get("num_frames", 0) for message in messages)
            frames, times = frames[:count], times[:count]
        return Example(messages, frames, times, fps)


def task_examples(seed: int, level: str) -> dict[str, tuple[float, str, str]]:
    """`HardTasksStream.examples` of the stream of a seed, for a level with tasks."""
    return cast(HardTasksStream, world_stream(seed, level)).examples()


class WorldSource:
    """Streams of a level of the world: narrated ones, or one question per stream for a task with an answer.

    Raises:
        `ValueError`: for an unknown level or split, a task that the level does not have, or a number out of range.
    """

    def __init__(
        self, level: str, task: str, split: str, first_seed: int | None = None, count: int = 500, questions: int = 1
    ):
        world_stream(0, level)
        tasks_level = level if level.endswith("_tasks") else f"{level}_tasks"
        self.has_tasks = task not in STREAMING
        known = ["narration"] * (level != tasks_level)
        known += task_examples(0, tasks_level) if tasks_level in LEVELS else []
        if task not in known:
            raise ValueError(f"the level {level!r} has the tasks {', '.join(known)}, got {task!r}")
        if count < 1:
            raise ValueError(f"`--streams` must be at least 1, got {count}")
        self.level, self.task, self.questions = (tasks_level if self.has_tasks else level), task, questions
        seeds = split_seeds(split, count)
        self.seeds = seeds if first_seed is None else range(first_seed, first_seed + count)
        self._messages(self._stream(0))  # raises an error for a wrong number of questions

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def about(self) -> dict:
        about = {"level": self.level, "seeds": [self.seeds.start, self.seeds.stop]}
        return about if self.has_tasks else about | {"questions": self.questions}

    def open(self, model, processor) -> None:
        """Get ready to give examples for a model."""
        self.height = input_size(processor.video_processor)[0]

    @property
    def answers(self) -> list[str]:
        """The possible answers, from enough streams that none is missing."""
        if not self.has_tasks or self.task == "lta":
            return []
        return [task_examples(seed, self.level)[self.task][2] for seed in range(ANSWER_STREAMS)]

    def _stream(self, index: int):
        return world_stream(self.seeds[index], self.level)

    def _messages(self, stream) -> list[dict]:
        if not self.has_tasks:
            return conversation(stream, WORLD_FPS, self.questions)
        return stream.asked(self.task, WORLD_FPS)

    def __getitem__(self, index: int) -> Example:
        stream = self._stream(index)
        messages = self._messages(stream)
        count = sum(message.get("num_frames", 0) for message in messages)
        frames = torch.from_numpy(stream.frames(WORLD_FPS, self.height)[:count]).permute(0, 3, 1, 2)
        return Example(messages, frames, stream.frame_times(WORLD_FPS)[:count], WORLD_FPS)
