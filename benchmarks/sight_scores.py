"""Scores of narrations that name what is in view: right, false, or neither.

A change is a moment from which another set of things is in view; the beginning of a stream is one too. A thing that
moves changes nothing here. A narration belongs to the last change before it.

- right: it is the first narration after its change, at most `TOLERANCE` seconds later, and names exactly the things in
  view;
- false: there was a narration after its change already, so it was said without a change.
"""

from dataclasses import dataclass, fields

from ..data.world_basic import BasicStream
from .stock_vlm_data import describe

TOLERANCE = 1.0  # seconds

Timed = list[tuple[float, str]]  # (seconds, text)


@dataclass
class Counts:
    """Of some streams: changes, narrations, how many of these were right and false, and the seconds of the streams."""

    changes: int = 0
    narrations: int = 0
    right: int = 0
    false: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def summary(self) -> dict:
        """The counts, F1 as a percentage, and false narrations per minute."""
        total = self.changes + self.narrations
        return {
            "f1": round(100 * 2 * self.right / total, 2) if total else 100.0,
            "false_per_minute": round(60 * self.false / self.seconds, 3) if self.seconds else 0.0,
            **vars(self),
        }


def changes(stream: BasicStream) -> Timed:
    """When another set of things is in view, with the sentence that names them, from the first frame on."""
    found: Timed = []
    for event in stream.events:
        text = describe(event.things)
        if not found or text != found[-1][1]:
            found.append((event.time, text))
    return found


def score(truth: Timed, said: Timed, seconds: float) -> Counts:
    """Score the narrations of one stream.

    Args:
        truth: as of `changes`; the first is at 0.
        said: in order.
        seconds: of the stream.
    """
    counts, told = Counts(len(truth), len(said), seconds=seconds), set()
    for time, text in said:
        index = max(i for i, (changed, _) in enumerate(truth) if changed <= time)
        if index in told:
            counts.false += 1
        elif text == truth[index][1] and time - truth[index][0] <= TOLERANCE:
            counts.right += 1
        told.add(index)
    return counts


def spoken_anew(texts: list[str], times: list[float]) -> Timed:
    """The narrations of a model that is asked at every frame, and speaks when its answer is another one."""
    said: Timed = []
    for time, text in zip(times, texts, strict=True):
        if not said or text != said[-1][1]:
            said.append((time, text))
    return said
