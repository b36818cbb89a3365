"""Ego-Exo4D keysteps, `keystep_{train,val}.json`: name the keystep shown.

The official downloader writes a take to `takes/TAKE/frame_aligned_videos/CAMERA.mp4`, and smaller versions to
`downscaled/448/` in that folder.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from .annotations import Adapter, Request, Stream, need, part, segment_stream

INSTRUCTION = "Which keystep is this? Answer with its name and nothing else."
ALIGNED = "frame_aligned_videos"
EGO = re.compile(r"aria\d*_214-1")  # the colour camera of the Aria glasses that the person who acts wears


def cameras_of_takes(files: Iterable[Path]) -> dict[str, dict[str, Path]]:
    """Take -> camera -> file. Of several sizes it takes the file closest to the root."""
    takes: dict[str, dict[str, Path]] = defaultdict(dict)
    for file in sorted(files, key=lambda file: (len(file.parts), file)):
        folders = file.parts[:-1]
        take = folders[folders.index(ALIGNED) - 1] if ALIGNED in folders[1:] else file.parent.name
        takes[take].setdefault(file.stem, file)
    return takes


def videos_of_takes(takes: dict[str, dict[str, Path]], camera: str | None) -> dict[str, Path]:
    """Take -> its video from `camera`, by default from the first egocentric one."""
    found = {}
    for take, cameras in takes.items():
        ego = sorted(name for name in cameras if EGO.fullmatch(name))
        name = camera or next(iter(ego), None)
        if name in cameras:
            found[take] = cameras[name]
    return found


def keystep(annotations: dict, request: Request) -> Iterator[Stream]:
    """One stream per keystep. A take's video is found by its uid, or by its name if the annotations give it."""
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
                    request.leave_out("keysteps without a name or a duration", place)


TASKS: dict[str, Adapter] = {"keystep": keystep}
