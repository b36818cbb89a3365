"""Parsers are built from dataclasses, and their help is quick and complete."""

import argparse
import subprocess
import sys
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

from videollm_mod.commands import cli
from videollm_mod.commands.options import Parser, add_command, add_options
from videollm_mod.data.words import counted
from videollm_mod.narration.options import NarrateOptions
from videollm_mod.sequence import DEFAULT_THRESHOLD

LAZY = ("torch", "transformers", "accelerate", "huggingface_hub", "av", "matplotlib", "fastapi", "uvicorn")


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {
        name: each
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, each in action.choices.items()
    }


COMMANDS = subparsers(cli.build_parser())


def test_help_imports_nothing_slow():
    program = (
        "import sys\nfrom videollm_mod.commands import cli\n"
        "try: cli.main(['narrate', '--help'])\nexcept SystemExit: pass\n"
        f"print([name for name in {LAZY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "P(silence) is below this" in done.stdout


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"bench"}))
def test_every_argument_has_a_help_text(name):
    COMMANDS[name].format_help()  # a stray % fails here
    for action in COMMANDS[name]._actions:
        assert action.help, action.dest


@dataclass
class Base:
    count: Annotated[int, "a number"] = field(default=3, kw_only=True)


@dataclass
class Options(Base):
    source: Annotated[str, "a source of 100% frames"]
    _: KW_ONLY
    need: Annotated[Path, "a needed file"]
    some_flag: Annotated[bool, "a flag"] = False
    names: Annotated[list[str], "names", {"flag": "--name", "metavar": "NAME"}] = field(default_factory=list)
    way: Annotated[Literal["a", "b"] | None, "a way"] = None
    inner: int = 7  # not an option


def options_of(*argv: str) -> Options:
    parser = Parser()
    add_options(parser, Options)
    return Options(**vars(parser.parse_args(argv)))


def test_fields_become_arguments():
    assert options_of("x", "--need", "y") == Options("x", need=Path("y"))
    given = options_of("x", "--need", "y", "--some-flag", "--name", "n", "--name", "m", "--way", "b", "--count", "5")
    assert given == Options("x", need=Path("y"), some_flag=True, names=["n", "m"], way="b", count=5)


@pytest.mark.parametrize(
    ("argv", "message"),
    {
        ("x",): "the following arguments are required: --need",
        ("x", "--need", "y", "--way", "c"): "argument --way: invalid choice: 'c'",
        ("x", "--need", "y", "--count", "1_0"): "argument --count: invalid int value: '1_0'",
        ("x", "--need", "y", "--inner", "3"): "unrecognized arguments: --inner 3",
        ("--need", "y", "-x.mp4"): "write a name that begins with - as ./-x.mp4, or after --",
    }.items(),
)
def test_a_wrong_argument_is_one_line(argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        options_of(*argv)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_a_command_is_run_with_its_options():
    parser, found = Parser(), []
    add_command(parser.add_subparsers(), "go", Options, found.append, help="do it")
    arguments = vars(parser.parse_args(["go", "x", "--need", "y"]))
    arguments.pop("run")(arguments)
    assert found == [Options("x", need=Path("y"))]
    help = subparsers(parser)["go"].format_help()
    assert "Do it." in help and "100% frames" in help


def test_the_threshold_has_one_default():
    """Without one, a session takes that of its rule."""
    arguments = cli.build_parser().parse_args(["narrate", "x"])
    assert arguments.threshold is NarrateOptions("x").threshold is None
    assert f"below this (default: {DEFAULT_THRESHOLD}, or for the rule verify" in " ".join(
        COMMANDS["narrate"].format_help().split()
    )


def test_a_count_agrees_with_its_noun():
    assert counted(1, "fault") == "1 fault" and counted(0, "fault") == "0 faults"
    assert counted(2000, "reply", "replies") == "2,000 replies" and counted(1, "reply", "replies") == "1 reply"
