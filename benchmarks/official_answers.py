"""Scripted answers to items of benchmarks, and the comparison of official numbers with ours."""

import random
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

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
