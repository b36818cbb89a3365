"""What the readers of published benchmarks share: entries of a file with their place in it, and checked access."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..containers import shown
from .annotations import need
from .benchmark_items import Item
from .prepare import SUFFIXES
from .stream_checks import is_seconds

MOST = 26  # options, since each has a letter
Entry = tuple[str, Any]  # where it stands in its file, such as `[3]` or `line 4`, and its value


@dataclass(frozen=True)
class Source:
    """An annotation whose video has yet to be found.

    Args:
        videos (`tuple[str, ...]`): names that the file of its video may have, without the extension, the best first;
            a name with folders, such as `"COIN/a"`, is that of a file in these folders.
        last (`float`): the last second that it asks about.
        make: builds the item from the path of the video and its duration in seconds.
    """

    videos: tuple[str, ...]
    last: float
    make: Callable[[str, float], Item]


def entries(path: Path) -> Iterator[Entry]:
    """The entries of a JSON list, of JSON lines, or of a CSV file with a header.

    Raises:
        `ValueError`: if the file is none of these, or not text; the message says where.
    """
    kinds = {".csv": csv_rows, ".jsonl": json_lines}
    for where, value in kinds.get(path.suffix.lower(), json_list)(text_of(path)):
        if re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)):
            raise ValueError(f"{where} has an unpaired surrogate, such as \\ud800, which is no character")
        yield where, value


def text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte {error.start + 1} of the file, 0x{error.object[error.start]:02x}, is not UTF-8"
        raise ValueError(f"{what}; save the file as UTF-8") from error


def csv_rows(text: str) -> Iterator[Entry]:
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)  # else an open quote takes all that follows
    try:
        yield from ((f"line {rows.line_num}", row) for row in rows)
    except csv.Error as error:
        raise ValueError(f"the row after line {rows.line_num} is not CSV: {error}") from error


def json_lines(text: str) -> Iterator[Entry]:
    for number, line in enumerate(text.split("\n"), start=1):  # `splitlines` would split within strings too
        if line.strip():
            yield f"line {number}", parsed(line, f"line {number}")


def json_list(text: str) -> Iterator[Entry]:
    content = parsed(text, "the file")
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
    """`item[name]`, a list of strings, as many as there are letters at most."""
    values = need(item, name, list, where)
    if not at_least <= len(values) <= MOST or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name!r} of {where} must be a list of {at_least} to {MOST} strings, got {shown(values)}")
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


def video_names(item: Any, name: str, where: str) -> tuple[str, str]:
    """`item[name]`, the path of a video, as the names that its file may have: with the folders, and without them."""
    path = PurePosixPath(need(item, name, str, where).replace("\\", "/"))
    if not path.name:
        raise ValueError(f"{name!r} of {where} must be the name of a video, got {shown(item[name])}")
    if path.suffix.lower() in SUFFIXES:
        path = path.with_suffix("")
    return str(path), path.name
