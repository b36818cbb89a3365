"""The options of `videollm-mod calibrate`, checked before anything slow begins."""

from dataclasses import KW_ONLY, dataclass
from math import inf
from pathlib import Path
from typing import Annotated

from ..loading.find import find_checkpoint
from ..loading.options import ModelOptions
from ..narration.options import check_output

DEFAULT_CHANGED = 0.02  # share of the replies
BUDGETS = ("changed", "divergence", "operations")


@dataclass
class CalibrateOptions(ModelOptions):
    """The options of `videollm-mod calibrate`; see its `--help`.

    Raises:
        `ValueError`, `OSError`, `ImportError`: from `check`, naming the option.
    """

    clips: Annotated[list[Path], "videos to measure on", {"nargs": "+", "metavar": "CLIP"}]
    _: KW_ONLY
    model: Annotated[str, "folder or Hub id of a checkpoint"]
    output: Annotated[
        Path | None, "a new folder for the result (default: change config.json of the model)", {"metavar": "FOLDER"}
    ] = None
    changed: Annotated[
        float | None,
        f"at most this share of the replies may change, or be missed or added (default: {DEFAULT_CHANGED:g})",
        {"metavar": "C"},
    ] = None
    divergence: Annotated[
        float | None,
        "instead, the mean KL divergence from the dense model may be at most this, in nats",
        {"metavar": "D"},
    ] = None
    operations: Annotated[
        float | None,
        "instead, the language model may take at most this share of the dense operations",
        {"metavar": "R"},
    ] = None
    question: Annotated[
        str | None, "ask this after each clip, and measure on the answer too (default: narrations only)"
    ] = None
    frames: Annotated[int, "frames of each clip to watch (default: 32)", {"metavar": "N"}] = 32
    json: Annotated[Path | None, "file for the report"] = None
    plot: Annotated[Path | None, "plot of divergence and operations", {"metavar": "FILE.png"}] = None
    force: Annotated[bool, "replace routing that was trained"] = False
    keep_ratio: None = None  # is what the command chooses

    @property
    def budget(self) -> tuple[str, float]:
        """The name of the budget that was given, or of the default one, and its limit."""
        given = {name: value for name in BUDGETS if (value := getattr(self, name)) is not None}
        return next(iter(given.items()), ("changed", DEFAULT_CHANGED))

    def check(self) -> None:
        super().check()
        given = [f"`--{name}`" for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are {len(given)} budgets; give one of them")
        if self.changed is not None and not 0 <= self.changed < 1:
            raise ValueError(f"`--changed` must be a share of at least 0 and below 1, got {self.changed:g}")
        if self.divergence is not None and not 0 < self.divergence < inf:
            raise ValueError(f"`--divergence` must be a number above 0, got {self.divergence:g}")
        if self.operations is not None and not 0 < self.operations < 1:
            raise ValueError(f"`--operations` must be a share between 0 and 1, got {self.operations:g}")
        if self.frames < 1:
            raise ValueError(f"`--frames` must be at least 1, got {self.frames}")
        if self.question is not None and not self.question.strip():
            raise ValueError("`--question` must not be empty")
        base, adapter = find_checkpoint(self.model)
        if adapter is not None:
            raise ValueError(f"{adapter} is an adapter: put it into its model first, with `videollm-mod merge`")
        if self.output is None and not Path(base).is_dir():
            raise ValueError(f"{base} is on the Hub: give `--output`")
        if self.output is not None:
            if not self.output.parent.is_dir():
                raise FileNotFoundError(f"the folder of `--output` does not exist: {self.output.parent}")
            if self.output.exists() and not (self.output.is_dir() and not any(self.output.iterdir())):
                raise FileExistsError(f"`--output` must be a new or empty folder, got {self.output}")
        for name, path in {"--json": self.json, "--plot": self.plot}.items():
            if path is not None:
                for clip in self.clips:
                    check_output(name, path, str(clip))
        if self.plot is not None:
            from ..evaluation.speaking import check_plot

            check_plot(self.plot)


__all__ = ["DEFAULT_CHANGED", "CalibrateOptions"]
