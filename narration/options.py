"""The options of `videollm-mod narrate`, checked before anything slow begins."""

import json
import math
import os
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from ..containers import LIMITS, MediaLimits, check_fps, plain_float, shown
from ..conversation import check_text
from ..data.files import STANDARD, check_output
from ..decoding import DEFAULT_FPS
from ..loading.options import ModelOptions
from ..sources.live import WHEN_BEHIND

FORMAT_OF_SUFFIX = {".jsonl": "jsonl", ".vtt": "vtt", ".srt": "srt"}
MAX_FPS = 1000.0


@dataclass(frozen=True)
class Query:
    """What the user says: a question after the frames until `time` (seconds), or without a time the instruction that
    opens the stream."""

    text: str
    time: float | None = None

    @classmethod
    def parse(cls, argument: str) -> "Query":
        """Parse `TEXT`, or `TEXT@SECONDS` with a number after the last `@`.

        Raises:
            `ValueError`: if there is no text, or if the seconds are negative or not finite.
        """
        with suppress(UnicodeError):  # in an ASCII locale, Python leaves UTF-8 undecoded
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
class NarrateOptions(ModelOptions):
    """The options of `videollm-mod narrate`; see its `--help`.

    Raises:
        `ValueError`, `OSError`: from `check`, naming the option.
    """

    source: Annotated[str, "a file, a URL, webcam:0, rtsp://..., or - to read a video from standard input"]
    _: KW_ONLY
    queries: Annotated[
        list[str],
        "an instruction to begin with, or a question asked at a time; may be given several times",
        {"flag": "--query", "metavar": "TEXT[@SECONDS]"},
    ] = field(default_factory=list)
    fps: Annotated[float | None, "frames per second that the model sees (default: the checkpoint's own)"] = None
    speak_rule: Annotated[
        Literal["trained", "verify"] | None,
        "when to speak: as the model was trained to, or when its last narration no longer holds, which needs no "
        "training (default: the checkpoint's own)",
    ] = None
    margin: Annotated[
        float | None,
        "with the rule verify, and instead of --threshold: a narration holds until the best token is more probable "
        "than one of its own by this many nats (default: the checkpoint's own)",
        {"metavar": "M"},
    ] = None
    max_cached_frames: Annotated[
        int | None, "frames to remember (default: as many as fit into the model's context)", {"metavar": "N"}
    ] = None
    format: Annotated[
        Literal["text", "jsonl", "vtt", "srt"] | None,
        "format of the events (default: by the ending of --output, else text)",
    ] = None
    output: Annotated[Path | None, "file for the events, or - (default: standard output)"] = None
    overlay: Annotated[
        Path | None,
        "also write a video that shows the kept tokens, P(silence) and the events",
        {"metavar": "FILE.mp4"},
    ] = None
    when_behind: Annotated[
        Literal["drop", "wait"] | None,
        "when a live source is faster than the model, drop frames or let the source wait "
        "(default: drop for cameras and network streams, wait for standard input)",
    ] = None
    load_in_4bit: Annotated[bool, "quantise the language model to 4 bits; needs bitsandbytes"] = False
    trust_remote_code: Annotated[bool, "run the Python code that comes with the checkpoint"] = False
    limits: MediaLimits = LIMITS  # of a recording; in Python only

    def __post_init__(self):
        if self.output == STANDARD:
            self.output = None

    def check(self) -> None:
        super().check()
        if self.fps is not None:
            check_fps("`--fps`", self.fps)
            if self.fps > MAX_FPS:
                raise ValueError(f"`--fps` must be at most {MAX_FPS:g}, got {self.fps:g}")
        if self.margin is not None:
            if not 0 <= self.margin < math.inf:
                raise ValueError(f"`--margin` must be a number of nats from 0 on, got {self.margin:g}")
            if self.speak_rule == "trained":
                raise ValueError("`--margin` is for `--speak-rule verify`, not for the trained rule")
            if self.threshold is not None:
                raise ValueError("`--margin` and `--threshold` say the same, give one of them")
        if self.max_cached_frames is not None and self.max_cached_frames < 1:
            raise ValueError(f"`--max-cached-frames` must be at least 1, got {self.max_cached_frames}")
        if self.when_behind not in (None, *WHEN_BEHIND):
            raise ValueError(f"`--when-behind` must be {' or '.join(WHEN_BEHIND)}, got {self.when_behind!r}")
        self.parsed_queries()
        for name, path in {"--output": self.output, "--overlay": self.overlay}.items():
            if path is not None:
                check_output(name, path, self.source)
        if self.overlay is not None and self.overlay.suffix.lower() != ".mp4":
            raise ValueError(f"`--overlay` must end in .mp4, got {self.overlay}")
        if self.overlay is not None and self.output is not None and self.overlay.resolve() == self.output.resolve():
            raise ValueError(f"`--output` and `--overlay` must be two files, both are {self.output}")

    def load(self):
        """`(model, processor)`, as `load_checkpoint`."""
        from ..loading.checkpoint import load_checkpoint

        return load_checkpoint(
            self.model,
            device=self.device,
            dtype=self.dtype,
            load_in_4bit=self.load_in_4bit,
            trust_remote_code=self.trust_remote_code,
        )

    def parsed_queries(self) -> list[Query]:
        return [Query.parse(argument) for argument in self.queries]

    @property
    def output_format(self) -> str:
        """The format asked for, or else the one that the ending of `output` names."""
        if self.format is not None:
            return self.format
        return FORMAT_OF_SUFFIX.get(self.output.suffix.lower(), "text") if self.output is not None else "text"


def stated_fps(checkpoint: str) -> float:
    """Frames per second of the video processor in a checkpoint's folder; `DEFAULT_FPS` for a Hub id, which has no
    folder yet.

    Raises:
        `ValueError`: if the folder states no valid number.
    """
    path = Path(checkpoint) / "processor_config.json"
    if not path.is_file():
        return DEFAULT_FPS
    try:
        fps = json.loads(path.read_text(encoding="utf-8"))["video_processor"]["fps"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the configuration of a processor: {error!r}") from error
    check_fps(f"`fps` in {path}", fps)
    return fps


__all__ = ["NarrateOptions", "Query", "stated_fps"]
