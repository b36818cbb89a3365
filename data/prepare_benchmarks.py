"""`videollm-mod prepare` for benchmarks: turn their published files and videos into items."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from . import livesports_3k, omnimmi_pa, omnipro, ovo_bench, proactivevideoqa, streamingbench
from .benchmark_items import Item, write_items
from .benchmark_sources import Source, entries
from .prepare import MISSING, missing_videos, video_files
from .stream_checks import SLACK, probe
from .words import counted

READERS: dict[str, Callable[..., Iterator[Source]]] = {
    "ovo-bench": ovo_bench.sources,
    "streamingbench": streamingbench.sources,
    "proactivevideoqa": proactivevideoqa.sources,
    "omnimmi-pa": omnimmi_pa.sources,
    "omnipro": omnipro.sources,
    "livesports-3k": livesports_3k.sources,
}
FILES = {"streamingbench": streamingbench.FILES, "proactivevideoqa": proactivevideoqa.FILES}  # of a folder


@dataclass(frozen=True)
class PreparedItems:
    """The JSONL file that was written, its number of items, of those that need sound and of videos, the number of
    missing videos, of videos that cannot be decoded with one of them, and of items asked beyond the end of their
    video; those are asked at its end."""

    path: Path
    items: int
    with_sound: int
    videos: int
    missing: int
    broken: int
    example: str
    beyond: int

    def __str__(self) -> str:
        text = f"{self.path}: {counted(self.items, 'item')} of {counted(self.videos, 'video')}"
        text += f", {self.with_sound:,} of them need sound" if self.with_sound else ""
        text += f"; {counted(self.missing, 'video')} missing" if self.missing else ""
        text += f"; {counted(self.broken, 'video')} cannot be decoded, such as {self.example}" if self.broken else ""
        return text + (f"; {self.beyond:,} ask beyond the end of their video" if self.beyond else "")


def prepare_benchmark(
    benchmark: str,
    annotations: str | Path,
    videos: str | Path,
    output: str | Path,
    missing: str = "stop",
    baseline: str | Path | None = None,
) -> PreparedItems:
    """
    Args:
        benchmark (`str`): one of `READERS`.
        annotations: its published file, or a folder with all of its `FILES`.
        videos: a folder. A video is found at any depth, by its path or else by its name.
        output: the JSONL file, written atomically; its folder must exist.
        missing (`str`): what to do with videos that are not in the folder, `"stop"` or `"skip"`.
        baseline (*optional*): JSON lines of commentaries that a judge compares with, only for `livesports-3k`.

    Raises:
        `ValueError`: for an unknown name, a file in another schema, or nothing to write; it names file, place, field.
        `OSError`: for files that cannot be read or written, and for missing videos with `missing="stop"`.
    """
    for name, value, known in (("benchmark", benchmark, READERS), ("missing", missing, MISSING)):
        if value not in known:
            raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {value!r}")
    if baseline is not None and benchmark != "livesports-3k":
        raise ValueError(f"`baseline` is only for livesports-3k, got {str(baseline)!r} for {benchmark}")
    output, folder = Path(output), Path(videos)
    if not folder.is_dir():
        raise NotADirectoryError(f"the folder of videos does not exist: {folder}")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"the folder of the output does not exist: {output.parent}")
    sources = list(read_sources(benchmark, Path(annotations), baseline))
    if not sources:
        raise ValueError(f"{annotations} is empty")

    files = files_by_name(folder)
    items: list[Item] = []
    gone: dict[str, list[str]] = {}
    broken: dict[Path, str] = {}
    durations: dict[Path, float | None] = {}
    ids: Counter[str] = Counter()
    beyond = 0
    for source in sources:
        file = next(filter(None, (find(name, files) for name in source.videos)), None)
        if file is None:
            gone[source.videos[0]] = []
            continue
        if file not in durations:
            problem, _, durations[file] = probe("video", str(file))
            if problem:
                broken[file] = problem[0]
        duration = durations[file]
        if duration is not None:
            beyond += source.last > duration + SLACK
            item = source.make(os.path.relpath(file.absolute(), output.parent.absolute()), duration)
            ids[item.id] += 1
            items.append(replace(item, id=f"{item.id}#{ids[item.id]}") if ids[item.id] > 1 else item)
    if gone and (missing == "stop" or not durations):
        raise FileNotFoundError(missing_videos(gone, len(gone) + len(durations), folder))
    if broken and (missing == "stop" or not items):
        raise ValueError(f"{counted(len(broken), 'video')} in {folder} cannot be decoded, such as {first(broken)}")
    write_items(output, items)
    with_sound, usable = sum(item.needs_sound for item in items), len(durations) - len(broken)
    return PreparedItems(output, len(items), with_sound, usable, len(gone), len(broken), first(broken), beyond)


def first(broken: dict[Path, str]) -> str:
    return next((f"{file.name}: {problem}" for file, problem in broken.items()), "")


def read_sources(benchmark: str, annotations: Path, baseline: str | Path | None) -> Iterator[Source]:
    """Raise `ValueError` for a file in another schema; the message names the file, the place in it and the field."""
    paths = [annotations]
    if annotations.is_dir() and benchmark in FILES:
        paths = [annotations / name for name in FILES[benchmark]]
    options = {}
    if baseline is not None:
        with naming(Path(baseline), benchmark):
            options["baseline"] = livesports_3k.read_baseline(entries(Path(baseline)))
    for path in paths:
        with naming(path, benchmark):
            yield from READERS[benchmark](entries(path), path, **options)


@contextmanager
def naming(path: Path, benchmark: str) -> Iterator[None]:
    """Put the name of a file before the message of a `ValueError`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}, {benchmark}: {error}") from error


def files_by_name(folder: Path) -> dict[str, list[Path]]:
    """Name without extension -> video files at any depth, in alphabetical order. The videos of the archives of
    StreamingBench, `TYPE/sample_N/video.mp4`, have the names of its `move_video.py` too, such as `sample_N_TYPE`."""
    files: dict[str, list[Path]] = {}
    for file in video_files(folder):
        files.setdefault(file.stem, []).append(file)
        files.setdefault(f"{file.parent.name}_{file.parent.parent.name.replace(' ', '_')}", []).append(file)
    return files


def find(name: str, files: dict[str, list[Path]]) -> Path | None:
    """The first file of this name; one in the folders of the name, if it has some."""
    *folders, base = name.split("/")
    found = (file for file in files.get(base, ()) if list(file.absolute().parts[-1 - len(folders) : -1]) == folders)
    return next(found, None)
