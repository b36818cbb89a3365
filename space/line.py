"""The waiting line: first come, first served."""

import threading
import time


class LineIsFull(Exception):
    """There is no place left in the line."""


class Line:
    """
    The first `running` tickets run, and the next `waiting` ones wait. A ticket that does not call `place` for
    `patience` seconds loses its place, so that a closed page does not block the line.
    """

    def __init__(self, running: int, waiting: int, patience: float, clock=time.monotonic):
        self.running, self.waiting, self.patience = running, waiting, patience
        self._clock, self._lock = clock, threading.Lock()
        self._heard: dict[str, float] = {}  # in order of arrival

    def place(self, ticket: str) -> int:
        """The place of a ticket: 0 if it runs, 1 if it is the next to run, and so on. A new ticket joins at the end.

        Raises:
            `LineIsFull`: if a new ticket finds no place.
        """
        with self._lock:
            now = self._clock()
            self._heard = {t: heard for t, heard in self._heard.items() if t == ticket or now - heard < self.patience}
            if ticket not in self._heard and len(self._heard) >= self.running + self.waiting:
                raise LineIsFull
            self._heard[ticket] = now
            return max(0, list(self._heard).index(ticket) + 1 - self.running)

    def leave(self, ticket: str) -> None:
        with self._lock:
            self._heard.pop(ticket, None)


__all__ = ["Line", "LineIsFull"]
