"""Files that are there whole or not at all."""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TextIO

STANDARD = Path("-")  # standard input or output
PARTIAL = ".partial"  # ending of a file that is being written


def beside(output: Path | None) -> TextIO:
    """Where to print messages, so that they do not mix with what goes to `output`."""
    return sys.stderr if output == STANDARD else sys.stdout


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a path to write to; on leaving it takes the name `path`, on an error it goes away. What is written to the
    path that stands for `-` goes to standard output in the end.

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
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def ends_of(file: Path) -> bytes:
    """Hash of a file's size and both ends, 64 KiB each: enough to tell one recording from another."""
    size = file.stat().st_size
    with open(file, "rb") as content:
        first = content.read(1 << 16)
        content.seek(max(0, size - (1 << 16)))
        return hashlib.sha256(f"{size}".encode() + first + content.read()).digest()
