"""The options of `videollm-mod evaluate`, checked before anything slow begins."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from ..data.files import check_output
from ..data.levels import NAMES, check_level
from .benchmark_options import BenchmarkOptions

SHARED = ("streams", "json", "plot")  # by tasks and benchmarks


@dataclass(kw_only=True)
class EvaluateOptions(BenchmarkOptions):
    """The options of `videollm-mod evaluate`; see its `--help`.

    Raises:
        `ValueError`, `OSError`, `ImportError`: from `check`, naming the option.
    """

    task: Annotated[
        str, "narration, chat, step, task, next, procedure, procedure+, lta or keystep; or else --benchmark"
    ] = ""
    data: Annotated[
        Path | None, "streams, as `prepare` writes them (default: the procedural world)", {"metavar": "FILE.jsonl"}
    ] = None
    level: Annotated[str | None, f"level of the procedural world: {', '.join(NAMES)} (default: basic)"] = None
    split: Annotated[str | None, "split of the world's seeds: train, validation or test (default: validation)"] = None
    first_seed: Annotated[int | None, "first seed of the world, instead of --split", {"metavar": "SEED"}] = None
    questions: Annotated[int | None, "questions asked in each stream of the world (default: 1)", {"metavar": "N"}] = (
        None
    )
    self_conditioned: Annotated[bool, "continue from the model's own replies instead of the true ones"] = False
    categories: Annotated[Path | None, "all possible answers, one per line; for lta the taxonomy.json"] = None
    batch_size: Annotated[int, "streams that go through the model together (default: 8)"] = 8

    def check(self) -> None:
        super().check()
        from .captions import check_captions
        from .speaking import check_plot
        from .tasks import STREAMING, TASKS

        self._check_files()
        self._check_numbers()
        if self.benchmark is not None:
            self._refuse("`--benchmark`", EvaluateOptions)
            self.check_benchmark()
            if self.plot is not None:
                check_plot(self.plot)
            return
        if not self.task:
            raise ValueError("give `--task` or `--benchmark`")
        self._refuse("`--task`", BenchmarkOptions)
        if self.task not in TASKS:
            raise ValueError(f"`--task` must be one of {', '.join(TASKS)}, got {self.task!r}")
        if self.self_conditioned and self.task not in STREAMING:
            raise ValueError(f"`--self-conditioned` is for the tasks {' and '.join(STREAMING)}, not for {self.task!r}")
        if self.data is not None:
            for name in ("level", "split", "first_seed", "questions"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`--{name.replace('_', '-')}` is of the world, and does not go with `--data`")
        if self.level is not None:
            check_level("`--level`", self.level)
        if self.categories is not None and self.task in STREAMING:
            raise ValueError(f"`--categories` is for tasks with an answer, not for {self.task!r}")
        if self.first_seed is not None and self.split is not None:
            raise ValueError("`--first-seed` is instead of a split's seeds, and does not go with `--split`")
        if self.plot is not None:
            if self.self_conditioned or self.task not in STREAMING:
                raise ValueError("`--plot` shows the decisions to speak, of narration and chat, not self-conditioned")
            check_plot(self.plot)
        if self.self_conditioned:
            check_captions()

    def _check_numbers(self) -> None:
        for name, least in (("streams", 1), ("batch_size", 1), ("questions", 0), ("first_seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least {least}, got {value}")

    def _check_files(self) -> None:
        for name in ("json", "plot"):
            if getattr(self, name) is not None:
                check_output(f"--{name}", getattr(self, name))
        if self.json is not None:
            check_result(self.json)
            if self.plot is not None and self.plot.absolute() == self.json.absolute():
                raise ValueError(f"`--json` and `--plot` are the same file, {self.json}")

    def _refuse(self, beside: str, options: type) -> None:
        """Raise `ValueError` if an option that only `options` has was given too."""
        for field in fields(options):
            own = field.name in options.__annotations__ and field.name not in SHARED
            if own and getattr(self, field.name) != field.default:
                raise ValueError(f"`--{field.name.replace('_', '-')}` does not go with {beside}")


def check_result(path: Path) -> None:
    """Raise `ValueError` if a file is there that is no result, and would be lost."""
    if not path.exists() or not path.stat().st_size:
        return
    try:
        made = json.loads(path.read_bytes())
    except ValueError:
        made = None
    known = isinstance(made, dict) and {"command", "summary"} <= made.keys() and {"task", "protocol"} & made.keys()
    if not known:
        raise ValueError(f"`--json` would overwrite {path}, which is no result of `videollm-mod evaluate`")


__all__ = ["EvaluateOptions"]
