"""The `videollm-mod` command: parses arguments and calls the package."""

import argparse
import sys
from pathlib import Path

from . import __version__


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str):
        self.exit(2, f"error: {message}\n")


def add_train(commands) -> None:
    parser = commands.add_parser("train", help="train or fine-tune as a YAML file says")
    parser.add_argument("config", type=Path, help="see training/configs")

    def run(arguments: argparse.Namespace) -> None:
        from .training.train import TrainingConfig, train

        print(train(TrainingConfig.load(arguments.config)))

    parser.set_defaults(run=run)


def add_world(commands) -> None:
    parser = commands.add_parser("world", help="write a clip of the procedural world with its ground truth")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True, help="an .mp4; the truth goes beside it as .jsonl")
    parser.add_argument("--level", default="basic")
    parser.add_argument("--fps", type=float, default=10.0, help="frames per second")
    parser.add_argument("--height", type=int, default=384, help="pixels")

    def run(arguments: argparse.Namespace) -> None:
        from .data.world_clip import write_clip

        print(*write_clip(arguments.output, arguments.seed, arguments.level, arguments.fps, arguments.height))

    parser.set_defaults(run=run)


def main(argv: list[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's arguments) and return its exit code: 2 for bad input."""
    parser = Parser(prog="videollm-mod", description="Streaming video language model.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    add_train(commands)
    add_world(commands)
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        parser.print_help()
        return 0
    try:
        arguments.run(arguments)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
