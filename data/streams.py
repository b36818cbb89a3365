"""JSONL streams as `datasets`: examples made when they are asked for, from videos or features on disk.

Shapes: `F` frames, `H` and `W` pixels, `N` vision tokens per frame, `Dv` hidden size of the vision tower.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, IterableDataset, Value
from datasets.exceptions import DatasetGenerationError
from transformers.utils import logging

from ..configuration_videollm_mod import IGNORE_INDEX
from ..containers import check_count
from .features import fingerprint, read_about, read_features
from .frames import TOLERANCE, frame_range, read_frames, video_seconds
from .jsonl import check, line_spans, missing_error, missing_media, read_streams
from .skipped import Skipped
from .timeline import conversation
from .turns import encode_example
from .windows import mask_before, windows

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
        "opening": Value("int64"),
        "learned_from": Value("float64"),
        "turns": [{"time": Value("float64"), "role": Value("string"), "content": Value("string")}],
    }
)


class OtherModelError(ValueError):
    """Features that were made for another model: no bad example, but wrong data altogether."""


@dataclass
class StreamExamples:
    """Makes the example of a line: `input_ids` and `labels` (`list[int]`), and uint8 `frames` `[F, 3, H, W]` or
    `video_features` `[F, N, Dv]`. With `max_tokens` a line is cut before, into `windows`. With `skipped`, a line that
    cannot be used is noted there, and its example is `blank`."""

    path: str
    processor: object
    max_tokens: int | None = None
    skipped: Skipped | None = None

    @contextmanager
    def naming(self, stream: dict) -> Iterator[None]:
        """Errors name the line."""
        try:
            yield
        except (ValueError, OSError) as error:
            kind = next(kind for kind in (OSError, OtherModelError, ValueError) if isinstance(error, kind))
            raise kind(f"{self.path}:{stream['line']}: {error}") from error

    def lines(self, stream: dict) -> list[dict]:
        """A line, or the windows that it is cut into."""
        if self.max_tokens is None:
            return [stream]
        with self.naming(stream):
            fps = num_frames = None
            with suppress(ValueError, OSError):  # what cannot be read is found when it is read
                fps = self.fps(stream)
            if fps is None:
                return [stream]
            cut = windows(stream, fps, self.max_tokens, self.processor)
            if len(cut) > 1:  # where the video ends matters only now, and to look takes longer
                with suppress(ValueError, OSError):
                    num_frames = self.num_frames(stream)
                cut = windows(stream, fps, self.max_tokens, self.processor, num_frames)
            return cut

    def num_frames(self, stream: dict) -> int:
        """Of the whole video."""
        if stream.get("features") is not None:
            return read_about(stream["features"])["num_frames"]
        return max(1, math.ceil(video_seconds(stream["video"]) * self.fps(stream) - TOLERANCE))

    def fps(self, stream: dict) -> float:
        if stream.get("features") is None:
            return stream.get("fps") or self.processor.video_processor.fps
        own = read_about(stream["features"])["fps"]
        if stream.get("fps") not in (None, own):
            raise ValueError(f"`fps` is {stream['fps']}, but {stream['features']} holds frames at {own}")
        return own

    def example(self, stream: dict) -> dict:
        try:
            with self.naming(stream):
                example = self._example(stream)
        except OtherModelError:
            raise
        except (ValueError, OSError) as error:
            if self.skipped is None:
                raise
            self.skipped.add(stream["line"], stream.get("start"), error)
            return self.blank(stream)
        if self.skipped is not None:
            self.skipped.add_good()
        return example

    def _example(self, stream: dict) -> dict:
        messages, frames, _, fps = self._read(stream)
        example = encode_example(messages, self.processor)
        if stream.get("learned_from") is not None:
            first, learned = (frame_range(fps, stream.get(name))[0] for name in ("start", "learned_from"))
            example["labels"] = mask_before(example["labels"], example["turns"], learned - first)
        return {**example, **frames}

    def blank(self, stream: dict) -> dict:
        """An example of one frame from which nothing is learned. It takes the place of one that cannot be used, so
        that all processes still take the same steps, and a run that is resumed the same ones."""
        example = encode_example([{"role": "stream", "num_frames": 1}], self.processor)
        if stream.get("features") is None:
            size = self.processor.video_processor.size
            frames = {"frames": torch.zeros(1, 3, size["height"], size["width"], dtype=torch.uint8)}
        else:
            frames = {"video_features": torch.zeros_like(self._any_features())}
        return {**example, "labels": [IGNORE_INDEX] * len(example["labels"]), **frames}

    def _any_features(self) -> torch.Tensor:
        """`[1, N, Dv]`"""
        for stream in read_streams(self.path):
            with suppress(ValueError, OSError):
                return read_features(stream["features"], 0, 1)
        raise ValueError(f"no features that {self.path} names can be read")

    def read(self, stream: dict) -> tuple[list[dict], dict[str, torch.Tensor], np.ndarray, float]:
        """`(messages, {"frames" or "video_features": tensor}, seconds of the frames, frames a second)` of a line."""
        with self.naming(stream):
            return self._read(stream)

    def _read(self, stream: dict) -> tuple[list[dict], dict[str, torch.Tensor], np.ndarray, float]:
        path, fps = stream.get("features"), self.fps(stream)
        first, stop = frame_range(fps, stream.get("start"), stream.get("end"))
        if path is None:
            name, frames = "frames", read_frames(stream["video"], fps, self.processor.video_processor, first, stop)
        else:
            held, wanted = read_about(path)["num_frame_tokens"], self.processor.num_frame_tokens
            if held != wanted:
                raise OtherModelError(
                    f"{path} holds {held} tokens a frame, the processor has {wanted}: extract the features with the "
                    "model that is trained"
                )
            name, frames = "video_features", read_features(path, first, stop)
        times = (first + np.arange(len(frames))) / fps
        return conversation(stream["turns"], times, stream.get("opening")), {name: frames}, times, fps

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """A batch of columns, as `Dataset.with_transform` hands it over."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        examples = [self.example(row) for row in rows]
        return {name: [example[name] for example in examples] for name in examples[0]}


def rows(
    examples: StreamExamples, spans: list[tuple[int, int, int]], left_out: list[frozenset[int]], digest: str
) -> Iterator[dict]:
    """The lines of a file for `datasets`, without those numbered in `left_out`. `digest`, of the file, is there for
    the cache's key: a file that was changed is another one."""
    for span, numbers in zip(spans, left_out, strict=True):
        for stream in read_streams(examples.path, *span):
            if stream["line"] not in numbers:
                for line in examples.lines(stream):
                    yield {name: line.get(name) for name in COLUMNS}


def load_streams(
    path: str | Path,
    processor,
    *,
    streaming: bool = False,
    missing: str = "stop",
    max_tokens: int | None = None,
    strict: bool = False,
):
    """Streams in JSONL (`data.jsonl`) as examples for `StreamCollator`, made one at a time when they are asked for.

    Lines are kept in a memory-mapped cache of `datasets`, or with `streaming` read as they are needed; the examples
    are the same. Columns are replaced on the fly, so `TrainingArguments.remove_unused_columns` must be False; with
    `streaming` so must `accelerator_config.dispatch_batches`, since frames of a batch are not sliced by rows.

    A line that turns out to be unusable when its example is made, with a damaged video or a part beyond the video's
    end, does not stop a run: nothing is learned from it, and it is logged when the run ends.

    Args:
        path: of the JSONL file.
        processor (`VideoLLMMoDProcessor`): makes tokens and labels; gives the frames' size, and the rate for lines
            without `fps`.
        streaming (`bool`): an `IterableDataset` instead of a `Dataset`.
        missing (`str`): `"stop"` or `"skip"` where videos or features are not there.
        max_tokens (`int`, *optional*): cut longer streams into several, see `windows`.
        strict (`bool`): stop at a line that cannot be used.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset` of `input_ids`, `labels`, `turns` (`list[Turn]`), and uint8
        `frames` `[F, 3, H, W]` or `video_features` `[F, N, Dv]`.

    Raises:
        `ValueError`: for faults in the file, features that do not fit the processor, `max_tokens` too small for what
            is said between two frames, nothing left. From the data set: if no line can be used, with `strict` one.
        `OSError`: for files that cannot be read or, with `missing="stop"`, are not there.
    """
    if missing not in MISSING:
        raise ValueError(f"`missing` must be one of {', '.join(map(repr, MISSING))}, got {missing!r}")
    if max_tokens is not None:
        check_count("`max_tokens`", max_tokens)
    path = str(Path(path).absolute())
    check(path)
    if len({"video" in stream for stream in read_streams(path)}) > 1:
        raise ValueError(f"{path} has lines with `video` and lines with `features`; a batch cannot hold both")
    gone = missing_media(path)
    if gone and missing == "stop":
        raise missing_error(path, gone)
    spans = line_spans(path, SHARDS)
    total = sum(count for _, _, count in spans) - len(gone)
    if not total:
        raise missing_error(path, gone)
    if gone:
        logger.warning(f"{path}: {len(gone)} lines are left out, their videos or features are missing")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    left_out = [frozenset(gone.keys() & range(first, first + count)) for _, first, count in spans]
    examples = StreamExamples(path, processor, max_tokens)
    source = {"examples": examples, "spans": spans, "left_out": left_out, "digest": digest}

    def maker(count: float) -> StreamExamples:
        return examples if strict else replace(examples, skipped=Skipped(path, total, count))

    if streaming:
        lines = IterableDataset.from_generator(rows, features=COLUMNS, gen_kwargs=source)
        make = maker(total if max_tokens is None else math.inf).example  # windows are not counted before they come
        return lines.map(make, remove_columns=list(COLUMNS))
    try:
        lines = Dataset.from_generator(rows, features=COLUMNS, gen_kwargs=source)
    except DatasetGenerationError as error:
        raise (error.__cause__ or error) from None
    return lines.with_transform(maker(len(lines)))


def check_features(path: str | Path, model, video_processor) -> None:
    """Raise `ValueError` if features in a JSONL file were made by another vision tower or preprocessing than these.
    A file that cannot be read is passed over: that is found when it is read.

    Args:
        path: of the JSONL file.
        model (`VideoLLMMoDForConditionalGeneration`), video_processor (`VideoLLMMoDVideoProcessor`).
    """
    own = None
    for stream in read_streams(path):
        if "features" in stream:
            own, made_by = own or fingerprint(model, video_processor), None
            with suppress(ValueError, OSError):
                made_by = read_about(stream["features"])["fingerprint"]
            if made_by not in (None, own):
                raise ValueError(
                    f"{path}:{stream['line']}: the features {stream['features']} were made by another vision tower or "
                    "preprocessing than those of the model; extract them anew, or train on the videos"
                )
