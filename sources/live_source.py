"""A camera or network stream: it is decoded as it arrives, sampled by its timestamps, and reopened when it breaks."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import TYPE_CHECKING

import numpy as np

from ..containers import check_fps, opened, readable_errors
from ..decoding import CLOCK_JITTER, DisplayTransform, frame_seconds

if TYPE_CHECKING:  # it is slow to import
    import torch

FIRST_DELAY, LONGEST_DELAY = 0.25, 8.0  # seconds before the next attempt to connect; doubled each time
GIVE_UP_AFTER = 300.0  # seconds without a frame
AHEAD = 10.0  # seconds by which timestamps may run ahead of real time
MAX_CORRUPT = 1000  # packets in a row


@dataclass(eq=False)
class LiveFrame:
    """
    Args:
        image: uint8 `[H, W, 3]`.
        time (`float`): seconds of the stream.
        arrived (`float`): `perf_counter()` when the frame was decoded.
        features (`torch.Tensor`): `[N, Dv]`, set once the frame has been encoded.
    """

    image: np.ndarray
    time: float
    arrived: float
    features: "torch.Tensor" = field(init=False, repr=False)


@dataclass
class LiveCounts:
    """What happened to a live source so far.

    Args:
        decoded, sampled (`int`): frames; the sampled ones go to the model.
        corrupt (`int`): packets that could not be decoded.
        missing, jumps (`int`): timestamps that were absent or far off; time then follows the wall clock.
        repeated, reversed (`int`): timestamps that were the same again or a little earlier; time then stands still.
        gaps (`int`), gap_seconds (`float`): pauses of the stream while the connection held.
        connections_lost, attempts_failed (`int`), seconds_lost (`float`): of the connection.
    """

    decoded: int = 0
    sampled: int = 0
    corrupt: int = 0
    missing: int = 0
    repeated: int = 0
    reversed: int = 0
    jumps: int = 0
    gaps: int = 0
    gap_seconds: float = 0.0
    connections_lost: int = 0
    attempts_failed: int = 0
    seconds_lost: float = 0.0


class LiveClock:
    """Gives each frame a time in seconds that never goes back; it follows the timestamps while they are plausible.

    Args:
        counts (`LiveCounts`): counts implausible timestamps.
        gap (`float`): seconds between two frames from which on they count as a gap.
    """

    def __init__(self, counts: LiveCounts, gap: float):
        self.counts, self.gap = counts, gap
        self.time: float | None = None
        self._start = self._arrived = 0.0
        self._offset: float | None = None  # timestamp minus time of the stream

    def reconnected(self) -> None:
        self._offset = None

    def elapsed(self, now: float) -> float:
        """Seconds of real time since the first frame."""
        return now - self._start

    def __call__(self, seconds: float | None, arrived: float) -> float:
        """The time of a frame with the timestamp `seconds` that arrived at `arrived`, by any clock."""
        if self.time is None:
            self.time, self._start, self._arrived = 0.0, arrived, arrived
            self.counts.missing += seconds is None
            self._offset = seconds
            return 0.0
        passed, self._arrived = arrived - self._arrived, arrived
        by_wall = max(self.time, self.elapsed(arrived))
        if seconds is None:
            self.counts.missing += 1
            self.time, self._offset = by_wall, None
        elif self._offset is None:
            self.time, self._offset = by_wall, seconds - by_wall
        else:
            step = seconds - self._offset - self.time
            if not -CLOCK_JITTER <= step <= max(passed, 0.0) + AHEAD:
                self.counts.jumps += 1
                self.time, self._offset = by_wall, seconds - by_wall
            elif step > 0:
                if step > self.gap:
                    self.counts.gaps += 1
                    self.counts.gap_seconds += step
                self.time += step
            elif step < 0:
                self.counts.reversed += 1
            else:
                self.counts.repeated += 1
        return self.time


@dataclass
class LiveSource:
    """
    Iterating gives `LiveFrame`s as they arrive, until `stop()` or the end of the stream.

    Args:
        name (`str`): for messages.
        connect (`Callable`): opens the source and returns the container and its video stream; may raise `OSError` or
            `ValueError`.
        fps (`float`): frames per second to sample.
        reconnect (`bool`): reopen the source when it fails, once a frame has arrived.
        endless (`bool`): the end of a source that does not state its length is a failure too, as when a camera is
            switched off.
        paced (`bool`): hold frames back that arrive faster than real time, as from a file on a server.
        give_up_after (`float`): seconds without a frame.

    Raises:
        `OSError`, `ValueError`: if the source cannot be opened at first, or does not come back.
    """

    name: str
    connect: Callable[[], tuple]
    fps: float
    reconnect: bool = True
    endless: bool = True
    paced: bool = False
    give_up_after: float = GIVE_UP_AFTER
    counts: LiveCounts = field(default_factory=LiveCounts)

    def __post_init__(self):
        check_fps("`fps`", self.fps)
        self._stopped, self._transform, self._came = threading.Event(), DisplayTransform(), False
        self._ends = False  # whether a clean end of the connection is the end of the stream
        self._clock = LiveClock(self.counts, gap=max(1.0, 2 / self.fps))

    def probe(self) -> None:
        """Check that the source has a frame now, and close it.

        Raises:
            `OSError`, `ValueError`: if it has none.
        """
        if next(self._decoded(), None) is None:
            raise ValueError(f"there is no frame in {self.name}")
        self._came = True
        self.counts.decoded = 0

    def stop(self) -> None:
        """End the iteration, at the latest when the current read times out."""
        self._stopped.set()

    def __iter__(self) -> Iterator[LiveFrame]:
        due, last_seen, failure, delay = 0.0, monotonic(), None, FIRST_DELAY
        while not self._stopped.is_set():
            try:
                for frame, seconds in self._decoded():
                    arrived, delay, before = perf_counter(), FIRST_DELAY, self._clock.time
                    time = self._clock(seconds, arrived)
                    if failure is not None:
                        self.counts.seconds_lost += monotonic() - last_seen
                        failure = None
                    last_seen, self._came = monotonic(), True
                    # timestamps are inexact: take a frame a little early, unless the next one may be closer
                    if before is None or time >= due - min(0.25 / self.fps, (time - before) / 2):
                        due = (round(time * self.fps) + 1) / self.fps
                        if self.paced:
                            self._stopped.wait(time - self._clock.elapsed(perf_counter()))
                            arrived = perf_counter()
                        self.counts.sampled += 1
                        yield LiveFrame(self._transform(frame), round(time, 3), arrived)
                    if self._stopped.is_set():
                        return
                if self._ends or not self.reconnect:
                    return
                failure, lost = "it ended", True
            except (OSError, ValueError) as error:  # PyAV's errors are one or the other
                if not self.reconnect or not self._came:
                    raise
                failure, lost = str(error), delay == FIRST_DELAY
            self.counts.connections_lost += lost
            self.counts.attempts_failed += not lost
            if monotonic() - last_seen > self.give_up_after:
                raise OSError(f"{self.name} did not come back for {self.give_up_after:g} seconds: {failure}")
            self._stopped.wait(delay)
            delay = min(2 * delay, LONGEST_DELAY)
            self._clock.reconnected()

    def _decoded(self) -> Iterator[tuple]:
        """Frames of one connection with their timestamps in seconds, None for a missing one."""
        import av

        container, stream = self.connect()
        self._transform.begin(stream)
        corrupt, hls = 0, container.format.name == "hls"  # a playlist that is not updated ends without an error
        unstamped = (
            container.format.name == "mpjpeg"
        )  # single pictures, to which FFmpeg gives timestamps of 25 per second
        self._ends = is_recording(container, stream) or not (self.endless or hls)
        with opened(container, stream), readable_errors(self.name):
            if hls and self._ends and self.counts.decoded:  # the playlist is complete now
                return
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except av.InvalidDataError:  # from lost packets for example; decoding recovers at the next key frame
                    self.counts.corrupt += 1
                    corrupt += 1
                    if corrupt > MAX_CORRUPT:
                        raise
                    continue
                for frame in frames:
                    corrupt = 0
                    self.counts.decoded += 1
                    yield frame, None if unstamped else frame_seconds(frame, stream)


def is_recording(container, stream) -> bool:
    """Whether the length of an open container is known, in bytes or in seconds."""
    timed, sized = container.duration is not None, (container.size or 0) > 0  # None or negative if unknown
    if container.format.name == "hls":  # its size is that of the playlist
        return timed
    if (
        container.format.name.startswith("mov,") and not stream.frames
    ):  # fragmented: the duration is that of the first fragments
        return sized
    return sized or timed


__all__ = ["LiveClock", "LiveCounts", "LiveFrame", "LiveSource", "is_recording"]
