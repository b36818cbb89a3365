"""What a model did on one item of a benchmark, and what a benchmark's scorer makes of it."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

from ...data.benchmark_items import Item, Poll

PollOrStream = Literal["poll", "stream"]


@dataclass
class Outcome:
    """
    Args:
        id (`str`): of the item.
        answers (`list[dict]`): poll protocol, in order: `time` (seconds, when it was asked) and `text`.
        said (`list[dict]`): stream protocol, in order: `time` (seconds), `text`, and `kind`, "answer" or "narration".
        cost (`dict`): `seconds`, `frames`, `tokens`, `peak_cache_bytes`.
        verdicts (`list[dict]`): of a judge, one for each of `Benchmark.judge_prompts`: `name`, `text` as it came, and
            `value` as `Benchmark.read_verdict` reads it (None where it cannot be read).
    """

    id: str
    answers: list[dict] = field(default_factory=list)
    said: list[dict] = field(default_factory=list)
    cost: dict = field(default_factory=dict)
    verdicts: list[dict] = field(default_factory=list)


class Benchmark(Protocol):
    """One benchmark: what is asked, and what an answer is worth. All methods are pure functions."""

    max_new_tokens: int  # of one answer, as the official script sets it

    def next_poll(self, item: Item, answers: list[dict]) -> Poll | None:
        """What the official script asks next, after these `answers` of `Outcome`; None at the end."""

    def score(self, item: Item, outcome: Outcome, protocol: PollOrStream) -> dict:
        """`official` and `strict`, each from 0 to 1, or None if there is none without a judge; and what else
        `summarise` needs."""

    def summarise(self, items: list[Item], scores: list[dict]) -> dict:
        """`official` and `strict`, each `{group: {task: per cent, "average": per cent}, "overall": per cent}`, as the
        published table adds up, None where a judge is missing; `items`, their number; items that need sound under
        `"with sound"` in the same form; and what else the benchmark reports."""

    def judge_prompts(self, item: Item, outcome: Outcome) -> list[dict]:
        """What to ask a judge, each `name` and `prompt`, and `system` if there is an instruction apart; empty where no
        judge is needed."""

    def read_verdict(self, name: str, text: str) -> float:
        """The value of a judge's answer. Raises `ValueError` if it holds none."""

    def answer_options(self, item: Item) -> tuple[str, ...]:
        """The constant answers that a control may give, such as the letters of the options; empty for open answers."""
