"""What the adapters of data sets share: a stream of a video, checked access to annotations, words of names."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..decoding_videollm_mod import shown

HELD_OUT = {"test", "testing", "validation", "val"}  # names of one subset, by where a file comes from


@dataclass
class Stream:
    """
    Args:
        video (`tuple[str, ...]`): names that its file may have, without ending.
        turns (`list[dict]`): `time` (seconds from the video's start), `role`, `content`.
        start, end (`float`, *optional*): the part of the video, seconds.
    """

    video: tuple[str, ...]
    turns: list[dict]
    start: float | None = None
    end: float | None = None


@dataclass
class Request:
    """What is asked of an adapter.

    Args:
        subset (`str`, *optional*): name of the subset that is wanted, as the annotations have it.
        left_out (`dict[str, int]`): the adapter's count of what it leaves out, by what it is.
    """

    subset: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)

    def leave_out(self, what: str, count: int = 1) -> None:
        self.left_out[what] = self.left_out.get(what, 0) + count

    def wants(self, subset: str) -> bool:
        """Whether a subset, named as in the annotations, is wanted; all names of the held-out one are the same."""
        if self.subset is None or self.subset == subset:
            return True
        return {self.subset, subset} <= HELD_OUT or {self.subset, subset} <= {"train", "training"}

    def check_split(self, annotations: dict) -> None:
        """Raise `ValueError` if a subset is wanted of a file that says it is another one, or does not say."""
        split = annotations.get("split") if isinstance(annotations, dict) else None
        if self.subset is not None and split is None:
            raise ValueError(f"`subset` is {self.subset!r}, but these annotations name none: each file is one subset")
        if self.subset is not None and not self.wants(split):
            raise ValueError(f"`subset` is {self.subset!r}, but these annotations are {split!r}")


def turn(time: float, role: str, content: str) -> dict:
    return {"time": time, "role": role, "content": content}


def need(item: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """`item[name]`, of a type.

    Raises:
        `ValueError`: naming the place if it is missing or of another type.
    """
    if not isinstance(item, dict) or name not in item:
        raise ValueError(f"{where} has no {name!r}, got {shown(item)}")
    value = item[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{name!r} of {where} must be of the type {kinds}, got {shown(value)}")
    return value


NUMBER = (int, float)


def part(item: dict, where: str, first: str = "start_time", last: str = "end_time") -> tuple[float, float]:
    """Seconds at which an annotated part starts and ends."""
    return need(item, first, NUMBER, where), need(item, last, NUMBER, where)


def segment_stream(video: tuple[str, ...], start: float, end: float, question: str, answer: str | None) -> Stream:
    """A part of a video with a question before it and the answer, if it is known, after its last frame."""
    turns = [turn(start, "user", question)]
    if answer is not None:
        turns.append(turn(end, "assistant", answer))
    return Stream(video, turns, start, end)


def numbered(texts: list[str]) -> str:
    """`1. a 2. b`: on one line, since a message has no line breaks."""
    return " ".join(f"{number}. {text}" for number, text in enumerate(texts, start=1))


def words_of(name: str) -> str:
    """`PutOnHairExtensions` -> `put on hair extensions`; `ReplaceSIMCard` -> `replace SIM card`."""
    words = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+|\d+", name)
    return " ".join(word if len(word) > 1 and word.isupper() else word.lower() for word in words)


def narrated(
    video: tuple[str, ...], instruction: str, narrations: list[tuple[float, str]], request: Request
) -> Iterator[Stream]:
    """A whole video with its narrations in order of time; those without text, and repetitions of the one before, are
    left out."""
    turns, last = [turn(0.0, "user", instruction)], None
    for time, text in sorted(narrations, key=lambda narration: narration[0]):
        if not text:
            request.leave_out("narrations without text")
        elif text == last:
            request.leave_out("narrations that repeat the one before")
        else:
            turns.append(turn(time, "assistant", text))
            last = text
    if last is None:
        request.leave_out("videos or passes without narrations")
    else:
        yield Stream(video, turns)
