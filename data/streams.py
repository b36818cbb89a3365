"""JSONL streams as `datasets`: examples made when they are asked for, from videos or features on disk.

Shapes: `F` frames, `H` and `W` pixels, `N` vision tokens per frame, `Dv` hidden size of the vision tower.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, IterableDataset, Value
from transformers.utils import logging

from .features import fingerprint, read_about, read_features
from .frames import TOLERANCE, frame_range, read_frames
from .jsonl import check, line_spans, missing_error, missing_media, read_streams

logger = logging.get_logger(__name__)

MISSING = ("stop", "skip")
SHARDS = 64  # of a file that is read as a stream, for workers and processes to share
COLUMNS = Features(
    {
        "line": Value("int64"),
        "video": Value("string"),
        "features": Value("string"),
        "fps": Value("float64"),
        "start": Value("float64"),
        "end": Value("float64"),
        "turns": [{"time": Value("float64"), "role": Value("string"), "content": Value("string")}],
    }
)


def conversation(turns: list[dict], times: np.ndarray) -> list[dict]:
    """Turns and frames as messages for `VideoLLMMoDProcessor.encode_conversation`.

    A turn at the time of a frame comes after that frame. Between two frames, a reply comes after the second, the first
    that can show what it tells, and a user's turn after the first, all that was seen when it was said. Besides,
    - a system turn, and users' turns before all replies and no later than the first frame, come before all frames;
    - a reply at the time of the user's turn right before it is the answer and follows at once, after a frame at least;
    - replies between the same two frames are one reply: a session speaks once after a frame.

    Args:
        turns (`list[dict]`): `time` (seconds), `role`, `content`, in order of time.
        times (float64 `[F]`): of the frames, seconds.
    """
    messages, done, opening = [], 0, True
    for index, turn in enumerate(turns):
        time, role = turn["time"], turn["role"]
        previous = turns[index - 1] if index else {}
        opening = opening and (role == "system" or (role == "user" and time <= times[0] + TOLERANCE))
        if opening:
            seen = 0
        elif role == "assistant" and previous.get("role") == "user" and previous["time"] == time:
            seen = max(done, 1)
        elif role == "assistant":
            seen = int(np.searchsorted(times, time - TOLERANCE)) + 1
        else:
            seen = int(np.searchsorted(times, time + TOLERANCE, side="right"))
        seen = min(max(seen, done), len(times))
        if seen > done:
            messages.append({"role": "stream", "num_frames": seen - done})
            done = seen
        if role == "assistant" and messages and messages[-1]["role"] == "assistant":
            messages[-1]["content"] += " " + turn["content"]
        else:
            messages.append({"role": role, "content": turn["content"]})
    if done < len(times):
        messages.append({"role": "stream", "num_frames": len(times) - done})
    return messages


@dataclass
class StreamExamples:
    """Makes the example of a line: `input_ids` and `labels` (`list[int]`), and uint8 `frames` `[F, 3, H, W]` or
    `video_features` `[F, N, Dv]`."""

    path: str
    processor: object

    def example(self, stream: dict) -> dict:
        with self._named(stream):
            messages, frames, _, _ = self._read(stream)
            input_ids, labels, _ = self.processor.encode_conversation(messages)
            return {"input_ids": input_ids, "labels": labels, **frames}

    def read(self, stream: dict) -> tuple[list[dict], dict[str, torch.Tensor], np.ndarray, float]:
        """`(messages, {"frames" or "video_features": tensor}, seconds of the frames, frames a second)` of a line."""
        with self._named(stream):
            return self._read(stream)

    @contextmanager
    def _named(self, stream: dict) -> Iterator[None]:
        """Say in errors which line it was."""
        try:
            yield
        except (ValueError, OSError) as error:
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(f"{self.path}:{stream['line']}: {error}") from error

    def _read(self, stream: dict) -> tuple[list[dict], dict[str, torch.Tensor], np.ndarray, float]:
        video_processor = self.processor.video_processor
        path, fps = stream.get("features"), stream.get("fps")
        if path is not None:
            about = read_about(path)
            if about["num_frame_tokens"] != self.processor.num_frame_tokens:
                raise ValueError(
                    f"{path} holds {about['num_frame_tokens']} tokens a frame, the processor has "
                    f"{self.processor.num_frame_tokens}: extract the features with the model that is trained"
                )
            if fps is not None and fps != about["fps"]:
                raise ValueError(f"`fps` is {fps}, but {path} holds frames at {about['fps']}")
            fps = about["fps"]
        fps = fps or video_processor.fps
        first, stop = frame_range(fps, stream.get("start"), stream.get("end"))
        if path is None:
            name, frames = "frames", read_frames(stream["video"], fps, video_processor, first, stop)
        else:
            name, frames = "video_features", read_features(path, first, stop)
        times = (first + np.arange(len(frames))) / fps
        return conversation(stream["turns"], times), {name: frames}, times, fps

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """A batch of columns, as `Dataset.with_transform` hands it over."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        examples = [self.example(row) for row in rows]
        return {name: [example[name] for example in examples] for name in examples[0]}


def rows(path: str, spans: list[tuple[int, int, int]], left_out: list[frozenset[int]], digest: str) -> Iterator[dict]:
    """The lines of a file for `datasets`, without those numbered in `left_out`. `digest`, of the file, is there for
    the cache's key: a file that was changed is another one."""
    for span, numbers in zip(spans, left_out, strict=True):
        for stream in read_streams(path, *span):
            if stream["line"] not in numbers:
                yield {name: stream.get(name) for name in COLUMNS}


def load_streams(path: str | Path, processor, *, streaming: bool = False, missing: str = "stop"):
    """Streams in JSONL (`data.jsonl`) as examples for `StreamCollator`, made one at a time when they are asked for.

    Lines are kept in a memory-mapped cache of `datasets`, or with `streaming` read as they are needed; the examples
    are the same. Columns are replaced on the fly, so `TrainingArguments.remove_unused_columns` must be False; with
    `streaming` so must `accelerator_config.dispatch_batches`, since frames of a batch are not sliced by rows.

    Args:
        path: of the JSONL file.
        processor (`VideoLLMMoDProcessor`): makes tokens and labels; gives the frames' size, and the rate for lines
            without `fps`.
        streaming (`bool`): an `IterableDataset` instead of a `Dataset`.
        missing (`str`): `"stop"` or `"skip"` where videos or features are not there.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset` of `input_ids`, `labels`, and uint8 `frames` `[F, 3, H, W]` or
        `video_features` `[F, N, Dv]`.

    Raises:
        `ValueError`: for faults in the file, features that do not fit the processor, nothing left.
        `OSError`: for files that can not be read or, with `missing="stop"`, are not there.
    """
    if missing not in MISSING:
        raise ValueError(f"`missing` must be one of {', '.join(map(repr, MISSING))}, got {missing!r}")
    path = str(Path(path).absolute())
    check(path)
    if len({"video" in stream for stream in read_streams(path)}) > 1:
        raise ValueError(f"{path} has lines with `video` and lines with `features`; a batch can not hold both")
    gone = missing_media(path)
    if gone and missing == "stop":
        raise missing_error(path, gone)
    spans = line_spans(path, SHARDS)
    if len(gone) == sum(count for _, _, count in spans):
        raise missing_error(path, gone)
    if gone:
        logger.warning(f"{path}: {len(gone)} lines are left out, their videos or features are missing")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    left_out = [frozenset(gone.keys() & range(first, first + count)) for _, first, count in spans]
    source = {"path": path, "spans": spans, "left_out": left_out, "digest": digest}
    examples = StreamExamples(path, processor)
    if streaming:
        lines = IterableDataset.from_generator(rows, features=COLUMNS, gen_kwargs=source)
        return lines.map(examples.example, remove_columns=list(COLUMNS))
    return Dataset.from_generator(rows, features=COLUMNS, gen_kwargs=source).with_transform(examples)


def check_features(path: str | Path, model, video_processor) -> None:
    """Raise `ValueError` if features in a JSONL file were made by another vision tower or preprocessing than these.

    Args:
        path: of the JSONL file.
        model (`VideoLLMMoDForConditionalGeneration`), video_processor (`VideoLLMMoDVideoProcessor`).
    """
    own = None
    for stream in read_streams(path):
        if "features" in stream:
            own = own or fingerprint(model, video_processor)
            if read_about(stream["features"])["fingerprint"] != own:
                raise ValueError(
                    f"{path}:{stream['line']}: the features {stream['features']} were made by another vision tower or "
                    "preprocessing than those of the model; extract them anew, or train on the videos"
                )
