"""Saves the session of a client every few seconds, and when it is closed.

The engine's thread holds what is new between two frames. It passes a mark on with the stream's outputs, so the log of
events that is saved is exactly the one up to that point. Other threads copy and write both.

**No event is lost or doubled.** Events are sent at once, before they are durable. After a crash the session goes on
from its last save, and the client sends the frames after it again. What comes out for them a second time has new
numbers, which no owner of the session has used: the first owner counts from 1, and one that follows a crash from
`generation * EPOCH`. The first of them is a `session.updated` with `restored_after`, the number of the last event that
is still valid, and with the `time` of the last frame. So a client knows what the session has forgotten, in which order
ever its connections came and broke, and it matches the second outcome of a frame or a question to the first: what its
user knows of it is final.
"""

import asyncio
from typing import Any

from ..streaming import StreamingSession
from .event_files import Events
from .event_log import EventLog
from .realtime_session import RealtimeSession
from .store import SavedSession, Taken

EPOCH = 10**9  # events of one owner, at most; JSON holds the numbers of nine million owners exactly


def restored_log(name: str, keep: int, saved: SavedSession, events: Events) -> EventLog:
    """The log of a saved session with its events. Its next number is one that no client has seen."""
    notes = saved.notes
    log = EventLog(name, keep, events, notes["sequence"])
    if not was_closed(saved):
        log.last = max(log.last, saved.lease.generation * EPOCH)
    return log


def was_closed(saved: SavedSession) -> bool:
    """Whether the last owner of a saved session has saved its last event."""
    return saved.notes["closed"] and saved.saved_by == saved.lease.generation - 1


class Saving:
    """
    Args:
        session (`RealtimeSession`): that is open.
        saved (`SavedSession`): its place in the store.
    """

    def __init__(self, session: RealtimeSession, saved: SavedSession):
        self.session, self.saved = session, saved
        self._sequence = -1  # of the last event that is durable
        self._writing: asyncio.Future | None = None

    def start(self) -> None:
        """Tell of a session that was not closed that it goes on from an older point."""
        notes = self.saved.notes
        if notes:
            self.session.take_notes(notes)
        if notes and not was_closed(self.saved):
            about = {**self.session.describe(), "restored_after": notes["sequence"]}
            self.session.log.add({"type": "session.updated", "session": about})
            self.session.is_behind = True

    def _known(self, closed: bool) -> tuple[dict[str, Any], Events]:
        """What is saved beside the stream: notes and events."""
        log = self.session.log
        own = {"owner": self.session.owner, "closed": closed, "sequence": log.last}
        return {**own, **self.session.notes()}, log.kept

    async def save(self) -> None:
        """Save what is new since the last time, after the work that waits now.

        Raises:
            `SessionLost`: if another process has taken the session over.
            `OSError`: if the store cannot be reached. `Closed`, `Busy`.
        """
        if self.session.log.last != self._sequence:
            taken, known = await self.session.mark(self.saved.take, lambda: self._known(closed=False))
            await self._write(taken, *known)

    async def _write(self, taken: Taken, notes: dict, events: Events) -> None:
        self._writing = asyncio.wrap_future(self.saved.write(taken, notes, events))
        await asyncio.shield(self._writing)
        self._sequence = notes["sequence"]

    async def finish(self, state: StreamingSession) -> None:
        """Save a session whose log holds its last event. Raises as `save`."""
        if self._writing is not None:  # otherwise the engine's thread would wait for it
            await asyncio.wait([self._writing])
        taken = await self.session.engine.call(lambda: self.saved.take(state))
        await self._write(taken, *self._known(closed=True))


__all__ = ["Saving", "restored_log"]
