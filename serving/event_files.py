"""The events that a store holds of a session, in files that never change.

A save adds a file with the events that are new. While the last file holds fewer than `FEWEST`, the next one takes its
events over, so that N events are in at most N / `FEWEST` + 2 files, and few are written again. A file leaves when the
session keeps none of its events anymore.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

FEWEST = 64  # events in a file to which none are added


@dataclass(frozen=True)
class EventFile:
    """
    A file of the store: a line for each event, with its number, a space, and the event as JSON.

    Args:
        number (`int`): of the save that wrote it.
        generation (`int`): of the process that wrote it, so that two processes never write the same file.
        last (`int`): number of its last event.
        count (`int`): how many it holds.
        sha256 (`str`): of its bytes.
    """

    number: int
    generation: int
    last: int
    count: int
    sha256: str

    def __post_init__(self):
        numbers = self.number, self.generation, self.last, self.count
        if not all(isinstance(value, int) for value in numbers):
            raise ValueError(f"a file of events must have whole numbers, got {numbers}")

    @property
    def name(self) -> str:
        return f"{self.number:08d}.{self.generation:010d}.jsonl"


Events = Sequence[tuple[int, str]]  # with ascending numbers, each one line of JSON


def add(files: Sequence[EventFile], events: Events, number: int, generation: int) -> tuple[list[EventFile], bytes]:
    """The files after the next save, and the content of the last of them; no content if nothing is new.

    Args:
        files (`Sequence[EventFile]`): that the store holds.
        events (`Events`): all that the session keeps. One that was saved before is the same.
        number (`int`), generation (`int`): of the file that the save adds.
    """
    kept = [file for file in files if events and file.last >= events[0][0]]
    if not events or (kept and kept[-1].last == events[-1][0]):
        return kept, b""
    if kept and kept[-1].count < FEWEST:
        kept.pop()
    known = kept[-1].last if kept else -1
    lines = [f"{at} {text}\n" for at, text in events if at > known]
    data = "".join(lines).encode()
    new = EventFile(number, generation, events[-1][0], len(lines), hashlib.sha256(data).hexdigest())
    return [*kept, new], data


def read(files: Iterable[tuple[EventFile, bytes]]) -> list[tuple[int, str]]:
    """The events in files with their contents. Raises `ValueError` if they are damaged."""
    found: list[tuple[int, str]] = []
    for file, data in files:
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise ValueError(f"the checksum of the events {file.name} does not fit their content")
        rows = [line.partition(" ") for line in data.decode().split("\n")[:-1]]
        found += [(int(at), text) for at, _, text in rows]
    if any(one[0] >= other[0] for one, other in pairwise(found)):
        raise ValueError("the numbers of its events do not ascend")
    return found


__all__ = ["EventFile", "Events", "add", "read"]
