"""What the adapters of data sets share: a stream of a video, checked access to annotations, words of names."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..containers import shown
from .stream_checks import is_seconds

SPELLINGS = {"training": "train", "validation": "val", "valid": "val", "testing": "test", "test_unannotated": "test"}
FEW = 3  # that are named of each kind of thing that is left out


@dataclass
class Stream:
    """
    Args:
        video (`tuple[str, ...]`): names that its file may have, without ending.
        turns (`list[dict]`): `time` (seconds from the video's start), `role`, `content`.
        start, end (`float`, *optional*): the part of the video, seconds.
        to_end (`bool`): the last turn comes when the video ends, even if that is earlier than annotated.
    """

    video: tuple[str, ...]
    turns: list[dict]
    start: float | None = None
    end: float | None = None
    to_end: bool = False


@dataclass
class Request:
    """What is asked of an adapter, and what of the annotations is left out.

    Args:
        subset (`str`, *optional*): name of the subset that is wanted.
        left_out (`dict[str, int]`): how many things, by what they are.
        named (`dict[str, list[str]]`): the first `FEW` of them, where they stand and what is wrong with them.
    """

    subset: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    named: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, what: str, name: str) -> None:
        self.left_out[what] = self.left_out.get(what, 0) + 1
        if len(names := self.named.setdefault(what, [])) < FEW:
            names.append(name)

    @contextmanager
    def skipping(self, what: str) -> Iterator[None]:
        """Leave out what raises `ValueError`."""
        try:
            yield
        except ValueError as error:
            self.leave_out(what, str(error))

    def check_split(self, annotations: dict) -> None:
        """Raise `ValueError` if a subset is wanted of a file that says it is another one, or does not say."""
        if self.subset is None:
            return
        split = annotations.get("split") if isinstance(annotations, dict) else None
        if split is None:
            raise ValueError(f"`subset` is {self.subset!r}, but these annotations name none: each file is one subset")
        if SPELLINGS.get(str(split), split) != self.subset:
            raise ValueError(f"`subset` is {self.subset!r}, but these annotations are {split!r}")


def told(left_out: dict[str, int], named: dict[str, list[str]]) -> list[str]:
    """One sentence for each kind of thing that was left out."""
    return [f"{what} ({count}), such as {'; '.join(named[what])}" for what, count in sorted(left_out.items())]


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


def seconds(item: Any, name: str, where: str) -> float:
    """`item[name]`, a time.

    Raises:
        `ValueError`: naming the place if there is none.
    """
    value = need(item, name, (int, float), where)
    if not is_seconds(value):
        raise ValueError(f"{name!r} of {where} must be a finite number of seconds >= 0, got {shown(value)}")
    return value


def part(item: dict, where: str, first: str = "start_time", last: str = "end_time") -> tuple[float, float]:
    """Seconds at which an annotated part starts and ends."""
    return seconds(item, first, where), seconds(item, last, where)


def segment_stream(video: tuple[str, ...], start: float, end: float, question: str, answer: str) -> Stream:
    """A part of a video with a question before it and the answer after its last frame."""
    return Stream(video, [turn(start, "user", question), turn(end, "assistant", answer)], start, end)


def numbered(texts: Sequence[str]) -> str:
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
            request.leave_out("narrations without text", f"{video[0]} at {time:g} s")
        elif text == last:
            request.leave_out("narrations that repeat the one before", f"{video[0]} at {time:g} s")
        else:
            turns.append(turn(time, "assistant", text))
            last = text
    if last is None:
        request.leave_out("videos or passes without narrations", video[0])
    else:
        yield Stream(video, turns)
