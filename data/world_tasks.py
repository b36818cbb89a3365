"""Tasks on the hard levels that mirror those of the paper: things are unmasked in the order of a known procedure.

A procedure is a cycle of ten steps that starts at any of them. A step is a verb and the thing that it is done to. The
frames show only the thing, so the verb has to be known from the procedure. Nothing is narrated, since narrations would
give the order away.
"""

import random
from functools import cached_property

import numpy as np

from .world_basic import KINDS, NUMBERS, SYSTEM_PROMPTS
from .world_hard import HardStream

NAMES = (
    "auction",
    "banquet",
    "carnival",
    "festival",
    "harvest",
    "jubilee",
    "pageant",
    "parade",
    "regatta",
    "tournament",
    "vigil",
    "wedding",
)
VERBS = ("crown", "follow", "greet", "guide", "thank")
ORDINALS = (*NUMBERS[1:], "ten")
TASKS = ("step", "task", "next", "procedure", "procedure+", "lta", "keystep")
FUTURE = {"next": 1, "procedure": 5, "procedure+": 5, "lta": 20}  # steps to predict
OBSERVED = 8  # actions seen before long-term anticipation is asked for


def make_procedures() -> dict[str, tuple[tuple[str, int], ...]]:
    """Name -> ten steps `(verb, kind)`. A kind occurs once in a procedure, and two successive kinds identify it."""
    rng, procedures = random.Random("procedures"), {}
    taken: set[tuple[int, int]] = set()
    for name in NAMES:
        while True:
            kinds = rng.sample(range(len(KINDS)), len(ORDINALS))
            pairs = set(zip(kinds, [*kinds[1:], kinds[0]], strict=True))
            if not pairs & taken:
                break
        taken |= pairs
        procedures[name] = tuple((rng.choice(VERBS), kind) for kind in kinds)
    return procedures


PROCEDURES = make_procedures()


class HardTasksStream(HardStream):
    """Eight steps of a procedure: `steps` are `(seconds, index in the procedure)`."""

    CHAINS = OBSERVED
    LENGTHS = (1, 2)
    IN_ORDER = True

    def __init__(self, seed: int):
        super().__init__(seed)
        times = [event.time for event in self.events if event.text]
        self.steps = [(time, (self.first_step + i) % len(ORDINALS)) for i, time in enumerate(times)]

    def _chains(self, rng: random.Random) -> list[list[int]]:
        self.procedure, self.first_step = rng.choice(NAMES), rng.randrange(len(ORDINALS))
        steps = PROCEDURES[self.procedure]
        first = [steps[(self.first_step + i) % len(steps)][1] for i in range(self.CHAINS)]
        others = [kind for kind in range(len(KINDS)) if kind not in first]
        rng.shuffle(others)
        return [[kind, *(others.pop() for _ in range(rng.choice(self.LENGTHS)))] for kind in first]

    def _looks(self, rng: random.Random) -> list[tuple[int, int]]:
        return [(c, len(chain) - 1) for c, chain in enumerate(self.chains)]

    @cached_property
    def narrations(self) -> list[tuple[float, str]]:
        return []  # the model speaks only when asked

    def actions(self, index: int, count: int = 1) -> list[str]:
        """`count` steps of the procedure from `index` on: "crown the red circle"."""
        steps = PROCEDURES[self.procedure]
        chosen = [steps[(index + i) % len(steps)] for i in range(count)]
        return [f"{verb} the {KINDS[kind]}" for verb, kind in chosen]

    def tasks(self, time: float) -> tuple[str, ...]:
        """Those of `TASKS` that can be asked after the frame at `time`: two steps identify the procedure."""
        done = sum(step_time <= time for step_time, _ in self.steps)
        return TASKS if done >= OBSERVED else () if done < 2 else tuple(task for task in TASKS if task != "lta")

    def task(self, name: str, time: float) -> tuple[str, str]:
        """The question of a task after the frame at `time`, and its answer.

        Raises:
            `ValueError`: if the task cannot be asked then.
        """
        if name not in self.tasks(time):
            raise ValueError(f"`name` must be one of {self.tasks(time)} at {time} seconds, got {name!r}")
        index = [step for step_time, step in self.steps if step_time <= time][-1]
        if name == "step":
            return "Which step was that?", f"{self.actions(index)[0].capitalize()}."
        if name == "keystep":
            return "Which keystep was that?", f"Step {ORDINALS[index]} of the {self.procedure}."
        if name == "task":
            return "What is going on?", f"The {self.procedure}."
        future = self.actions(index + 1, FUTURE[name])
        if name == "next":
            return "Which step is next?", f"{future[0].capitalize()}."
        if name == "lta":
            return "Which twenty actions follow?", f"{', '.join(future).capitalize()}."
        known = f"This is the {self.procedure}. " if name == "procedure+" else ""
        listed = " ".join(f"{number}. {action.capitalize()}." for number, action in enumerate(future, 1))
        return f"{known}Which steps are next?", listed

    def examples(self) -> dict[str, tuple[float, str, str]]:
        """Each task once: `(time, question, answer)`, at the frame of one of the steps."""
        rng, examples = random.Random(f"tasks/{self.seed}"), {}
        for name in TASKS:
            time = rng.choice([time for time, _ in self.steps if name in self.tasks(time)])
            examples[name] = (time, *self.task(name, time))
        return examples

    def asked(self, name: str, fps: float = 2.0) -> list[dict]:
        """The example of a task as messages for a processor; the last message is the answer."""
        time, question, answer = self.examples()[name]
        system, instruction = self.opening()
        turns = [
            ("system", system),
            ("user", instruction),
            ("stream", int(np.searchsorted(self.frame_times(fps), time)) + 1),
            ("user", question),
            ("assistant", answer),
        ]
        return [
            {"role": role, "num_frames" if role == "stream" else "content": content}
            for role, content in turns
            if content is not None
        ]

    def question(self, rng: random.Random, time: float) -> tuple[str, str]:
        tasks = self.tasks(time)
        if tasks:
            return self.task(rng.choice(tasks), time)
        done = sum(step_time <= time for step_time, _ in self.steps)
        return "How many were unmasked?", f"{NUMBERS[done].capitalize()}."

    def opening(self) -> tuple[str | None, str | None]:
        return random.Random(f"opening/{self.seed}").choice((None, *SYSTEM_PROMPTS)), "Watch, questions follow."


class HardSmallTasksStream(HardTasksStream):
    """The tasks on 3 x 3 cells."""

    GRID = 3
    PAIRS = 2


class HardTasksLessons(HardTasksStream):
    """Training data: all tasks are asked equally often, including the one that can only be asked at the end."""

    def questions(self, fps: float = 2.0, count: int = 1) -> list[tuple[float, str, str]]:
        super().questions(fps, count)  # checks `count`
        left = {time: self.tasks(time) for time in self.frame_times(fps).tolist()}
        rng, questions = random.Random(f"lessons/{self.seed}"), []
        for _ in range(count):
            name = rng.choice(sorted({name for tasks in left.values() for name in tasks}) or [None])
            time = rng.choice([time for time, tasks in left.items() if name is None or name in tasks])
            del left[time]
            questions.append((time, *(self.question(rng, time) if name is None else self.task(name, time))))
        return sorted(questions)


class HardSmallTasksLessons(HardTasksLessons):
    GRID = 3
    PAIRS = 2
