"""What a command says when something is wrong: one line that a terminal can show, without secrets."""

import codecs
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..containers import ADDRESS, source_name

MAX_MESSAGE = 1000  # characters

# package -> the extra of `pip install videollm-mod[...]` that brings it
EXTRAS = dict.fromkeys(("accelerate", "datasets", "matplotlib", "peft"), "train")
EXTRAS |= {"bitsandbytes": "quant", "openai": "eval", "gguf": "gguf", "gradio": "space", "ray": "ray"}
EXTRAS |= dict.fromkeys(("fastapi", "pydantic", "prometheus_client", "starlette", "uvicorn", "websockets"), "serve")


def message_of(error: BaseException, arguments: Sequence[str] = ()) -> str:
    """What went wrong in one line: after the name of the file, with what to install where a package is missing, and
    without the secrets among the command's arguments."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and isinstance(error.filename, str | bytes):
        wrong = "no such file" if isinstance(error, FileNotFoundError) else error.strerror.lower()
        text = f"{os.fsdecode(error.filename)}: {wrong}"
    text = one_line(without_secrets(text, arguments)) or type(error).__name__
    package = (getattr(error, "name", None) or "").split(".")[0]
    return f"{text}: pip install videollm-mod[{EXTRAS[package]}]" if package in EXTRAS else text


def without_secrets(message: object, arguments: Sequence[str]) -> str:
    """`message` with the addresses among a command's arguments shown as `source_name` shows them."""
    message, given = str(message), [text for each in arguments for text in (each, each.partition("=")[2])]
    for address in sorted(filter(ADDRESS.fullmatch, given), key=len, reverse=True):
        for form in (address, str(Path(address)), str(Path(address).parent)):  # also as a path or a `repr` shows it
            if "/" in form:
                message = message.replace(form, source_name(address)).replace(repr(form)[1:-1], source_name(address))
    return message


def one_line(message: object) -> str:
    """`message` as one line of printable characters, of `MAX_MESSAGE` at most: file names may hold anything."""
    text = " ".join(str(message).split())
    text = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def replace_unprintable() -> None:
    """Let standard output print `?` for characters that its encoding lacks, as on a Windows console."""
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and (out.errors == "strict" or codecs.lookup(out.encoding).name != "utf-8"):
        out.reconfigure(errors="replace")


__all__ = ["message_of", "one_line", "replace_unprintable", "without_secrets"]
