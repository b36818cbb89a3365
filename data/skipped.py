"""Lines that turn out to be unusable during a long run: they are left out, counted, and named at the end."""

import os
import tempfile
import weakref
from pathlib import Path

from transformers.utils import logging

logger = logging.get_logger(__name__)

MAX_NAMED = 10  # lines named in the final warning
GOOD = (0, "")  # the note that some example can be used


class Skipped:
    """Records unusable examples. The record is a temporary file, since the workers of a data loader do not share
    memory. It is logged when this object is garbage collected, or when the process that created it ends.

    Args:
        path (`str`): file with the lines.
        lines (`int`): number of lines to use.
        examples (`float`): number of examples made from them; infinity if unknown.
    """

    def __init__(self, path: str, lines: int, examples: float):
        self.path, self.examples, self.any_good = path, examples, False
        handle, self.notes = tempfile.mkstemp(prefix="videollm-mod-skipped-")
        os.close(handle)
        weakref.finalize(self, log_skipped, os.getpid(), path, lines, self.notes)

    def note(self, line: int, part: str, text: str) -> dict[tuple[int, str], str]:
        if (line, part) not in (known := read_notes(self.notes)):
            known[line, part] = text
            with open(self.notes, "a", encoding="utf-8") as notes:
                notes.write(f"{line} {part} {text}\n")
        return known

    def add(self, line: int, start: float | None, error: Exception) -> None:
        """Record an unusable example.

        Args:
            line (`int`): number of its line, from 1.
            start (`float`, *optional*): where it starts in the video, seconds.
            error: what is wrong with it.

        Raises:
            `ValueError`: if no example at all can be used.
        """
        known = self.note(line, "" if start is None else f"{start:g}", " ".join(str(error).split()))
        if GOOD not in known and len(known) >= self.examples:
            raise ValueError(f"no line of {self.path} can be used: {error}") from error

    def add_good(self) -> None:
        """Record that some example can be used."""
        if not self.any_good:
            self.any_good = True
            self.note(*GOOD, "")


def read_notes(notes: str) -> dict[tuple[int, str], str]:
    """`(line, part)` -> error message. Empty if the temporary file was deleted."""
    if not Path(notes).is_file():
        return {}
    written = (note.split(" ", 2) for note in Path(notes).read_text(encoding="utf-8").splitlines())
    return {(int(line), part): error for line, part, error in written}


def log_skipped(process: int, path: str, lines: int, notes: str) -> None:
    if os.getpid() != process:  # a forked worker has a copy of the finalizer
        return
    known = read_notes(notes)
    Path(notes).unlink(missing_ok=True)
    known.pop(GOOD, None)
    first = {line: error for (line, _), error in sorted(known.items(), reverse=True)}  # of each line
    if first:
        named = "".join(f"\n  {first[line]}" for line in sorted(first)[:MAX_NAMED])
        rest = f"\n  and {len(first) - MAX_NAMED} more" if len(first) > MAX_NAMED else ""
        logger.warning(f"{path}: {len(first)} of {lines} lines were left out in whole or in part:{named}{rest}")
