"""`videollm-mod world`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..data.levels import NAMES, check_level
from .options import add_command


@dataclass(kw_only=True)
class WorldOptions:
    """The options of `videollm-mod world`."""

    seed: Annotated[int, "seed, which names the clip"]
    output: Annotated[Path, "the video; its ground truth goes beside it as .jsonl", {"metavar": "FILE.mp4"}]
    level: Annotated[str, f"level of the procedural world: {', '.join(NAMES)} (default: basic)"] = "basic"
    fps: Annotated[float, "frames per second (default: 10)"] = 10.0
    height: Annotated[int, "height and width in pixels (default: 384)"] = 384

    def __post_init__(self):
        check_level("`--level`", self.level)


def add(commands) -> None:
    add_command(commands, "world", WorldOptions, run, help="write a clip of the procedural world and its ground truth")


def run(options: WorldOptions) -> None:
    from ..data.world_clip import write_clip

    print(*write_clip(options.output, options.seed, options.level, options.fps, options.height))
