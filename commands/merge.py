"""`videollm-mod merge`."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from .options import add_command


@dataclass
class MergeOptions:
    """The options of `videollm-mod merge`."""

    adapter: Annotated[Path, "folder of the adapter: `final/` of a training run with `lora`"]
    _: KW_ONLY
    output: Annotated[Path, "a new or empty folder", {"metavar": "FOLDER"}]


def add(commands) -> None:
    add_command(commands, "merge", MergeOptions, run, help="merge an adapter into its base model")


def run(options: MergeOptions) -> None:
    from ..training.adapters import merge_adapter

    print(merge_adapter(options.adapter, options.output))
