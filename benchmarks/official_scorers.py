"""The official code of benchmarks and our scorers, on the same scripted answers: the same questions, the same numbers.

    python -m videollm_mod.benchmarks.official_scorers FOLDER --json benchmarks/results/official_scorers.json

FOLDER holds clones, named as on GitHub: OVO-Bench, StreamingBench, OmniPro, OmniMMI, livecc and VideoChat3. The
official functions run as they are, each benchmark in a process of its own; models, judges, video files and what they
import for these are stand-ins. Answers are drawn from what is right, what is wrong, and what the two readings take
differently. `--results` does the same with answers that `videollm-mod evaluate --benchmark` stored.
"""

import argparse
import json
import multiprocessing
import shlex
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from ..bench.record import surroundings, write
from . import official_polls, official_streams
from .official_results import rescore


def commit(folder: Path) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--results", type=Path, nargs="*", default=[], help="results of videollm-mod evaluate")
    options = parser.parse_args()
    words = ["python", "-m", "videollm_mod.benchmarks.official_scorers", "FOLDER"]
    words += ["--results", *(file.name for file in options.results)] if options.results else []
    result: dict = {"command": shlex.join(words), **surroundings(), "code": {}, "runs": {}}
    for name, (repository, run) in (official_polls.RUNS | official_streams.RUNS).items():
        clone = (options.folder / repository).resolve()
        result["code"][repository] = commit(clone)
        result["runs"][name] = {"repository": repository} | alone(run, clone)
        report(name, result["runs"][name])
        write(options.json, result)
    for file in options.results:
        result.setdefault("results", {})[file.name] = rows = alone(rescore, options.folder, file)
        for row, found in rows.items():
            report(f"{file.name}, {row}", found)
        write(options.json, result)
    rows = [row for rows in result.get("results", {}).values() for row in rows.values()]
    sys.exit(not all(run["equal"] for run in [*result["runs"].values(), *rows]))


def alone(run: Callable[..., dict], *arguments: object) -> dict:
    """Run in a process of its own: the modules of the repositories have the same names."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(run, *arguments).result()


def report(name: str, found: dict) -> None:
    print(json.dumps({"run": name, "equal": found["equal"], "numbers": len(found["numbers"])}), flush=True)


if __name__ == "__main__":
    main()
