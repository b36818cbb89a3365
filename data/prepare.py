"""`videollm-mod prepare`: turn the annotations and videos of a public data set into JSONL for training."""

import json
import math
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import coin, ego4d, ego4d_lta, egoexo4d, goalstep
from .annotations import MAX_NAMED, Adapter, Request, Stream, describe_left_out
from .files import write_whole
from .stream_checks import SLACK, check_stream, check_turns, probe
from .words import counted

DATASETS: dict[str, dict[str, Adapter]] = {
    "ego4d": {**ego4d.TASKS, **ego4d_lta.TASKS},
    "goalstep": goalstep.TASKS,
    "coin": coin.TASKS,
    "egoexo4d": egoexo4d.TASKS,
}
SUBSETS = dict.fromkeys(DATASETS, ("train", "val", "test")) | {"coin": coin.SUBSETS}
SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")
MISSING = ("stop", "skip")


@dataclass(frozen=True)
class Prepared:
    """The JSONL file that was written, its number of videos, streams and replies, the number of missing videos, and
    what was left out, as in `Request`."""

    path: Path
    videos: int
    streams: int
    replies: int
    missing: int
    left_out: dict[str, int]
    named: dict[str, list[str]]

    def __str__(self) -> str:
        counts = [counted(self.videos, "video"), counted(self.streams, "stream")]
        text = f"{self.path}: {', '.join([*counts, counted(self.replies, 'reply', 'replies')])}"
        text += f"; {counted(self.missing, 'video')} missing" if self.missing else ""
        return text + "".join(f"; left out: {what} ({count})" for what, count in sorted(self.left_out.items()))


def prepare(
    dataset: str,
    annotations: str | Path,
    task: str,
    videos: str | Path,
    output: str | Path,
    subset: str | None = None,
    missing: str = "stop",
    camera: str | None = None,
) -> Prepared:
    """
    Args:
        dataset, task (`str`): see `DATASETS`.
        annotations: JSON file of the data set.
        videos: a folder. A video is found by its id at any depth, with one of `SUFFIXES`; videos of Ego-Exo4D are also
            found in the folders of its downloader, see `egoexo4d`.
        output: the JSONL file, written atomically; its folder must exist.
        subset (`str`, *optional*): read only this one of `SUBSETS`; a file of another subset is an error.
        missing (`str`): what to do with videos that are not in the folder, `"stop"` or `"skip"`.
        camera (`str`, *optional*): camera of each Ego-Exo4D take, such as `cam01`; by default the first ego view.

    Annotations that cannot be read, and times beyond the end of their video, are left out, counted and named.

    Raises:
        `ValueError`: for an unknown name, annotations in another schema, or nothing to write.
        `OSError`: for files that cannot be read or written, and for missing videos with `missing="stop"`.
    """
    check_names(dataset, task, subset, missing, camera)
    output, videos = Path(output), Path(videos)
    if not videos.is_dir():
        raise NotADirectoryError(f"the folder of videos does not exist: {videos}")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"the folder of the output does not exist: {output.parent}")
    content = read_json(annotations)

    request, takes = Request(subset), {}
    files = find_videos(videos)
    if dataset == "egoexo4d":
        takes = egoexo4d.cameras_of_takes(video_files(videos))
        files = egoexo4d.videos_of_takes(takes, camera) | (files if camera is None else {})
    lines, gone, used, probed = [], {}, set(), {}
    try:
        for stream in DATASETS[dataset][task](content, request):
            name = next((name for name in stream.video if name in files), None)
            if name is None:
                gone[stream.video[-1]] = [camera for name in stream.video for camera in sorted(takes.get(name, ()))]
                continue
            file = files[name]
            if file not in probed:
                probed[file] = probe("video", str(file))
                if problem := probed[file][0]:
                    request.leave_out("videos that cannot be decoded", f"{name}: {problem[0]}")
            problem, _, seconds = probed[file]
            if problem is None and (line := line_of(stream, seconds, request)):
                used.add(file)
                lines.append({"video": os.path.relpath(file.absolute(), output.parent.absolute()), **line})
    except ValueError as error:
        raise ValueError(f"{annotations}, {dataset} {task}: {error}") from error
    if gone and (missing == "stop" or not probed):
        raise FileNotFoundError(missing_videos(gone, len(gone) + len(probed), videos))
    if not lines:
        why = "; ".join(describe_left_out(request.left_out, request.named)) or "no videos"
        raise ValueError(f"{annotations} holds nothing for the task {task!r}: {why}")
    write_whole(output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    replies = sum(turn["role"] == "assistant" for line in lines for turn in line["turns"])
    return Prepared(output, len(used), len(lines), replies, len(gone), request.left_out, request.named)


def check_names(dataset: str, task: str, subset: str | None, missing: str, camera: str | None) -> None:
    """Raise `ValueError` for an unknown name."""
    choices: list[tuple[str, str | None, Collection[str | None]]] = [
        ("dataset", dataset, DATASETS),
        ("task", task, DATASETS.get(dataset, ())),
        ("subset", subset, (None, *SUBSETS.get(dataset, ()))),
        ("missing", missing, MISSING),
    ]
    for name, value, known in choices:
        if value not in known:
            raise ValueError(f"`{name}` must be one of {', '.join(filter(None, known))}, got {value!r}")
    if camera is not None and dataset != "egoexo4d":
        raise ValueError(f"`camera` is only for egoexo4d, got {camera!r} for {dataset}")


def read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def missing_videos(gone: dict[str, list[str]], total: int, folder: Path) -> str:
    """The message for missing videos, with the cameras that their takes have instead."""
    text = (
        f"missing in {folder}: {len(gone)} of {counted(total, 'video')}, such as {', '.join(list(gone)[:MAX_NAMED])}"
    )
    if cameras := sorted({camera for cameras in gone.values() for camera in cameras}):
        text += f"; choose one of the cameras {', '.join(cameras)} with `--camera`"
    return text + ("; `--missing skip` leaves them out" if len(gone) < total else "")


def video_files(folder: Path) -> Iterator[Path]:
    """Video files at any depth, with folders and the files in each in alphabetical order."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in seen:  # symbolic links may form a cycle
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        folders.sort()
        yield from (Path(parent) / name for name in sorted(names) if Path(name).suffix.lower() in SUFFIXES)


def find_videos(folder: Path) -> dict[str, Path]:
    """Name without extension -> file, at any depth; of files with the same name the first in alphabetical order."""
    found: dict[str, Path] = {}
    for file in video_files(folder):
        found.setdefault(file.stem, file)
    return found


def line_of(stream: Stream, seconds: float | None, request: Request) -> dict | None:
    """The line of a stream, without its video; None if nothing is left of it.

    Args:
        seconds (`float`, *optional*): duration of the video, if known.
    """
    video, start, turns = stream.video[-1], stream.start or 0.0, []
    last = math.inf if seconds is None else seconds
    if stream.to_end:
        stream.turns[-1]["time"] = min(stream.turns[-1]["time"], last)
    if start >= last or (stream.end or 0.0) > last + SLACK:
        times = f"from {start:g} to {stream.end:g} s of {last:g} s"
        request.leave_out("segments beyond the end of their video", f"{video} {times}")
        return None
    for turn in stream.turns:
        if turn["time"] > last + SLACK:
            request.leave_out("turns beyond the end of their video", f"{video} at {turn['time']:g} s of {last:g} s")
        elif problem := next(check_turns([turn], 0.0, math.inf), None):
            what = f"{problem[0].rpartition('.')[2]}: {problem[1]}; {problem[2]}"
            request.leave_out("turns that cannot be used", f"{video} at {turn['time']:g} s, {what}")
        else:
            turns.append(turn)
    if not any(turn["role"] == "assistant" for turn in turns):
        request.leave_out("streams without replies", video)
        return None
    line = {name: value for name in ("start", "end") if (value := getattr(stream, name)) is not None}
    line["turns"] = turns
    if problem := next(check_stream({"video": video, **line}), None):
        request.leave_out("streams that cannot be used", f"{video}, {': '.join(problem[:2])}; {problem[2]}")
        return None
    return line
