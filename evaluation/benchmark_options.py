"""The options of `videollm-mod evaluate --benchmark`, checked before anything slow begins."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from ..containers import check_fps
from ..data.files import STANDARD, check_output
from ..loading.options import ModelOptions

# a model and what it is compared with, in the order of the table
CONTROLS = ("always", "last4", "blind", "dense", "silent", "no-answer", "constant")
OTHERS_FPS = 1.0  # frames per second for models that state none


@dataclass(kw_only=True)
class BenchmarkOptions(ModelOptions):
    """What `videollm-mod evaluate` can be told about a benchmark, and what a task has too; see its `--help`.

    Raises:
        `ValueError`, `OSError`: from `check_benchmark`, naming the option.
    """

    benchmark: Annotated[
        Path | None, "items of a benchmark, as `prepare` writes them; instead of --task", {"metavar": "FILE.jsonl"}
    ] = None
    protocol: Annotated[
        Literal["poll", "stream"] | None,
        "poll: asked anew at each time, as official scripts do; stream: asked once, and frames pass once",
    ] = None
    control: Annotated[
        list[str] | None,
        f"what to compare with: none, or some of {', '.join(CONTROLS)} (default: all that apply)",
        {"nargs": "+", "metavar": "NAME", "choices": ("none", *CONTROLS)},
    ] = None
    context_seconds: Annotated[
        float | None, "show only the last seconds before a question, 60 for StreamingBench's setting (default: all)"
    ] = None
    endpoint: Annotated[
        str | None, "address of an OpenAI-compatible server, such as http://localhost:8000/v1, instead of --model"
    ] = None
    endpoint_model: Annotated[str | None, "name of the model there", {"metavar": "NAME"}] = None
    endpoint_key_env: Annotated[str | None, "environment variable that holds the key", {"metavar": "NAME"}] = None
    stock: Annotated[
        Path | None, "folder of a model of transformers that reads images or video", {"metavar": "FOLDER"}
    ] = None
    fps: Annotated[
        float | None, f"frames per second for --endpoint and --stock (default: {OTHERS_FPS:g}); others have their own"
    ] = None
    max_frames: Annotated[
        int | None,
        "for --endpoint and --stock: at most so many frames, evenly spaced (default: all)",
        {"metavar": "N"},
    ] = None
    judge: Annotated[str | None, "address of the OpenAI-compatible server that judges open answers"] = None
    judge_model: Annotated[str | None, "name of the model there", {"metavar": "NAME"}] = None
    judge_key_env: Annotated[str | None, "environment variable that holds its key", {"metavar": "NAME"}] = None
    table: Annotated[Path | None, "table of a benchmark's scores", {"metavar": "FILE.md"}] = None
    streams: Annotated[
        int | None,
        "number of streams or items, from the first on (default: all of a file, 500 of the world)",
        {"metavar": "N"},
    ] = None
    json: Annotated[Path | None, "file for the result, - for standard output; a killed run continues from it"] = None
    plot: Annotated[
        Path | None, "plot of a benchmark's scores, or of a task's at other thresholds", {"metavar": "FILE.png"}
    ] = None

    def check_benchmark(self) -> None:
        """Check the options that concern benchmarks alone."""
        if self.protocol is None:
            raise ValueError("`--benchmark` needs `--protocol poll` or `--protocol stream`")
        if self.control is not None and "none" in self.control and len(self.control) > 1:
            raise ValueError("`--control none` means no control, and goes with no other")
        if self.context_seconds is not None and not 0 < self.context_seconds < float("inf"):
            raise ValueError(f"`--context-seconds` must be a finite number > 0, got {self.context_seconds:g}")
        models = [name for name in ("model", "endpoint", "stock") if getattr(self, name) is not None]
        if len(models) > 1:
            raise ValueError(f"give one of {' and '.join(f'`--{name}`' for name in models)}, not both")
        check_server("endpoint", self.endpoint, self.endpoint_model, self.endpoint_key_env)
        check_server("judge", self.judge, self.judge_model, self.judge_key_env)
        if self.stock is not None and not (self.stock / "config.json").is_file():
            raise FileNotFoundError(
                f"`--stock` must be a folder with a model, there is no config.json in {self.stock}"
            )
        others = self.endpoint is not None or self.stock is not None
        for name in ("fps", "max_frames") if not others else ("threshold", "keep_ratio"):
            if getattr(self, name) is not None:
                whose = "this package's checkpoints" if others else "`--endpoint` and `--stock`"
                raise ValueError(f"`--{name.replace('_', '-')}` is for {whose} only")
        if self.fps is not None:
            check_fps("`--fps`", self.fps)
        if self.max_frames is not None and self.max_frames < 1:
            raise ValueError(f"`--max-frames` must be at least 1, got {self.max_frames}")
        if self.table is not None and self.table != STANDARD:
            check_output("--table", self.table)


def check_server(name: str, url: str | None, model: str | None, key_env: str | None) -> None:
    """Check the address of a server, and what goes with it."""
    if url is None:
        for option, value in (("model", model), ("key-env", key_env)):
            if value is not None:
                raise ValueError(f"`--{name}-{option}` needs `--{name}`")
        return
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"`--{name}` must begin with http:// or https://, got {url!r}")
    if "@" in parts.netloc:
        raise ValueError(f"`--{name}` must hold no password: `--{name}-key-env` names the variable that holds the key")
    if model is None:
        raise ValueError(f"`--{name}` needs `--{name}-model`")
    if key_env is not None and not os.environ.get(key_env):
        raise ValueError(f"`--{name}-key-env`: the environment variable {key_env} is not set")


__all__ = ["CONTROLS", "OTHERS_FPS", "BenchmarkOptions"]
