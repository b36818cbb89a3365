"""The events of a session, numbered, and the readers that follow them.

A log keeps the last events, of which neither the number nor the bytes grow beyond a limit. A reader that comes back
names the last event that it has seen, and gets those after it; one that falls behind what is kept is too slow.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass

MAX_BYTES = 4 * 2**20  # of the events that a log keeps; the last one may be larger


class FellBehind(Exception):
    """The events after the one that the reader has seen are not kept anymore."""


class EventLog:
    """
    Args:
        name (`str`): is part of each `event_id`.
        keep (`int`): how many events are kept, at most.
        events (`Iterable[tuple[int, str]]`): of the same log before it was saved, see `kept`.
        last (`int`): sequence number of the last event before.
    """

    def __init__(self, name: str, keep: int, events: Iterable[tuple[int, str]] = (), last: int = 0):
        self.name, self.last, self.closed = name, last, False
        self.keep, self._num_bytes = keep, 0
        self._events: deque[tuple[int, str]] = deque()
        for at, text in events:
            self._keep(int(at), text)
        self._more = asyncio.Event()
        self._readers: list[_Reader] = []

    @property
    def kept(self) -> list[tuple[int, str]]:
        """Sequence numbers and events, as JSON."""
        return list(self._events)

    @property
    def forgotten(self) -> int:
        """Number of the last event that is not kept anymore, 0 if all are."""
        return self._events[0][0] - 1 if self._events else self.last

    def add(self, event: dict) -> dict:
        """Add an event; it gets an `event_id` and its number, `sequence`. Returns it."""
        self.last += 1
        event = {**event, "event_id": f"event_{self.name}_{self.last}", "sequence": self.last}
        self._keep(self.last, json.dumps(event))
        for reader in self._readers:
            if reader.behind is not None and reader.seen < self.forgotten:
                reader.behind.set()
        self._wake()
        return event

    def _keep(self, number: int, text: str) -> None:
        self._events.append((number, text))
        self._num_bytes += len(text)  # which is ASCII
        while len(self._events) > self.keep or (self._num_bytes > MAX_BYTES and len(self._events) > 1):
            self._num_bytes -= len(self._events.popleft()[1])

    def close(self) -> None:
        """Readers end after the last event."""
        self.closed = True
        self._wake()

    async def grown(self) -> None:
        """Wait for the next event, or the end."""
        if not self.closed:
            await self._more.wait()

    def _wake(self) -> None:
        self._more.set()
        self._more = asyncio.Event()

    def after(self, sequence: int) -> list[tuple[int, str]]:
        """The events after one of them.

        Raises:
            `FellBehind`: if some of them are not kept.
        """
        if sequence < self.forgotten:
            raise FellBehind(f"events {sequence + 1} to {self.forgotten} are not kept anymore")
        return [each for each in self._events if each[0] > sequence]

    async def follow(
        self, sequence: int, behind: asyncio.Event | None = None
    ) -> AsyncGenerator[tuple[int, str], None]:
        """Sequence numbers and events as JSON after `sequence`, as they come, until the log is closed.

        Args:
            behind (`asyncio.Event`, *optional*): is set as soon as the reader has fallen behind, while it is still
                busy with an earlier event.

        Raises:
            `FellBehind`: when it asks for the next one.
        """
        reader = _Reader(sequence, behind)
        self._readers.append(reader)
        try:
            while True:
                more = self._more
                for number, event in self.after(reader.seen):
                    if self.forgotten >= number:
                        break  # the reader took long, and `after` says what it has missed
                    reader.seen = number
                    yield number, event
                    await asyncio.sleep(0)  # for the others, and for the news that the client has gone
                if reader.seen < self.last:
                    continue
                if self.closed:
                    return
                await more.wait()
        finally:
            self._readers.remove(reader)


@dataclass
class _Reader:
    seen: int
    behind: asyncio.Event | None


__all__ = ["EventLog", "FellBehind"]
