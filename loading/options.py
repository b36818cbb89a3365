"""What every command that runs a model can be told about it."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from ..sequence import DEFAULT_THRESHOLD
from .find import find_checkpoint

MODEL = "folder or Hub id of a checkpoint or adapter (default: the checkpoint of the package)"
THRESHOLD = (
    f"speak when P(silence) is below this (default: {DEFAULT_THRESHOLD}, or for the rule verify what the checkpoint's "
    "margin says)"
)
KEEP_RATIO = "share of vision tokens that routed layers keep (default: the checkpoint's own)"
DTYPE = "dtype of the weights (default: the checkpoint's own, float32 on a CPU)"


@dataclass(kw_only=True)
class ModelOptions:
    """Options of the model, checked by `check`, which raises `ValueError` or `OSError` and names the option."""

    model: Annotated[str | None, MODEL] = None
    threshold: Annotated[float | None, THRESHOLD, {"metavar": "P"}] = None
    keep_ratio: Annotated[float | None, KEEP_RATIO, {"metavar": "R"}] = None
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], DTYPE] = "auto"
    device: Annotated[str, "cpu, cuda, cuda:N or mps (default: the best one there is)"] = "auto"

    def check(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"`--threshold` must be in [0, 1], got {self.threshold:g}")
        if self.keep_ratio is not None and not 0 < self.keep_ratio <= 1:
            raise ValueError(f"`--keep-ratio` must be in (0, 1], got {self.keep_ratio:g}")
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise ValueError(f"`--device` must be auto, cpu, mps, cuda or cuda:N, got {self.device!r}")
        find_checkpoint(self.model)


__all__ = ["ModelOptions"]
