"""Streams of your own in JSONL: one line a video, with what is said at which second.

    {"video": "clips/a.mp4", "fps": 2.0, "turns": [{"time": 3.5, "role": "assistant", "content": "..."}]}

`features` (a file that `videollm-mod extract` wrote) may stand for `video`; paths are relative to the JSONL file.
`start` and `end` (seconds) take a part of the video; times are always seconds from the video's first frame. `fps` is
the rate at which frames are taken, by default the processor's. Turns are in order of time; a system turn may be first.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..containers import shown
from .files import STANDARD
from .stream_checks import Object, Problem, check_media, check_stream, media_of
from .words import counted

BOM = b"\xef\xbb\xbf"
MAX_LINE = 2**26  # bytes: a day of turns takes far less


@dataclass(frozen=True)
class Fault:
    """What is wrong in a file, where (`line` from 1, `field` as in `turns[2].time`), and what would be right."""

    line: int
    field: str
    problem: str
    expected: str

    def __str__(self) -> str:
        return " ".join(f"{self.line}: {self.field}: {self.problem}; {self.expected}".split())


def parse(raw: bytes) -> tuple[Any, Problem | None]:
    """The value of a line, or what keeps it from being JSON."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"byte {error.start + 1} of the line, 0x{raw[error.start]:02x}, is not UTF-8"
        return None, ("line", what, "save the file as UTF-8")
    if not text.strip():
        return None, ("line", "it is empty", "remove it, or put a JSON object there")
    try:
        return json.loads(text, object_pairs_hook=Object), None
    except json.JSONDecodeError as error:
        return None, ("line", f"not JSON: {error.msg} at column {error.colno}", "one JSON object on one line")
    except (ValueError, RecursionError) as error:
        return None, ("line", f"not JSON: {shown(str(error))}", "one JSON object on one line")


def iter_lines(path: Path, offset: int = 0, first_line: int = 1) -> Iterator[tuple[int, Any, Problem | None]]:
    """`(number, value, problem)` of the lines of a file, or for `-` of standard input, from a byte on, one held at a
    time."""
    if path == STANDARD and sys.stdin is None:
        raise OSError("standard input is closed")
    with nullcontext(sys.stdin.buffer) if path == STANDARD else open(path, "rb") as file:
        if offset:  # a pipe has no other beginning
            file.seek(offset)
        for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), first_line):
            if len(raw) > MAX_LINE:
                yield number, None, ("line", f"it has more than {MAX_LINE} bytes", "one JSON object on one line")
                return
            if number == 1 and raw.startswith(BOM):
                yield 1, None, ("line", "a byte order mark stands before it", "UTF-8 without one")
                raw = raw.removeprefix(BOM)
            yield number, *parse(raw)


def validate(path: str | Path, media: bool = True) -> list[Fault]:
    """All faults of a file, in order of its lines.

    Args:
        path: of a file, or `-` for standard input, where media are looked for from the working directory.
        media (`bool`): look at videos and features too: whether they can be read, and times beyond their end.

    Raises:
        `OSError`: if the file cannot be read.
    """
    path, faults, seen, number = STANDARD if str(path) == "/dev/stdin" else Path(path), [], {}, 0
    folder = path.parent if path.is_file() else Path()  # a pipe has none
    for number, stream, problem in iter_lines(path):
        problems = [problem] if problem else list(check_stream(stream))
        if media:
            problems += check_media(stream, folder, seen)
        faults += [Fault(number, *problem) for problem in problems]
    if not number:
        faults.append(Fault(1, "file", "it is empty", "one JSON object a line"))
    return faults


def read_streams(path: str | Path, offset: int = 0, first_line: int = 1, count: int | None = None) -> Iterator[dict]:
    """The streams of a file, one in memory at a time, with `line`, their number, and `video` or `features` as a path
    that holds from anywhere.

    Args:
        offset, first_line, count (`int`): of a part of the file, see `line_spans`; the whole file by default.

    Raises:
        `ValueError`: at the first line with a fault, naming it.
        `OSError`: if the file cannot be read.
    """
    path = Path(path).absolute()
    for number, stream, problem in iter_lines(path, offset, first_line):
        if count is not None and number >= first_line + count:
            return
        problem = problem or next(check_stream(stream), None)
        if problem:
            raise ValueError(f"{path}:{Fault(number, *problem)}")
        name, media = media_of(stream, path.parent)
        yield {**stream, name: media, "line": number}


def line_spans(path: str | Path, parts: int) -> list[tuple[int, int, int]]:
    """`(byte offset, number of the first line, count)` of at most `parts` runs of lines, about equally long."""
    with open(path, "rb") as file:
        offsets = [0]
        offsets += (offsets[-1] + len(raw) for raw in file)
    total = len(offsets) - 1
    cuts = sorted({round(index * total / parts) for index in range(parts + 1)})
    return [(offsets[a], a + 1, b - a) for a, b in pairwise(cuts)]


def check(path: str | Path) -> None:
    """Raise `ValueError` if lines of a file are faulty, naming the first; media are not looked at."""
    if faults := validate(path, media=False):
        raise ValueError(
            f"{counted(len(faults), 'fault')} in {path}, the first at line {faults[0]}. "
            "`videollm-mod validate` lists all"
        )


def missing_media(path: str | Path) -> dict[int, str]:
    """Line number -> path of the video or features, where that is no file."""
    media = ((stream["line"], stream.get("video") or stream["features"]) for stream in read_streams(path))
    return {line: file for line, file in media if "://" not in file and not Path(file).is_file()}


def missing_error(path: str | Path, gone: dict[int, str]) -> FileNotFoundError:
    """What to raise for `missing_media`: how many, and the first few."""
    files = list(dict.fromkeys(gone.values()))
    return FileNotFoundError(f"{path} names {counted(len(files), 'missing file')}, such as {', '.join(files[:3])}")
