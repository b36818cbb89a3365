"""The levels of minutes of the procedural world: long silences, many events, and questions about any earlier moment.

Things come, move and leave as on the basic level, at times at once and at times after most of a minute. An instruction
may say what not to narrate, so that some of what is asked for was seen and never said. Questions are about what
happened, where things were, their order, number and duration, in several wordings of one meaning. Each has its age,
the seconds since what it asks for, and whether that was said.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from .world_basic import COLOURS, NUMBERS, SHAPES, SYSTEM_PROMPTS, BasicStream

COUNTS = (*NUMBERS, "ten", "eleven", "twelve")
LENGTHS = {  # upper bound in seconds -> what is said of a shorter time
    2.5: "Less than three seconds.",  # things change every half second
    9.5: "Three to ten seconds.",
    29.5: "Ten to thirty seconds.",
    59.5: "Half a minute to a minute.",
    float("inf"): "A minute or more.",
}
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
VERBS = {"appears": "appeared", "moves": "moved", "leaves": "left"}
HUSHED_SHARE = 0.4  # of the streams, in which something is not to be narrated
HUSHES = {  # what is not narrated -> how it is asked for
    "all": ("Watch, questions follow.", "Say nothing until you are asked.", "Watch silently."),
    "shape": ("Say nothing about {}.", "Narrate what happens, but leave out {}.", "Do not mention {}."),
    "colour": ("Say nothing about {} things.", "Narrate what happens, but leave out what is {}."),
    "verb": ("Say nothing when something {}.", "Narrate what happens, but not when something {}."),
}
QUESTIONS = {  # kind -> wordings of one meaning
    "first": ("What happened first?", "What was the first thing that happened?", "How did it begin?"),
    "last": ("What happened last?", "What was the last thing that happened?", "What has just happened?"),
    "before": ("What happened before {}?", "What happened just before {}?", "Before {}, what had happened?"),
    "after": ("What happened after {}?", "What happened right after {}?", "After {}, what happened next?"),
    "appeared": ("Where did the {} appear?", "Where was the {} when it appeared?", "At which place did the {} come?"),
    "start": ("Where was the {} at the start?", "At the start, where was the {}?", "Where was the {} at first?"),
    "shapes": ("How many {} have you seen?", "How many different {} were there so far?"),
    "times": ("How many things have {}?", "How often has something {}?"),
    "order": ("Which came first, the {} or the {}?", "What appeared earlier, the {} or the {}?"),
    "duration": ("How long was the {} there?", "For how long did you see the {}?"),
}


@dataclass(frozen=True)
class Happening:
    """An event in parts: `verb` is one of `VERBS`; `said` tells whether it was narrated."""

    time: float  # seconds
    verb: str
    name: str
    place: str  # where the thing is from then on, or was before it left
    text: str
    said: bool

    @property
    def past(self) -> str:
        """In the past, such as `the red circle moved to the top`."""
        return f"the {self.name} {VERBS[self.verb]}" + f" to the {self.place}" * (self.verb == "moves")


@dataclass(frozen=True)
class Question:
    """A question that follows the frame at `time`, and its answer.

    Args:
        age (`float`): seconds since the earliest moment that has to be known.
        said (`bool`): all that has to be known was narrated.
    """

    time: float
    kind: str
    subject: tuple[str, ...]  # what fills the gaps of the wording
    answer: str
    age: float
    said: bool
    wording: int = 0

    @property
    def text(self) -> str:
        return QUESTIONS[self.kind][self.wording].format(*self.subject)


class MinutesStream(BasicStream):
    """A stream of one to ten minutes."""

    SECONDS = (60.0, 600.0)
    GAPS: tuple[int, ...] = (2, 4, 6, 8, 12, 20, 40, 100)  # steps between two events: a second to fifty

    def __init__(self, seed: int):
        super().__init__(seed)
        rng = random.Random(f"hush/{type(self).__name__}/{seed}")
        self.hush: tuple[str, str] | None = None  # what is not to be narrated
        if rng.random() < HUSHED_SHARE:
            kind = rng.choice(list(HUSHES))
            choices = {"all": ("",), "shape": SHAPES, "colour": tuple(COLOURS), "verb": tuple(VERBS)}
            self.hush = kind, rng.choice(choices[kind])

    def is_hushed(self, verb: str, name: str) -> bool:
        """Whether an event is not to be narrated."""
        kind, what = self.hush or (None, None)
        return kind == "all" or what in (verb, *name.split())

    @cached_property
    def happenings(self) -> list[Happening]:
        """All events but the start, in order."""
        found = []
        for before, event in pairwise(self.events):
            (thing, *_) = set(event.things) ^ set(before.things)
            were, are = ({x.name: x for x in e.things} for e in (before, event))
            verb = "appears" if thing.name not in were else "leaves" if thing.name not in are else "moves"
            place = (were if verb == "leaves" else are)[thing.name].place
            said = not self.is_hushed(verb, thing.name)
            found.append(Happening(event.time, verb, thing.name, place, event.text, said))
        return found

    @cached_property
    def narrations(self) -> list[tuple[float, str]]:
        return [(x.time, x.text) for x in self.happenings if x.said]

    def opening(self) -> tuple[str | None, str | None]:
        system, instruction = super().opening()
        if self.hush is None:
            return system, instruction
        rng, (kind, what) = random.Random(f"opening/{self.seed}"), self.hush
        return rng.choice((None, None, *SYSTEM_PROMPTS)), rng.choice(HUSHES[kind]).format(PLURALS.get(what, what))

    def askable(self, time: float) -> list[Question]:
        """All that can be asked after the frame at `time`, in the first wording."""
        past = [x for x in self.happenings if x.time <= time]
        return [
            Question(time, kind, subject, answer, time - since, said)
            for kind, subject, answer, since, said in (*self._events(past), *self._things(past, time))
        ]

    def _events(self, past: list[Happening]) -> Iterator[tuple]:
        """Questions whose answer is an event, or a number of events: (kind, subject, answer, since, said)."""
        if not past:
            return
        yield "first", (), past[0].text, past[0].time, past[0].said
        yield "last", (), past[-1].text, past[-1].time, past[-1].said
        named = [x.past for x in past]
        for index, own in enumerate(past):
            if named.count(own.past) > 1:
                continue  # which one is meant would be open
            if index:
                before = past[index - 1]
                yield "before", (own.past,), before.text, before.time, before.said and own.said
            if index + 1 < len(past):
                after = past[index + 1]
                yield "after", (own.past,), after.text, own.time, after.said and own.said
        for verb, done in VERBS.items():
            some = [x for x in past if x.verb == verb]
            if 0 < len(some) < len(COUNTS):
                number = COUNTS[len(some)].capitalize()
                yield "times", (done,), f"{number}.", some[0].time, all(x.said for x in some)

    def _things(self, past: list[Happening], time: float) -> Iterator[tuple]:
        """Questions about things that were there, as `_events`."""
        start = {thing.name: thing.place for thing in self.events[0].things}
        for name, place in start.items():
            yield "start", (name,), f"At the {place}.", 0.0, False
        came: dict[str, list[Happening]] = {}
        for x in past:
            if x.verb == "appears" and x.name not in start:
                came.setdefault(x.name, []).append(x)
        once = [events[0] for events in came.values() if len(events) == 1]
        for x in once:
            yield "appeared", (x.name,), f"At the {x.place}.", x.time, x.said
            left = next((y for y in past if y.verb == "leaves" and y.name == x.name), None)
            if left is not None:
                length = next(said for most, said in LENGTHS.items() if left.time - x.time <= most)
                yield "duration", (x.name,), length, x.time, x.said and left.said
        for x, y in pairwise(once):
            pair = (x.name, y.name) if (x.time + y.time) % 2 else (y.name, x.name)
            yield "order", pair, f"The {x.name}.", x.time, x.said and y.said
        for shape in SHAPES:
            seen = {name: 0.0 for name in start if name.endswith(shape)}
            seen |= {name: events[0].time for name, events in came.items() if name.endswith(shape)}
            said = all(came[name][0].said if name in came else False for name in seen)
            if 0 < len(seen) < len(COUNTS):
                yield "shapes", (PLURALS[shape],), f"{COUNTS[len(seen)].capitalize()}.", min(seen.values()), said

    def asked(self, rng: random.Random, time: float) -> Question:
        """One of the questions that can be asked then, of a random kind, about a moment anywhere in the past."""
        found = self.askable(time)
        if not found:
            return Question(time, "last", (), "Nothing yet.", 0.0, False)
        kind, age = rng.choice(sorted({x.kind for x in found})), rng.uniform(0, time)
        nearest = min((x for x in found if x.kind == kind), key=lambda x: abs(x.age - age))
        return replace(nearest, wording=rng.randrange(len(QUESTIONS[kind])))

    def question(self, rng: random.Random, time: float) -> tuple[str, str]:
        asked = self.asked(rng, time)
        return asked.text, asked.answer


class MinuteStream(MinutesStream):
    """A stream of about a minute, to learn from first."""

    SECONDS = (30.0, 90.0)
    GAPS = (2, 3, 4, 6, 8, 12, 20, 30)
