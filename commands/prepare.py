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

    dataset: Annotated[str, "ego4d, goalstep, coin or egoexo4d"]
    annotations: Annotated[Path, "the JSON file of the data set"]
    _: KW_ONLY
    task: Annotated[
        str, "narration, chat, lta, step, task, next, procedure, procedure+ or keystep, depending on the data set"
    ]
    videos: Annotated[Path, "folder of the videos", {"metavar": "FOLDER"}]
    output: Annotated[Path, "the JSONL file, or - for standard output", {"metavar": "FILE.jsonl"}]
    subset: Annotated[
        str | None, "only this subset: train, val or test; for COIN training, testing, test or validation"
    ] = None
    missing: Annotated[str, "stop when a video is missing, or skip its streams (default: stop)"] = "stop"
    camera: Annotated[
        str | None, "for egoexo4d, a camera such as cam01 (default: the first egocentric view of each take)"
    ] = None


def add(commands) -> None:
    add_command(commands, "prepare", PrepareOptions, run, help="turn the annotations of a public data set into JSONL")


def run(options: PrepareOptions) -> None:
    from ..data.annotations import describe_left_out
    from ..data.prepare import prepare

    prepared = prepare(**vars(options))
    for what in describe_left_out(prepared.left_out, prepared.named):
        print(f"left out: {one_line(what)}", file=sys.stderr)
    print(prepared, file=beside(options.output))
