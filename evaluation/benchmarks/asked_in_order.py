"""What most benchmarks share: polls that do not depend on answers, and no judge."""

from ...data.benchmark_items import Item, Poll
from .outcome import Outcome
from .reading import READINGS


class AskedInOrder:
    """Asks all polls of an item, whatever the answers."""

    max_new_tokens = 128

    def next_poll(self, item: Item, answers: list[dict]) -> Poll | None:
        return item.polls[len(answers)] if len(answers) < len(item.polls) else None

    def judge_prompts(self, item: Item, outcome: Outcome) -> list[dict]:
        return []

    def read_verdict(self, name: str, text: str) -> float:
        raise ValueError("this benchmark needs no judge")

    def answer_options(self, item: Item) -> tuple[str, ...]:
        """Letters of a choice, `Yes` and `No` where only these are asked for, nothing else."""
        if item.kind == "choice":
            return tuple(chr(65 + index) for index in range(len(item.options)))
        return ("Yes", "No") if item.kind in ("yes-no", "alert") else ()


def texts_of(outcome: Outcome, count: int) -> list[str | None]:
    """The answers to `count` polls, None for those that are missing."""
    texts = [answer["text"] for answer in outcome.answers[:count]]
    return texts + [None] * (count - len(texts))


def of_hits(official: list[float], strict: list[float]) -> dict:
    """The score of an item whose polls are each right or wrong."""
    found = {"official": official, "strict": strict}
    return {reading: sum(found[reading]) / max(len(found[reading]), 1) for reading in READINGS} | {
        f"{reading}_hits": found[reading] for reading in READINGS
    }
