"""Watches a live source: decoding, encoding and the language model run side by side, and the source never waits.

At most a few frames wait between two stages. When the model falls behind, each new frame replaces the one that has
waited longest, so that the model speaks about what is there now.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from .live_source import LiveFrame, LiveSource

if TYPE_CHECKING:  # torch is slow to import
    from ..speaking import WatchedFrame

WAITING = 4  # frames that may wait before a stage
REMEMBERED = 10_000  # latencies from which percentiles are taken
JOIN_SECONDS = 1.0
WHEN_BEHIND = {
    "drop": "when the model falls behind, the frame that has waited longest is dropped",
    "wait": "the source waits for the model",
}


class BoundedQueue:
    """A queue of bounded length between two threads.

    Args:
        places (`int`): how many items may wait.
        drop (`bool`): when the queue is full, drop the oldest item; otherwise `put` waits.
    """

    def __init__(self, places: int, drop: bool):
        self.places, self.drop, self.dropped = places, drop, 0
        self._items: deque = deque()
        self._ended, self._changed = False, threading.Condition()
        self._error: BaseException | None = None  # of the side that puts items

    def put(self, item) -> bool:
        """Add an item; False after the end."""
        with self._changed:
            while len(self._items) >= self.places and not self._ended and not self.drop:
                self._changed.wait()
            if self._ended:
                return False
            if len(self._items) >= self.places:
                self._items.popleft()
                self.dropped += 1
            self._items.append(item)
            self._changed.notify_all()
            return True

    def wait_until_empty(self) -> None:
        with self._changed:
            while self._items and not self._ended:
                self._changed.wait()

    def take(self) -> list:
        """All items that wait, at least one; none after the end. Raises the error of the other side."""
        with self._changed:
            while not self._items and not self._ended:
                self._changed.wait()
            items = list(self._items)
            self._items.clear()
            self._changed.notify_all()
            if not items and self._error is not None:
                raise self._error
            return items

    def end(self, error: BaseException | None = None) -> None:
        """Say that no more items will come; what waits can still be taken."""
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
            self._changed.notify_all()


class LiveWatch:
    """
    A session that watches a live source. Iterating gives each `LiveFrame` with its `WatchedFrame`; the session may be
    asked questions in between.

        with LiveWatch(model.stream(processor, max_cached_frames=24), open_live("rtsp://...", fps=2.0)) as live:
            for frame, watched in live:
                ...

    Args:
        session (`StreamingSession`), source (`LiveSource`).
        when_behind (`str`): `"drop"` or `"wait"`, see `WHEN_BEHIND`.
    """

    def __init__(self, session, source: LiveSource, when_behind: str = "drop"):
        if when_behind not in WHEN_BEHIND:
            raise ValueError(f"`when_behind` must be one of {', '.join(WHEN_BEHIND)}, got {when_behind!r}")
        self.session, self.source, self.when_behind = session, source, when_behind
        self._decoded = BoundedQueue(WAITING, drop=when_behind == "drop")
        self._encoded = BoundedQueue(1, drop=False)
        self._encode_seconds = 0.0
        self._latencies: dict[str, deque[float]] = {name: deque(maxlen=REMEMBERED) for name in ("event", "frame")}
        self._threads = [
            threading.Thread(target=self._stage, args=stage, name=f"live {stage[0].__name__}", daemon=True)
            for stage in ((self._decode, self._decoded), (self._encode, self._encoded))
        ]

    def __enter__(self) -> "LiveWatch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.source.stop()
        self._decoded.end()
        self._encoded.end()
        for thread in self._threads:
            thread.join(JOIN_SECONDS)  # a thread that waits for the network ends by itself

    def __iter__(self) -> "Iterator[tuple[LiveFrame, WatchedFrame]]":
        for block in self.blocks():
            yield from self.watch(block)

    def blocks(self) -> Iterator[list[LiveFrame]]:
        """Encoded frames: each block is all that wait.

        Raises the error of a stage, after the frames before it.
        """
        while blocks := self._encoded.take():
            yield from blocks

    def watch(self, block: list[LiveFrame]) -> "Iterator[tuple[LiveFrame, WatchedFrame]]":
        """Let the session see frames of `blocks()`, in order."""
        import torch

        done = 0
        while done < len(block):  # a question in between ends `watch_encoded`, so it may have to be called again
            rest = block[done:]
            features = torch.stack([frame.features for frame in rest])
            for watched in self.session.watch_encoded(features, [frame.time for frame in rest]):
                frame, done = block[done], done + 1
                latency = perf_counter() - frame.arrived
                self._latencies["frame"].append(latency)
                if watched.event is not None:
                    self._latencies["event"].append(latency)
                yield frame, watched

    @property
    def stats(self) -> dict:
        """Counts of the source (`LiveCounts`), dropped frames, and the latency in seconds of frames and events."""
        return {
            "when_behind": WHEN_BEHIND[self.when_behind],
            "dropped": {"behind": self._decoded.dropped},
            **asdict(self.source.counts),
            "encode_seconds": self._encode_seconds,
            "latency": {name: percentiles(list(values)) for name, values in self._latencies.items()},
        }

    def encode(self, block: list[LiveFrame]):
        """Features `[F, N, Dv]` of frames, encoded as the session would."""
        from ..steps import Timestamp

        begin = Timestamp(self.session.model.device)
        features = self.session.encode(np.stack([frame.image for frame in block]))
        self._encode_seconds += begin.seconds_until(Timestamp(self.session.model.device))  # waits for the device
        return features

    def _stage(self, work: Callable[[], None], output: BoundedQueue) -> None:
        try:
            work()
        except BaseException as error:  # it is raised in the thread of the session
            output.end(error)
        else:
            output.end()

    def _decode(self) -> None:
        for frame in self.source:
            if not self._decoded.put(frame):
                return

    def _encode(self) -> None:
        while True:
            self._encoded.wait_until_empty()  # so that no newer frame is dropped while older ones wait here
            block = self._decoded.take()
            if not block:
                return
            features = self.encode(block)
            for frame, encoded in zip(block, features, strict=True):
                frame.features = encoded
            if not self._encoded.put(block):
                return


def percentiles(seconds: list[float]) -> dict[str, float] | None:
    """Median, 95th percentile and maximum; None if there are no values."""
    if not seconds:
        return None
    median, high, largest = np.percentile(seconds, [50, 95, 100]).tolist()
    return {"count": len(seconds), "p50": round(median, 4), "p95": round(high, 4), "max": round(largest, 4)}


__all__ = ["WHEN_BEHIND", "LiveWatch"]
