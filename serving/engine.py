"""One model with the pool of its streams, in a thread of their own: asyncio code queues work, and receives what comes
out.

The event loop only appends to queues. The thread takes what waits in all streams, ticks the pool once for all of them,
and hands what came out to the event loop in one call.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any

import numpy as np

from ..containers import check_count
from ..speaking import StreamEvent, WatchedFrame
from ..streaming import FRAMES_AT_ONCE, StreamingSession
from .load import KeepRatioControl
from .metrics import Metrics
from .pool import PooledStream, StreamPool

logger = logging.getLogger(__name__)

MAX_WAITING_BYTES = 2**30  # of decoded frames of all streams


class Closed(Exception):
    """The stream, or the engine, was closed before it came to this."""


# What comes out of a stream. `ref` is what the caller named the work with.


@dataclass(frozen=True)
class Watched:
    """A frame was watched. `event` of the frame holds what was said about it."""

    ref: Any
    frame: WatchedFrame
    keep_ratio: float


@dataclass(frozen=True)
class Began:
    """The model begins to answer a question."""

    ref: Any


@dataclass(frozen=True)
class Piece:
    """A piece of the text of an answer or narration, and the time of the frame before it."""

    text: str
    time: float


@dataclass(frozen=True)
class Said:
    """A narration (`ref` is None) or an answer is complete, or was hushed."""

    ref: Any
    event: StreamEvent
    hushed: bool


@dataclass(frozen=True)
class Instructed:
    """An instruction is part of the stream."""

    ref: Any


@dataclass(frozen=True)
class Failed:
    """Work failed. A reply that was being generated is void. `fatal`: the stream is closed."""

    ref: Any
    message: str
    fatal: bool = False


Output = Watched | Began | Piece | Said | Instructed | Failed


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
class _Instruct:
    text: str
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
    """

    def __init__(self, engine: "Engine", receive: Callable[[Output], None], pooled: PooledStream):
        self.engine, self.receive, self.pooled = engine, receive, pooled
        self.waiting = 0
        self.closed = False
        self._work: deque[_Frame | _Ask | _Instruct | _Call] = deque()
        self._hush = False  # the reply is to end
        # below: of the engine's thread
        self._watching: deque[_Frame] = deque()  # frames in the pool
        self._asked: _Ask | None = None  # in the pool
        self._speaking = self._hushed = False
        self._tokens = 0
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
        """Queue a question; comes out as `Began`, pieces, and `Said`. Raises `Closed`."""
        self._queue(_Ask(question, ref))

    def instruct(self, text: str, ref: Any) -> None:
        """Queue an instruction; comes out as `Instructed`. Raises `Closed`."""
        self._queue(_Instruct(text, ref))

    async def call(self, function: Callable[[StreamingSession], Any] = lambda session: None) -> Any:
        """Call `function(session)` in the engine's thread, after all work that was queued before; returns its result.
        Without a function it waits for that work.

        Raises:
            `Closed`: if the stream is closed before that.
        """
        self._queue(call := _Call(function))
        return await asyncio.wrap_future(call.future)

    def cancel(self, ref: Any = None) -> bool:
        """Withdraw the question `ref`, if it still waits. Otherwise hush whatever reply is being generated.

        Returns:
            Whether the question was withdrawn.
        """
        with self.engine.ready:
            waiting = [work for work in self._work if isinstance(work, _Ask) and work.ref == ref]
            for work in waiting:
                self._work.remove(work)
            self._hush = self._hush or not waiting
            self.engine.ready.notify()
            return bool(waiting)

    async def fork(self, receive: Callable[[Output], None]) -> "Stream":
        """Another stream that continues from here, after all work that was queued before.

        Raises:
            as `Engine.open`, and `Closed`.
        """
        session = await self.call(lambda session: session.fork())
        return await self.engine.open(receive, lambda: session)

    async def close(self, finish: Callable[[StreamingSession], Any] | None = None) -> None:
        """Leave the pool. Work that waits is dropped, and a reply is cut short.

        Args:
            finish (`Callable`, *optional*): is called with the session in the engine's thread, such as to save it.
        """
        await self.engine.call(lambda: self.engine.remove(self, finish))

    def _queue(self, work: _Ask | _Instruct | _Call) -> None:
        with self.engine.ready:
            self._check_open()
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
                put(self, Said(None, output.event, hushed))
            put(self, Watched(frame.ref, output, self.engine.keep_ratio))
        else:
            asked, self._asked = self._asked, None
            metrics.said("answer")
            put(self, Said(None if asked is None else asked.ref, output, hushed))

    def _begin(self) -> None:
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
                    self.pooled.push(np.stack([frame.image for frame in frames]), [frame.time for frame in frames])
                    self._watching += frames
                elif isinstance(work, _Ask):
                    self.pooled.ask(work.text)
                    self._asked = work
                    self.engine.put(self, Began(work.ref))
                elif isinstance(work, _Instruct):
                    self.pooled.session.instruct(work.text)
                    self.engine.put(self, Instructed(work.ref))
                else:
                    self.engine.resolve(work.future, partial(work.function, self.pooled.session))
            except Exception as error:
                for each in frames if isinstance(work, _Frame) else [work]:
                    self.engine.put(self, Failed(each.ref, str(error)))

    def _take_hush(self) -> None:
        with self.engine.ready:
            hush, self._hush = self._hush, False
        if hush:
            self._hushed = self.pooled.hush()

    @property
    def has_work(self) -> bool:
        return bool(self._work) or self.pooled.busy


def is_like(work: Any, frame: _Frame) -> bool:
    """Whether `work` is a frame that can be stacked on this one."""
    return isinstance(work, _Frame) and work.image.shape == frame.image.shape


class Engine:
    """
    A model and the pool of its streams, in one thread. All methods are for the event loop that called `start`.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`), processor (`VideoLLMMoDProcessor`).
        metrics (`Metrics`).
        keep_ratio_range (`tuple[float, float]`, *optional*): within which the keep ratio follows the load; if omitted
            it stays.
        max_cached_bytes (`int`, *optional*): of the caches of all streams.
        max_waiting_frames (`int`): of one stream, before its oldest ones are dropped. With a range, twice as many may
            wait until the ratio is at its lowest.
        max_waiting_bytes (`int`): of decoded frames of all streams.

    Raises:
        `ValueError`: for an argument out of range.
    """

    def __init__(
        self,
        model,
        processor,
        metrics: Metrics | None = None,
        keep_ratio_range: tuple[float, float] | None = None,
        max_cached_bytes: int | None = None,
        max_waiting_frames: int = 16,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ):
        check_count("`max_waiting_frames`", max_waiting_frames)
        check_count("`max_waiting_bytes`", max_waiting_bytes)
        self.model, self.processor = model, processor
        self.metrics = Metrics() if metrics is None else metrics
        low, high = keep_ratio_range or (model.keep_ratio, model.keep_ratio)
        self.control = KeepRatioControl(low, high, model.config.num_frame_tokens)
        self.max_waiting_frames, self.max_waiting_bytes = max_waiting_frames, max_waiting_bytes
        self.pool = StreamPool(model, processor, max_cached_bytes, max_waiting_frames=max(256, FRAMES_AT_ONCE))
        self.ready = threading.Condition()  # guards the queues, `streams` and what is counted
        self.streams: list[Stream] = []
        self.waiting_bytes = 0
        self.stopping = False
        self._calls: deque[tuple[Callable[[], Any], Future]] = deque()
        self._out: list[tuple[Stream, Output]] = []
        self._own_ratio = model.keep_ratio
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="videollm-mod engine", daemon=True)

    def start(self) -> None:
        """Start the thread; what comes out is received on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """End the thread. Streams that are still open are closed, without a word to them."""
        with self.ready:
            self.stopping = True
            self.ready.notify()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    async def open(self, receive: Callable[[Output], None], make: Callable[[], StreamingSession]) -> Stream:
        """Add a stream.

        Args:
            receive (`Callable`): is called on the event loop with all that comes out.
            make (`Callable`): returns the session, such as a new or a restored one; it runs in the engine's thread.

        Raises:
            `ValueError`, `OSError`: from `make`.
            `RuntimeError`: if the session does not fit beside the others.
            `Closed`: if the engine is stopping.
        """

        def join() -> Stream:
            session = make()
            session.keep_ratio = None  # a restored session has one; all streams of a pool have the model's
            stream = Stream(self, receive, self.pool.join(session))
            stream._tokens = read_tokens(session)
            with self.ready:
                self.streams.append(stream)
            return stream

        return await self.call(join)

    async def call(self, function: Callable[[], Any]) -> Any:
        """Call a function in the engine's thread, between two ticks; returns its result. Raises `Closed`."""
        future: Future = Future()
        with self.ready:
            if self.stopping:
                raise Closed("the engine is stopping")
            self._calls.append((function, future))
            self.ready.notify()
        return await asyncio.wrap_future(future)

    async def settle(self) -> None:
        """Wait until no stream has work left."""
        await asyncio.gather(*(stream.call() for stream in list(self.streams)), return_exceptions=True)

    @property
    def keep_ratio(self) -> float:
        return self.model.keep_ratio

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def too_much(self, stream: Stream) -> str | None:
        """Why a waiting frame of this stream has to be dropped, if so; the engine is locked."""
        if stream.waiting > self.max_waiting_frames * (1 if self.control.at_lowest else 2):
            return "overload"
        return "memory" if stream.waiting and self.waiting_bytes > self.max_waiting_bytes else None

    # The rest runs in the engine's thread.

    def put(self, stream: Stream, output: Output) -> None:
        self._out.append((stream, output))

    def resolve(self, future: Future, function: Callable[[], Any]) -> None:
        """Call a function for a future, after all that came out before has been handed out."""
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = function()
        except Exception as error:
            self._hand_out()
            future.set_exception(error)
        else:
            self._hand_out()
            future.set_result(result)

    def remove(self, stream: Stream, finish: Callable[[StreamingSession], Any] | None = None) -> None:
        """Take a stream out of the pool; see `Stream.close`."""
        if stream.closed:
            return
        stream._hushed = stream.pooled.hush()
        self._drop_work(stream)
        session = self.pool.leave(stream.pooled)
        if finish is not None:
            finish(session)

    def _drop_work(self, stream: Stream) -> None:
        with self.ready:
            stream.closed = True
            work = list(stream._work)
            stream._work.clear()
            self.streams.remove(stream)
            for each in work:
                if isinstance(each, _Frame):
                    stream._forget(each)
        for each in work:
            if isinstance(each, _Call):
                self.resolve(each.future, raise_closed)

    def _run(self) -> None:
        while True:
            with self.ready:
                if not self._has_work():
                    self._follow_load(idle=True)
                    self.ready.wait_for(self._has_work)
                if self.stopping:
                    break
                calls = list(self._calls)
                self._calls.clear()
            for function, future in calls:
                self.resolve(future, function)
            self._follow_load()
            for stream in list(self.streams):
                stream._take_hush()
                stream._begin()
            if any(stream.pooled.busy for stream in self.streams):
                self._tick()
            self._hand_out()
        self._end()

    def _has_work(self) -> bool:
        return self.stopping or bool(self._calls) or any(stream.has_work for stream in self.streams)

    def _follow_load(self, idle: bool = False) -> None:
        with self.ready:
            most = max((stream.waiting for stream in self.streams), default=0)
            ratio = self.control.update(most, idle)
        if ratio != self.model.keep_ratio:
            self.model.keep_ratio = ratio

    def _tick(self) -> None:
        try:
            self.pool.tick()
        except Exception as error:
            failed = [stream for stream in self.streams if stream.pooled.error is not None]
            for stream in failed or list(self.streams):
                self._recover(stream, stream.pooled.error or error)
        for stream in self.streams:
            read = read_tokens(stream.pooled.session)
            self.metrics.read(max(0, read - stream._tokens))
            stream._tokens = read

    def _recover(self, stream: Stream, error: BaseException) -> None:
        """Say what failed. Frames are tried once more, without the streams that may have made them fail."""
        if stream._speaking or stream._asked is not None:
            stream._speaking = stream._hushed = False
            asked, stream._asked = stream._asked, None
            self.put(stream, Failed(None if asked is None else asked.ref, str(error)))
        if not stream.pooled.busy:
            return
        try:
            self.pool.tick([stream.pooled])
        except Exception as again:
            logger.exception("a stream failed twice and is closed")
            self.put(stream, Failed(None, str(again) or repr(again), fatal=True))
            self._drop_work(stream)
            self.pool.leave(stream.pooled)

    def _hand_out(self) -> None:
        out, self._out = self._out, []
        if out and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(deliver, out)

    def _end(self) -> None:
        for stream in list(self.streams):
            self.remove(stream)
        with self.ready:
            calls = list(self._calls)
            self._calls.clear()
        for _, future in calls:
            self.resolve(future, raise_closed)
        self._hand_out()
        self.model.keep_ratio = self._own_ratio


def read_tokens(session: StreamingSession) -> int:
    """Tokens that the model has read in a session."""
    state = session.state
    return state.cache.get_seq_length() + (0 if state.memory is None else state.memory.forgotten)


def raise_closed() -> None:
    raise Closed("the stream is closed")


def deliver(out: list[tuple[Stream, Output]]) -> None:
    for stream, output in out:
        try:
            stream.receive(output)
        except Exception:  # one stream's receiver must not keep the others from theirs
            logger.exception("a receiver failed")


__all__ = ["Began", "Closed", "Engine", "Failed", "Instructed", "Output", "Piece", "Said", "Stream", "Watched"]
