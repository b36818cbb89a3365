"""What the readers of published benchmarks share: entries of a file with their place in it, and checked access."""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..containers import shown
from .annotations import need
from .benchmark_items import Item
from .prepare import SUFFIXES
from .stream_checks import is_seconds

Entry = tuple[str, Any]  # where it stands in its file, such as `[3]` or `line 4`, and its value


@dataclass(frozen=True)
class Source:
    """An annotation whose video has yet to be found.

    Args:
        videos (`tuple[str, ...]`): names that the file of its video may have, without the extension.
        last (`float`): the last second that it asks about.
        make: builds the item from the path of the video and its duration in seconds.
    """

    videos: tuple[str, ...]
    last: float
    make: Callable[[str, float], Item]


def entries(path: Path) -> Iterator[Entry]:
    """The entries of a JSON list, of JSON lines, or of a CSV file with a header.

    Raises:
        `ValueError`: if the file is none of these; the message says where.
    """
    if path.suffix.lower() == ".csv":
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            yield from ((f"line {rows.line_num}", row) for row in rows)
    elif path.suffix.lower() == ".jsonl":
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        for number, line in enumerate(lines, start=1):
            yield f"line {number}", parsed(line, f"line {number}")
    else:
        content = parsed(path.read_text(encoding="utf-8-sig"), "the file")
        if not isinstance(content, list):
            raise ValueError(f"the file must be a JSON list, got {shown(content)}")
        yield from ((f"[{index}]", value) for index, value in enumerate(content))


def parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


def one_of(item: Any, name: str, known: Any, where: str) -> str:
    """`item[name]`, which must be one of `known`."""
    value = need(item, name, str, where)
    if value not in known:
        raise ValueError(f"{name!r} of {where} must be one of {', '.join(known)}, got {shown(value)}")
    return value


def texts(item: Any, name: str, where: str, at_least: int = 1) -> list[str]:
    """`item[name]`, a list of strings."""
    values = need(item, name, list, where)
    if len(values) < at_least or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name!r} of {where} must be a list of {at_least} strings or more, got {shown(values)}")
    return values


def objects(item: Any, name: str, where: str) -> list[tuple[str, dict]]:
    """`item[name]`, a list of objects that is not empty, each with its place."""
    values = need(item, name, list, where)
    if not values:
        raise ValueError(f"{name!r} of {where} is empty")
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise ValueError(f"{where}.{name}[{index}] must be an object, got {shown(value)}")
    return [(f"{where}.{name}[{index}]", value) for index, value in enumerate(values)]


def span(item: Any, name: str, where: str) -> list[float]:
    """`item[name]`, start and end in seconds."""
    value = need(item, name, list, where)
    if len(value) != 2 or not all(is_seconds(time) for time in value) or value[0] > value[1]:
        raise ValueError(f"{name!r} of {where} must be [start, end] in seconds, got {shown(value)}")
    return [float(time) for time in value]


def clock(item: Any, name: str, where: str) -> float:
    """`item[name]`, seconds written as `[[HH:]MM:]SS`."""
    value = need(item, name, str, where)
    parts = value.split(":")
    if not 1 <= len(parts) <= 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"{name!r} of {where} must be a time such as 00:03:10, got {shown(value)}")
    return float(sum(int(part) * 60**power for power, part in enumerate(reversed(parts))))


def stem(name: str) -> str:
    """The name of a video file without folders, and without the extension of a video."""
    name = name.replace("\\", "/").rsplit("/", 1)[-1]
    base, dot, ending = name.rpartition(".")
    return base if dot and f".{ending.lower()}" in SUFFIXES else name
