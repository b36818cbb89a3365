"""`videollm-mod validate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..data.words import counted
from .options import add_command


@dataclass
class ValidateOptions:
    """The options of `videollm-mod validate`."""

    file: Annotated[Path, "a JSONL file, or - for standard input"]


def add(commands) -> None:
    add_command(commands, "validate", ValidateOptions, run, help="list all errors in a JSONL file of streams")


def run(options: ValidateOptions) -> None:
    from ..data.jsonl import validate

    faults = validate(options.file)
    for fault in faults:
        print(f"{options.file}:{fault}")
    if faults:
        raise ValueError(f"{counted(len(faults), 'fault')} in {options.file}")
    print(f"{options.file}: no faults")
