"""`videollm-mod demo`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from .options import add_command
from .threads import share_cores


@dataclass(kw_only=True)
class DemoOptions:
    """The options of `videollm-mod demo`."""

    output: Annotated[Path, "folder for subtitles and overlay videos (default: demo)", {"metavar": "FOLDER"}] = Path(
        "demo"
    )


def add(commands) -> None:
    add_command(commands, "demo", DemoOptions, run, help="narrate two clips that come with the package")


def run(options: DemoOptions) -> None:
    share_cores()
    from ..narration.demo import demo

    demo(options.output)
