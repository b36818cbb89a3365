"""Files that are written: where they may be, and whole or not at all."""

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

from ..containers import local_path

STANDARD = Path("-")  # standard input or output
PARTIAL = ".partial"  # ending of a file that is being written


def beside(output: Path | None) -> TextIO:
    """Where to print messages, so that they do not mix with what goes to `output`."""
    return sys.stderr if output == STANDARD else sys.stdout


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write a file or folder to. It is renamed to `path` at the end, or removed on an error;
    what is written for the path `-` goes to standard output at the end.

    A process that is killed leaves `path` as it was: the bytes are on the disk before the name is.
    """
    path = Path(path)
    if path == STANDARD:
        with TemporaryDirectory() as folder:
            yield Path(folder, "output")
            content = Path(folder, "output").read_bytes()
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
        return
    partial = path.with_name(path.name + PARTIAL)
    try:
        remove(partial)  # what a killed process may have left
        yield partial
        for written in [partial, *partial.rglob("*")] if partial.is_dir() else [partial]:
            if written.is_file():
                with open(written, "rb+") as file:
                    os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        remove(partial)
        raise
    try:
        descriptor = os.open(path.parent, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; see `written_whole`."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def check_output(name: str, path: Path, source: str | None = None) -> None:
    """Raise `OSError` if the option `name` cannot be written, and `ValueError` if it would overwrite the source."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of `{name}` does not exist: {path.parent}")
    if path.is_dir():
        raise IsADirectoryError(f"`{name}` must be a file, {path} is a directory")
    source = None if source is None else local_path(source)
    if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
        raise ValueError(f"`{name}` would overwrite the source {source}")


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def hash_ends(file: Path) -> bytes:
    """Hash of a file's size, first and last 64 KiB: enough to tell one recording from another."""
    size = file.stat().st_size
    with open(file, "rb") as content:
        first = content.read(1 << 16)
        content.seek(max(0, size - (1 << 16)))
        return hashlib.sha256(f"{size}".encode() + first + content.read()).digest()
