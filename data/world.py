"""A procedural world of streams: coloured shapes appear, move and leave, and what happens is known to the word.

`world_stream(seed, level)` is the same stream on any machine: its frames at any resolution, its timed narrations, and
questions with their answers. A level is one class below; a harder one is another class in `LEVELS`.

Coordinates are fractions of the frame's sides, times are seconds, and things change on a grid of `STEP` seconds only,
so that a change is first seen in the frame of its own time at any whole number of frames a step.
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
# of a kind in a part of a frame: not there, there, lit up, or there instead of what looked like kind i (TURNED + i)
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


@lru_cache(maxsize=1024)  # things in the middle of cells are in few places
def stamp(shape: str, x: float, y: float, radius: float, height: int, width: int) -> tuple[slice, slice, np.ndarray]:
    """Rows and columns of a frame that hold a thing, and which pixels of them it covers."""
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
    time: float  # seconds; the first frame at or after it shows the change
    text: str  # what is said of it
    things: tuple[Thing, ...]  # what is there from then on


class BasicStream:
    """One thing changes at a time: it appears, moves or leaves. At most `MAX_THINGS` are there, no two alike and no
    two in one place; what is there at the start is not narrated."""

    MAX_THINGS = 4
    SECONDS = (8.0, 16.0)
    GAPS = (2, 3, 4, 5, 6)  # steps between two events

    def __init__(self, seed: int):
        self.seed = seed
        # Python hashes a string seed with SHA-512, the same everywhere
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
        """What is there at `time`."""
        return next(event.things for event in reversed(self.events) if event.time <= time)

    @cached_property
    def narrations(self) -> list[tuple[float, str]]:
        """`(time, text)` of everything that is narrated, in order."""
        return [(event.time, event.text) for event in self.events[1:]]

    def frame_times(self, fps: float) -> np.ndarray:
        """Times of the stream's frames at `fps`: float64 `[F]`, from 0.

        Raises:
            `ValueError`: if there is no frame.
        """
        if not 1 <= self.seconds * fps < 1e6:
            raise ValueError(f"`fps` must give at least one frame in {self.seconds} seconds, got {fps}")
        return np.arange(int(self.seconds * fps)) / fps

    def shown(self, fps: float = 2.0) -> np.ndarray:
        """int64 `[F]`: which event each of the frames at `frame_times(fps)` shows the outcome of."""
        return np.searchsorted([event.time for event in self.events], self.frame_times(fps), side="right") - 1

    def drawn(self, height: int = 96, width: int | None = None) -> np.ndarray:
        """uint8 `[E, H, W, 3]`: what is seen after each event; square without `width`."""
        row = np.array([self.background] * (width or height), dtype=np.uint8)
        drawn = np.broadcast_to(row, (len(self.events), height, *row.shape)).copy()
        for frame, event in zip(drawn, self.events, strict=True):
            for thing in event.things:
                thing.draw(frame)
        return drawn

    def frames(self, fps: float = 2.0, height: int = 96, width: int | None = None) -> np.ndarray:
        """uint8 `[F, H, W, 3]`: the frames at `frame_times(fps)`."""
        return self.drawn(height, width)[self.shown(fps)]

    def state(self, thing: Thing, things: tuple[Thing, ...]) -> int:
        """What is to be known of one of the things that are there together, beside its kind: see `NUM_STATES`."""
        return THERE

    def states(self, grid: tuple[int, int] = (3, 3)) -> np.ndarray:
        """uint8 `[E, h, w, KINDS]`: the state of each kind in each cell of a grid after each event. A thing is where
        its centre is."""
        of_event = np.zeros((len(self.events), *grid, len(KINDS)), dtype=np.uint8)
        for states, event in zip(of_event, self.events, strict=True):
            for thing in event.things:
                cell = states[int(thing.y * grid[0]), int(thing.x * grid[1])]
                cell[KINDS.index(thing.name)] = self.state(thing, event.things)
        return of_event

    def question(self, rng: random.Random, time: float) -> tuple[str, str]:
        """A question asked right after the frame at `time`, and its answer."""
        things = self.things(time)
        kind = rng.choice(("what", "where", "count", "last"))
        if kind == "what":
            place = rng.choice([thing.place for thing in things] + [place for row in PLACES for place in row][::4])
            there = [thing.name for thing in things if thing.place == place]
            return f"What is at the {place}?", f"A {there[0]}." if there else "Nothing."
        if kind == "where":
            absent = f"{rng.choice(list(COLOURS))} {rng.choice(SHAPES)}"
            name = rng.choice([thing.name for thing in things] + [absent])
            place = [thing.place for thing in things if thing.name == name]
            return f"Where is the {name}?", f"At the {place[0]}." if place else "It is not there."
        if kind == "count":
            number = NUMBERS[len(things)].capitalize()
            return "How many objects are there?", f"{number}."
        past = [text for event_time, text in self.narrations if event_time <= time]
        return "What happened last?", past[-1] if past else "Nothing yet."

    def questions(self, fps: float = 2.0, count: int = 1) -> list[tuple[float, str, str]]:
        """`(time, question, answer)`, each asked right after the frame at its time, in order."""
        rng = random.Random()
        rng.setstate(self._rng_state)
        times = self.frame_times(fps).tolist()
        if not 0 <= count <= len(times):
            raise ValueError(f"`num_questions` must be in [0, {len(times)}], the stream's frames, got {count}")
        times = sorted(rng.sample(times, count))
        return [(time, *self.question(rng, time)) for time in times]

    def opening(self) -> tuple[str | None, str | None]:
        """A system prompt and an instruction, either of which may be absent."""
        rng = random.Random(f"opening/{self.seed}")
        return rng.choice((None, None, *SYSTEM_PROMPTS)), rng.choice((None, *INSTRUCTIONS))


LEVELS = {"basic": BasicStream}


def world_stream(seed: int, level: str = "basic"):
    """The stream of a seed.

    Raises:
        `ValueError`: for an unknown level.
    """
    from . import world_tasks  # noqa: F401 - adds the hard levels

    if level not in LEVELS:
        raise ValueError(f"`level` must be one of {', '.join(map(repr, LEVELS))}, got {level!r}")
    return LEVELS[level](seed)


def conversation(stream, fps: float = 2.0, num_questions: int = 1, opening: bool = True) -> list[dict]:
    """The stream as messages, for a processor: narrations after the frames of their times, questions in between.

    The frames, in order, are `stream.frames(fps)`.
    """
    turns = [(time, 0, [("assistant", text)]) for time, text in stream.narrations]
    for time, question, answer in stream.questions(fps, num_questions):
        turns.append((time, 1, [("user", question), ("assistant", answer)]))
    messages = []
    if opening:
        system, instruction = stream.opening()
        messages += [{"role": "system", "content": system}] if system else []
        messages += [{"role": "user", "content": instruction}] if instruction else []
    times, done = stream.frame_times(fps), 0
    for time, _, texts in sorted(turns, key=lambda turn: turn[:2]):
        seen = int(np.searchsorted(times, time)) + 1  # up to and with the first frame at or after the time
        if seen > done:
            messages.append({"role": "stream", "num_frames": seen - done})
            done = seen
        messages += [{"role": role, "content": text} for role, text in texts]
    if done < len(times):
        messages.append({"role": "stream", "num_frames": len(times) - done})
    return messages


def texts(seeds: range, level: str = "basic") -> list[str]:
    """Everything said in the streams of `seeds`, for a tokenizer to learn from."""
    return [
        message["content"]
        for seed in seeds
        for message in conversation(world_stream(seed, level), num_questions=4)
        if message["role"] != "stream"
    ]
