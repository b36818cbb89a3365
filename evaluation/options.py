"""The options of `videollm-mod evaluate`, checked before anything slow begins."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..data.files import check_output
from ..data.levels import NAMES, check_level
from ..loading.options import ModelOptions


@dataclass(kw_only=True)
class EvaluateOptions(ModelOptions):
    """The options of `videollm-mod evaluate`; see its `--help`.

    Raises:
        `ValueError`, `OSError`, `ImportError`: from `check`, naming the option.
    """

    task: Annotated[str, "narration, chat, step, task, next, procedure, procedure+, lta or keystep"]
    data: Annotated[
        Path | None, "streams, as `prepare` writes them (default: the procedural world)", {"metavar": "FILE.jsonl"}
    ] = None
    level: Annotated[str | None, f"level of the procedural world: {', '.join(NAMES)} (default: basic)"] = None
    split: Annotated[str | None, "split of the world's seeds: train, validation or test (default: validation)"] = None
    first_seed: Annotated[int | None, "first seed of the world, instead of --split", {"metavar": "SEED"}] = None
    questions: Annotated[int | None, "questions asked in each stream of the world (default: 1)", {"metavar": "N"}] = (
        None
    )
    streams: Annotated[
        int | None, "number of streams, from the first on (default: all of a file, 500 of the world)", {"metavar": "N"}
    ] = None
    self_conditioned: Annotated[bool, "continue from the model's own replies instead of the true ones"] = False
    categories: Annotated[Path | None, "all possible answers, one per line; for lta the taxonomy.json"] = None
    batch_size: Annotated[int, "streams that go through the model together (default: 8)"] = 8
    json: Annotated[Path | None, "file for the result, - for standard output; a killed run continues from it"] = None
    plot: Annotated[Path | None, "plot of the scores at other thresholds", {"metavar": "FILE.png"}] = None

    def check(self) -> None:
        super().check()
        from .captions import check_captions
        from .speaking import check_plot
        from .tasks import STREAMING, TASKS

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
        for name, least in (("streams", 1), ("batch_size", 1), ("questions", 0), ("first_seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`--{name.replace('_', '-')}` must be at least {least}, got {value}")
        if self.categories is not None and self.task in STREAMING:
            raise ValueError(f"`--categories` is for tasks with an answer, not for {self.task!r}")
        if self.first_seed is not None and self.split is not None:
            raise ValueError("`--first-seed` is instead of a split's seeds, and does not go with `--split`")
        for name in ("json", "plot"):
            if getattr(self, name) is not None:
                check_output(f"--{name}", getattr(self, name))
        if self.json is not None:
            check_result(self.json)
            if self.plot is not None and self.plot.absolute() == self.json.absolute():
                raise ValueError(f"`--json` and `--plot` are the same file, {self.json}")
        if self.plot is not None:
            if self.self_conditioned or self.task not in STREAMING:
                raise ValueError("`--plot` shows the decisions to speak, of narration and chat, not self-conditioned")
            check_plot(self.plot)
        if self.self_conditioned:
            check_captions()


def check_result(path: Path) -> None:
    """Raise `ValueError` if a file is there that is no result, and would be lost."""
    if not path.exists() or not path.stat().st_size:
        return
    try:
        made = json.loads(path.read_bytes())
    except ValueError:
        made = None
    if not isinstance(made, dict) or not {"command", "task", "summary"} <= made.keys():
        raise ValueError(f"`--json` would overwrite {path}, which is no result of `videollm-mod evaluate`")


__all__ = ["EvaluateOptions"]
