"""`videollm-mod calibrate-margin`."""

import math
import shlex
import sys
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from ..containers import check_fps
from ..data.files import beside, check_output
from ..loading.find import find_checkpoint
from ..loading.options import DTYPE, KEEP_RATIO
from .options import add_command
from .threads import use_free_cores


@dataclass
class CalibrateMarginOptions:
    """The options of `videollm-mod calibrate-margin`.

    Raises:
        `ValueError`, `OSError`, `ImportError`: from `check`, naming the option.
    """

    clips: Annotated[list[Path], "clips like those to be narrated, without labels", {"nargs": "+", "metavar": "CLIP"}]
    _: KW_ONLY
    model: Annotated[str, "folder of a checkpoint; the margin is written into its config.json", {"metavar": "FOLDER"}]
    query: Annotated[str | None, "the instruction that opens each stream", {"metavar": "TEXT"}] = None
    needless: Annotated[
        float, "how many narrations a minute may be said though nothing has changed (default: 1)", {"metavar": "N"}
    ] = 1.0
    fps: Annotated[float | None, "frames per second that the model sees (default: the checkpoint's own)"] = None
    keep_ratio: Annotated[float | None, KEEP_RATIO, {"metavar": "R"}] = None
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], DTYPE] = "auto"
    device: Annotated[str, "cpu, cuda, cuda:N or mps (default: the best one there is)"] = "auto"
    json: Annotated[Path | None, "file for the result, with every frame"] = None
    plot: Annotated[Path | None, "plot of narrations over the margin", {"metavar": "FILE.png"}] = None

    def check(self) -> None:
        if not (Path(self.model) / "config.json").is_file():
            raise FileNotFoundError(f"`--model` must be a folder with a checkpoint, got {self.model}")
        find_checkpoint(self.model)
        for clip in self.clips:
            if not clip.is_file():
                raise FileNotFoundError(f"there is no clip {clip}")
        if not 0 <= self.needless < math.inf:
            raise ValueError(f"`--needless` must be a number of at least 0, got {self.needless:g}")
        if self.fps is not None:
            check_fps("`--fps`", self.fps)
        if self.keep_ratio is not None and not 0 < self.keep_ratio <= 1:
            raise ValueError(f"`--keep-ratio` must be in (0, 1], got {self.keep_ratio:g}")
        for name in ("json", "plot"):
            if getattr(self, name) is not None:
                check_output(f"--{name}", getattr(self, name))
        if self.plot is not None:
            from ..evaluation.speaking import check_plot

            check_plot(self.plot)


def add(commands) -> None:
    help = "choose from clips how far a narration may fall behind before the model speaks again"
    add_command(commands, "calibrate-margin", CalibrateMarginOptions, run, help=help)


def run(options: CalibrateMarginOptions) -> None:
    options.check()
    use_free_cores()  # imports torch
    from ..evaluation.margin import calibrate_margin, table

    result = calibrate_margin(options, command=shlex.join(["videollm-mod", *sys.argv[1:]]))
    out = beside(options.json)
    print(table(result), file=out)
    path, margin = Path(options.model) / "config.json", f"verify_margin {result['picked']['margin']:g}"
    use = "" if result["speak_rule"] == "verify" else "; this model uses it with `--speak-rule verify` only"
    print(f"{margin} is written to {path}{use}", file=out)
