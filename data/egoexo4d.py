"""Ego-Exo4D keysteps, `keystep_{train,val}.json`: which keystep is shown.

Its downloader writes a take as `takes/TAKE/frame_aligned_videos/CAMERA.mp4`, smaller ones below in `downscaled/448/`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from .annotations import Request, Stream, need, part, segment_stream

INSTRUCTION = "Which keystep is this? Answer with its name and nothing else."
ALIGNED = "frame_aligned_videos"
EGO = re.compile(r"aria\d*_214-1")  # the colour camera of Aria glasses, seen from the one who acts


def cameras_of_takes(files: Iterable[Path]) -> dict[str, dict[str, Path]]:
    """Take -> camera -> file; of several sizes the one that lies highest."""
    takes = defaultdict(dict)
    for file in sorted(files, key=lambda file: (len(file.parts), file)):
        folders = file.parts[:-1]
        take = folders[folders.index(ALIGNED) - 1] if ALIGNED in folders[1:] else file.parent.name
        takes[take].setdefault(file.stem, file)
    return takes


def videos_of_takes(takes: dict[str, dict[str, Path]], camera: str | None) -> dict[str, Path]:
    """Take -> its file of a camera, by default of the first ego view."""
    found = {}
    for take, cameras in takes.items():
        ego = sorted(name for name in cameras if EGO.fullmatch(name))
        name = camera or next(iter(ego), None)
        if name in cameras:
            found[take] = cameras[name]
    return found


def keystep(annotations: dict, request: Request) -> Iterator[Stream]:
    """A stream a keystep. A take's video is found by the take's uid, or its name where the annotations have it."""
    request.check_split(annotations)
    takes = need(annotations, "annotations", dict, "the file")
    for uid in takes:
        segments, where = [], f"annotations.{uid}"
        with request.skipping("takes that cannot be read"):
            take = need(takes, uid, dict, "annotations")
            segments = need(take, "segments", list, where)
            names = (uid, take["take_name"]) if isinstance(take.get("take_name"), str) else (uid,)
            if not segments:
                request.leave_out("takes without keysteps", uid)
        for index, segment in enumerate(segments):
            with request.skipping("keysteps that cannot be read"):
                place = f"{where}.segments[{index}]"
                name, (start, end) = need(segment, "step_name", str, place).strip(), part(segment, place)
                if name and start < end:
                    yield segment_stream(names, start, end, INSTRUCTION, name)
                else:
                    request.leave_out("keysteps without a name or without a length", place)


TASKS = {"keystep": keystep}
