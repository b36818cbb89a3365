"""JSONL streams as a `datasets` data set, whose examples are made on the fly from videos or features on disk.

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

from ..containers import IGNORE_INDEX, check_count
from ..processing_videollm_mod import VideoLLMMoDProcessor
from .features import model_fingerprint, read_features, read_metadata
from .frames import TOLERANCE, frame_range, input_size, read_frames, video_seconds
from .jsonl import check, line_spans, missing_error, missing_media, read_streams
from .skipped import Skipped
from .timeline import conversation
from .turns import encode_example
from .windows import mask_before, windows

logger = logging.get_logger(__name__)

MISSING = ("stop", "skip")
SHARDS = 64  # parts of a streamed file that workers and processes share
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
    """The features were made by another model, so all examples are wrong, not only this one."""


@dataclass
class StreamExamples:
    """Makes the example of a line: `input_ids` and `labels` (`list[int]`), `turns` (`list[Turn]`), and uint8 `frames`
    `[F, 3, H, W]` or `video_features` `[F, N, Dv]`. With `max_tokens`, lines are first cut into `windows`. With
    `skipped`, an unusable line is recorded there, and its example is `blank`."""

    path: str
    processor: VideoLLMMoDProcessor
    max_tokens: int | None = None
    skipped: Skipped | None = None

    @contextmanager
    def naming_line(self, stream: dict) -> Iterator[None]:
        """Put the file and line of a stream in front of error messages."""
        try:
            yield
        except (ValueError, OSError) as error:
            kind = next(kind for kind in (OSError, OtherModelError, ValueError) if isinstance(error, kind))
            raise kind(f"{self.path}:{stream['line']}: {error}") from error

    def lines(self, stream: dict) -> list[dict]:
        """A line, or its windows."""
        if self.max_tokens is None:
            return [stream]
        with self.naming_line(stream):
            fps = num_frames = None
            with suppress(ValueError, OSError):  # unreadable files are reported when the example is made
                fps = self.fps(stream)
            if fps is None:
                return [stream]
            cut = windows(stream, fps, self.max_tokens, self.processor)
            if len(cut) > 1:  # only now does the end of the video matter, and looking it up is slow
                with suppress(ValueError, OSError):
                    num_frames = self.num_frames(stream)
                cut = windows(stream, fps, self.max_tokens, self.processor, num_frames)
            return cut

    def num_frames(self, stream: dict) -> int:
        """Number of frames of the whole video."""
        if stream.get("features") is not None:
            return read_metadata(stream["features"])["num_frames"]
        return max(1, math.ceil(video_seconds(stream["video"]) * self.fps(stream) - TOLERANCE))

    def fps(self, stream: dict) -> float:
        if stream.get("features") is None:
            return stream.get("fps") or self.processor.video_processor.fps
        own = read_metadata(stream["features"])["fps"]
        if stream.get("fps") not in (None, own):
            raise ValueError(f"`fps` is {stream['fps']}, but {stream['features']} was extracted at {own}")
        return own

    def example(self, stream: dict) -> dict:
        try:
            with self.naming_line(stream):
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
        messages, frames, times, fps = self._read(stream)
        example = encode_example(messages, self.processor, times)
        if stream.get("learned_from") is not None:
            first, learned = (frame_range(fps, stream.get(name))[0] for name in ("start", "learned_from"))
            example["labels"] = mask_before(example["labels"], example["turns"], learned - first)
        return {**example, **frames}

    def blank(self, stream: dict) -> dict:
        """An example of one frame without labels. It replaces an unusable one, so that all processes take the same
        number of steps, and a resumed run continues in the right place."""
        example = encode_example([{"role": "stream", "num_frames": 1}], self.processor)
        if stream.get("features") is None:
            size = input_size(self.processor.video_processor)
            frames = {"frames": torch.zeros(1, 3, *size, dtype=torch.uint8)}
        else:
            frames = {"video_features": torch.zeros_like(self._any_features())}
        return {**example, "labels": [IGNORE_INDEX] * len(example["labels"]), **frames}

    def _any_features(self) -> torch.Tensor:
        """`[1, N, Dv]`"""
        for stream in read_streams(self.path):
            with suppress(ValueError, OSError):
                return read_features(stream["features"], 0, 1)
        raise ValueError(f"none of the features named in {self.path} can be read")

    def read(self, stream: dict) -> tuple[list[dict], dict[str, torch.Tensor], np.ndarray, float]:
        """`(messages, {"frames" or "video_features": tensor}, times of the frames, fps)` of a line; times are in
        seconds."""
        with self.naming_line(stream):
            return self._read(stream)

    def _read(self, stream: dict) -> tuple[list[dict], dict[str, torch.Tensor], np.ndarray, float]:
        path, fps = stream.get("features"), self.fps(stream)
        first, stop = frame_range(fps, stream.get("start"), stream.get("end"))
        if path is None:
            name, frames = "frames", read_frames(stream["video"], fps, self.processor.video_processor, first, stop)
        else:
            held, wanted = read_metadata(path)["num_frame_tokens"], self.processor.num_frame_tokens
            if held != wanted:
                raise OtherModelError(
                    f"{path} has {held} tokens per frame, but the processor has {wanted}: extract the features with "
                    "the model you train"
                )
            name, frames = "video_features", read_features(path, first, stop)
        times = (first + np.arange(len(frames))) / fps
        return conversation(stream["turns"], times, stream.get("opening")), {name: frames}, times, fps

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        """Transform a batch of columns, for `Dataset.with_transform`."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        examples = [self.example(row) for row in rows]
        return {name: [example[name] for example in examples] for name in examples[0]}


def iter_rows(
    examples: StreamExamples, spans: list[tuple[int, int, int]], left_out: list[frozenset[int]], digest: str
) -> Iterator[dict]:
    """The lines of a file for `datasets`, without the line numbers in `left_out`. `digest` is the file's hash; it is
    an argument so that the cache of `datasets` notices when the file changes."""
    for span, numbers in zip(spans, left_out, strict=True):
        for stream in read_streams(examples.path, *span):
            if stream["line"] not in numbers:
                for line in examples.lines(stream):
                    yield {name: line.get(name) for name in COLUMNS}


def usable_lines(path: str, missing: str) -> tuple[dict, int]:
    """Check a file of streams. Returns where its usable lines are, as the arguments of `iter_rows`, and their number.

    Raises:
        `ValueError`, `OSError`: as `load_streams`.
    """
    check(path)
    if len({"video" in stream for stream in read_streams(path)}) > 1:
        raise ValueError(f"{path} has lines with `video` and lines with `features`; a batch cannot hold both")
    gone = missing_media(path)
    spans = line_spans(path, SHARDS)
    total = sum(count for _, _, count in spans) - len(gone)
    if not total or (gone and missing == "stop"):
        raise missing_error(path, gone)
    if gone:
        logger.warning(f"{path}: {len(gone)} lines are left out because their videos or features are missing")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    left_out = [frozenset(gone.keys() & range(first, first + count)) for _, first, count in spans]
    return {"spans": spans, "left_out": left_out, "digest": digest}, total


def load_streams(
    path: str | Path,
    processor,
    *,
    streaming: bool = False,
    missing: str = "stop",
    max_tokens: int | None = None,
    strict: bool = False,
):
    """Load JSONL streams (`data.jsonl`) as a data set of examples for `StreamCollator`, which are made on the fly.

    The lines are held in a memory-mapped cache of `datasets`, or read as they are needed with `streaming`; the
    examples are the same. Columns are replaced on the fly, so `TrainingArguments.remove_unused_columns` must be False.
    With `streaming`, `accelerator_config.dispatch_batches` must be False too, since a batch's frames cannot be sliced
    by rows.

    A line that turns out to be unusable when its example is made, because its video is damaged or ends too early, does
    not stop a run: the example has no labels, and the line is logged when the run ends.

    Args:
        path: the JSONL file.
        processor (`VideoLLMMoDProcessor`): makes tokens and labels, and determines the frame size and the rate of
            lines without `fps`.
        streaming (`bool`): return an `IterableDataset` instead of a `Dataset`.
        missing (`str`): what to do with lines whose video or features are missing, `"stop"` or `"skip"`.
        max_tokens (`int`, *optional*): cut longer streams into several, see `windows`.
        strict (`bool`): raise an error for an unusable line.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset` of `input_ids`, `labels`, `turns` (`list[Turn]`), and uint8
        `frames` `[F, 3, H, W]` or `video_features` `[F, N, Dv]`.

    Raises:
        `ValueError`: for faults in the file, features that do not fit the processor, `max_tokens` too small for the
            text between two frames, or if no lines are left. The data set raises it if no line can be used, or with
            `strict` if any line cannot.
        `OSError`: for files that cannot be read, or are missing with `missing="stop"`.
    """
    if missing not in MISSING:
        raise ValueError(f"`missing` must be one of {', '.join(map(repr, MISSING))}, got {missing!r}")
    if max_tokens is not None:
        check_count("`max_tokens`", max_tokens)
    path = str(Path(path).absolute())
    lines, total = usable_lines(path, missing)
    examples = StreamExamples(path, processor, max_tokens)

    def with_skipped(count: float) -> StreamExamples:
        return examples if strict else replace(examples, skipped=Skipped(path, total, count))

    source = {"examples": examples, **lines}
    if streaming:
        rows = IterableDataset.from_generator(iter_rows, features=COLUMNS, gen_kwargs=source)
        count = total if max_tokens is None else math.inf  # the number of windows is unknown
        return rows.map(with_skipped(count).example, remove_columns=list(COLUMNS))
    try:
        rows = Dataset.from_generator(iter_rows, features=COLUMNS, gen_kwargs=source)
    except DatasetGenerationError as error:
        raise (error.__cause__ or error) from None
    return rows.with_transform(with_skipped(len(rows)))


def check_features(path: str | Path, model, video_processor) -> None:
    """Raise `ValueError` if a JSONL file has features made by another vision tower or preprocessing. Files that cannot
    be read are ignored; they are reported when their example is made.

    Args:
        path: the JSONL file.
        model (`VideoLLMMoDForConditionalGeneration`), video_processor (`VideoLLMMoDVideoProcessor`).
    """
    expected = None
    for stream in read_streams(path):
        if "features" in stream:
            expected, found = expected or model_fingerprint(model, video_processor), None
            with suppress(ValueError, OSError):
                found = read_metadata(stream["features"])["fingerprint"]
            if found not in (None, expected):
                raise ValueError(
                    f"{path}:{stream['line']}: the features {stream['features']} were made by another vision tower or "
                    "preprocessing than the model has; extract them again, or use the videos"
                )
