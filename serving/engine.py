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
from contextlib import suppress
from typing import Any

import torch

from ..containers import check_count
from ..streaming import FRAMES_AT_ONCE, StreamingSession
from .load import KeepRatioControl
from .metrics import Metrics
from .outputs import Closed, Failed, Output
from .pool import StreamPool
from .stream import Stream

logger = logging.getLogger(__name__)

APART = 64  # ticks in which streams run one by one, after a tick of all has failed
MAX_WAITING_BYTES = 2**30  # of decoded frames of all streams


class Engine:
    """
    A model and the pool of its streams, in one thread. All methods are for the event loop that called `start`.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`), processor (`VideoLLMMoDProcessor`).
        metrics (`Metrics`).
        keep_ratio_range (`tuple[float, float]`, *optional*): within which the keep ratio follows the load; if omitted
            it stays. A stream may have one of its own, see `keep_ratio_of`.
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
        self._apart = 0
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
            session.keep_ratio = None  # which a restored session has; `Stream.keep_ratio` is what its client chose
            stream = Stream(self, receive, self.pool.join(session))
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
        """Wait until all work that was queued so far is done."""
        await asyncio.gather(*(stream.call() for stream in list(self.streams)), return_exceptions=True)

    async def cache_bytes(self) -> int:
        """Size of the caches of all streams. Raises `Closed`."""
        return await self.call(lambda: sum(stream.pooled.session.cache.num_bytes for stream in self.streams))

    @property
    def keep_ratio(self) -> float:
        """Of the streams without one of their own."""
        return self.model.keep_ratio

    def keep_ratio_of(self, stream: Stream) -> float:
        """A stream's own keep ratio, but under load not more than that of the others."""
        own, ratio = stream.keep_ratio, self.model.keep_ratio
        if own is None:
            return ratio
        return own if self.control.at_highest else min(own, ratio)

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

    def remove(self, stream: Stream) -> None:
        """Take a stream out of the pool; see `Stream.close`."""
        if stream.closed:
            return
        with self.ready:
            self.streams.remove(stream)
        stream.abandon()
        self.pool.leave(stream.pooled)

    def _run(self) -> None:
        try:
            if self.model.device.type == "cuda":
                torch.cuda.set_device(self.model.device)  # of this thread
            self._serve()
        except BaseException as error:
            logger.exception("the engine has failed")
            for stream in self.streams:
                self.put(stream, Failed(None, f"the server has failed: {error!r}", fatal=True))
        finally:
            with self.ready:
                self.stopping = True
            self._end()

    def _serve(self) -> None:
        """Work until the engine is stopped."""
        while True:
            with self.ready:
                if not self._has_work():
                    self._follow_load(idle=True)
                    self.ready.wait_for(self._has_work)
                if self.stopping:
                    return
                calls = list(self._calls)
                self._calls.clear()
            for function, future in calls:
                self.resolve(future, function)
            self._follow_load()
            for stream in list(self.streams):
                stream.take_hush()
                stream.begin()
            if any(stream.pooled.busy for stream in self.streams):
                self._tick()
            self._hand_out()

    def _has_work(self) -> bool:
        return self.stopping or bool(self._calls) or any(stream.has_work for stream in self.streams)

    def _follow_load(self, idle: bool = False) -> None:
        with self.ready:
            most = max((stream.waiting for stream in self.streams), default=0)
            ratio = self.control.update(most, idle)
        if ratio != self.model.keep_ratio:
            self.model.keep_ratio = ratio
        for stream in self.streams:
            stream.pooled.session.keep_ratio = None if stream.keep_ratio is None else self.keep_ratio_of(stream)

    def _tick(self) -> None:
        if self._apart:
            self._apart -= 1
            for stream in list(self.streams):
                if stream.pooled.busy:
                    self._tick_alone(stream)
        else:
            try:
                self.pool.tick()
            except Exception as error:  # which may be the fault of one stream
                self._apart = APART
                for stream in self.streams:
                    if stream.pooled.error is not None:
                        stream.void(str(error) or repr(error))
        self.metrics.read(sum(stream.newly_read() for stream in self.streams))

    def _tick_alone(self, stream: Stream) -> None:
        """Run a step of one stream. It is closed if it fails twice in a row."""
        try:
            self.pool.tick([stream.pooled])
            stream.failures = 0
        except Exception as error:
            stream.failures += 1
            stream.void(str(error) or repr(error))
            if stream.failures >= 2:
                logger.exception("a stream failed twice and is closed")
                self.put(stream, Failed(None, str(error) or repr(error), fatal=True))
                self.remove(stream)

    def _hand_out(self) -> None:
        out, self._out = self._out, []
        if out and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(deliver, out)

    def _end(self) -> None:
        for stream in list(self.streams):
            with suppress(Exception):  # if the engine has failed, so may this
                self.remove(stream)
        with self.ready:
            calls = list(self._calls)
            self._calls.clear()
        for _, future in calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(Closed("the engine has stopped"))
        self._hand_out()
        self.model.keep_ratio = self._own_ratio


def deliver(out: list[tuple[Stream, Output]]) -> None:
    for stream, output in out:
        try:
            stream.receive(output)
        except Exception:  # one stream's receiver must not keep the others from theirs
            logger.exception("a receiver failed")


__all__ = ["Engine"]
