"""Checks for one line of a JSONL file of streams (`data.jsonl`)."""

import math
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeGuard

from ..containers import is_number, local_path, shown
from ..conversation import MAX_TEXT, clean_text
from .features import read_metadata
from .frames import video_seconds

MEDIA = ("video", "features")
FIELDS = (*MEDIA, "fps", "start", "end", "turns")
TURN_FIELDS = ("time", "role", "content")
ROLES = ("system", "user", "assistant")
SLACK = 1.0  # seconds by which times may exceed the video, since containers and annotators round
MAX_FPS = 1000
Problem = tuple[str, str, str]  # field, what is wrong, what was expected
Probed = tuple[tuple[str, str] | None, float | None, float | None]  # see `probe`


class JsonObject(dict):
    """A JSON object that records which of its keys were repeated."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        names = [name for name, _ in pairs]
        self.repeated = sorted({name for name in names if names.count(name) > 1})


def check_keys(item: dict, prefix: str, known: tuple[str, ...]) -> Iterator[Problem]:
    for name in getattr(item, "repeated", ()):
        yield f"{prefix}{name}", "it is given more than once", "give it once"
    for name in item:
        if name in known:
            continue
        like = get_close_matches(name, known, n=1)
        meant = f"did you mean {like[0]}?" if like else f"known fields are {', '.join(known)}"
        yield f"{prefix}{shown(name)[1:-1]}", "unknown field", meant


def is_seconds(value: Any) -> TypeGuard[float]:
    try:
        return is_number(value) and 0 <= float(value) < math.inf
    except OverflowError:
        return False


def is_path(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value.strip()) and "\0" not in local_path(value)
    except ValueError:  # a `file://` URL of another machine
        return False


def check_turns(turns: list, start: float, end: float) -> Iterator[Problem]:
    last = start
    for index, turn in enumerate(turns):
        where = f"turns[{index}]"
        if not isinstance(turn, dict):
            yield where, f"it is {shown(turn)}", 'an object {"time": ..., "role": ..., "content": ...}'
            continue
        yield from check_keys(turn, f"{where}.", TURN_FIELDS)
        for name in TURN_FIELDS:
            if name not in turn:
                yield f"{where}.{name}", "it is missing", f"every turn has {', '.join(TURN_FIELDS)}"
        time, role, content = (turn.get(name) for name in TURN_FIELDS)
        if "time" in turn:
            if not is_seconds(time):
                yield f"{where}.time", f"it is {shown(time)}", "a finite number of seconds >= 0"
            elif not start <= time <= end:
                right = f"a time from `start`, {start}, on" if end == math.inf else f"a time in [{start}, {end}]"
                yield f"{where}.time", f"{time} is outside the selected part", right
            elif time < last:
                yield f"{where}.time", f"{time} is before the previous turn", f"turns in order of time, from {last} on"
            else:
                last = time
        if "role" in turn:
            if not isinstance(role, str) or role not in ROLES:
                yield f"{where}.role", f"it is {shown(role)}", f"one of {', '.join(ROLES)}"
            elif role == "system" and index > 0:
                yield f"{where}.role", "a system turn after another turn", "system only as the first turn"
        if "content" in turn:
            if not isinstance(content, str):
                yield f"{where}.content", f"it is {shown(content)}", "a string"
            elif len(content) > MAX_TEXT:
                yield f"{where}.content", f"it has {len(content)} characters", f"at most {MAX_TEXT}"
            elif not clean_text(content):
                yield f"{where}.content", "it is empty", "the text of the turn"
            elif any("\ud800" <= character <= "\udfff" for character in content):
                yield f"{where}.content", "it has an unpaired surrogate", "valid Unicode"


def check_stream(stream: Any) -> Iterator[Problem]:
    """Problems of the value of a line. Media are not checked."""
    if not isinstance(stream, dict):
        yield "line", f"it is {shown(stream)}", 'an object {"video": ..., "turns": [...]}'
        return
    yield from check_keys(stream, "", FIELDS)
    given = [name for name in MEDIA if name in stream]
    if not given:
        yield "video", "neither `video` nor `features` is given", "the path of a video, or of its features"
    if len(given) == 2:
        yield "features", "both `video` and `features` are given", "one of them"
    for name in given:
        if not is_path(stream[name]):
            yield name, f"it is {shown(stream[name])}", "a path as a string"
    fps = stream.get("fps")
    if "fps" in stream and (not is_seconds(fps) or not 0 < fps <= MAX_FPS):
        yield "fps", f"it is {shown(fps)}", f"a number of frames per second > 0, at most {MAX_FPS}"
    part = {"start": 0.0, "end": math.inf}
    for name in part:
        if name in stream:
            if is_seconds(stream[name]):
                part[name] = stream[name]
            else:
                yield name, f"it is {shown(stream[name])}", "a finite number of seconds >= 0"
    if part["start"] >= part["end"]:
        yield "end", f"{part['end']} is not after `start`, {part['start']}", "an end after the start"
        part["end"] = math.inf
    turns = stream.get("turns")
    if "turns" not in stream:
        yield "turns", "it is missing", "a list of turns"
    elif not isinstance(turns, list):
        yield "turns", f"it is {shown(turns)}", "a list of turns"
    elif not turns:
        yield "turns", "it is empty", "at least one turn"
    else:
        yield from check_turns(turns, part["start"], part["end"])


def check_media(stream: Any, folder: Path, seen: dict[tuple[str, str], Probed]) -> Iterator[Problem]:
    """Problems of the media of a line, and times beyond their end, as far as the line can be understood. `seen` caches
    the result for each file."""
    given = [name for name in MEDIA if isinstance(stream, dict) and is_path(stream.get(name))]
    if len(given) != 1:
        return
    name, path = media_of(stream, folder)
    if "://" in path:
        return
    if (name, path) not in seen:
        seen[name, path] = probe(name, path)
    problem, fps, seconds = seen[name, path]
    if problem:
        yield name, *problem
        return
    if fps is not None and is_seconds(stream.get("fps")) and stream["fps"] != fps:
        yield "fps", f"it is {stream['fps']}, but the features were extracted at {fps}", f"{fps}, or new features"
    if seconds is None:
        return
    turns = stream.get("turns")
    times = {"start": stream.get("start"), "end": stream.get("end")}
    for index, turn in enumerate(turns if isinstance(turns, list) else ()):
        times[f"turns[{index}].time"] = turn.get("time") if isinstance(turn, dict) else None
    for field, time in times.items():
        limit = seconds if field == "start" else seconds + SLACK
        if is_seconds(time) and (time > limit or (field == "start" and time == limit)):
            yield field, f"{time} is beyond the end of the {name}", f"a time within its {seconds:.3f} seconds"


def probe(name: str, path: str) -> Probed:
    """`(problem, fps, seconds)` of a video or features file: None and its rate (of features) and duration, or the
    problem with it and two times None."""
    if not Path(path).is_file():
        problem = f"there is no file {path}" if not Path(path).exists() else f"{path} is not a file"
        return (problem, "a path relative to the folder of the JSONL file, or an absolute one"), None, None
    try:
        if name == "video":
            return None, None, video_seconds(path)
        metadata = read_metadata(path)
        return None, metadata["fps"], metadata["num_frames"] / metadata["fps"]
    except (ValueError, OSError) as error:
        right = "a video that FFmpeg can decode" if name == "video" else "a file written by `videollm-mod extract`"
        return (" ".join(str(error).split()), right), None, None


def media_of(stream: dict, folder: Path) -> tuple[str, str]:
    """`("video" | "features", path or URL)` of a line; paths are joined to `folder`."""
    name = "video" if "video" in stream else "features"
    path = local_path(stream[name])
    return name, path if "://" in path else str(folder / path)
