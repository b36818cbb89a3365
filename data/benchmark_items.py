"""Items of a benchmark of streaming video: what is asked at which second, and what would be right.

`videollm-mod prepare` writes them from the published files, one JSON object per line.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..containers import shown
from .files import write_whole
from .jsonl import Fault, iter_lines
from .stream_checks import Problem, check_keys, is_path, is_seconds

KINDS = ("choice", "count", "yes-no", "open", "alert", "narration")


@dataclass(frozen=True)
class Poll:
    """One time at which the official script asks. The model has seen the frames from `since` to `time` (seconds of the
    video); `text` is the user's whole text as the official script words it, options included."""

    time: float
    text: str
    since: float = 0.0


@dataclass(frozen=True)
class Item:
    """
    Args:
        benchmark (`str`): such as `"ovo-bench"`.
        id (`str`): unique in its file.
        group, task (`str`): heading and column of the published table, such as "Real-Time Visual Perception", "OCR".
        video (`str`): path, relative to the JSONL file.
        kind (`str`): how it is answered, one of `KINDS`.
        polls (`tuple[Poll, ...]`): official protocol, in order, which need not be that of time; `next_poll` of the
            benchmark may end it early.
        stream (`Poll`): stream protocol: what is asked once, at this time; frames from `since` on pass once.
        end (`float`): second at which the stream protocol stops watching.
        truth (`dict`): what the scorer of this benchmark reads.
        options (`tuple[str, ...]`): of a choice, without their letters.
        needs_sound (`bool`): it cannot be answered without hearing; such items are counted apart.
    """

    benchmark: str
    id: str
    group: str
    task: str
    video: str
    kind: str
    polls: tuple[Poll, ...]
    stream: Poll
    end: float
    truth: dict
    options: tuple[str, ...] = ()
    needs_sound: bool = False


POLL_FIELDS = tuple(field.name for field in dataclasses.fields(Poll))
FIELDS = tuple(field.name for field in dataclasses.fields(Item))


def check_poll(value: Any, where: str) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield where, f"it is {shown(value)}", 'an object {"time": ..., "text": ..., "since": ...}'
        return
    yield from check_keys(value, f"{where}.", POLL_FIELDS)
    for name in ("time", "since"):
        if not is_seconds(value.get(name)):
            yield f"{where}.{name}", f"it is {shown(value.get(name))}", "a finite number of seconds >= 0"
    if not isinstance(value.get("text"), str):
        yield f"{where}.text", f"it is {shown(value.get('text'))}", "a string"
    time, since = value.get("time"), value.get("since")
    if is_seconds(time) and is_seconds(since) and since > time:
        yield f"{where}.since", f"{since} is after `time`, {time}", "a second before the question"


def check_item(value: Any) -> Iterator[Problem]:
    """Problems of the value of a line."""
    if not isinstance(value, dict):
        yield "line", f"it is {shown(value)}", 'an object {"benchmark": ..., "id": ..., ...}'
        return
    yield from check_keys(value, "", FIELDS)
    for name in FIELDS:
        if name not in value:
            yield name, "it is missing", f"every item has {', '.join(FIELDS)}"
    for name in ("benchmark", "id", "group", "task"):
        if not isinstance(value.get(name), str) or not value[name]:
            yield name, f"it is {shown(value.get(name))}", "a string"
    if not is_path(value.get("video")):
        yield "video", f"it is {shown(value.get('video'))}", "a path as a string"
    if value.get("kind") not in KINDS:
        yield "kind", f"it is {shown(value.get('kind'))}", f"one of {', '.join(KINDS)}"
    if not isinstance(value.get("polls"), list):
        yield "polls", f"it is {shown(value.get('polls'))}", "a list of polls"
    else:
        for index, poll in enumerate(value["polls"]):
            yield from check_poll(poll, f"polls[{index}]")
    yield from check_poll(value.get("stream"), "stream")
    if not is_seconds(value.get("end")):
        yield "end", f"it is {shown(value.get('end'))}", "a finite number of seconds >= 0"
    if not isinstance(value.get("truth"), dict):
        yield "truth", f"it is {shown(value.get('truth'))}", "an object"
    options = value.get("options")
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        yield "options", f"it is {shown(options)}", "a list of strings"
    if not isinstance(value.get("needs_sound"), bool):
        yield "needs_sound", f"it is {shown(value.get('needs_sound'))}", "true or false"


def item_of(value: dict) -> Item:
    """The item of a line that `check_item` finds no problem in."""
    polls = tuple(Poll(**poll) for poll in value["polls"])
    return Item(**{**value, "polls": polls, "stream": Poll(**value["stream"]), "options": tuple(value["options"])})


def read_items(path: str | Path) -> list[Item]:
    """
    Raises:
        `ValueError`: at the first fault; the message names file, line and field. Ids must be unique.
        `OSError`: if the file cannot be read.
    """
    path, items = Path(path), []
    seen: dict[str, int] = {}
    for number, value, problem in iter_lines(path):
        problem = problem or next(check_item(value), None)
        if problem is None and (first := seen.setdefault(value["id"], number)) != number:
            problem = ("id", f"{shown(value['id'])} is also the id of line {first}", "an id of its own")
        if problem:
            raise ValueError(f"{path}:{Fault(number, *problem)}")
        items.append(item_of(value))
    if not items:
        raise ValueError(f"{path}:{Fault(1, 'file', 'it is empty', 'one JSON object per line')}")
    return items


def write_items(path: str | Path, items: Iterable[Item]) -> None:
    """Write a JSONL file, whole or not at all."""
    lines = (json.dumps(dataclasses.asdict(item), ensure_ascii=False) + "\n" for item in items)
    write_whole(path, "".join(lines))
