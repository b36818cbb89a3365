"""What `videollm-mod narrate` is asked to do, checked before anything slow begins."""

import json
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..containers import LIMITS, MediaLimits, check_fps, local_path, shown
from ..conversation import check_text
from ..decoding import DEFAULT_FPS
from ..loading.adapter import base_of, is_adapter
from ..speaking import DEFAULT_THRESHOLD

FORMATS = ("text", "jsonl", "vtt", "srt")
FORMAT_OF_SUFFIX = {".jsonl": "jsonl", ".vtt": "vtt", ".srt": "srt"}
WHEN_BEHIND = ("drop", "wait")
DTYPES = ("auto", "float32", "bfloat16", "float16")
MAX_FPS = 1000.0
OWN_CHECKPOINT = Path(__file__).resolve().parent.parent  # the one that is installed with the package


def plain_float(text: str) -> float:
    """As `float`, of plain digits only: that also takes `1_0`, and digits of all scripts, which nobody means."""
    if "_" in text or not text.isascii():
        raise ValueError(f"could not convert string to float: {shown(text)}")
    return float(text)


def plain_int(text: str) -> int:
    """As `int`, in the same way."""
    if "_" in text or not text.isascii():
        raise ValueError(f"invalid literal for int: {shown(text)}")
    return int(text)


@dataclass(frozen=True)
class Query:
    """Something the user says: at `time` (seconds) a question, without one the instruction that opens the stream."""

    text: str
    time: float | None = None

    @classmethod
    def parse(cls, argument: str) -> "Query":
        """`TEXT`, or `TEXT@SECONDS`: with a number after the last `@`.

        Raises:
            `ValueError`: for no text, or seconds that are negative or not finite.
        """
        with suppress(UnicodeError):  # where the locale is of ASCII, Python leaves UTF-8 undecoded
            argument = os.fsencode(argument).decode("utf-8")
        text, at, seconds = argument.rpartition("@")
        try:
            time = plain_float(seconds) if at else None
        except ValueError:
            time = None
        if time is None:
            text = argument
        elif not 0 <= time < math.inf:
            raise ValueError(f"the time of a `--query` must be seconds from 0 on, got {shown(argument)}")
        if not text.strip():
            raise ValueError(f"a `--query` must hold text, got {shown(argument)}")
        check_text("a `--query`", text)
        return cls(text, time)


@dataclass
class NarrateOptions:
    """See `videollm-mod narrate --help`.

    Raises:
        `ValueError`, `OSError`: from `check`, naming the argument.
    """

    source: str
    model: str | None = None
    queries: list[str] = field(default_factory=list)
    fps: float | None = None
    threshold: float = DEFAULT_THRESHOLD
    keep_ratio: float | None = None
    max_cached_frames: int | None = None
    format: str | None = None
    output: Path | None = None
    overlay: Path | None = None
    when_behind: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    load_in_4bit: bool = False
    trust_remote_code: bool = False
    limits: MediaLimits = LIMITS  # of a recording, in Python only

    def __post_init__(self):
        if self.output == Path("-"):  # standard output
            self.output = None

    def check(self) -> None:
        if self.fps is not None:
            check_fps("`--fps`", self.fps)
            if self.fps > MAX_FPS:
                raise ValueError(f"`--fps` must be at most {MAX_FPS:g}, got {self.fps:g}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"`--threshold` must be in [0, 1], got {self.threshold:g}")
        if self.keep_ratio is not None and not 0 < self.keep_ratio <= 1:
            raise ValueError(f"`--keep-ratio` must be in (0, 1], got {self.keep_ratio:g}")
        if self.max_cached_frames is not None and self.max_cached_frames < 4:
            raise ValueError(f"`--max-cached-frames` must be at least 4, got {self.max_cached_frames}")
        if self.when_behind not in (None, *WHEN_BEHIND):
            raise ValueError(f"`--when-behind` must be {' or '.join(WHEN_BEHIND)}, got {self.when_behind!r}")
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise ValueError(f"`--device` must be auto, cpu, mps, cuda or cuda:N, got {self.device!r}")
        self.parsed_queries()
        for name, path in {"--output": self.output, "--overlay": self.overlay}.items():
            if path is not None:
                check_output(name, path, self.source)
        if self.overlay is not None and self.overlay.suffix.lower() != ".mp4":
            raise ValueError(f"`--overlay` must end in .mp4, got {self.overlay}")
        if self.overlay is not None and self.output is not None and self.overlay.resolve() == self.output.resolve():
            raise ValueError(f"`--output` and `--overlay` must be two files, both are {self.output}")
        check_model(self.model, self.trust_remote_code)

    def parsed_queries(self) -> list[Query]:
        return [Query.parse(argument) for argument in self.queries]

    @property
    def checkpoint(self) -> str:
        """The folder, or Hub id, of the checkpoint."""
        if self.model is None:
            return str(OWN_CHECKPOINT)
        folder = Path(self.model).expanduser()
        return str(folder) if folder.is_dir() else self.model

    @property
    def adapter(self) -> Path | None:
        """The folder, if it holds an adapter and no checkpoint."""
        folder = Path(self.checkpoint)
        return folder if is_adapter(folder) else None

    @property
    def base(self) -> str:
        """The folder, or Hub id, of the checkpoint itself: an adapter's base."""
        return self.checkpoint if self.adapter is None else base_of(self.adapter)

    @property
    def output_format(self) -> str:
        """The format asked for, or what the output's name ends in."""
        if self.format is not None:
            return self.format
        return FORMAT_OF_SUFFIX.get(self.output.suffix.lower(), "text") if self.output is not None else "text"


def stated_fps(checkpoint: str) -> float:
    """Frames per second of a checkpoint's video processor; on the Hub, where no file is at hand, the usual ones.

    Raises:
        `ValueError`: if the folder says nothing sensible.
    """
    path = Path(checkpoint) / "processor_config.json"
    if not path.is_file():
        return DEFAULT_FPS
    try:
        fps = json.loads(path.read_text(encoding="utf-8"))["video_processor"]["fps"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no configuration of a processor: {error!r}") from error
    check_fps(f"`fps` in {path}", fps)
    return fps


def check_output(name: str, path: Path, source: str) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of `{name}` does not exist: {path.parent}")
    if path.is_dir():
        raise IsADirectoryError(f"`{name}` must be a file, {path} is a directory")
    source = local_path(source)
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise ValueError(f"`{name}` would overwrite the source {source}")


def check_model(model: str | None, trust_remote_code: bool) -> None:
    """Raise `ValueError` or `OSError` if a folder holds no checkpoint, or nothing like a folder or Hub id is named."""
    if model is None:
        return
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if folder.exists() or model.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
            raise FileNotFoundError(f"`--model` must be a folder with a checkpoint or a Hub id, got {model}")
    elif is_adapter(folder):
        base_of(folder)
    elif not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"`--model` holds no checkpoint: there is no config.json in {model}, and no adapter_config.json"
        )
    elif not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise FileNotFoundError(f"`--model` holds no weights: there is no *.safetensors in {model}")


__all__ = ["OWN_CHECKPOINT", "NarrateOptions", "Query", "stated_fps"]
