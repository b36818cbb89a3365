"""Your own streams in JSONL: one line per video, with what is said at which second.

    {"video": "clips/a.mp4", "fps": 2.0, "turns": [{"time": 3.5, "role": "assistant", "content": "..."}]}

`features` (a file written by `videollm-mod extract`) may replace `video`. Paths are relative to the JSONL file.
`start` and `end` (seconds) select a part of the video; times always count from the video's first frame. `fps` is the
sampling rate, by default the processor's. Turns are in order of time; the first one may be a system turn.
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
from .stream_checks import JsonObject, Probed, Problem, check_media, check_stream, media_of
from .words import counted

BOM = b"\xef\xbb\xbf"
MAX_LINE = 2**26  # bytes; a day of turns needs far less


@dataclass(frozen=True)
class Fault:
    """A problem in a file: its place (`line` from 1, `field` such as `turns[2].time`), and what was expected."""

    line: int
    field: str
    problem: str
    expected: str

    def __str__(self) -> str:
        return " ".join(f"{self.line}: {self.field}: {self.problem}; {self.expected}".split())


def parse(raw: bytes) -> tuple[Any, Problem | None]:
    """The JSON value of a line, or None and the problem with it."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"byte {error.start + 1} of the line, 0x{raw[error.start]:02x}, is not UTF-8"
        return None, ("line", what, "save the file as UTF-8")
    if not text.strip():
        return None, ("line", "it is empty", "remove it, or write a JSON object there")
    try:
        return json.loads(text, object_pairs_hook=JsonObject), None
    except json.JSONDecodeError as error:
        return None, ("line", f"not JSON: {error.msg} at column {error.colno}", "one JSON object on one line")
    except (ValueError, RecursionError) as error:
        return None, ("line", f"not JSON: {shown(str(error))}", "one JSON object on one line")


def iter_lines(path: Path, offset: int = 0, first_line: int = 1) -> Iterator[tuple[int, Any, Problem | None]]:
    """Yield `(number, value, problem)` of each line of a file, or of standard input for `-`, starting at a byte
    `offset`. Only one line is in memory at a time."""
    if path == STANDARD and sys.stdin is None:
        raise OSError("standard input is closed")
    with nullcontext(sys.stdin.buffer) if path == STANDARD else open(path, "rb") as file:
        if offset:  # a pipe cannot seek, and needs no offset
            file.seek(offset)
        for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), first_line):
            if len(raw) > MAX_LINE:
                yield number, None, ("line", f"it has more than {MAX_LINE} bytes", "one JSON object on one line")
                return
            if number == 1 and raw.startswith(BOM):
                yield 1, None, ("line", "it starts with a byte order mark", "UTF-8 without one")
                raw = raw.removeprefix(BOM)
            yield number, *parse(raw)


def validate(path: str | Path, media: bool = True) -> list[Fault]:
    """All faults of a file, in order of its lines.

    Args:
        path: a file, or `-` for standard input, whose paths are relative to the working directory.
        media (`bool`): also check that videos and features can be read, and that no time is beyond their end.

    Raises:
        `OSError`: if the file cannot be read.
    """
    path, number = STANDARD if str(path) == "/dev/stdin" else Path(path), 0
    faults: list[Fault] = []
    seen: dict[tuple[str, str], Probed] = {}
    folder = path.parent if path.is_file() else Path()  # a pipe has none
    for number, stream, problem in iter_lines(path):
        problems = [problem] if problem else list(check_stream(stream))
        if media:
            problems += check_media(stream, folder, seen)
        faults += [Fault(number, *problem) for problem in problems]
    if not number:
        faults.append(Fault(1, "file", "it is empty", "one JSON object per line"))
    return faults


def read_streams(path: str | Path, offset: int = 0, first_line: int = 1, count: int | None = None) -> Iterator[dict]:
    """Yield the streams of a file, with their number as `line`, and with an absolute path in `video` or `features`.
    Only one stream is in memory at a time.

    Args:
        offset, first_line, count (`int`): the part of the file to read, see `line_spans`; all of it by default.

    Raises:
        `ValueError`: at the first line with a fault; the message names it.
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
    """Split a file into at most `parts` runs of about equally many lines: `(byte offset, first line, count)` each."""
    with open(path, "rb") as file:
        offsets = [0]
        offsets += (offsets[-1] + len(raw) for raw in file)
    total = len(offsets) - 1
    cuts = sorted({round(index * total / parts) for index in range(parts + 1)})
    return [(offsets[a], a + 1, b - a) for a, b in pairwise(cuts)]


def check(path: str | Path) -> None:
    """Raise `ValueError` for a file with faults, naming the first. Media are not checked."""
    if faults := validate(path, media=False):
        raise ValueError(
            f"{counted(len(faults), 'fault')} in {path}, the first at line {faults[0]}. "
            "`videollm-mod validate` lists all"
        )


def missing_media(path: str | Path) -> dict[int, str]:
    """Line number -> path of the video or features, for lines whose file does not exist."""
    media = ((stream["line"], stream.get("video") or stream["features"]) for stream in read_streams(path))
    return {line: file for line, file in media if "://" not in file and not Path(file).is_file()}


def missing_error(path: str | Path, gone: dict[int, str]) -> FileNotFoundError:
    """The error for `missing_media`, with the number of missing files and the first few."""
    files = list(dict.fromkeys(gone.values()))
    return FileNotFoundError(f"{path} names {counted(len(files), 'missing file')}, such as {', '.join(files[:3])}")
