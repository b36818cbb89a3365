"""What a client has sent, in its order, until it is not needed anymore.

A server that has lost its latest state restores an older one. It gets again what came after that, and what it says
again is not given to the user twice.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from .events import Said


@dataclass(eq=False)
class Request:
    """
    Attributes:
        id (`str`): the `event_id` of its messages.
        messages (`list[dict]`): to be sent.
        sent (`bool`): on the current connection.
        settled_at (`int`, *optional*): number of the event with which the server has settled it.
        told (`bool`): the user knows what came of it; it may be sent again.
    """

    id: str
    messages: list[dict]
    sent: bool = False
    settled_at: int | None = None
    told: bool = False

    @property
    def size(self) -> int:
        """Bytes in memory, roughly."""
        return 500


@dataclass(eq=False)
class Frame(Request):
    time: float = 0.0
    dropped: bool = False
    narrated: bool = False  # the user has the narration after it

    @property
    def size(self) -> int:
        return 500 + len(self.messages[0]["image_url"])


@dataclass(eq=False)
class Ask(Request):
    question: str = ""
    withdrawn: bool = False
    answer: Said | None = None
    error: Exception | None = None


@dataclass(eq=False)
class Update(Request):
    options: dict = field(default_factory=dict)
    error: Exception | None = None


class SentLog:
    """
    Args:
        keep_bytes (`int`): of frames that are kept after the server has watched them.
    """

    def __init__(self, keep_bytes: int):
        self.keep_bytes, self.forgotten_until = keep_bytes, None  # type: int, float | None
        self.is_whole = True  # nothing was forgotten
        self._requests: deque[Request] = deque()
        self._by_id: dict[str, Request] = {}
        self._by_time: dict[float, Frame] = {}
        self._bytes = 0

    def add(self, request: Request) -> None:
        self._requests.append(request)
        self._by_id[request.id] = request
        if isinstance(request, Frame):
            self._by_time[request.time] = request
        self._bytes += request.size
        while self._bytes > self.keep_bytes and self._requests[0].settled_at is not None:
            self._forget(self._requests.popleft())

    def _forget(self, request: Request) -> None:
        del self._by_id[request.id]
        self._bytes -= request.size
        self.is_whole = False
        if isinstance(request, Frame):
            del self._by_time[request.time]
            self.forgotten_until = request.time

    def get(self, name: str | None) -> Request | None:
        return self._by_id.get(name or "")

    def frame_at(self, time: float) -> Frame | None:
        return self._by_time.get(time)

    def open(self) -> Iterator[Request]:
        """Requests that are not settled, in their order."""
        return (request for request in self._requests if request.settled_at is None)

    def go_back(self, sequence: int, time: float | None) -> bool:
        """The server continues after event `sequence` and the frame of this time: what came later is open again.

        Returns:
            Whether all of it is kept.
        """
        for request in self._requests:
            if isinstance(request, Frame):
                if not request.dropped and (time is None or request.time > time):
                    request.settled_at = None
            elif request.settled_at is not None and request.settled_at > sequence:
                request.settled_at = None
        if time is None:
            return self.is_whole
        return self.forgotten_until is None or self.forgotten_until <= time

    def reconnected(self, session: dict, sequence: int) -> int:
        """What is open is to be sent on a new connection, but for what the session has already.

        Returns:
            The number of frames.
        """
        count = 0
        for request in self.open():
            request.sent = False
            if isinstance(request, Frame):
                if session["time"] is not None and request.time <= session["time"]:
                    request.settled_at = sequence
                else:
                    count += 1
            elif isinstance(request, Update) and request.options.items() <= session.items():
                request.settled_at, request.told = sequence, True
        return count


__all__ = ["Ask", "Frame", "Request", "SentLog", "Update"]
