"""The hard levels of the procedural world: things change their disguise, and narrations say who they are.

A frame shows things in the cells of a grid. Two things side by side are a change of disguise: the thing that looked
like the left one now looks like the right one. A thing that is lit up is unmasked, and the narration names its first
look, up to three changes ago. Narrations never name a disguise, so earlier ones do not help: the model has to follow
the changes in the frames.

A frame shows few things among many empty cells. To be right, a model has to relate each change to the one before it,
which takes one layer per change. `benchmarks/results/world_hard_search.md` shows what this means for models whose
vision tokens enter few layers.
"""

import random
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np

from .world_basic import KINDS, LIT_UP, NUMBERS, STEP, THERE, TURNED, BasicStream, Event, Thing

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
        colour, shape = KINDS[kind].split()
        return cls(colour, shape, x, y, RADIUS / grid, row, column, 1 / grid, lit)

    @property
    def code(self) -> int:
        """What the cell shows: 0 for an empty cell, else one number for each kind, lit or not."""
        return 1 + 2 * KINDS.index(self.name) + self.lit

    def draw(self, frame: np.ndarray) -> None:
        if self.lit:
            height, width = frame.shape[:2]
            top, bottom = (round(row * self.cell * height) for row in (self.row, self.row + 1))
            left, right = (round(column * self.cell * width) for column in (self.column, self.column + 1))
            frame[top:bottom, left:right] = LIT
        super().draw(frame)


class HardStream(BasicStream):
    """A stream of `CHAINS` things. Each changes its look as often as one of `LENGTHS`; `UNMASKED` looks are lit up.

    `depths[i]` is the number of changes before narration i, and `changes` are `(seconds, before, after)`.
    """

    GRID = 7
    PAIRS = 3  # at most, that change in one frame
    CHAINS = 4
    UNMASKED = 8
    LENGTHS: tuple[int, ...] = (2, 3, 3)
    WEIGHTS: tuple[int, ...] = (1, 3, 10, 20)  # relative probability that a look after 0, 1, 2, 3 changes is unmasked
    IN_ORDER = False  # unmask looks in the order in which they were drawn
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
        """The successive kinds of each thing; no kind occurs twice."""
        kinds, chains = rng.sample(range(len(KINDS)), len(KINDS)), []
        for _ in range(self.CHAINS):
            length = 1 + rng.choice(self.LENGTHS)
            chains.append(kinds[:length])
            kinds = kinds[length:]
        return chains

    def _looks(self, rng: random.Random) -> list[tuple[int, int]]:
        """The looks to unmask: `(chain, number of changes before)`."""
        looks = [(c, depth) for c, chain in enumerate(self.chains) for depth in range(len(chain))]
        chosen = []
        for _ in range(self.UNMASKED):
            chosen += rng.choices(looks, [self.WEIGHTS[depth] for _, depth in looks])
            looks.remove(chosen[-1])
        return chosen

    def _play(self, rng: random.Random) -> None:
        """Add frames, with changes or with a lit thing, until all changes and all chosen looks have been shown."""
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
            # those with the most changes left come first, so that chains end at about the same time
            changing.sort(key=lambda c: shown[c] - last[c] + rng.random())
            pairs = [self.chains[c][shown[c] : shown[c] + 2] for c in changing[: self.PAIRS]]
            for c in changing[: self.PAIRS]:
                shown[c] += 1
            self.changes += [(STEP * len(self.events), before, after) for before, after in pairs]
            self._show(rng, pairs, "")

    def _show(self, rng: random.Random, groups: list[list[int]], text: str, lit: bool = False) -> None:
        """Add a frame. The kinds of a group are side by side, and different groups do not touch within a row."""
        while (places := self._places(rng, [len(group) for group in groups])) is None:
            pass
        cards = tuple(
            Card.of(kind, row, column + i, self.GRID, lit)
            for group, (row, column) in zip(groups, places, strict=True)
            for i, kind in enumerate(group)
        )
        self.events.append(Event(STEP * len(self.events), text, cards))

    def _places(self, rng: random.Random, widths: list[int]) -> list[tuple[int, int]] | None:
        """`(row, first column)` of groups of one or two, or None if the last of them found no room."""
        free = {(row, column): None for row in range(self.GRID) for column in range(self.GRID)}  # an ordered set
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

    def state(self, thing: Card, things: tuple[Card, ...]) -> int:  # type: ignore[override]  # all things are cards
        if thing.lit:
            return LIT_UP
        beside = (thing.row, thing.column - 1)
        before = next((other for other in things if (other.row, other.column) == beside), None)
        return THERE if before is None else TURNED + KINDS.index(before.name)

    def codes(self) -> np.ndarray:
        """uint8 `[E, GRID, GRID]`: the codes of the cells after each event; see `sprites`."""
        codes = np.zeros((len(self.events), self.GRID, self.GRID), dtype=np.uint8)
        for cells, event in zip(codes, self.events, strict=True):
            for card in cast(tuple[Card, ...], event.things):
                cells[card.row, card.column] = card.code
        return codes

    def first_looks(self, time: float) -> dict[int, int]:
        """The first look of the thing that looks like each kind seen up to `time`."""
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
    """The hard level on 3 x 3 cells."""

    GRID = 3
    PAIRS = 2


class HardLessons(HardStream):
    """Additional training data: looks of all depths are equally likely to be unmasked."""

    WEIGHTS = (1, 1, 1, 1)


class HardSmallLessons(HardSmallStream):
    WEIGHTS = HardLessons.WEIGHTS


class CrowdStream(HardStream):
    """The level for deep models: every thing of the world takes part, and five change in each frame.

    One of them changes three times and four change four times, so every kind occurs once.
    """

    PAIRS = 5
    CHAINS = 5
    WEIGHTS = (1, 2, 4, 8, 16)

    def _chains(self, rng: random.Random) -> list[list[int]]:
        kinds = rng.sample(range(len(KINDS)), len(KINDS))
        chains = [kinds[i :: self.CHAINS] for i in range(self.CHAINS)]
        rng.shuffle(chains)
        return chains


class CrowdLessons(CrowdStream):
    WEIGHTS = (1,) * 5


class CrowdSmallStream(HardStream):
    """Four things that change as often, on 3 x 3 cells, to learn from first."""

    GRID = 3
    PAIRS = 2
    LENGTHS = (3, 4, 4)
    WEIGHTS = CrowdLessons.WEIGHTS


class CrowdSmallLessons(CrowdSmallStream):
    """More of the same."""


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
    """uint8 `[codes, pixels, pixels, 3]`: the picture of a cell for each code. A frame with `pixels` per cell consists
    of these."""
    bank = np.empty((1 + 2 * len(KINDS), pixels, pixels, 3), dtype=np.uint8)
    bank[:] = np.array(BACKGROUND, dtype=np.uint8)
    for kind in range(len(KINDS)):
        for lit in (False, True):
            card = Card.of(kind, 0, 0, 1, lit)
            card.draw(bank[card.code])
    return bank
