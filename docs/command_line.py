"""Generates `docs/reference/command-line.md` from the parsers of `videollm-mod`: python docs/command_line.py"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from videollm_mod.commands.cli import build_parser

PAGE = Path(__file__).resolve().parent / "reference" / "command-line.md"
HEAD = """# Command line

Generated from the parsers by `docs/command_line.py` (`make docs`); do not edit it by hand.

Bad input ends a command with one `error:` line and exit code 2. What was written before stays whole.
"""


def page() -> str:
    return "\n".join([HEAD, *sections(build_parser(), 2)])


def sections(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    """The commands of a parser, each with its own commands after it."""
    for help_text, command in commands(parser):
        yield f"{'#' * level} {command.prog}\n\n{sentence(help_text)}\n"
        if options := [option for option in map(row, arguments(command)) if option]:
            yield "\n".join(["| option | default | meaning |", "| --- | --- | --- |", *options]) + "\n"
        yield from sections(command, level + 1)


# argparse documents no way to ask a parser for its arguments.


def arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if not isinstance(action, argparse._SubParsersAction)]


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                yield choice.help, action.choices[choice.dest]


def row(action: argparse.Action) -> str | None:
    """A line of the table, or None for `--help`."""
    if action.help == argparse.SUPPRESS or action.dest == "help":
        return None
    value = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    name = value if not action.option_strings else ", ".join(action.option_strings)
    if action.option_strings and action.nargs != 0:
        name += f" {value}"
    text, _, default = ((action.help or "") % {**vars(action), "prog": ""}).partition(" (default: ")
    default, _, rest = default.rpartition(")")
    if action.required:
        default = "required"
    elif not default and action.nargs != 0 and action.default not in (None, [], argparse.SUPPRESS):
        default = f"{action.default}"
    return f"| `{cell(name)}` | {cell(default)} | {cell(text + rest)} |"


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
