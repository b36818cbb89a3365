"""What the data set adapters share: the `Stream` of a video, checked access to annotations, and text helpers."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..containers import shown
from .stream_checks import is_seconds

SPELLINGS = {"training": "train", "validation": "val", "valid": "val", "testing": "test", "test_unannotated": "test"}
MAX_NAMED = 3  # items named in messages for each reason to leave something out


@dataclass
class Stream:
    """
    Args:
        video (`tuple[str, ...]`): names that its file may have, without the extension.
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
    """The subset that an adapter reads, and a record of the annotations that it left out.

    Args:
        subset (`str`, *optional*): name of the subset to read; all of them by default.
        left_out (`dict[str, int]`): reason -> number of items left out.
        named (`dict[str, list[str]]`): reason -> the first `MAX_NAMED` items, each with its place and problem.
    """

    subset: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    named: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, what: str, name: str) -> None:
        self.left_out[what] = self.left_out.get(what, 0) + 1
        if len(names := self.named.setdefault(what, [])) < MAX_NAMED:
            names.append(name)

    @contextmanager
    def skipping(self, what: str) -> Iterator[None]:
        """Leave out an item whose block raises `ValueError`."""
        try:
            yield
        except ValueError as error:
            self.leave_out(what, str(error))

    def check_split(self, annotations: dict | list) -> None:
        """Raise `ValueError` if a subset is requested and the file names another one, or none."""
        if self.subset is None:
            return
        split = annotations.get("split") if isinstance(annotations, dict) else None
        if split is None:
            raise ValueError(
                f"`subset` is {self.subset!r}, but these annotations do not name a subset: each file holds one"
            )
        if SPELLINGS.get(str(split), split) != self.subset:
            raise ValueError(f"`subset` is {self.subset!r}, but these annotations are of {split!r}")


Adapter = Callable[[Any, Request], Iterator[Stream]]  # reads the streams of a JSON file of annotations


def describe_left_out(left_out: dict[str, int], named: dict[str, list[str]]) -> list[str]:
    """One sentence for each reason to leave items out."""
    return [f"{what} ({count}), such as {'; '.join(named[what])}" for what, count in sorted(left_out.items())]


def turn(time: float, role: str, content: str) -> dict:
    return {"time": time, "role": role, "content": content}


def need(item: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """`item[name]`, which must have the type `kind`.

    Raises:
        `ValueError`: if it is missing or of another type; the message names `where`.
    """
    if not isinstance(item, dict) or name not in item:
        raise ValueError(f"{where} has no {name!r}, got {shown(item)}")
    value = item[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{name!r} of {where} must be of type {kinds}, got {shown(value)}")
    return value


def seconds(item: Any, name: str, where: str) -> float:
    """`item[name]`, a time in seconds.

    Raises:
        `ValueError`: if it is not a time; the message names `where`.
    """
    value = need(item, name, (int, float), where)
    if not is_seconds(value):
        raise ValueError(f"{name!r} of {where} must be a finite number of seconds >= 0, got {shown(value)}")
    return value


def part(item: dict, where: str, first: str = "start_time", last: str = "end_time") -> tuple[float, float]:
    """Start and end of an annotated segment in seconds."""
    return seconds(item, first, where), seconds(item, last, where)


def segment_stream(video: tuple[str, ...], start: float, end: float, question: str, answer: str) -> Stream:
    """A segment of a video, with a question before it and the answer after its last frame."""
    return Stream(video, [turn(start, "user", question), turn(end, "assistant", answer)], start, end)


def numbered(texts: Sequence[str]) -> str:
    """`1. a 2. b`, on one line because messages have no line breaks."""
    return " ".join(f"{number}. {text}" for number, text in enumerate(texts, start=1))


def words_of(name: str) -> str:
    """`PutOnHairExtensions` -> `put on hair extensions`; `ReplaceSIMCard` -> `replace SIM card`."""
    words = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+|\d+", name)
    return " ".join(word if len(word) > 1 and word.isupper() else word.lower() for word in words)


def narrated(
    video: tuple[str, ...], instruction: str, narrations: list[tuple[float, str]], request: Request
) -> Iterator[Stream]:
    """A whole video with its narrations in order of time. Narrations without text, and those that repeat the previous
    one, are left out."""
    turns, last = [turn(0.0, "user", instruction)], None
    for time, text in sorted(narrations, key=lambda narration: narration[0]):
        if not text:
            request.leave_out("narrations without text", f"{video[0]} at {time:g} s")
        elif text == last:
            request.leave_out("narrations that repeat the previous one", f"{video[0]} at {time:g} s")
        else:
            turns.append(turn(time, "assistant", text))
            last = text
    if last is None:
        request.leave_out("videos or passes without narrations", video[0])
    else:
        yield Stream(video, turns)
