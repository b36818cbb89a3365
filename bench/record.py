"""Results as files: one JSON per benchmark, and the summary of figures that all benchmarks share.

The results of the repository lie in `benchmarks/results`, which an installed package does not have.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from ..data.files import write_whole
from ..evaluation.surroundings import surroundings

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def commit() -> str | None:
    """The commit of the running code: VIDEOLLM_MOD_COMMIT, for code that was copied without its history, or else that
    of the repository, with a `+` if the working tree has other code."""
    if given := os.environ.get("VIDEOLLM_MOD_COMMIT"):
        return given

    def git(*command: str) -> str | None:
        asked = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True)
        return asked.stdout.strip() if asked.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    return head and head + "+" * bool(git("status", "--porcelain", "--untracked-files=no", "--", "*.py"))


def header() -> dict:
    """How and where a result of `videollm-mod bench` was measured."""
    command = shlex.join(["videollm-mod", *sys.argv[1:]])
    return {"command": command, "commit": commit(), **surroundings("accelerate", "peft")}


def write(path: Path | None, result: dict) -> None:
    """Write a result as JSON, if there is a path. A benchmark calls this after every row, so that a run that is
    stopped keeps what it has measured."""
    if path is not None:
        write_whole(path, json.dumps(result, indent=1) + "\n")


def write_result(name: str, result: dict) -> Path:
    """Write `benchmarks/results/NAME.json` and return its path."""
    path = RESULTS / f"{name}.json"
    write(path, result)
    return path


def summarise(figure: str, value: float, source: str, command: str, folder: Path = RESULTS) -> None:
    """Enter one figure into `folder/summary.json`, next to those of other benchmarks."""
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    summary[figure] = {"value": value, "source": source, "command": command}
    write(path, dict(sorted(summary.items())))


def enter(path: Path | None, figures: dict[str, float], command: str) -> None:
    """Enter figures into the repository's summary, if their result was written to the repository's results."""
    if path is not None and path.resolve().parent == RESULTS:
        for name, value in figures.items():
            summarise(name, round(value, 4), f"benchmarks/results/{path.name}", command)


__all__ = ["RESULTS", "ROOT", "commit", "enter", "header", "summarise", "surroundings", "write", "write_result"]
