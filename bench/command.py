"""The options of `videollm-mod bench`. Each benchmark is a module of its own, imported when it runs."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ..commands.options import add_command
from ..commands.threads import share_cores
from ..data.files import STANDARD, check_output
from .geometries import NAMES, WEIGHTS, check_fits


def at_least_one(options, *names: str) -> None:
    """
    Raises:
        `ValueError`: if one of the options is below 1, naming it.
    """
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(options, name)}")


@dataclass(kw_only=True)
class BenchOptions:
    """What the benchmarks share.

    Raises:
        `ValueError`: for an invalid `json` or `minutes`.
    """

    geometry: Annotated[
        Literal[NAMES],  # type: ignore[valid-type]  # mypy does not know the value of NAMES
        "size of the model, whose weights are random; nano is the size of the bundled one (default: llama3-8b)",
    ] = "llama3-8b"
    json: Annotated[Path | None, "result file; a plot is written next to it", {"metavar": "FILE.json"}] = None
    minutes: Annotated[float, "start no measurement after this many minutes (default: 30)", {"metavar": "M"}] = 30.0

    def __post_init__(self):
        if self.json == Path("-"):
            raise ValueError("--json must be a file, since a plot is written next to it")
        if self.json is not None and self.json.suffix != ".json":
            raise ValueError(f"--json must end in .json, got {str(self.json)!r}")
        if self.json is not None:
            check_output("--json", self.json)
        if not 0 <= self.minutes < math.inf:
            raise ValueError(f"--minutes must be 0 or more, got {self.minutes:g}")


@dataclass(kw_only=True)
class TrainOptions(BenchOptions):
    frames: Annotated[int, "frames of the stream (default: 1200)", {"metavar": "N"}] = 1200
    tokens: Annotated[int, "tokens per frame (default: 10)", {"metavar": "N"}] = 10
    keep_ratio: Annotated[float, "share of vision tokens that routed layers keep (default: 0.2)", {"metavar": "R"}] = (
        0.2
    )
    repeats: Annotated[int, "timed steps of each row (default: 5)", {"metavar": "N"}] = 5
    profile: Annotated[bool, "also measure how long each kind of kernel takes"] = False


@dataclass(kw_only=True)
class MemoryOptions(BenchOptions):
    training: Annotated[bool, "also measure how the memory of a training step grows"] = False


@dataclass(kw_only=True)
class WatchingOptions(BenchOptions):
    """What the benchmarks of watching share.

    Raises:
        `ValueError`: also for an invalid or missing device, and for a model that is too large for it.
    """

    device: Annotated[str | None, "cpu, cuda or cuda:N (default: cuda if there is one)"] = None

    def resolved(self) -> dict:
        """The options as arguments, with the device chosen and checked. Imports torch."""
        share_cores()
        import torch

        at_least_one(self, "repeats")
        if self.device is None:
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        elif not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"--device must be cpu or cuda, got {self.device!r}")
        elif self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError("--device cuda: there is no CUDA device here")
        check_fits(self.geometry, self.device)
        return dict(vars(self))


@dataclass(kw_only=True)
class StreamOptions(WatchingOptions):
    repeats: Annotated[int, "timed calls of each row (default: 60)", {"metavar": "N"}] = 60
    height: Annotated[
        int, "height of the decoded frames, which are 16:9, in pixels (default: 720)", {"metavar": "PIXELS"}
    ] = 720
    weights: Annotated[
        Literal[WEIGHTS],  # type: ignore[valid-type]  # mypy does not know the value of WEIGHTS
        "how the weights of the layers are stored: bf16 (on a CPU float32), fp8, int8 or nf4 (default: bf16)",
    ] = "bf16"


@dataclass(kw_only=True)
class OfflineOptions(WatchingOptions):
    repeats: Annotated[int, "timed streams of each row (default: 5)", {"metavar": "N"}] = 5
    frames: Annotated[int, "frames of a stream (default: 768)", {"metavar": "N"}] = 768


@dataclass(kw_only=True)
class GrowthOptions(WatchingOptions):
    repeats: Annotated[int, "timed calls of each row (default: 12)", {"metavar": "N"}] = 12
    frames: Annotated[
        list[int] | None, "frames held (default: eight sizes from 100 to 20000)", {"nargs": "+", "metavar": "N"}
    ] = None
    tokens: Annotated[
        list[int] | None, "tokens per frame (default: 1, 10, 50 and 101)", {"nargs": "+", "metavar": "N"}
    ] = None


@dataclass(kw_only=True)
class ServeOptions(WatchingOptions):
    repeats: Annotated[int, "turns of the comparison with the pool (default: 3)", {"metavar": "N"}] = 3
    url: Annotated[str | None, "measure a running server instead, such as http://127.0.0.1:8000"] = None
    fps: Annotated[float, "frames a second of each session (default: 2)", {"metavar": "F"}] = 2.0
    seconds: Annotated[float, "that each number of sessions is measured (default: 15)", {"metavar": "S"}] = 15.0
    held: Annotated[
        int, "frames that each session has watched at first; no more than it remembers are kept (default: 600)"
    ] = 600
    sessions: Annotated[
        list[int] | None, "numbers of sessions to measure (default: raise it until the server breaks)", {"nargs": "+"}
    ] = None
    keep_ratio_range: Annotated[
        list[float] | None,
        "measure again with a keep ratio that follows the load",
        {"nargs": 2, "metavar": ("LOW", "HIGH")},
    ] = None


@dataclass(kw_only=True)
class PlanOptions:
    results: Annotated[
        Path | None, "folder of results (default: benchmarks/results of a checkout)", {"metavar": "FOLDER"}
    ] = None
    output: Annotated[Path | None, "Markdown file to write (default: standard output)"] = None

    def __post_init__(self):
        if self.output not in (None, STANDARD):
            check_output("--output", self.output)


def add_bench(commands) -> None:
    what = "measure the time and memory of mixture of depths beside a dense model"
    parser = commands.add_parser("bench", help=what, description=f"{what.capitalize()}.")
    benches = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    for name, (options, run, what) in BENCHMARKS.items():
        add_command(benches, name, options, run, help=what)


def train(options: TrainOptions) -> None:
    at_least_one(options, "frames", "repeats")
    from .train import bench

    bench(**vars(options))


def memory(options: MemoryOptions) -> None:
    from .memory import bench

    bench(**vars(options))


def stream(options: StreamOptions) -> None:
    if options.height < 16:
        raise ValueError(f"--height must be at least 16, got {options.height}")
    arguments = options.resolved()
    if options.weights == "fp8" and arguments["device"] == "cpu":
        raise ValueError("--weights fp8 needs a CUDA device")
    from .stream import bench

    height = arguments.pop("height")
    bench(**arguments, size=(height, height * 16 // 9))


def offline(options: OfflineOptions) -> None:
    at_least_one(options, "frames")
    arguments = options.resolved()
    from .offline import bench

    bench(**arguments)


def growth(options: GrowthOptions) -> None:
    for tokens in options.tokens or ():
        if tokens < 1 or math.isqrt(tokens - 1) ** 2 != tokens - 1:
            raise ValueError(f"--tokens must be 1 more than a square, such as 1, 10 or 50, got {tokens}")
    if options.frames and min(options.frames) < 1:
        raise ValueError(f"--frames must be at least 1, got {min(options.frames)}")
    arguments = options.resolved()
    from .growth import bench
    from .growth_cases import FRAMES, TOKENS

    bench(**{**arguments, "frames": options.frames or FRAMES, "tokens": options.tokens or TOKENS})


def serve(options: ServeOptions) -> None:
    at_least_one(options, "held")
    if options.sessions and min(options.sessions) < 1:
        raise ValueError(f"--sessions must be at least 1, got {min(options.sessions)}")
    for name in ("fps", "seconds"):
        if not 0 < getattr(options, name) < math.inf:
            raise ValueError(f"--{name} must be a number above 0, got {getattr(options, name):g}")
    if options.keep_ratio_range:
        low, high = options.keep_ratio_range
        if not 0 < low <= high <= 1:
            raise ValueError(f"--keep-ratio-range must be a lower and a higher share in (0, 1], got {low:g} {high:g}")
    arguments = options.resolved()
    from .serve import bench

    bench(**arguments)


def plan(options: PlanOptions) -> None:
    from .plan import bench

    bench(**vars(options))


BENCHMARKS: dict[str, tuple[type, Callable[..., None], str]] = {
    "train": (TrainOptions, train, "time and memory of a training step with LoRA in bfloat16"),
    "memory": (MemoryOptions, memory, "memory of the cache and of training by length of the stream"),
    "stream": (StreamOptions, stream, "time to watch a live stream, frame by frame and in blocks, and to answer"),
    "offline": (OfflineOptions, offline, "time to watch recorded video in large blocks"),
    "growth": (
        GrowthOptions,
        growth,
        "time and memory by frames held, tokens per frame, number of streams and keep ratio",
    ),
    "serve": (ServeOptions, serve, "how many live streams a server holds, and what it costs beside its pool"),
    "plan": (PlanOptions, plan, "print a page that scales results to 8 GPUs, 64 GPUs and a million hours of video"),
}
