"""The official code of benchmarks and our scorers, on the same scripted answers: the same questions, the same numbers.

    python -m videollm_mod.benchmarks.official_scorers FOLDER --json benchmarks/results/official_scorers.json

FOLDER holds clones, named as on GitHub: OVO-Bench, StreamingBench, OmniPro, OmniMMI, livecc and VideoChat3. The
official functions run as they are, each benchmark in a process of its own; models, judges, video files and what they
import for these are stand-ins. Answers are drawn from what is right, what is wrong, and what the two readings take
differently.
"""

import argparse
import json
import multiprocessing
import shlex
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from ..bench.record import surroundings, write
from . import official_polls, official_streams


def commit(folder: Path) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs = official_polls.RUNS | official_streams.RUNS
    result: dict = {"command": shlex.join(["python", "-m", "videollm_mod.benchmarks.official_scorers", "FOLDER"])}
    result |= surroundings() | {"code": {}, "runs": {}}
    context = multiprocessing.get_context("spawn")
    for name, (repository, run) in runs.items():
        clone = (options.folder / repository).resolve()
        result["code"][repository] = commit(clone)
        with ProcessPoolExecutor(1, mp_context=context) as process:  # the repositories' modules have the same names
            found = process.submit(run, clone).result()
        result["runs"][name] = {"repository": repository} | found
        print(json.dumps({"run": name} | {key: value for key, value in found.items() if key != "numbers"}))
        write(options.json, result)
    sys.exit(not all(run["equal"] for run in result["runs"].values()))


if __name__ == "__main__":
    main()
