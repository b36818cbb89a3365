"""Many streams on one model in one process: a tick runs one step of every session in a single forward.

Every session of a pool is an ordinary `StreamingSession` with its own cache, and says the same as it would say alone.
In a tick each session that has work gets one step: a block of frames as `push` would feed them, or one token of a
reply. On a GPU the steps of one shape, such as a frame of each stream, become one static step (`static_step`);
elsewhere the tokens of all streams form one row, in which each stream attends to its own cache (`PackedCache`). So the
weights are read once for all streams, also where they keep different shares of their vision tokens.
"""

import os
from collections import deque
from collections.abc import Callable, Collection, Generator
from pathlib import Path

from ..containers import check_count
from ..conversation import check_text
from ..processing_videollm_mod import check_pair
from ..speaking import StreamEvent, WatchedFrame
from ..steps import Encode, Feed, Step, run_together
from ..streaming import StreamingSession


class PooledStream:
    """One stream of a `StreamPool`, made by `StreamPool.join`: its frames and questions wait for the pool's ticks.

    `session.stats` counts what was watched so far, `waiting` the frames that were not.

    Attributes:
        on_output (`Callable`, *optional*): is called with everything that comes out of the stream, in order and at
            once, by whoever makes it come out: a piece of a reply (`str`), a `WatchedFrame` (after the pieces of its
            narration), or the `StreamEvent` of an answer. A reply that fails midway is begun anew, with all its
            pieces.
        error (`BaseException`, *optional*): with which the stream failed in the last tick.
    """

    def __init__(self, pool: "StreamPool", session: StreamingSession):
        self.pool, self.session = pool, session
        # ("frames", frames, times), ("instruct", text) or ("ask", question), in order
        self._work: deque[tuple] = deque()
        self._doing: Generator[Step | str | WatchedFrame] | None = None  # of the session, while it waits for a step
        self._step: Step | None = None
        self._said = ""  # of the answer being made
        self._events: list[StreamEvent] = []
        self._last_time = session.time  # of the last frame that was pushed
        self.on_output: Callable[[str | WatchedFrame | StreamEvent], None] | None = None
        self.error: BaseException | None = None

    @property
    def waiting(self) -> int:
        return sum(len(item[1]) for item in self._work if item[0] == "frames")

    @property
    def busy(self) -> bool:
        """Whether the stream has work for a tick."""
        return bool(self._work)

    def push(self, frames, times: list[float] | None = None) -> None:
        """Queue frames after everything that was pushed and asked before; as `StreamingSession.push`.

        Raises:
            `ValueError`: as there.
            `RuntimeError`: if more than the pool's `max_waiting_frames` would wait.
        """
        self._check_member()
        free, count, work = self.pool.max_waiting_frames - self.waiting, 0, []
        for block, its_times in self.session.blocks(frames, times, self._last_time):
            count += len(block)
            if count > free:
                raise RuntimeError(
                    f"{count} frames do not fit: {free} of {self.pool.max_waiting_frames} frames may still wait; "
                    "call `tick` before pushing more"
                )
            if len(block):
                work.append(("frames", block.clone(), its_times))  # the caller may reuse its array
        if work:
            self._work += work
            self._last_time = work[-1][2][-1]

    def ask(self, question: str) -> None:
        """Queue a question after the frames pushed so far; its answer is an event of a later tick."""
        self._check_member()
        check_text("`question`", question)
        self._work.append(("ask", question))

    def instruct(self, text: str) -> None:
        """As `StreamingSession.instruct`, after the frames pushed so far."""
        self._check_member()
        check_text("`text`", text)
        self._work.append(("instruct", text))

    def hush(self) -> bool:
        """As `StreamingSession.hush`: the reply ends in the next tick."""
        return self.session.hush()

    def save(self, path: str | os.PathLike) -> Path:
        """Save the session after the events that came out of it so far; waiting frames are not saved."""
        self._settle()
        return self.session.save(path)

    def settle(self) -> list[StreamEvent]:
        """Complete the current frame or answer without the pool, so that the session is between two frames, as for
        `SavedSession.save`.

        Returns:
            The events since the last tick. The next tick does not return them again.
        """
        self._settle()
        events = [event for stream, event in self.pool._said if stream is self] + self._events
        self.pool._said = [(stream, event) for stream, event in self.pool._said if stream is not self]
        self._events = []
        return events

    def fork(self) -> StreamingSession:
        """A session outside of the pool that continues after the events that came out of this one so far."""
        self._settle()
        return self.session.fork()

    def _check_member(self) -> None:
        if self not in self.pool.streams:
            raise ValueError("this stream has left its pool")

    def _begin(self) -> None:
        """Start on the next piece of work."""
        kind, *arguments = self._work[0]
        if kind == "frames":
            self._doing = self.session.watching((arguments[0], arguments[1]))
        else:
            self._said = ""
            if kind == "ask":
                self.session.add_question(arguments[0])
                self._doing = self.session.answering()
            else:
                self.session.instruct(arguments[0])

    def _advance(self, until_boundary: bool = False) -> None:
        """Run the generator of the session up to its next step, or to the end of the queued work. With
        `until_boundary` stop when a frame or an answer is complete."""
        while self._work:
            try:
                if self._doing is None:
                    self._begin()
                for item in self._doing or ():
                    if isinstance(item, Step):
                        self._step = item
                        return
                    if isinstance(item, str):
                        self._said += item
                        self._put(item)
                        continue
                    self._take(item)
                    if until_boundary:
                        return
            except BaseException:
                self._abandon()
                raise
            kind, text, *_ = self._work.popleft()
            self._doing = None
            if kind == "ask":
                event = StreamEvent(self.session.time or 0.0, "answer", self._said, text)
                self._events.append(event)
                self._put(event)
            if until_boundary:
                return

    def _take(self, watched: WatchedFrame) -> None:
        """Account for a frame that is part of the stream from now on."""
        kind, frames, times = self._work[0]
        self._work[0] = (kind, frames[1:], times[1:])
        if watched.event is not None:
            self._events.append(watched.event)
        self._put(watched)

    def _put(self, output: str | WatchedFrame | StreamEvent) -> None:
        if self.on_output is not None:
            self.on_output(output)

    def _abandon(self) -> None:
        """After a failure, keep the frames that were not watched, and drop a question that failed."""
        self._doing = self._step = None
        if self._work and self._work[0][0] != "frames":
            self._work.popleft()

    def _settle(self) -> None:
        """Complete the current frame or answer without the pool, so that the session is between two frames."""
        while self._step is not None:
            step, self._step = self._step, None
            if isinstance(step, Encode):
                break  # no frame was begun
            run_together([step])
            self._advance(until_boundary=True)
        self._step = None
        if self._doing is not None:
            self._doing.close()  # rolls back frames that were fed ahead
            self._doing = None


class StreamPool:
    """
    Sessions on one model whose steps run together. Use it from one thread.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`), processor (`VideoLLMMoDProcessor`).
        max_cached_bytes (`int`, *optional*): limit of all caches together. Then a stream can join only if its session
            is bounded, and its largest size fits beside the largest sizes of the others.
        max_waiting_frames (`int`): how many frames of one stream may wait.

    Raises:
        `ValueError`: for an argument out of range, or the processor of another model.
    """

    def __init__(self, model, processor, max_cached_bytes: int | None = None, max_waiting_frames: int = 256):
        for name, value in (("max_cached_bytes", max_cached_bytes), ("max_waiting_frames", max_waiting_frames)):
            if value is not None:
                check_count(f"`{name}`", value)
        check_pair(model, processor)
        self.model, self.processor = model, processor
        self.max_cached_bytes, self.max_waiting_frames = max_cached_bytes, max_waiting_frames
        self.streams: list[PooledStream] = []
        self._said: list[tuple[PooledStream, StreamEvent]] = []  # events for the next tick, if one has failed

    @property
    def free_bytes(self) -> int | None:
        """Bytes that are left for other streams; None if the pool has no limit."""
        if self.max_cached_bytes is None:
            return None
        # `join` takes only sessions with bounds
        return self.max_cached_bytes - sum(stream.session.max_kv_bytes or 0 for stream in self.streams)

    def join(self, session: StreamingSession | None = None, **options) -> PooledStream:
        """Add a stream, at any time: an existing session of this model, such as a restored one, or a new one with the
        options of `StreamingSession`. From now on use it through the returned stream.

        Raises:
            `ValueError`: for a session of another model, one that is in the pool already, or one without bounds if the
                pool has a limit.
            `RuntimeError`: if it does not fit into the memory that is left.
        """
        if session is None:
            session = StreamingSession(self.model, self.processor, **options)
        elif options:
            raise ValueError(f"options are those of a new session, got a session and {', '.join(options)}")
        if session.model is not self.model:
            raise ValueError("`session` must be of the pool's model")
        if any(stream.session is session for stream in self.streams):
            raise ValueError("`session` is in the pool already")
        free = self.free_bytes
        if free is not None:
            if session.max_kv_bytes is None:
                raise ValueError(
                    "`max_cached_bytes` or `max_cached_frames` must be given for a stream of a pool with a cap"
                )
            if session.max_kv_bytes > free:
                raise RuntimeError(
                    f"there is no room for another stream: it may hold {session.max_kv_bytes} bytes, and "
                    f"{free} of {self.max_cached_bytes} are free beside {len(self.streams)} streams"
                )
        session.break_off()
        stream = PooledStream(self, session)
        self.streams.append(stream)
        return stream

    def leave(self, stream: PooledStream) -> StreamingSession:
        """Remove a stream, at any time. Its session continues alone after the events that came out of it so far.
        Events since the last tick come with the next one, and waiting frames are dropped.

        Raises:
            `ValueError`: if it is not in the pool.
        """
        stream._check_member()
        stream._settle()
        self._said += [(stream, event) for event in stream._events]
        self.streams.remove(stream)
        stream._work.clear()
        return stream.session

    def tick(self, only: Collection[PooledStream] | None = None) -> list[tuple[PooledStream, StreamEvent]]:
        """Run one step of every stream that has work.

        Args:
            only (`Collection[PooledStream]`, *optional*): the streams that may run: all of them if omitted.

        Returns:
            The events, each with its stream; those of one stream are in order.

        Raises:
            the error of a step: its streams are at their last frame, and their other frames wait again. `error` of
            each of them is set. The events of the other streams come with the next tick.
        """
        members = [stream for stream in self.streams if only is None or stream in only]
        for stream in members:
            stream.error = None
        self._advance([stream for stream in members if stream._step is None])
        for kind in (Encode, Feed):
            chosen = {stream: stream._step for stream in members if isinstance(stream._step, kind)}
            if chosen:
                run_together(list(chosen.values()))
                self._advance(list(chosen))
        for stream in self.streams:
            self._said += [(stream, event) for event in stream._events]
            stream._events = []
        for stream in members:
            if stream.error is not None:
                raise stream.error
        said, self._said = self._said, []
        return said

    def run(self) -> list[tuple[PooledStream, StreamEvent]]:
        """Tick until no work is left; returns all events."""
        said = []
        while any(stream.busy for stream in self.streams):
            said += self.tick()
        return said + self.tick()

    @staticmethod
    def _advance(streams: list[PooledStream]) -> None:
        for stream in streams:
            stream._step = None
            try:
                stream._advance()
            except BaseException as error:  # an interrupt fails all of them
                stream.error = error


__all__ = ["PooledStream", "StreamPool"]
