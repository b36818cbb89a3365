"""`videollm-mod extract`."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from ..loading.find import find_checkpoint
from .options import add_command
from .threads import share_cores


@dataclass
class ExtractOptions:
    """The options of `videollm-mod extract`."""

    file: Annotated[Path, "a JSONL file of streams"]
    _: KW_ONLY
    model: Annotated[str, "folder or Hub id of a checkpoint"]
    output: Annotated[Path, "folder; videos whose features it already holds are skipped", {"metavar": "FOLDER"}]
    batch_size: Annotated[int, "frames encoded together (default: 64)"] = 64


def add(commands) -> None:
    add_command(commands, "extract", ExtractOptions, run, help="encode videos once, to train on their features")


def run(options: ExtractOptions) -> None:
    share_cores()
    from accelerate import PartialState

    from ..data.extract import extract

    find_checkpoint(options.model)
    result = extract(options.file, options.model, options.output, options.batch_size)
    if PartialState().is_main_process:
        print(result)
