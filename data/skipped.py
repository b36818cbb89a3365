"""Lines of a file that turn out to be unusable during a long run: left out, counted, and named when it ends."""

import os
import tempfile
import weakref
from pathlib import Path

from transformers.utils import logging

logger = logging.get_logger(__name__)

NAMED = 10  # when a run ends
GOOD = 0  # stands for any line that can be used


class Skipped:
    """Notes lines in a file that the workers of a data loader share, for they do not share memory. What it says is
    logged when the process that made this ends, or forgets it.

    Args:
        path (`str`): of the file that has the lines.
        total (`int`): lines that may be used.
    """

    def __init__(self, path: str, total: int):
        self.path, self.total, self.any_good = path, total, False
        handle, self.notes = tempfile.mkstemp(prefix="videollm-mod-skipped-")
        os.close(handle)
        weakref.finalize(self, finish, os.getpid(), path, total, self.notes)

    def note(self, line: int, text: str) -> dict[int, str]:
        if line not in (known := read_notes(self.notes)):
            known[line] = text
            with open(self.notes, "a", encoding="utf-8") as notes:
                notes.write(f"{line} {text}\n")
        return known

    def add(self, line: int, error: Exception) -> None:
        """Note a line, numbered from 1, and what is wrong with it.

        Raises:
            `ValueError`: if there is no line that can be used.
        """
        known = self.note(line, " ".join(str(error).split()))
        if GOOD not in known and len(known) >= self.total:
            raise ValueError(f"none of the {self.total} lines of {self.path} can be used: {error}") from error

    def add_good(self) -> None:
        """Note that there are lines that can be used."""
        if not self.any_good:
            self.any_good = True
            self.note(GOOD, "")


def read_notes(notes: str) -> dict[int, str]:
    """Line -> what is wrong with it; nothing where somebody has emptied the folder of temporary files."""
    if not Path(notes).is_file():
        return {}
    pairs = (note.split(" ", 1) for note in Path(notes).read_text(encoding="utf-8").splitlines())
    return {int(line): error for line, error in pairs}


def finish(process: int, path: str, total: int, notes: str) -> None:
    if os.getpid() != process:  # a worker, which has a copy
        return
    skipped = read_notes(notes)
    Path(notes).unlink(missing_ok=True)
    skipped.pop(GOOD, None)
    if skipped:
        named = "".join(f"\n  {error}" for _, error in sorted(skipped.items())[:NAMED])
        rest = f"\n  and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
        logger.warning(f"{path}: {len(skipped)} of {total} lines were left out, or parts of them:{named}{rest}")
