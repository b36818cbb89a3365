"""Builds the parser of a command from a dataclass of its options.

Each option is a field `Annotated[type, help, extra]`; fields that are not annotated are for Python only. A field that
may be given by position becomes a positional argument, a keyword-only field the option of its name. `extra` (`dict`,
optional) goes to `add_argument`; `flag` in it is another name for the option.
"""

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from ..containers import plain_float, plain_int
from .messages import one_line, without_secrets


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage. Numbers must be written in plain digits."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register("type", float, plain_float)
        self.register("type", int, plain_int)

    def parse_known_args(self, args=None, namespace=None):
        self.given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        if names := [each for each in self.given if re.match(r"-[^-]", each) and re.search(r"\.[a-zA-Z]\w*$", each)]:
            message += f"; write a name that begins with - as ./{names[0]}, or after --"
        self.exit(2, f"error: {one_line(without_secrets(message, self.given))}\n")


def add_command(commands, name: str, options: type, run: Callable[[Any], None], help: str) -> Parser:
    """Add a command that calls `run` with an instance of the dataclass `options`.

    Args:
        commands: what `add_subparsers` returned.
        help (`str`): one line; it is also the description in the command's own help.
    """
    parser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    add_options(parser, options)
    parser.set_defaults(run=lambda arguments: run(options(**arguments)))
    return parser


def add_options(parser: argparse.ArgumentParser, options: type) -> None:
    """Add an argument for each annotated field of a dataclass; fields of its base classes come last."""
    own = options.__annotations__
    hints = get_type_hints(options, include_extras=True)
    for field in sorted(fields(options), key=lambda field: field.name not in own):
        if get_origin(hints[field.name]) is Annotated:
            add_option(parser, field, *get_args(hints[field.name]))


def add_option(parser: argparse.ArgumentParser, field: Field, kind: Any, help: str, extra: dict | None = None) -> None:
    extra = {"help": help.replace("%", "%%"), **(extra or {})}
    kind = next((part for part in get_args(kind) if NoneType in get_args(kind) and part is not NoneType), kind)
    flag = extra.pop("flag", "--" + field.name.replace("_", "-"))
    if kind is bool:
        extra["action"] = "store_true"
    elif get_origin(kind) is Literal:
        extra["choices"] = get_args(kind)
    elif get_origin(kind) is list:
        extra |= {"type": get_args(kind)[0], **({} if "nargs" in extra else {"action": "append", "default": []})}
    else:
        extra["type"] = kind
        if kind is Path and field.kw_only:
            extra.setdefault("metavar", "FILE")
    if field.default is not MISSING:
        extra.setdefault("default", field.default)
    if not field.kw_only:
        parser.add_argument(field.name, **extra)
        return
    if field.default is MISSING and field.default_factory is MISSING:
        extra["required"] = True
    parser.add_argument(flag, dest=field.name, **extra)


__all__ = ["Parser", "add_command", "add_options"]
