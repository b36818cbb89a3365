"""Results of `videollm-mod bench`: where they were measured, and as files."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from ..benchmarks.record import RESULTS, summarise, surroundings
from ..data.files import write_whole

ROOT = Path(__file__).resolve().parent.parent


def commit() -> str | None:
    """Of the code that runs: the repository's, or what VIDEOLLM_MOD_COMMIT says where there is none."""
    git = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    return git.stdout.strip() if git.returncode == 0 else os.environ.get("VIDEOLLM_MOD_COMMIT")


def header() -> dict:
    command = shlex.join(["videollm-mod", *sys.argv[1:]])
    return {"command": command, "commit": commit(), **surroundings("accelerate", "peft")}


def write(path: Path | None, result: dict) -> None:
    """Write the result as it stands, so that what is measured is kept whatever becomes of the rest."""
    if path is not None:
        write_whole(path, json.dumps(result, indent=1) + "\n")


def enter(path: Path | None, figures: dict[str, float], command: str) -> None:
    """Enter figures into the repository's summary, if the result lies among the repository's."""
    if path is not None and path.resolve().parent == RESULTS:
        for name, value in figures.items():
            summarise(name, round(value, 4), f"benchmarks/results/{path.name}", command)
