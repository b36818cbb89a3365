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
import random
import shlex
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from ..bench.record import surroundings, write
from ..data.benchmark_items import Item
from ..evaluation.benchmarks import BENCHMARKS, Outcome

LONG = 1_000_000.0  # seconds of a stand-in video, so that nothing is cut
CLOSE = 1e-9


def polled(item: Item, answer: Callable[[Item, int, str], str]) -> Outcome:
    """What a scripted model answers to the polls of an item, and `asked`, what it was asked."""
    outcome = Outcome(item.id)
    while poll := BENCHMARKS[item.benchmark].next_poll(item, outcome.answers):
        text = answer(item, len(outcome.answers), poll.text)
        outcome.answers.append({"time": poll.time, "text": text, "asked": poll.text, "since": poll.since})
    return outcome


def judged(item: Item, outcome: Outcome, reply: Callable[[str], str]) -> Outcome:
    """The same with the verdicts of a scripted judge."""
    benchmark = BENCHMARKS[item.benchmark]
    for prompt in benchmark.judge_prompts(item, outcome):
        text = reply(prompt["prompt"])
        try:
            value: float | None = benchmark.read_verdict(prompt["name"], text)
        except ValueError:
            value = None
        outcome.verdicts.append({"name": prompt["name"], "text": text, "value": value})
    return outcome


def table(items: list[Item], outcomes: list[Outcome], protocol: Any) -> dict:
    benchmark = BENCHMARKS[items[0].benchmark]
    scores = [benchmark.score(item, outcome, protocol) for item, outcome in zip(items, outcomes, strict=True)]
    return benchmark.summarise(items, scores)


def pick(seed: object, choices: list[str]) -> str:
    return random.Random(str(seed)).choice(choices)


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`(path, number)` of each number in nested results."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from flat(inner, f"{prefix}{name}/")
    elif value is not None:
        yield prefix.rstrip("/"), value


def compare(official: dict, ours: dict, questions: int, same_questions: int, close: float = CLOSE) -> dict:
    """Official numbers next to ours, and whether all are equal."""
    ours = dict(flat(ours))
    numbers = {name: {"official": value, "ours": ours.get(name)} for name, value in flat(official)}
    equal = all(
        each["ours"] is not None and abs(each["official"] - each["ours"]) <= close for each in numbers.values()
    )
    return {
        "questions": questions,
        "questions asked in the same words and at the same times": same_questions,
        "equal": equal and questions == same_questions and bool(numbers),
        "numbers": numbers,
    }


def stand_in(name: str, **contents: Any) -> None:
    """A module in place of one that official code imports and does not need here."""
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(contents)


def commit(folder: Path) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> None:
    from . import official_polls, official_streams

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="*", help="names of runs (default: all)")
    options = parser.parse_args()
    runs = official_polls.RUNS | official_streams.RUNS
    result: dict = {"command": shlex.join(["python", "-m", "videollm_mod.benchmarks.official_scorers", "FOLDER"])}
    result |= surroundings() | {"code": {}, "runs": {}}
    context = multiprocessing.get_context("spawn")
    for name, (repository, run) in runs.items():
        if options.only and name not in options.only:
            continue
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
