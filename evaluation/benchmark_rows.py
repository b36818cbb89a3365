"""The rows of a benchmark's table: the model, and controls beside it. Each item of each row has an outcome."""

import hashlib
from pathlib import Path

from ..data.benchmark_items import Item, read_items
from ..data.files import hash_ends
from ..data.jsonl import missing_error
from .benchmark_options import CONTROLS
from .benchmark_views import Model
from .benchmarks import BENCHMARKS, Benchmark, Outcome
from .protocols import REFUSAL, changes, constant

MODEL = "model"  # the row of the model itself
WITH_MODEL = (MODEL, "always", "last4", "blind", "dense")  # rows for which a model runs
CONSTANT = "constant "  # begins the row of a constant answer


class Items:
    """
    The items of a file, all of one benchmark.

    Raises:
        `ValueError`: for faults in the file, an unknown benchmark, or several.
        `OSError`: if the file or a video does not exist.
    """

    def __init__(self, path: Path, count: int | None):
        self.path, self.items = path, read_items(path)[:count]
        names = sorted({item.benchmark for item in self.items})
        if len(names) > 1 or names[0] not in BENCHMARKS:
            raise ValueError(f"{path} must hold items of one of {', '.join(BENCHMARKS)}, got {', '.join(names)}")
        self.benchmark: Benchmark = BENCHMARKS[names[0]]
        self.videos = [str(path.parent / item.video) for item in self.items]
        if gone := {index: video for index, video in enumerate(self.videos) if not Path(video).is_file()}:
            raise missing_error(path, gone)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def about(self) -> dict:
        media = hashlib.sha256(b"".join(hash_ends(Path(video)) for video in dict.fromkeys(self.videos)))
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        return {"file": self.path.name, "sha256": digest, "media": media.hexdigest()[:16], "items": len(self)}

    def constants(self) -> list[str]:
        """All constant answers that items allow."""
        return list(dict.fromkeys(text for item in self.items for text in self.benchmark.answer_options(item)))

    def rows(self) -> list[str]:
        """All rows that a table may have."""
        return [*WITH_MODEL, "silent", "no-answer", *(CONSTANT + text for text in self.constants())]

    def number(self, row: str, index: int) -> int:
        """The number of an outcome in the files of a run."""
        return self.rows().index(row) * len(self) + index

    def fixed(self, row: str, item: Item, protocol: str) -> Outcome:
        """The outcome of a row that needs no model."""
        text = {"silent": "", "no-answer": REFUSAL}.get(row, row.removeprefix(CONSTANT))
        if row.startswith(CONSTANT) and text not in self.benchmark.answer_options(item):
            text = ""
        return constant(self.benchmark, item, protocol, text)


def choose_rows(items: Items, model: Model, protocol: str, controls: list[str] | None) -> list[str]:
    """The rows of the table: all that apply, if no controls are named.

    Raises:
        `ValueError`: for a control that was chosen and does not apply.
    """
    why_not = {
        "always": not any(changes("always", protocol, item) for item in items.items) and "nothing asks when to speak",
        "dense": not model.routes and "the model routes nothing",
        "no-answer": not any(item.kind == "choice" for item in items.items) and "there are no choices",
        "constant": not items.constants() and "no item has a constant answer",
    }
    if protocol == "stream" and not model.speaks:
        why_not["always"] = "the model cannot speak by itself"
    for control in controls or ():
        if why_not.get(control):
            raise ValueError(f"`--control {control}` does not apply: {why_not[control]}")
    chosen = {name for name in controls or CONTROLS if not why_not.get(name)}
    return [row for row in items.rows() if row == MODEL or row.split()[0] in chosen]


def all_outcomes(items: Items, rows: list[str], protocol: str, done: dict[int, dict]) -> dict[str, list[Outcome]]:
    """Row -> its outcomes, in the order of the items."""
    outcomes: dict[str, list[Outcome]] = {}
    for row in rows:
        outcomes[row] = []
        for index, item in enumerate(items.items):
            if row in WITH_MODEL:
                own = row if changes(row, protocol, item) else MODEL
                line = done[items.number(own, index)]
                fields = ("id", "answers", "said", "cost")
                outcomes[row].append(Outcome(**{name: line[name] for name in fields}))
            else:
                outcomes[row].append(items.fixed(row, item, protocol))
    return outcomes


__all__ = ["MODEL", "WITH_MODEL", "Items", "all_outcomes", "choose_rows"]
