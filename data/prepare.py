"""`videollm-mod prepare`: annotations of a public data set, and its videos, as JSONL for training."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from . import coin, ego4d, ego4d_lta, egoexo4d, goalstep
from .annotations import Request, Stream
from .files import written_whole
from .stream_checks import check_stream

DATASETS = {
    "ego4d": {**ego4d.TASKS, **ego4d_lta.TASKS},
    "goalstep": goalstep.TASKS,
    "coin": coin.TASKS,
    "egoexo4d": egoexo4d.TASKS,
}
SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")
MISSING = ("stop", "skip")


@dataclass(frozen=True)
class Prepared:
    """What was written: the JSONL file, how many videos, lines and replies it has, how many videos were missing, and
    what the adapter left out."""

    path: Path
    videos: int
    streams: int
    replies: int
    missing: int
    left_out: dict[str, int]

    def __str__(self) -> str:
        text = f"{self.path}: {self.videos} videos, {self.streams} streams, {self.replies} replies"
        text += f"; {self.missing} videos missing" if self.missing else ""
        return text + "".join(f"; left out: {count} {what}" for what, count in sorted(self.left_out.items()))


def prepare(
    dataset: str,
    annotations: str | Path,
    task: str,
    videos: str | Path,
    output: str | Path,
    subset: str | None = None,
    missing: str = "stop",
) -> Prepared:
    """
    Args:
        dataset, task (`str`): see `DATASETS`.
        annotations: the data set's own JSON file.
        videos: a folder; a video is found by its uid or id at any depth, with one of `SUFFIXES`.
        output: the JSONL file, whose folder must exist; it is written whole or not at all.
        subset (`str`, *optional*): only this one, where one file has several.
        missing (`str`): `"stop"` or `"skip"` where videos are not in the folder.

    Raises:
        `ValueError`: for an unknown name, annotations in another schema, nothing to write.
        `OSError`: for files that can not be read or written, and missing videos with `missing="stop"`.
    """
    for name, value, known in (("dataset", dataset, DATASETS), ("task", task, DATASETS.get(dataset, ()))):
        if value not in known:
            raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {value!r}")
    if missing not in MISSING:
        raise ValueError(f"`missing` must be one of {', '.join(MISSING)}, got {missing!r}")
    output, videos = Path(output), Path(videos)
    if not videos.is_dir():
        raise NotADirectoryError(f"there is no folder of videos {videos}")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"the folder of the output does not exist: {output.parent}")
    try:
        content = json.loads(Path(annotations).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{annotations} is not JSON: {error}") from error

    request, files = Request(subset), find_videos(videos)
    lines, gone, used = [], {}, set()
    try:
        for stream in DATASETS[dataset][task](content, request):
            file = next((files[name] for name in stream.video if name in files), None)
            if file is None:
                gone[stream.video[0]] = True
            else:
                used.add(file)
                lines.append(line_of(stream, file, output.parent))
    except ValueError as error:
        raise ValueError(f"{annotations}, {dataset} {task}: {error}") from error
    if gone and (missing == "stop" or not lines):
        total, few = len(gone) + len(used), ", ".join(list(gone)[:3])
        hint = "; with `--missing skip` they are left out" if lines else ""
        raise FileNotFoundError(f"{len(gone)} of {total} videos are missing in {videos}, such as {few}{hint}")
    if not lines:
        raise ValueError(f"{annotations} holds nothing for the task {task!r}: {request.left_out or 'no videos'}")
    with written_whole(output) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    replies = sum(turn["role"] == "assistant" for line in lines for turn in line["turns"])
    return Prepared(output, len(used), len(lines), replies, len(gone), request.left_out)


def find_videos(folder: Path) -> dict[str, Path]:
    """Name without ending -> file, at any depth; of files with the same name the first in alphabetical order."""
    found, seen = {}, set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in seen:  # links may lead in circles
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES:
                found.setdefault(stem, Path(parent) / name)
    return found


def line_of(stream: Stream, file: Path, folder: Path) -> dict:
    """The line of a stream, with the path of its video relative to the folder of the JSONL file."""
    line = {"video": os.path.relpath(file.absolute(), folder.absolute())}
    line |= {name: value for name in ("start", "end") if (value := getattr(stream, name)) is not None}
    line["turns"] = stream.turns
    if problem := next(check_stream(line), None):
        raise ValueError(f"{stream.video[0]}: {': '.join(problem[:2])}; {problem[2]}")
    return line
