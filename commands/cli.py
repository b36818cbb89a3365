"""The `videollm-mod` command. Each of its commands is a module of `commands/`."""

import os
import sys

from .. import __version__
from ..bench.command import add_bench
from ..loading.quiet import quiet_libraries
from . import (
    build,
    calibrate,
    calibrate_margin,
    demo,
    evaluate,
    extract,
    merge,
    narrate,
    prepare,
    serve,
    train,
    validate,
    world,
)
from .messages import message_of, one_line, replace_unprintable
from .options import Parser
from .signals import raising_on_signals

COMMANDS = (
    narrate,
    demo,
    train,
    evaluate,
    merge,
    world,
    validate,
    extract,
    prepare,
    build,
    calibrate,
    calibrate_margin,
    serve,
)


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv (`list[str]`, *optional*): its arguments; those of the process by default.

    Returns:
        The exit code: 2 for bad input.
    """
    replace_unprintable()
    given = sys.argv[1:] if argv is None else argv
    try:
        with raising_on_signals(main, is_program=argv is None):
            return dispatch(given)
    except BrokenPipeError:  # whoever read the output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError, MemoryError) as error:
        print(f"error: {message_of(error, given)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def dispatch(argv: list[str]) -> int:
    parser = build_parser()
    arguments = vars(parser.parse_args(argv))
    command = arguments.pop("run", None)
    if command is None:
        parser.print_help()
        return 0
    quiet_libraries()
    command(arguments)
    leave_process_group()
    return 0


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="videollm-mod", description="A video language model that watches streams.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    add_bench(commands)
    return parser


def leave_process_group() -> None:
    """Wait for the other processes of a distributed run: one that ends while threads of its group run is aborted."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    raise SystemExit(main())
