"""`videollm-mod prepare`."""

import sys
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from ..data.files import beside
from .messages import one_line
from .options import add_command


@dataclass
class PrepareOptions:
    """The options of `videollm-mod prepare`."""

    dataset: Annotated[
        str,
        "ego4d, goalstep, coin or egoexo4d; or a benchmark: ovo-bench, streamingbench, proactivevideoqa, omnimmi-pa, "
        "omnipro or livesports-3k",
    ]
    annotations: Annotated[
        Path, "the file of the data set; for streamingbench and proactivevideoqa also the folder of its files"
    ]
    _: KW_ONLY
    videos: Annotated[Path, "folder of the videos", {"metavar": "FOLDER"}]
    output: Annotated[Path, "the JSONL file, or - for standard output", {"metavar": "FILE.jsonl"}]
    task: Annotated[
        str | None,
        "narration, chat, lta, step, task, next, procedure, procedure+ or keystep, depending on the data set; "
        "benchmarks have none",
    ] = None
    subset: Annotated[
        str | None, "only this subset: train, val or test; for COIN training, testing, test or validation"
    ] = None
    missing: Annotated[str, "stop when a video is missing, or skip what is about it (default: stop)"] = "stop"
    camera: Annotated[
        str | None, "for egoexo4d, a camera such as cam01 (default: the first egocentric view of each take)"
    ] = None
    baseline: Annotated[
        Path | None, "for livesports-3k, the commentaries to compare with, JSON lines", {"metavar": "FILE.jsonl"}
    ] = None


def add(commands) -> None:
    add_command(commands, "prepare", PrepareOptions, run, help="turn the annotations of a public data set into JSONL")


def run(options: PrepareOptions) -> None:
    from ..data.annotations import describe_left_out
    from ..data.prepare import DATASETS, prepare
    from ..data.prepare_benchmarks import READERS, prepare_benchmark

    known = vars(options).copy()
    if options.dataset in READERS:
        for name in ("task", "subset", "camera"):
            if known.pop(name) is not None:
                raise ValueError(
                    f"`{name}` is not for benchmarks, got {getattr(options, name)!r} for {options.dataset}"
                )
        items = prepare_benchmark(known.pop("dataset"), **known)
        print(items, file=beside(options.output))
        return
    if options.dataset not in DATASETS:
        raise ValueError(f"`dataset` must be one of {', '.join([*DATASETS, *READERS])}, got {options.dataset!r}")
    if known.pop("baseline") is not None:
        raise ValueError(f"`baseline` is only for livesports-3k, got {str(options.baseline)!r} for {options.dataset}")
    if options.task is None:
        raise ValueError(f"`task` must be one of {', '.join(DATASETS[options.dataset])}")
    prepared = prepare(**known)
    for what in describe_left_out(prepared.left_out, prepared.named):
        print(f"left out: {one_line(what)}", file=sys.stderr)
    print(prepared, file=beside(options.output))
