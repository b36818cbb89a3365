"""Raw runs of the tables: one JSON lines file per level, one run per line.

Each training process writes its run to a JSON file of its own. `collect` copies these into `LEVEL.jsonl` and only then
removes them, so every run is in one of the two, whichever process is killed.
"""

import fcntl
import json
import os
from contextlib import contextmanager
from pathlib import Path

from ..data.files import write_whole
from .tables_recipes import TABLES

SEEDS = range(5)
RECIPE = ("pretraining", "stage", "layers", "hidden", "streams")  # the same for all runs of a level

Key = tuple[str, str, int, float]  # row, level, seed, learning rate
Runs = dict[Key, dict]


def key_of(run: dict) -> Key:
    return run["row"], run["level"], run["seed"], run["lr"]


def path_of_level(folder: Path, level: str) -> Path:
    return folder / f"{level}.jsonl"


def _single_files(folder: Path, level: str) -> dict[Path, dict]:
    found = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{level}_*.json"))}
    return {path: run for path, run in found.items() if run["level"] == level}  # `hard_*` matches `hard_small_*` too


def _lines(folder: Path, level: str) -> list[dict]:
    path = path_of_level(folder, level)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _checked(runs: list[dict], folder: Path, level: str, recipe: dict | None) -> Runs:
    runs = {key_of(run): run for run in runs}
    kinds: dict[str, list[Key]] = {}
    for key, run in sorted(runs.items()):
        kinds.setdefault(json.dumps({name: run.get(name) for name in RECIPE}), []).append(key)
    known = json.dumps({name: recipe[name] for name in RECIPE}) if recipe else next(iter(kinds), "")
    if set(kinds) - {known} or "null" in known:
        of = "; ".join(
            f"{len(keys)} (e.g. {keys[0][0]}, seed {keys[0][2]}, lr {keys[0][3]:g}) of {kind}"
            for kind, keys in kinds.items()
        )
        wanted = f"of {known}" if recipe else f"of one recipe that names {', '.join(RECIPE)}"
        raise ValueError(f"runs of `{level}` in {folder} must be {wanted}, got {of}: move the others elsewhere")
    return runs


def collect(folder: Path, level: str, recipe: dict | None = None) -> Runs:
    """All runs of a level that are there, those that just ended taken into its file, sorted by row, seed and rate.

    Raises:
        `ValueError`: if they are of several recipes, or of another than `recipe`; then nothing is changed.
    """
    with _alone(folder):
        single = _single_files(folder, level)
        runs = _checked(_lines(folder, level) + list(single.values()), folder, level, recipe)
        if single:
            path = path_of_level(folder, level)
            write_whole(path, "".join(json.dumps(runs[key]) + "\n" for key in sorted(runs)))
            for file in single:
                file.unlink()
    return runs


@contextmanager
def _alone(folder: Path):
    """Let one collector at a time run, also among several programs."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def lacking_rates(runs: Runs, row: str, level: str) -> list[float]:
    """Learning rates that are missing from the row's sweep on seed 0."""
    return [lr for lr in TABLES[level].rates if (row, level, 0, lr) not in runs]


def best_rate(runs: Runs, row: str, level: str) -> float | None:
    """The rate with the most exact narrations on validation streams of seed 0, or None until the sweep is complete.
    Where there is one rate, nothing has to be swept."""
    if len(TABLES[level].rates) == 1:
        return TABLES[level].rates[0]
    if lacking_rates(runs, row, level):
        return None
    return max(TABLES[level].rates, key=lambda lr: runs[row, level, 0, lr]["validation"]["exact"])
