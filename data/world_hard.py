"""The hard level: things in disguise, whom only the whole past tells.

Cells of a grid show things. Two side by side are a change of dress: who looked like the left one looks like the right
one from now on. One that is lit up is unmasked, and the narration says how it looked at first, however many changes
ago. The rest are bystanders. Nothing that is said names a disguise, so no reply helps the next.

Each frame shows a few things among many empty cells, and the changes of a chain lie in different frames.
"""

import random
from dataclasses import dataclass

import numpy as np

from .world import COLOURS, LEVELS, SHAPES, STEP, BasicStream, Event, Thing

KINDS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
BACKGROUNDS = ((40, 40, 44),)
LIT = (120, 235, 235)
SHIFTS = (0.0,)  # of a thing from the middle of its cell, fractions of the cell's side
RADIUS = 0.45  # fraction of the cell's side


@dataclass(frozen=True)
class Card(Thing):
    """A thing in its cell."""

    row: int
    column: int
    cell: float  # side of the cell, fraction of the frame's side
    lit: bool

    def draw(self, frame: np.ndarray) -> None:
        if self.lit:
            height, width = frame.shape[:2]
            rows = slice(round(self.row * self.cell * height), round((self.row + 1) * self.cell * height))
            columns = slice(round(self.column * self.cell * width), round((self.column + 1) * self.cell * width))
            frame[rows, columns] = LIT
        super().draw(frame)


class HardStream(BasicStream):
    """Who appears in disguise, through `LENGTHS` changes, `CHAINS` of them a stream; `UNMASKED` are unmasked."""

    GRID = 7
    PAIRS = 3  # changes in one frame, at most
    CHAINS = (4,)  # one is chosen
    UNMASKED = 2  # for each chain
    LENGTHS = (3, 4)
    WEIGHTS = (0.3, 0.5, 1.5, 2.0, 2.0)  # how likely a look so many changes deep is unmasked
    BYSTANDERS = (0, 0)
    SECONDS = (4.0, 16.0)
    NUM_KINDS = 1 + len(KINDS)

    def __init__(self, seed: int):
        self.seed = seed
        rng = random.Random(f"{type(self).__name__}/{seed}")
        self.background_index = rng.randrange(len(BACKGROUNDS))
        self.background = BACKGROUNDS[self.background_index]
        self.chains = self._chains(rng)
        self.codes: list[np.ndarray] = []
        self.depths: list[int] = []  # changes behind each narration
        self.events: list[Event] = []
        self._play(rng)
        self.seconds = STEP * len(self.events)
        self._rng_state = rng.getstate()

    def _chains(self, rng: random.Random) -> list[list[int]]:
        """Kinds that each one looks like, in order; no kind twice."""
        kinds, chains = rng.sample(range(len(KINDS)), len(KINDS)), []
        for _ in range(rng.choice(self.CHAINS)):
            length = 1 + rng.choice(self.LENGTHS)
            chains.append(kinds[:length])
            kinds = kinds[length:]
        return chains

    def _play(self, rng: random.Random) -> None:
        """Frames with changes and frames with someone unmasked, until all changes and `UNMASKED` looks were seen."""
        last = [len(chain) - 1 for chain in self.chains]
        shown = [0] * len(last)  # changes of each chain so far
        looks = [(c, depth) for c in range(len(last)) for depth in range(last[c] + 1)]
        looks.sort(key=lambda look: rng.random() ** (1 / self.WEIGHTS[look[1]]), reverse=True)
        to_unmask = looks[: self.UNMASKED * len(last)]
        while True:
            changing = [c for c in range(len(last)) if shown[c] < last[c]]
            ready = [(c, depth) for c, depth in to_unmask if shown[c] >= max(depth, 1)]
            if not changing and not ready:
                return
            if ready and (not changing or rng.random() < 0.3):
                c, depth = rng.choice(ready)
                to_unmask.remove((c, depth))
                self.depths.append(depth)
                self._show(rng, [], self.chains[c][depth], f"The {' '.join(KINDS[self.chains[c][0]])} is unmasked.")
                continue
            # the longest first, so that chains do not end one after the other
            changing.sort(key=lambda c: shown[c] - last[c] + rng.random())
            pairs = [(self.chains[c][shown[c]], self.chains[c][shown[c] + 1]) for c in changing[: self.PAIRS]]
            for c in changing[: self.PAIRS]:
                shown[c] += 1
            self._show(rng, pairs, None, "")

    def _show(self, rng: random.Random, pairs: list[tuple[int, int]], lit: int | None, text: str) -> None:
        """One more frame: things that belong together are neighbours in a row, all others have none."""
        groups = [list(pair) for pair in pairs] + [[lit]] * (lit is not None)
        groups += [[rng.randrange(len(KINDS))] for _ in range(rng.randint(*self.BYSTANDERS))]
        while (placed := self._place(rng, groups)) is None:
            pass
        cell, cards = 1 / self.GRID, []
        codes = np.zeros((self.GRID, self.GRID), dtype=np.int64)
        for kind, row, column in placed:
            shift = rng.randrange(len(SHIFTS) ** 2)
            is_lit = kind == lit and len(pairs) == 0 and not any(card.lit for card in cards)
            x = (column + 0.5 + SHIFTS[shift % len(SHIFTS)]) * cell
            y = (row + 0.5 + SHIFTS[shift // len(SHIFTS)]) * cell
            cards.append(Card(*KINDS[kind], x, y, RADIUS * cell, row, column, cell, is_lit))
            codes[row, column] = 1 + (kind * len(SHIFTS) ** 2 + shift) * 2 + is_lit
        self.codes.append(codes)
        self.events.append(Event(STEP * len(self.events), text, tuple(cards)))

    def _place(self, rng: random.Random, groups: list[list[int]]) -> list[tuple[int, int, int]] | None:
        """`(kind, row, column)` of each thing, or None where the groups got in each other's way."""
        free = {(row, column) for row in range(self.GRID) for column in range(self.GRID)}
        placed = []
        for group in groups:
            starts = [
                (row, column)
                for row, column in sorted(free)
                if column + len(group) <= self.GRID and all((row, column + i) in free for i in range(len(group)))
            ]
            if not starts:
                return None
            row, column = rng.choice(starts)
            placed += [(kind, row, column + i) for i, kind in enumerate(group)]
            free -= {(row, column + i) for i in range(-1, len(group) + 1)}
        return placed

    @property
    def narrations(self):
        return [(event.time, event.text) for event in self.events if event.text]


def sprites(pixels: int = 8) -> np.ndarray:
    """uint8 `[backgrounds, codes, pixels, pixels, 3]`: what a cell of each code looks like."""
    count = 1 + len(KINDS) * len(SHIFTS) ** 2 * 2
    bank = np.empty((len(BACKGROUNDS), count, pixels, pixels, 3), dtype=np.uint8)
    bank[:] = np.array(BACKGROUNDS, dtype=np.uint8)[:, None, None, None]
    for code in range(1, count):
        rest, lit = divmod(code - 1, 2)
        kind, shift = divmod(rest, len(SHIFTS) ** 2)
        x, y = 0.5 + SHIFTS[shift % len(SHIFTS)], 0.5 + SHIFTS[shift // len(SHIFTS)]
        for background in range(len(BACKGROUNDS)):
            Card(*KINDS[kind], x, y, RADIUS, 0, 0, 1.0, bool(lit)).draw(bank[background, code])
    return bank


class HardSmallStream(HardStream):
    """The same on 3 x 3 cells."""

    GRID = 3
    PAIRS = 2


class HardLessons(HardStream):
    """Short streams to begin with: little was seen, and little has changed."""

    CHAINS = (1, 2)
    LENGTHS = (1, 2)
    WEIGHTS = (1.0, 1.0, 1.0)
    SECONDS = (1.0, 6.0)


class HardSmallLessons(HardLessons):
    GRID = 3
    PAIRS = 2


LEVELS |= {
    "hard": HardStream,
    "hard_small": HardSmallStream,
    "hard_lessons": HardLessons,
    "hard_small_lessons": HardSmallLessons,
}
SPLITS = {"train": 2_000_000_000, "validation": 100_000_000, "test": 200_000_000}  # first seeds
