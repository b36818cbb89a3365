"""What happens in the world's levels of things: what comes into view, where it rests, moves and goes, and when.

A thing is named once it has been at rest for `SETTLE` seconds, and once more when it is gone. What passes through
without resting is not named, and neither is what has no name here: letters, symbols, flags, faces and patches of
texture. Coordinates are fractions of the frame's sides, sizes fractions of its shorter side, and times seconds.
"""

import random
from dataclasses import dataclass, field

import numpy as np

from .backgrounds import Background
from .things import TRAINED, UNKNOWN, Pictures, pictures
from .world_basic import PLACES, STEP, BasicStream, Event

SETTLE = STEP  # seconds that a thing rests before it is named
CONTRAST = 24  # mean difference of a thing from its background, of 255 levels
HIDDEN = 0.3  # share of a resting thing's box that others cover, at most


def with_article(name: str) -> str:
    """The name with "a" or "an"."""
    vowel = (name[0] in "aeiouAEIOU" and not name.startswith("uni")) or name.startswith("hour")
    return f"{'an' if vowel else 'a'} {name}"


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def enumerated(names: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


@dataclass(frozen=True)
class Key:
    """Where something is at a time. In between, it moves from one to the next."""

    time: float
    x: float  # of the centre
    y: float
    scale: float = 1.0  # of its size
    alpha: float = 1.0


@dataclass(eq=False)
class Visit:
    """Something from when it comes into view until it is gone. Without a `name` it is nothing that has one here."""

    name: str
    picture: int | None  # None: a patch of texture
    size: float  # longer side
    box: tuple[float, float]  # width and height, relative to the longer side
    cover: tuple[float, float]  # what it hides of others: width and height, relative to the longer side
    tilt: float  # degrees
    mirrored: bool
    seed: int
    keys: list[Key] = field(default_factory=list)
    raised: list[float] = field(default_factory=list)  # when it comes in front of everything that is in view
    until: float = float("inf")

    def at(self, time: float) -> Key | None:
        """Where it is, or None while it is not in view."""
        if not self.keys[0].time <= time < self.until:
            return None
        later = next((i for i, key in enumerate(self.keys) if key.time > time), None)
        if later is None:
            return self.keys[-1]
        a, b = self.keys[later - 1], self.keys[later]
        share = (time - a.time) / (b.time - a.time)
        share *= share * (3 - 2 * share)  # starts and stops gently
        x, y, scale, alpha = (
            getattr(a, name) + share * (getattr(b, name) - getattr(a, name)) for name in ("x", "y", "scale", "alpha")
        )
        return Key(time, x, y, scale, alpha)

    def front(self, time: float) -> float:
        """When it last came in front of everything; what did so later hides it."""
        return max(raised for raised in self.raised if raised <= time)

    def overlap(self, other: "Visit", x: float, y: float) -> float:
        """The share of this thing's box, at its last key, that `other` covers at `x`, `y`."""
        key, shared = self.keys[-1], 1.0
        for side, apart in zip((0, 1), (abs(x - key.x), abs(y - key.y)), strict=True):
            own, its = self.size * self.box[side], other.size * other.cover[side]
            shared *= max(0.0, min(own, its, (own + its) / 2 - apart)) / own
        return shared


@dataclass(frozen=True)
class Seen:
    """A thing that has been named and is not gone."""

    name: str
    x: float
    y: float

    @property
    def place(self) -> str:
        return PLACES[int(self.y * 3)][int(self.x * 3)]


class ThingsScript(BasicStream):
    """The script of a stream of up to `MAX_THINGS` things in one style. `visits` is everything that comes into view,
    in this order."""

    STYLES: tuple[str, ...] = TRAINED
    MAX_THINGS = 4
    SECONDS = (10.0, 20.0)
    GAPS = (2, 3, 4, 5, 6)  # steps between the end of an event, or its narration, and the next
    SIZES = (0.18, 0.85)
    INSET = -0.02  # of a thing at rest, from the sides of the frame
    ARRIVALS: tuple[str, ...] = ("slide", "slide", "slide", "grow", "fade", "pop")
    UNKNOWN_STREAMS = 0.12  # share of streams in which nothing has a name
    UNKNOWN_SHARE = 0.15  # of the arrivals in the others

    def __init__(self, seed: int):
        self.seed = seed
        self.pictures = self._pictures()
        rng = random.Random(f"{type(self).__name__}/{seed}")
        self.seconds = STEP * rng.randint(int(self.SECONDS[0] / STEP), int(self.SECONDS[1] / STEP))
        self.behind = Background.chosen(rng)
        self._thumbnail = np.asarray(self.behind.image(32, 32), dtype=np.int16)
        self.style = rng.choice([style for style in self.STYLES if self.pictures.named(style)])
        self.unknown_only = rng.random() < self.UNKNOWN_STREAMS
        self.visits: list[Visit] = []
        self.busy: list[tuple[float, float]] = []  # when something moves or waits to be named
        self.events = [Event(0.0, "", ())]
        self._play(rng)
        self._rng_state = rng.getstate()

    @classmethod
    def _pictures(cls) -> Pictures:
        """The pictures.

        Raises:
            `ValueError`: if the file has none of the level's styles.
        """
        found = pictures()
        if not any(found.named(style) for style in cls.STYLES):
            raise ValueError(f"the file of pictures has none of the styles {', '.join(cls.STYLES)}")
        return found

    def _play(self, rng: random.Random) -> None:
        last = round(self.seconds / STEP) - 1  # the last step that can be seen
        step = rng.choice((0, 1, 2, 3))
        there: list[Visit] = []
        while step < last:
            kind = self._kind(rng, there)
            steps = 0 if kind == "exchange" else rng.choice((1, 1, 2, 2, 3))
            end = step + steps
            if end + 1 > last:
                break
            times = STEP * step, STEP * end
            there = getattr(self, f"_{kind}")(rng, there, *times)
            self.busy.append((times[0], times[1] + SETTLE))
            step = end + 1 + rng.choice(self.GAPS)

    def _kind(self, rng: random.Random, there: list[Visit]) -> str:
        kinds = ["appear"] * 4 * (len(there) < self.MAX_THINGS) + ["pass_through"]
        if there:
            kinds += ["leave", "leave", "move", "exchange"]
        return rng.choice(kinds)

    def _new(self, rng: random.Random, there: list[Visit], crowded: bool) -> Visit:
        """Something that is not there yet."""
        named = self.pictures.named(self.style)
        names = [name for name in named if name and name not in {visit.name for visit in there}]
        unknown = self.unknown_only or rng.random() < self.UNKNOWN_SHARE or not names
        name = UNKNOWN if unknown else rng.choice(names)
        picture = rng.choice(named[name]) if name or (UNKNOWN in named and rng.random() < 0.7) else None
        box = (1.0, rng.uniform(0.5, 0.8))  # of a patch, never a square, which other levels name
        if picture is not None:
            width, height = self.pictures.picture(picture).size
            box = (width / max(width, height), height / max(width, height))
        low, high = self.SIZES[0], self.SIZES[1] * (0.6 if crowded else 1.0)
        size = low * (high / low) ** rng.random()
        tilt = rng.choice((0.0, 0.0, rng.uniform(-15, 15)))
        visit = Visit(name, picture, size, box, box, tilt, rng.random() < 0.25, rng.getrandbits(32))
        visit.cover = self._cover(visit)
        return visit

    def _cover(self, visit: Visit) -> tuple[float, float]:
        """What something hides of others: width and height, relative to its longer side."""
        return visit.box

    def _spot(self, rng: random.Random, visit: Visit, others: list[Visit]) -> tuple[float, float] | None:
        """A place where it is seen and leaves the others to be seen, away from the borders between places."""
        for _ in range(20):
            row, column = rng.randrange(3), rng.randrange(3)
            x, y = ((cell + 0.5 + rng.uniform(-0.3, 0.3)) / 3 for cell in (column, row))
            if self._fits(visit, x, y, others):
                return x, y
        return None

    def _fits(self, visit: Visit, x: float, y: float, others: list[Visit]) -> bool:
        """Whether it is seen at `x`, `y` and leaves the others to be seen."""
        least = [visit.size * side / 2 + self.INSET for side in visit.box]
        inside = all(least[i] <= place <= 1 - least[i] for i, place in enumerate((x, y)))
        return inside and self._leaves_seen(visit, x, y, others) and self._stands_out(visit, x, y)

    def _leaves_seen(self, visit: Visit, x: float, y: float, others: list[Visit]) -> bool:
        """Whether `visit` at `x`, `y` covers too little of any other thing, together with those above it, to hide
        it."""
        for i, other in enumerate(others):
            covered = other.overlap(visit, x, y)
            covered += sum(other.overlap(above, above.keys[-1].x, above.keys[-1].y) for above in others[i + 1 :])
            if covered > HIDDEN:
                return False
        return True

    def _stands_out(self, visit: Visit, x: float, y: float) -> bool:
        """Whether it differs from what is behind it."""
        if visit.picture is None:
            return True
        side = max(2, round(32 * visit.size))
        small = np.asarray(self.pictures.picture(visit.picture).resize((side, side)), dtype=np.int16)
        left, top = (min(max(0, round(32 * place) - side // 2), 32 - side) for place in (x, y))
        behind = self._thumbnail[top : top + side, left : left + side]
        covers = small[..., 3] > 128
        return bool(covers.any()) and abs(small[..., :3] - behind)[covers].mean() >= CONTRAST

    def _edge(self, rng: random.Random, visit: Visit, x: float, y: float) -> tuple[float, float]:
        """The nearest place out of view behind one of the sides."""
        out = self._reach(visit)
        return rng.choice(((-out, y), (1 + out, y), (x, -out), (x, 1 + out)))

    def _reach(self, visit: Visit) -> float:
        """How far behind a side something is out of view."""
        return 0.5 * visit.size * (1.0 if visit.tilt == 0 else 1.2)

    def _show(self, time: float, text: str, there: list[Visit]) -> None:
        seen = tuple(Seen(visit.name, visit.keys[-1].x, visit.keys[-1].y) for visit in there if visit.name)
        self.events.append(Event(time, text, seen))  # type: ignore[arg-type]  # named things have a place too

    def _appear(self, rng: random.Random, there: list[Visit], start: float, end: float) -> list[Visit]:
        count = 2 if len(there) + 2 <= self.MAX_THINGS and rng.random() < 0.15 else 1
        new: list[Visit] = []
        for _ in range(count):
            visit = self._new(rng, [*there, *new], bool(there) or count > 1)
            if (spot := self._spot(rng, visit, [*there, *new])) is None:
                continue
            visit.keys, visit.raised = [*self._arrival(rng, visit, start, end, *spot), Key(end, *spot)], [start]
            new.append(visit)
        self.visits += new
        named = sorted((visit for visit in new if visit.name), key=lambda visit: visit.keys[-1].x)
        if named:
            names = enumerated([with_article(visit.name) for visit in named])
            text = sentence(f"{names} appear{'s' if len(named) == 1 else ''}")
            self._show(end + SETTLE, text, [*there, *new])
        return [*there, *new]

    def _arrival(self, rng: random.Random, visit: Visit, start: float, end: float, x: float, y: float) -> list[Key]:
        kind = rng.choice(self.ARRIVALS)
        if kind == "slide":
            return [Key(start, *self._edge(rng, visit, x, y))]
        if kind == "grow":
            return [Key(start, x, y, scale=0.05)]
        return [Key(start, x, y, alpha=0.0)] if kind == "fade" else []

    def _leave(self, rng: random.Random, there: list[Visit], start: float, end: float) -> list[Visit]:
        old = rng.choice(there)
        rest = old.keys[-1]
        old.keys.append(Key(start, rest.x, rest.y))
        kind = rng.choice(self.ARRIVALS)
        if kind == "slide":
            old.keys.append(Key(end, *self._edge(rng, old, rest.x, rest.y)))
        elif kind == "grow":
            old.keys.append(Key(end, rest.x, rest.y, scale=0.05))
        elif kind == "fade":
            old.keys.append(Key(end, rest.x, rest.y, alpha=0.0))
        old.until = self._gone(old, start, end)
        there = [visit for visit in there if visit is not old]
        if old.name:
            self._show(old.until, f"The {old.name} leaves.", there)
        return there

    def _gone(self, visit: Visit, start: float, end: float) -> float:
        """When something that leaves from `start` to `end` is out of view."""
        return end

    def _move(self, rng: random.Random, there: list[Visit], start: float, end: float) -> list[Visit]:
        """Something moves; what has a new place is not narrated, but can be asked for."""
        old = rng.choice(there)
        rest, others = old.keys[-1], [visit for visit in there if visit is not old]
        if (spot := self._spot(rng, old, others)) is None:
            return there
        old.keys += [Key(start, rest.x, rest.y), Key(end, *spot)]
        old.raised.append(start)
        there = [*others, old]
        if old.name:
            self._show(end, "", there)
        return there

    def _exchange(self, rng: random.Random, there: list[Visit], start: float, end: float) -> list[Visit]:
        """One thing becomes another at once, in the same place."""
        old = rng.choice(there)
        rest, others = old.keys[-1], [visit for visit in there if visit is not old]
        new = self._new(rng, there, crowded=bool(others))
        new.size, new.seed = old.size, old.seed
        new.cover = self._cover(new)
        if not self._fits(new, rest.x, rest.y, others):
            return there
        old.until = start
        new.keys, new.raised = [Key(start, rest.x, rest.y)], [start]
        self.visits.append(new)
        if new.name:
            text = (
                f"{with_article(new.name)} replaces the {old.name}"
                if old.name
                else f"{with_article(new.name)} appears"
            )
            self._show(start + SETTLE, sentence(text), [*others, new])
        elif old.name:
            self._show(start, f"The {old.name} leaves.", others)
        return [*others, new]

    def _pass_through(self, rng: random.Random, there: list[Visit], start: float, end: float) -> list[Visit]:
        """Something crosses the view without resting, in front of everything."""
        visit = self._new(rng, there, crowded=True)
        y, out = rng.uniform(0.2, 0.8), self._reach(visit)
        ends = [(-out, y), (1 + out, y)]
        rng.shuffle(ends)
        visit.keys, visit.raised = [Key(start, *ends[0]), Key(end, *ends[1])], [start]
        visit.until = end
        self.visits.append(visit)
        return there
