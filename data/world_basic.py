"""The basic level of the procedural world: coloured shapes appear, move and leave, one at a time.

Coordinates are fractions of the frame's sides, and times are seconds. Things change only at multiples of `STEP`. At
any frame rate with a whole number of frames per step, a change is therefore first visible in the frame of its time.
"""

import random
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

STEP = 0.5  # seconds
COLOURS = {
    "red": (225, 45, 45),
    "green": (50, 175, 65),
    "blue": (50, 90, 230),
    "yellow": (240, 215, 60),
    "purple": (150, 60, 190),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross")
KINDS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
# state of a kind in a cell of a frame: absent, there, lit up, or there in place of kind i (TURNED + i)
ABSENT, THERE, LIT_UP, TURNED = range(4)
NUM_STATES = TURNED + len(KINDS)
PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
INSTRUCTIONS = ("Narrate what happens.", "Tell me what you see.", "Please narrate the stream.")
SYSTEM_PROMPTS = ("You watch a stream and say what happens.", "A stream follows.")


@dataclass(frozen=True)
class Thing:
    colour: str
    shape: str
    x: float  # centre, fraction of the width
    y: float  # centre, fraction of the height
    radius: float  # fraction of the shorter side

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str:
        return PLACES[int(self.y * 3)][int(self.x * 3)]

    def draw(self, frame: np.ndarray) -> None:
        """Paint onto `frame`, uint8 `[H, W, 3]`."""
        rows, columns, covered = stamp(self.shape, self.x, self.y, self.radius, *frame.shape[:2])
        frame[rows, columns][covered] = COLOURS[self.colour]


@lru_cache(maxsize=1024)  # the hard levels place things in the middle of cells, so few stamps are needed
def stamp(shape: str, x: float, y: float, radius: float, height: int, width: int) -> tuple[slice, slice, np.ndarray]:
    """The rows and columns of a frame around a thing, and which of their pixels it covers."""
    radius, x, y = radius * min(height, width), x * width, y * height
    rows = slice(max(0, int(y - radius)), min(height, int(y + radius) + 2))
    columns = slice(max(0, int(x - radius)), min(width, int(x + radius) + 2))
    u = (np.arange(columns.start, columns.stop)[None, :] + 0.5 - x) / radius
    v = (np.arange(rows.start, rows.stop)[:, None] + 0.5 - y) / radius
    return rows, columns, inside(shape, u, v)


def inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """bool: which points of the square [-1, 1] x [-1, 1] a shape covers; `v` points down."""
    if shape == "circle":
        return u * u + v * v <= 1
    if shape == "square":
        return np.maximum(abs(u), abs(v)) <= 0.85
    if shape == "triangle":
        return (v <= 0.8) & (abs(u) <= (v + 1) * 0.55)
    return (np.minimum(abs(u), abs(v)) <= 0.33) & (np.maximum(abs(u), abs(v)) <= 1)


@dataclass(frozen=True)
class Event:
    time: float  # seconds; the first frame at or after this time shows the change
    text: str  # the narration
    things: tuple[Thing, ...]  # everything that is there from then on


class BasicStream:
    """A stream in which one thing at a time appears, moves or leaves. There are at most `MAX_THINGS`, no two of the
    same kind and no two in one place. Things that are there at the start are not narrated."""

    MAX_THINGS = 4
    SECONDS = (8.0, 16.0)
    GAPS: tuple[int, ...] = (2, 3, 4, 5, 6)  # steps between two events

    def __init__(self, seed: int):
        self.seed = seed
        # Python hashes a string seed with SHA-512, which is the same on every machine
        rng = random.Random(f"{type(self).__name__}/{seed}")
        self.seconds = STEP * rng.randint(int(self.SECONDS[0] / STEP), int(self.SECONDS[1] / STEP))
        self.background = tuple(rng.randint(15, 110) for _ in range(3))
        things: tuple[Thing, ...] = ()
        for _ in range(rng.choice((0, 0, 1, 2))):
            things = (*things, self._new_thing(rng, things))
        self.events = [Event(0.0, "", things)]
        step = rng.randint(1, self.GAPS[-1])
        while STEP * step < self.seconds:
            event = self._next_event(rng, STEP * step, self.events[-1].things)
            self.events.append(event)
            step += rng.choice(self.GAPS)
        self._rng_state = rng.getstate()

    def _free(self, things: tuple[Thing, ...]) -> list[tuple[int, int]]:
        taken = {thing.place for thing in things}
        return [(row, column) for row in range(3) for column in range(3) if PLACES[row][column] not in taken]

    def _put(self, rng: random.Random, colour: str, shape: str, things: tuple[Thing, ...]) -> Thing:
        row, column = rng.choice(self._free(things))
        radius = rng.uniform(0.09, 0.12)
        x, y = ((cell + 0.5 + rng.uniform(-0.12, 0.12)) / 3 for cell in (column, row))
        return Thing(colour, shape, x, y, radius)

    def _new_thing(self, rng: random.Random, things: tuple[Thing, ...]) -> Thing:
        names = {thing.name for thing in things}
        kinds = [(c, s) for c in COLOURS for s in SHAPES if f"{c} {s}" not in names]
        return self._put(rng, *rng.choice(kinds), things)

    def _next_event(self, rng: random.Random, time: float, things: tuple[Thing, ...]) -> Event:
        kinds = ["appear"] * 3 * (len(things) < self.MAX_THINGS) + ["move", "move", "move", "leave", "leave"] * bool(
            things
        )
        kind = rng.choice(kinds)
        if kind == "appear":
            new = self._new_thing(rng, things)
            return Event(time, f"A {new.name} appears at the {new.place}.", (*things, new))
        old = rng.choice(things)
        others = tuple(thing for thing in things if thing is not old)
        if kind == "leave":
            return Event(time, f"The {old.name} leaves.", others)
        moved = self._put(rng, old.colour, old.shape, things)
        return Event(time, f"The {old.name} moves to the {moved.place}.", (*others, moved))

    def things(self, time: float) -> tuple[Thing, ...]:
        """The things that are there at `time`."""
        return next(event.things for event in reversed(self.events) if event.time <= time)

    @cached_property
    def narrations(self) -> list[tuple[float, str]]:
        """`(time, text)` of all narrations, in order."""
        return [(event.time, event.text) for event in self.events[1:]]

    def frame_times(self, fps: float) -> np.ndarray:
        """Times of the frames at `fps`: float64 `[F]`, starting at 0.

        Raises:
            `ValueError`: if there is no frame.
        """
        if not 1 <= self.seconds * fps < 1e6:
            raise ValueError(f"`fps` must give at least one frame in {self.seconds} seconds, got {fps}")
        return np.arange(int(self.seconds * fps)) / fps

    def shown(self, fps: float = 2.0) -> np.ndarray:
        """int64 `[F]`: the index of the last event before each frame at `frame_times(fps)`."""
        return np.searchsorted([event.time for event in self.events], self.frame_times(fps), side="right") - 1

    def drawn(self, height: int = 96, width: int | None = None) -> np.ndarray:
        """uint8 `[E, H, W, 3]`: the picture after each event. Without `width` it is square."""
        row = np.array([self.background] * (width or height), dtype=np.uint8)
        drawn = np.broadcast_to(row, (len(self.events), height, *row.shape)).copy()
        for frame, event in zip(drawn, self.events, strict=True):
            for thing in event.things:
                thing.draw(frame)
        return drawn

    def frames(self, fps: float = 2.0, height: int = 96, width: int | None = None) -> np.ndarray:
        """uint8 `[F, H, W, 3]`: the frames at `frame_times(fps)`."""
        return self.drawn(height, width)[self.shown(fps)]

    def distinct(self, fps: float, height: int) -> tuple[np.ndarray, np.ndarray]:
        """The distinct square frames, uint8 `[D, H, H, 3]`, and int64 `[F]`, which of them each frame at
        `frame_times(fps)` is."""
        return self.drawn(height), self.shown(fps)

    def state(self, thing: Thing, things: tuple[Thing, ...]) -> int:
        """The state of one of `things`, the things in a picture: below `NUM_STATES`."""
        return THERE

    @property
    def kinds(self) -> tuple[str, ...]:
        """What `states` tells apart."""
        return KINDS

    def states(self, grid: tuple[int, int] = (3, 3)) -> np.ndarray:
        """uint8 `[E, h, w, KINDS]`: the state of each kind in each cell of a grid after each event. A thing belongs to
        the cell of its centre."""
        of_event = np.zeros((len(self.events), *grid, len(KINDS)), dtype=np.uint8)
        for states, event in zip(of_event, self.events, strict=True):
            for thing in event.things:
                cell = states[int(thing.y * grid[0]), int(thing.x * grid[1])]
                cell[KINDS.index(thing.name)] = self.state(thing, event.things)
        return of_event

    def question(self, rng: random.Random, time: float) -> tuple[str, str]:
        """A question that follows the frame at `time`, and its answer."""
        things = self.things(time)
        kind = rng.choice(("what", "where", "count", "last"))
        if kind == "what":
            place = rng.choice([thing.place for thing in things] + [place for row in PLACES for place in row][::4])
            there = [thing.name for thing in things if thing.place == place]
            return f"What is at the {place}?", f"A {there[0]}." if there else "Nothing."
        if kind == "where":
            absent = f"{rng.choice(list(COLOURS))} {rng.choice(SHAPES)}"
            name = rng.choice([thing.name for thing in things] + [absent])
            places = [thing.place for thing in things if thing.name == name]
            return f"Where is the {name}?", f"At the {places[0]}." if places else "It is not there."
        if kind == "count":
            number = NUMBERS[len(things)].capitalize()
            return "How many objects are there?", f"{number}."
        past = [text for event_time, text in self.narrations if event_time <= time]
        return "What happened last?", past[-1] if past else "Nothing yet."

    def questions(self, fps: float = 2.0, count: int = 1) -> list[tuple[float, str, str]]:
        """`(time, question, answer)` in order; each question follows the frame at its time."""
        rng = random.Random()
        rng.setstate(self._rng_state)
        times = self.frame_times(fps).tolist()
        if not 0 <= count <= len(times):
            raise ValueError(f"`num_questions` must be in [0, {len(times)}], the stream's frames, got {count}")
        times = sorted(rng.sample(times, count))
        return [(time, *self.question(rng, time)) for time in times]

    def opening(self) -> tuple[str | None, str | None]:
        """A system prompt and an instruction; either may be None."""
        rng = random.Random(f"opening/{self.seed}")
        return rng.choice((None, None, *SYSTEM_PROMPTS)), rng.choice((None, *INSTRUCTIONS))
