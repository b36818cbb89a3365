"""A judge's verdicts on open answers: every prompt and every raw reply is kept."""

from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from ..data.benchmark_items import Item
from .benchmarks import Benchmark, Outcome
from .chat_server import ChatServer
from .results import Results

Judged = tuple[int, Item, Outcome]  # the index of an outcome in the run, its item, and itself


class Verdicts:
    """
    Args:
        path (`Path`, *optional*): the file that keeps them, so that a judge is never asked twice.
        settings (`dict`): of the run, and of the judge.

    Raises:
        `ValueError`: if the file holds something else.
    """

    def __init__(self, path: Path | None, settings: dict):
        self.results = Results(path, settings)

    def ask(self, judge: ChatServer, benchmark: Benchmark, jobs: list[Judged], show: bool) -> None:
        """Let the judge judge what it has not judged yet.

        Raises:
            `OSError`: if the judge does not answer; the verdicts so far are kept.
            `ValueError`: if the file holds verdicts on other answers.
        """
        todo = [(job, prompts) for job in jobs if (prompts := self._left(benchmark, job))]
        for (index, _, _), prompts in tqdm(todo, desc="judged", disable=not show):
            verdicts = []
            for each in prompts:
                text = judge.answer(each["prompt"], system=each.get("system")).text
                verdicts.append({**each, "text": text, "value": read(benchmark, each["name"], text)})
            self.results.add([{"index": index, "verdicts": verdicts}])

    def _left(self, benchmark: Benchmark, job: Judged) -> list[dict]:
        """The prompts of an outcome that has no verdicts yet."""
        index, item, outcome = job
        prompts = benchmark.judge_prompts(item, outcome)
        if index not in self.results.done:
            return prompts
        asked = [verdict["prompt"] for verdict in self.results.done[index]["verdicts"]]
        if asked != [each["prompt"] for each in prompts]:
            raise ValueError(f"{self.results.path} holds verdicts on other answers to {item.id}; remove it")
        return []


def read(benchmark: Benchmark, name: str, text: str) -> float | None:
    """The value of a verdict; None if it holds none."""
    try:
        return benchmark.read_verdict(name, text)
    except ValueError:
        return None


def judged(outcome: Outcome, index: int, done: dict[int, dict]) -> Outcome:
    """An outcome with its verdicts, if there are any."""
    return replace(outcome, verdicts=done[index]["verdicts"]) if index in done else outcome


__all__ = ["Judged", "Verdicts", "judged"]
