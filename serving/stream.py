"""One stream of the engine: the work that waits, and what the pool is doing of it.

The event loop queues work, and the engine's thread gives it to the pool piece by piece. Frames that wait together go
through the model together.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from ..speaking import StreamEvent, WatchedFrame
from ..streaming import FRAMES_AT_ONCE, StreamingSession
from .outputs import Began, Busy, Changed, Closed, Failed, Output, Piece, Said, Watched
from .pool import PooledStream
from .usage import Usage, read_tokens

if TYPE_CHECKING:
    from .engine import Engine

MAX_REQUESTS = 256  # of one stream that wait, beside frames


@dataclass
class _Frame:
    image: np.ndarray
    time: float
    ref: Any
    since: float = field(default_factory=monotonic)


@dataclass
class _Ask:
    text: str
    ref: Any


@dataclass
class _Change:
    function: Callable[[StreamingSession], Any]
    ref: Any


@dataclass
class _Call:
    function: Callable[[StreamingSession], Any]
    future: Future = field(default_factory=Future)


class Stream:
    """One stream of an engine, made by `Engine.open`. Use it from the event loop.

    Work is done in the order in which it was queued. What comes out is passed to `receive` on the event loop.

    Attributes:
        waiting (`int`): frames that were not given to the model yet.
        keep_ratio (`float`, *optional*): its own, from the next step on; see `Engine.keep_ratio_of`.
    """

    def __init__(self, engine: "Engine", receive: Callable[[Output], None], pooled: PooledStream):
        self.engine, self.receive, self.pooled = engine, receive, pooled
        self.waiting = 0
        self.keep_ratio: float | None = None
        self.closed = False
        self._work: deque[_Frame | _Ask | _Change | _Call] = deque()
        self._hush: list[Any] = []  # replies that are to end
        # below: of the engine's thread
        self._watching: deque[_Frame] = deque()  # frames in the pool
        self._asked: _Ask | None = None  # in the pool
        self._speaking = self._hushed = False
        self.failures = 0  # of steps, in a row
        self._read = read_tokens(pooled.session)
        self._usage = Usage(pooled.session)
        pooled.on_output = self._put

    def push(self, image: np.ndarray, time: float, ref: Any) -> list[tuple[Any, str]]:
        """Queue a frame, uint8 `[H, W, 3]`.

        Returns:
            The `ref` of each frame that was dropped to make room, and why: `"overload"` if too many frames of this
            stream wait, `"memory"` if those of all streams take too much memory. The oldest frames are dropped first.

        Raises:
            `Closed`.
        """
        dropped: list[tuple[Any, str]] = []
        engine, frame = self.engine, _Frame(image, time, ref)
        with engine.ready:
            self._check_open()
            self._work.append(frame)
            self.waiting += 1
            engine.waiting_bytes += image.nbytes
            while why := engine.too_much(self):
                oldest = next(work for work in self._work if isinstance(work, _Frame))
                self._work.remove(oldest)
                self._forget(oldest)
                dropped.append((oldest.ref, why))
            engine.ready.notify()
        return dropped

    def ask(self, question: str, ref: Any) -> None:
        """Queue a question; comes out as `Began`, pieces, and `Said`. Raises `Closed`, `Busy`."""
        self._queue(_Ask(question, ref))

    def change(self, function: Callable[[StreamingSession], Any], ref: Any) -> None:
        """Queue a function that changes the session, such as one that instructs it; comes out as `Changed`.

        Raises:
            `Closed`, `Busy`.
        """
        self._queue(_Change(function, ref))

    async def call(self, function: Callable[[StreamingSession], Any] = lambda session: None) -> Any:
        """Call `function(session)` in the engine's thread, after all work that was queued before; returns its result.
        Without a function it waits for that work.

        Raises:
            `Closed`: if the stream is closed before that. `Busy`.
        """
        self._queue(call := _Call(function))
        return await asyncio.wrap_future(call.future)

    def cancel(self, ref: Any) -> bool:
        """Withdraw the question `ref` if it still waits, or else hush its answer. None stands for the narration that
        is being generated.

        Returns:
            Whether the question was withdrawn.
        """
        with self.engine.ready:
            waiting = [work for work in self._work if isinstance(work, _Ask) and work.ref == ref]
            for work in waiting:
                self._work.remove(work)
            if not waiting:
                self._hush.append(ref)
            self.engine.ready.notify()
            return bool(waiting)

    async def fork(self, receive: Callable[[Output], None]) -> "Stream":
        """Another stream that continues from here, after all work that was queued before.

        Raises:
            as `Engine.open`, and `Closed`.
        """
        session = await self.call(lambda session: session.fork())
        stream = await self.engine.open(receive, lambda: session)
        stream.keep_ratio = self.keep_ratio
        return stream

    async def close(self) -> None:
        """Leave the pool. Work that waits is dropped, and a reply is cut short. All that came out before has been
        received when this returns."""
        await self.engine.call(lambda: self.engine.remove(self))

    def _queue(self, work: _Ask | _Change | _Call) -> None:
        with self.engine.ready:
            self._check_open()
            if len(self._work) - self.waiting >= MAX_REQUESTS:
                raise Busy(f"{MAX_REQUESTS} requests of this stream wait already")
            self._work.append(work)
            self.engine.ready.notify()

    def _check_open(self) -> None:
        if self.closed or self.engine.stopping:
            raise Closed("the stream is closed")

    def _forget(self, frame: _Frame) -> None:
        """Account for a frame that no longer waits; the engine is locked."""
        self.waiting -= 1
        self.engine.waiting_bytes -= frame.image.nbytes

    # The engine's thread calls these.

    def _put(self, output: str | WatchedFrame | StreamEvent) -> None:
        """Take what came out of the pool."""
        put, metrics = self.engine.put, self.engine.metrics
        if isinstance(output, str):
            time = self._watching[0].time if self._watching else self.pooled.session.time or 0.0
            self._speaking = True
            put(self, Piece(output, time))
            return
        hushed, self._speaking, self._hushed = self._hushed, False, False
        if isinstance(output, WatchedFrame):
            frame = self._watching.popleft()
            metrics.watched(monotonic() - frame.since)
            if output.event is not None:
                metrics.said("narration")
                put(self, Said(None, output.event, hushed, *self._counted()))
            put(self, Watched(frame.ref, output, self.engine.keep_ratio_of(self)))
        else:
            asked, self._asked = self._asked, None
            metrics.said("answer")
            put(self, Said(None if asked is None else asked.ref, output, hushed, *self._counted()))

    def _counted(self) -> tuple[bool, dict]:
        return self.pooled.session.reply.ended, self._usage.take()

    def begin(self) -> None:
        """Give the next piece of work to the pool, if it has none of this stream."""
        while not self.pooled.busy and self._work:
            with self.engine.ready:
                if not self._work:  # withdrawn just now
                    return
                work: Any = self._work.popleft()
                if isinstance(work, _Frame):
                    frames = [work]
                    self._forget(work)
                    while self._work and len(frames) < FRAMES_AT_ONCE and is_like(self._work[0], work):
                        frames.append(self._work.popleft())  # type: ignore[arg-type]
                        self._forget(frames[-1])
            try:
                if isinstance(work, _Frame):
                    images = work.image[None] if len(frames) == 1 else np.stack([frame.image for frame in frames])
                    self.pooled.push(images, [frame.time for frame in frames])
                    self._watching += frames
                elif isinstance(work, _Ask):
                    self.pooled.ask(work.text)
                    self._asked = work
                    self.engine.put(self, Began(work.ref))
                elif isinstance(work, _Change):
                    work.function(self.pooled.session)
                    self.engine.put(self, Changed(work.ref))
                else:
                    self.engine.resolve(work.future, partial(work.function, self.pooled.session))
            except Exception as error:
                for each in frames if isinstance(work, _Frame) else [work]:
                    self.engine.put(self, Failed(each.ref, str(error)))

    def take_hush(self) -> None:
        """Hush the reply that is to end."""
        if not self._hush:  # as nearly always: no lock is needed to see that
            return
        with self.engine.ready:
            refs, self._hush = self._hush, []
        asked = None if self._asked is None else self._asked.ref
        if asked in refs:  # otherwise that reply is complete already
            self._hushed = self.pooled.hush()

    def void(self, message: str) -> None:
        """The reply that is being generated has failed."""
        if self._speaking or self._asked is not None:
            self._speaking = self._hushed = False
            asked, self._asked = self._asked, None
            self.engine.put(self, Failed(None if asked is None else asked.ref, message))

    def abandon(self) -> None:
        """Drop what waits, and cut the reply short."""
        self._hushed = self.pooled.hush()
        with self.engine.ready:
            self.closed = True
            work = list(self._work)
            self._work.clear()
            for each in work:
                if isinstance(each, _Frame):
                    self._forget(each)
        for each in work:
            if isinstance(each, _Call):
                self.engine.resolve(each.future, self._check_open)

    def newly_read(self) -> int:
        """Tokens that the model has read since the last call."""
        before, self._read = self._read, read_tokens(self.pooled.session)
        return max(0, self._read - before)

    @property
    def has_work(self) -> bool:
        return bool(self._work) or self.pooled.busy


def is_like(work: Any, frame: _Frame) -> bool:
    """Whether `work` is a frame that can be stacked on this one."""
    return isinstance(work, _Frame) and work.image.shape == frame.image.shape


__all__ = ["Stream"]
