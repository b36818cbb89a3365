"""Lines of a file that turn out to be unusable during a long run: left out, counted, and named when it ends."""

import os
import tempfile
import weakref
from pathlib import Path

from transformers.utils import logging

logger = logging.get_logger(__name__)

NAMED = 10  # when a run ends
GOOD = (0, "")  # stands for any example that can be used


class Skipped:
    """Notes examples in a file that the workers of a data loader share, for they do not share memory. What it says is
    logged when the process that made this ends, or forgets it.

    Args:
        path (`str`): of the file that has the lines.
        lines (`int`): that may be used.
        examples (`float`): that are made of them, infinity where nobody knows.
    """

    def __init__(self, path: str, lines: int, examples: float):
        self.path, self.examples, self.any_good = path, examples, False
        handle, self.notes = tempfile.mkstemp(prefix="videollm-mod-skipped-")
        os.close(handle)
        weakref.finalize(self, finish, os.getpid(), path, lines, self.notes)

    def note(self, line: int, part: str, text: str) -> dict[tuple[int, str], str]:
        if (line, part) not in (known := read_notes(self.notes)):
            known[line, part] = text
            with open(self.notes, "a", encoding="utf-8") as notes:
                notes.write(f"{line} {part} {text}\n")
        return known

    def add(self, line: int, start: float | None, error: Exception) -> None:
        """Note an example of a line, numbered from 1, that starts at so many seconds, and what is wrong with it.

        Raises:
            `ValueError`: if there is no example that can be used.
        """
        known = self.note(line, "" if start is None else f"{start:g}", " ".join(str(error).split()))
        if GOOD not in known and len(known) >= self.examples:
            raise ValueError(f"no line of {self.path} can be used: {error}") from error

    def add_good(self) -> None:
        """Note that there are examples that can be used."""
        if not self.any_good:
            self.any_good = True
            self.note(*GOOD, "")


def read_notes(notes: str) -> dict[tuple[int, str], str]:
    """Line and part -> what is wrong with it; nothing where somebody has emptied the folder of temporary files."""
    if not Path(notes).is_file():
        return {}
    written = (note.split(" ", 2) for note in Path(notes).read_text(encoding="utf-8").splitlines())
    return {(int(line), part): error for line, part, error in written}


def finish(process: int, path: str, lines: int, notes: str) -> None:
    if os.getpid() != process:  # a worker, which has a copy
        return
    known = read_notes(notes)
    Path(notes).unlink(missing_ok=True)
    known.pop(GOOD, None)
    first = {line: error for (line, _), error in sorted(known.items(), reverse=True)}  # of each line
    if first:
        named = "".join(f"\n  {first[line]}" for line in sorted(first)[:NAMED])
        rest = f"\n  and {len(first) - NAMED} more" if len(first) > NAMED else ""
        logger.warning(f"{path}: {len(first)} of {lines} lines were left out, or parts of them:{named}{rest}")
