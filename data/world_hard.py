"""The hard level: things in disguise, whom only the whole past tells.

Cells of a grid show things. Two side by side are a change of looks: who looked like the left one looks like the right
one from now on. One that is lit up is unmasked, and the narration says how it looked at first, up to three changes and
as many frames ago. No narration names a disguise, so none helps with the next: what came of whom has to be kept, and
followed, where it was seen.

A frame shows a few things among many empty cells. What is said is right only if each thing's change was related to the
one before it, one after the other, which takes as many layers; `benchmarks/results/world_hard_search.md` has what that
does to models whose vision tokens enter few of them.
"""

import random
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .world import KINDS, LEVELS, LIT_UP, NUMBERS, STEP, THERE, TURNED, BasicStream, Event, Thing

BACKGROUND = (40, 40, 44)
LIT = (120, 235, 235)
RADIUS = 0.45  # of a thing, fraction of its cell's side


@dataclass(frozen=True)
class Card(Thing):
    """A thing in the middle of its cell."""

    row: int
    column: int
    cell: float  # side of the cell, fraction of the frame's side
    lit: bool

    @classmethod
    def of(cls, kind: int, row: int, column: int, grid: int, lit: bool = False) -> "Card":
        x, y = (column + 0.5) / grid, (row + 0.5) / grid
        return cls(*KINDS[kind].split(), x, y, RADIUS / grid, row, column, 1 / grid, lit)

    @property
    def code(self) -> int:
        """What is in the cell: 0 is nothing, else one number for each kind of thing, lit or not."""
        return 1 + 2 * KINDS.index(self.name) + self.lit

    def draw(self, frame: np.ndarray) -> None:
        if self.lit:
            height, width = frame.shape[:2]
            top, bottom = (round(row * self.cell * height) for row in (self.row, self.row + 1))
            left, right = (round(column * self.cell * width) for column in (self.column, self.column + 1))
            frame[top:bottom, left:right] = LIT
        super().draw(frame)


class HardStream(BasicStream):
    """`CHAINS` of things change their looks, each as often as one of `LENGTHS` says; `UNMASKED` of all looks are lit.

    `depths[i]` is how many changes lie behind the thing of narration i, `changes` are `(seconds, before, after)`.
    """

    GRID = 7
    PAIRS = 3  # changes in one frame, at most
    CHAINS = 4
    UNMASKED = 8
    LENGTHS = (2, 3, 3)
    WEIGHTS = (1, 3, 10, 20)  # how likely a look so many changes deep is unmasked
    IN_ORDER = False  # whether the looks are unmasked in the order in which they were chosen
    SECONDS = (4.0, 12.0)

    def __init__(self, seed: int):
        self.seed = seed
        self.background = BACKGROUND
        rng = random.Random(f"{type(self).__name__}/{seed}")
        self.chains = self._chains(rng)
        self.events: list[Event] = []
        self.depths: list[int] = []
        self.changes: list[tuple[float, int, int]] = []
        self._play(rng)
        self.seconds = STEP * len(self.events)
        self._rng_state = rng.getstate()

    def _chains(self, rng: random.Random) -> list[list[int]]:
        """The kinds that each thing looks like, one after the other; no kind twice."""
        kinds, chains = rng.sample(range(len(KINDS)), len(KINDS)), []
        for _ in range(self.CHAINS):
            length = 1 + rng.choice(self.LENGTHS)
            chains.append(kinds[:length])
            kinds = kinds[length:]
        return chains

    def _looks(self, rng: random.Random) -> list[tuple[int, int]]:
        """Which looks are unmasked: `(chain, changes before it)`."""
        looks = [(c, depth) for c, chain in enumerate(self.chains) for depth in range(len(chain))]
        chosen = []
        for _ in range(self.UNMASKED):
            chosen += rng.choices(looks, [self.WEIGHTS[depth] for _, depth in looks])
            looks.remove(chosen[-1])
        return chosen

    def _play(self, rng: random.Random) -> None:
        """Frames with changes and frames with someone lit, until all changes and all chosen looks were seen."""
        looks, last = self._looks(rng), [len(chain) - 1 for chain in self.chains]
        shown = [0] * len(last)  # changes of each chain so far
        while True:
            changing = [c for c in range(len(last)) if shown[c] < last[c]]
            ready = [(c, depth) for c, depth in looks if shown[c] >= max(depth, 1)]
            if self.IN_ORDER:
                ready = [look for look in ready if look == looks[0]]
            if not changing and not ready:
                return
            if ready and (not changing or rng.random() < 0.3):
                c, depth = rng.choice(ready)
                looks.remove((c, depth))
                self.depths.append(depth)
                self._show(rng, [[self.chains[c][depth]]], f"The {KINDS[self.chains[c][0]]} is unmasked.", lit=True)
                continue
            # the longest first, so that chains do not end one after the other
            changing.sort(key=lambda c: shown[c] - last[c] + rng.random())
            pairs = [self.chains[c][shown[c] : shown[c] + 2] for c in changing[: self.PAIRS]]
            for c in changing[: self.PAIRS]:
                shown[c] += 1
            self.changes += [(STEP * len(self.events), *pair) for pair in pairs]
            self._show(rng, pairs, "")

    def _show(self, rng: random.Random, groups: list[list[int]], text: str, lit: bool = False) -> None:
        """One more frame: the kinds of a group are neighbours in a row, other things have no neighbour there."""
        while (places := self._places(rng, [len(group) for group in groups])) is None:
            pass
        cards = tuple(
            Card.of(kind, row, column + i, self.GRID, lit)
            for group, (row, column) in zip(groups, places, strict=True)
            for i, kind in enumerate(group)
        )
        self.events.append(Event(STEP * len(self.events), text, cards))

    def _places(self, rng: random.Random, widths: list[int]) -> list[tuple[int, int]] | None:
        """`(row, first column)` of groups of one or two, or None where they got in each other's way."""
        free = {(row, column): None for row in range(self.GRID) for column in range(self.GRID)}  # in this order
        places = []
        for width in widths:
            starts = [(row, column) for row, column in free if (row, column + width - 1) in free]
            if not starts:
                return None
            row, column = rng.choice(starts)
            places.append((row, column))
            for i in range(-1, width + 1):
                free.pop((row, column + i), None)
        return places

    @cached_property
    def narrations(self) -> list[tuple[float, str]]:
        return [(event.time, event.text) for event in self.events if event.text]

    def state(self, thing: Card, things: tuple[Card, ...]) -> int:
        if thing.lit:
            return LIT_UP
        beside = (thing.row, thing.column - 1)
        before = next((other for other in things if (other.row, other.column) == beside), None)
        return THERE if before is None else TURNED + KINDS.index(before.name)

    def codes(self) -> np.ndarray:
        """uint8 `[E, GRID, GRID]`: the codes of the cells after each event; see `sprites`."""
        codes = np.zeros((len(self.events), self.GRID, self.GRID), dtype=np.uint8)
        for cells, event in zip(codes, self.events, strict=True):
            for card in event.things:
                cells[card.row, card.column] = card.code
        return codes

    def first_looks(self, time: float) -> dict[int, int]:
        """Each kind seen up to `time` -> how the thing that looks like it looked at first."""
        first: dict[int, int] = {}
        for changed, before, after in self.changes:
            if changed <= time:
                first[after] = first.setdefault(before, before)
        return first

    def question(self, rng: random.Random, time: float) -> tuple[str, str]:
        past = [text for event_time, text in self.narrations if event_time <= time]
        kind = rng.choice(("who", "who", "count", "last"))
        if kind == "who":
            first = self.first_looks(time)
            look = rng.choice([*first, rng.randrange(len(KINDS))])
            answer = f"The {KINDS[first[look]]}." if look in first else "Nobody yet."
            return f"Who is the {KINDS[look]}?", answer
        if kind == "count":
            return "How many were unmasked?", f"{NUMBERS[len(past)].capitalize()}."
        return "What happened last?", past[-1] if past else "Nothing yet."


class HardSmallStream(HardStream):
    """The same on 3 x 3 cells."""

    GRID = 3
    PAIRS = 2


class HardLessons(HardStream):
    """To learn from, beside the level itself: as many are lit who have not changed as who have changed often."""

    WEIGHTS = (1, 1, 1, 1)


class HardSmallLessons(HardSmallStream):
    WEIGHTS = HardLessons.WEIGHTS


LEVELS |= {
    "hard": HardStream,
    "hard_small": HardSmallStream,
    "hard_lessons": HardLessons,
    "hard_small_lessons": HardSmallLessons,
}
SPLITS = {"train": 2_000_000_000, "validation": 100_000_000, "test": 200_000_000}  # first seed of each


def split_seeds(split: str, count: int) -> range:
    """The first `count` seeds of a split.

    Raises:
        `ValueError`: for another split than those in `SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(map(repr, SPLITS))}, got {split!r}")
    return range(SPLITS[split], SPLITS[split] + count)


def sprites(pixels: int) -> np.ndarray:
    """uint8 `[codes, pixels, pixels, 3]`: what a cell of each code looks like. A frame of `pixels` a cell is its
    cells' sprites side by side."""
    bank = np.empty((1 + 2 * len(KINDS), pixels, pixels, 3), dtype=np.uint8)
    bank[:] = np.array(BACKGROUND, dtype=np.uint8)
    for kind in range(len(KINDS)):
        for lit in (False, True):
            card = Card.of(kind, 0, 0, 1, lit)
            card.draw(bank[card.code])
    return bank
