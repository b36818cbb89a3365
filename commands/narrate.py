"""`videollm-mod narrate`."""

import sys

from ..narration.options import NarrateOptions
from .options import add_command
from .threads import sleep_while_waiting, use_free_cores


def add(commands) -> None:
    add_command(commands, "narrate", NarrateOptions, run, help="say what happens in a video or stream, as it happens")


def run(options: NarrateOptions) -> None:
    sleep_while_waiting()
    from ..narration.narrate import narrate

    narrate(options, load)


def load(options: NarrateOptions):
    use_free_cores()  # imports torch, so it comes after the source has been opened
    from ..narration.sight import notice

    model, processor = options.load()
    if (text := notice(model.config, options.source)) is not None and sys.stderr is not None:
        print(f"note: {text}", file=sys.stderr)
    return model, processor
