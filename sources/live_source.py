"""A camera or network stream: decoded as it comes, sampled by its timestamps, opened again when it breaks off."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import monotonic, perf_counter

import numpy as np

from ..containers import check_fps, opened, readable_errors
from ..decoding import CLOCK_JITTER, Upright, frame_seconds

FIRST_DELAY, LONGEST_DELAY = 0.25, 8.0  # seconds before another attempt to connect; doubled with each
GIVE_UP_AFTER = 300.0  # seconds without a frame
AHEAD = 10.0  # seconds by which timestamps may run ahead of the clock on the wall
MOST_CORRUPT = 1000  # packets in a row


@dataclass(eq=False)
class LiveFrame:
    """
    Args:
        image: uint8 `[H, W, 3]`.
        time (`float`): seconds of the stream.
        arrived (`float`): `perf_counter()` when it was decoded.
        features (`torch.Tensor`, *optional*): `[N, Dv]`, once it has been encoded.
    """

    image: np.ndarray
    time: float
    arrived: float
    features: object = None


@dataclass
class LiveCounts:
    """What happened to a live source so far.

    Args:
        decoded, sampled (`int`): frames; those sampled are meant for the model.
        corrupt (`int`): packets that could not be decoded.
        missing, repeated, reversed, jumps (`int`): timestamps that were not there, the same again, a little earlier,
            or somewhere else; time then goes on by the clock on the wall, or for the second and third stands still.
        gaps (`int`), gap_seconds (`float`): times at which nothing came though the connection held.
        connections_lost, attempts_failed (`int`), seconds_lost (`float`).
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
    """Seconds of the stream for each frame, never going back: by timestamps as long as they can be believed.

    Args:
        counts (`LiveCounts`): where oddities are counted.
        gap (`float`): seconds between two frames that are called a gap.
    """

    def __init__(self, counts: LiveCounts, gap: float):
        self.counts, self.gap = counts, gap
        self.time: float | None = None
        self._start = self._arrived = 0.0
        self._offset: float | None = None  # of timestamps to the stream's time

    def reconnected(self) -> None:
        self._offset = None

    def elapsed(self, now: float) -> float:
        """Seconds of the wall since the first frame."""
        return now - self._start

    def __call__(self, seconds: float | None, arrived: float) -> float:
        """The time of a frame with the timestamp `seconds`, which arrived at `arrived` of any clock."""
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
    Iterating over it gives `LiveFrame`s as they come, until `stop()` or its end.

    Args:
        name (`str`): for messages.
        connect (`Callable`): opens it and returns the container and its video stream; raises `OSError`, `ValueError`.
        fps (`float`): frames per second that are sampled.
        reconnect (`bool`): open it again when it fails, once a frame has come.
        endless (`bool`): unless it states its length, its end is a failure too, as where a camera was switched off.
        paced (`bool`): it may come faster than time passes, as a file on a server does, and is held back.
        give_up_after (`float`): seconds without a frame.

    Raises:
        `OSError`, `ValueError`: if it cannot be opened at first, or does not come back.
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
        self._stopped, self._upright, self._came = threading.Event(), Upright(), False
        self._ends = False  # a clean end of the connection is the end
        self._clock = LiveClock(self.counts, gap=max(1.0, 2 / self.fps))

    def probe(self) -> None:
        """See whether there is a frame now, and hang up.

        Raises:
            `OSError`, `ValueError`: if not.
        """
        if next(self._decoded(), None) is None:
            raise ValueError(f"there is no frame in {self.name}")
        self._came = True
        self.counts.decoded = 0

    def stop(self) -> None:
        """End the iteration, at the latest when a read that waits has timed out."""
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
                    # timestamps are not exact; but a frame that is nearer to its time may come
                    if before is None or time >= due - min(0.25 / self.fps, (time - before) / 2):
                        due = (round(time * self.fps) + 1) / self.fps
                        if self.paced:
                            self._stopped.wait(time - self._clock.elapsed(perf_counter()))
                            arrived = perf_counter()
                        self.counts.sampled += 1
                        yield LiveFrame(self._upright(frame), round(time, 3), arrived)
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
        """Frames of one connection and their timestamps in seconds, None where there is none."""
        import av

        container, stream = self.connect()
        self._upright.begin(stream)
        corrupt, hls = 0, container.format.name == "hls"  # a playlist that is not renewed ends without an error
        unstamped = (
            container.format.name == "mpjpeg"
        )  # pictures one after the other, which FFmpeg counts as 25 a second
        self._ends = is_recording(container, stream) or not (self.endless or hls)
        with opened(container, stream), readable_errors(self.name):
            if hls and self._ends and self.counts.decoded:  # it has been completed
                return
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except av.InvalidDataError:  # such as lost packets; the next key frame mends it
                    self.counts.corrupt += 1
                    corrupt += 1
                    if corrupt > MOST_CORRUPT:
                        raise
                    continue
                for frame in frames:
                    corrupt = 0
                    self.counts.decoded += 1
                    yield frame, None if unstamped else frame_seconds(frame, stream)


def is_recording(container, stream) -> bool:
    """Whether it is known how long an open container is: in bytes, or as it states in seconds."""
    timed, sized = container.duration is not None, (container.size or 0) > 0  # None, or negative, where it is unknown
    if container.format.name == "hls":  # of which the size is that of the playlist
        return timed
    if container.format.name.startswith("mov,") and not stream.frames:  # in fragments, of which it adds up the first
        return sized
    return sized or timed


__all__ = ["LiveClock", "LiveCounts", "LiveFrame", "LiveSource", "is_recording"]
