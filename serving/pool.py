"""Many streams on one model in one process: what their sessions want of it is done together, one forward a tick.

Every session of a pool is an ordinary `StreamingSession` with a cache of its own, and what it says is what it would
say alone. In a tick each session that has something to do gets one step: a block of frames as `push` would feed them,
or one token of what it says. On a GPU those that are of one shape, such as a frame of each, make one static step
(`static_step`); elsewhere the tokens of all lie in one row, in which each session attends to its own cache
(`PackedCache`). So the weights are read once for all.
"""

import os
from collections import deque
from pathlib import Path

from ..processing_videollm_mod import check_pair
from ..speaking import StreamEvent, WatchedFrame
from ..steps import Encode, Feed, Step, carry_out_together
from ..streaming import StreamingSession, check_text


class PooledStream:
    """One stream of a `StreamPool`, which makes it: what is pushed and asked here waits for the pool's ticks.

    What it holds at any time is counted in `session.stats`; `waiting` are the frames that were not watched yet.
    """

    def __init__(self, pool: "StreamPool", session: StreamingSession):
        self.pool, self.session = pool, session
        self._work = deque()  # ("frames", frames, times), ("instruct", text) or ("ask", question), in order
        self._doing = None  # the session's code, where it waits for a step
        self._step: Step | None = None
        self._said = ""  # of the answer being made
        self._events: list[StreamEvent] = []
        self._last_time = session.time  # of the last frame that was pushed

    @property
    def waiting(self) -> int:
        return sum(len(item[1]) for item in self._work if item[0] == "frames")

    @property
    def busy(self) -> bool:
        """Whether a tick would do something for this stream."""
        return bool(self._work)

    def push(self, frames, times: list[float] | None = None) -> None:
        """Frames to be watched after all that was pushed and asked before; as `StreamingSession.push`.

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
                work.append(("frames", block.clone(), its_times))  # the caller may go on to write into its array
        if work:
            self._work += work
            self._last_time = work[-1][2][-1]

    def ask(self, question: str) -> None:
        """A question after the frames pushed so far; its answer is an event of a later tick."""
        self._check_member()
        check_text("question", question)
        self._work.append(("ask", question))

    def instruct(self, text: str) -> None:
        """As `StreamingSession.instruct`, after the frames pushed so far."""
        self._check_member()
        check_text("text", text)
        self._work.append(("instruct", text))

    def save(self, path: str | os.PathLike) -> Path:
        """Write the session as it is after what came out of it so far; frames that wait are not part of it."""
        self._settle()
        return self.session.save(path)

    def fork(self) -> StreamingSession:
        """A session outside of the pool that goes on from what came out of this one so far."""
        self._settle()
        return self.session.fork()

    def _check_member(self) -> None:
        if self not in self.pool.streams:
            raise ValueError("this stream has left its pool")

    def _begin(self) -> None:
        """Start on the next piece of work."""
        kind, *arguments = self._work[0]
        if kind == "frames":
            self._doing = self.session.watching(*arguments)
        else:
            self._said = ""
            self.session.instruct(arguments[0])
            if kind == "ask":
                self._doing = self.session.answering()

    def _advance(self, until_boundary: bool = False) -> None:
        """Let the session's code go on to its next step, or to the end of the work at hand. With `until_boundary` stop
        where a frame or an answer is complete."""
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
                self._events.append(StreamEvent(self.session.time or 0.0, "answer", self._said, text))
            if until_boundary:
                return

    def _take(self, watched: WatchedFrame) -> None:
        """A frame that is part of the stream from now on."""
        kind, frames, times = self._work[0]
        self._work[0] = (kind, frames[1:], times[1:])
        if watched.event is not None:
            self._events.append(watched.event)

    def _abandon(self) -> None:
        """After a failure: frames that were not watched wait again, a question that failed is gone."""
        self._doing = self._step = None
        if self._work and self._work[0][0] != "frames":
            self._work.popleft()

    def _settle(self) -> None:
        """Bring the frame or answer at hand to its end, alone, and leave the session between two frames."""
        while self._step is not None:
            step, self._step = self._step, None
            if isinstance(step, Encode):
                break  # nothing was begun
            carry_out_together([step])
            self._advance(until_boundary=True)
        self._step = None
        if self._doing is not None:
            self._doing.close()  # takes back what was fed ahead
            self._doing = None


class StreamPool:
    """
    Sessions on one model whose steps are done together. It belongs to one thread.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`), processor (`VideoLLMMoDProcessor`).
        max_cached_bytes (`int`, *optional*): what the caches of all streams may take together. A stream is then let in
            only if it is bounded and the most that it may ever hold fits beside what the others may.
        max_waiting_frames (`int`): frames of one stream that may wait.

    Raises:
        `ValueError`: for an argument out of range, or a processor that is not the model's.
    """

    def __init__(self, model, processor, max_cached_bytes: int | None = None, max_waiting_frames: int = 256):
        for name, value in (("max_cached_bytes", max_cached_bytes), ("max_waiting_frames", max_waiting_frames)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}")
        check_pair(model, processor)
        self.model, self.processor = model, processor
        self.max_cached_bytes, self.max_waiting_frames = max_cached_bytes, max_waiting_frames
        self.streams: list[PooledStream] = []
        self._said: list[tuple[PooledStream, StreamEvent]] = []  # where a tick failed, by the streams that did not

    @property
    def free_bytes(self) -> int | None:
        """Bytes that no stream may claim; None where the pool has no cap."""
        if self.max_cached_bytes is None:
            return None
        return self.max_cached_bytes - sum(stream.session.most_bytes for stream in self.streams)

    @property
    def _keep_ratios(self) -> set[float]:
        return {stream.session.keep_ratio or self.model.keep_ratio for stream in self.streams}

    def join(self, session: StreamingSession | None = None, **options) -> PooledStream:
        """Let a stream in, at any time: a session of this model that exists already, such as a restored one, or a new
        one with the options of `StreamingSession`. From now on it is used through what is returned.

        Raises:
            `ValueError`: for a session of another model, one that is in the pool already, one that keeps another share
                of vision tokens than the others, or one without bounds where the pool has a cap.
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
        ratio, ratios = session.keep_ratio or self.model.keep_ratio, self._keep_ratios
        if ratios - {ratio}:
            raise ValueError(f"`keep_ratio` must be {ratios.pop()} as for the streams in the pool, got {ratio}")
        if self.max_cached_bytes is not None:
            if session.most_bytes is None:
                raise ValueError(
                    "`max_cached_bytes` or `max_cached_frames` must be given for a stream of a pool with a cap"
                )
            if session.most_bytes > self.free_bytes:
                raise RuntimeError(
                    f"there is no room for another stream: it may hold {session.most_bytes} bytes, and "
                    f"{self.free_bytes} of {self.max_cached_bytes} are free beside {len(self.streams)} streams"
                )
        session.break_off()
        stream = PooledStream(self, session)
        self.streams.append(stream)
        return stream

    def leave(self, stream: PooledStream) -> StreamingSession:
        """Take a stream out, at any time. Its session goes on alone from what came out of it so far, with what it said
        since the last tick in the next one; frames that wait are dropped.

        Raises:
            `ValueError`: if it is not in the pool.
        """
        stream._check_member()
        stream._settle()
        self._said += [(stream, event) for event in stream._events]
        self.streams.remove(stream)
        stream._work.clear()
        return stream.session

    def tick(self) -> list[tuple[PooledStream, StreamEvent]]:
        """One step for every stream that has something to do.

        Returns:
            What was said, each with its stream; of one stream in order.

        Raises:
            what went wrong in a step: the streams that it befell are at their last frame and what they watch waits
            again; what others said comes with the next tick.
            `ValueError`: if streams keep different shares of vision tokens, since the model's was changed.
        """
        if len(ratios := self._keep_ratios) > 1:
            raise ValueError(
                f"the streams of a pool must keep one share of vision tokens, got {sorted(ratios)}: the model's "
                "`keep_ratio` was changed, but some streams have one of their own"
            )
        errors = []
        self._advance([stream for stream in self.streams if stream._step is None], errors)
        for kind in (Encode, Feed):
            chosen = [stream for stream in self.streams if isinstance(stream._step, kind)]
            if chosen:
                carry_out_together([stream._step for stream in chosen])
                self._advance(chosen, errors)
        for stream in self.streams:
            self._said += [(stream, event) for event in stream._events]
            stream._events = []
        if errors:
            raise errors[0]
        said, self._said = self._said, []
        return said

    def run(self) -> list[tuple[PooledStream, StreamEvent]]:
        """Tick until nothing waits; all that was said."""
        said = []
        while any(stream.busy for stream in self.streams):
            said += self.tick()
        return said + self.tick()

    @staticmethod
    def _advance(streams: list[PooledStream], errors: list[BaseException]) -> None:
        for stream in streams:
            stream._step = None
            try:
                stream._advance()
            except BaseException as error:  # an interrupt too befell all of them
                errors.append(error)


__all__ = ["PooledStream", "StreamPool"]
