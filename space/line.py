"""Who may run and who waits: first come, first served."""

import threading
import time


class LineIsFull(Exception):
    """Nobody else may wait."""


class Line:
    """
    The first `running` tickets run, the next `waiting` ones wait. Whoever is not heard of for `patience` seconds loses
    the place, so that a closed page keeps nobody waiting.
    """

    def __init__(self, running: int, waiting: int, patience: float, clock=time.monotonic):
        self.running, self.waiting, self.patience = running, waiting, patience
        self._clock, self._lock = clock, threading.Lock()
        self._heard: dict[str, float] = {}  # in order of arrival

    def place(self, ticket: str) -> int:
        """0 if the ticket runs, else how many have to go before it does, itself included. Joins the line's end if it
        has no place yet.

        Raises:
            `LineIsFull`: if it had to join and there is no room.
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
