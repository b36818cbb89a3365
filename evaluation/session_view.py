"""A checkpoint of this package under the protocols of benchmarks, each question in a session."""

from collections.abc import Iterator

from ..data.frames import iter_frames
from ..memory import frames_in_context
from ..streaming import StreamingSession
from .benchmark_views import Cost

NEVER, ALWAYS = 0.0, float("inf")  # thresholds that P(silence) never and always stays below


class SessionModel:
    """
    Args:
        model, processor: as `load_checkpoint` gives them.
        threshold, keep_ratio (`float`, *optional*): of sessions; the checkpoint's own if omitted.
    """

    speaks = True
    decoding = {"greedy": True}

    def __init__(self, model, processor, threshold: float | None, keep_ratio: float | None):
        self.model, self.processor, self.keep_ratio = model, processor, keep_ratio
        self.threshold = StreamingSession(model, processor, speak_threshold=threshold).speak_threshold
        self.fps = processor.video_processor.fps
        self.most_frames = frames_in_context(model.config)  # to remember, the default of `narrate`
        self.routes = model.config.text_config.vision_routing == "mod" and keep_ratio != 1

    def view(self, video: str, max_new_tokens: int, dense: bool = False) -> "SessionView":
        options = {"max_new_tokens": max_new_tokens, "keep_ratio": 1.0 if dense else self.keep_ratio}
        return SessionView(self, video, options)


class SessionView:
    """Polls of a stream that grows share a session: what is asked in a fork of it equals what is asked anew."""

    def __init__(self, of: SessionModel, video: str, options: dict):
        self.of, self.video, self.options, self.cost = of, video, options, Cost()
        self._session, self._seen = self._new(None), range(0)

    def _new(self, max_cached_frames: int | None, threshold: float = NEVER) -> StreamingSession:
        options = {**self.options, "max_cached_frames": max_cached_frames, "speak_threshold": threshold}
        return StreamingSession(self.of.model, self.of.processor, **options)

    def _bound(self, frames: range) -> int | None:
        """How many frames to remember of those that are watched in silence: all, if they fit."""
        return None if len(frames) <= self.of.most_frames else self.of.most_frames

    def _watch(self, session: StreamingSession, frames: range) -> Iterator[tuple[float, str]]:
        """What the session says after frames that it watches."""
        if not frames:
            return
        fps, seen, tokens = self.of.fps, 0, tokens_of(session)
        for block in iter_frames(self.video, fps, self.of.processor.video_processor, frames.start, frames.stop):
            times = [index / fps for index in frames[seen : seen + len(block)]]
            for frame in session.watch(block, times):
                seen += 1
                self.cost.add(1, 0, session.cache.num_bytes)
                if frame.event is not None:
                    yield frame.event.time, frame.event.text
        if not seen and session.time is None:
            raise ValueError(f"{self.video} ends before {frames.start / fps:g} seconds")
        self.cost.add(0, tokens_of(session) - tokens, 0)

    def answer(self, frames: range, text: str) -> str:
        follows = frames.start == self._seen.start and frames.stop >= self._seen.stop
        if not follows or self._session.max_cached_frames != self._bound(frames):
            self._session, self._seen = self._new(self._bound(frames)), frames[:0]
        list(self._watch(self._session, frames[len(self._seen) :]))
        self._seen = frames
        return self._ask(self._session.fork(), text)

    def _ask(self, session: StreamingSession, text: str) -> str:
        tokens = tokens_of(session)
        (event,) = session.ask(text)
        self.cost.add(0, tokens_of(session) - tokens, session.cache.num_bytes)
        return event.text

    def stream(self, before: range, after: range, text: str, always: bool = False) -> list[tuple[float, str]]:
        session = self._new(self.of.most_frames if after else self._bound(before), self.of.threshold)
        list(self._watch(session, before))
        if not after:
            return [(before[-1] / self.of.fps if before else 0.0, self._ask(session, text))]
        session.instruct(text)
        if always:
            session.speak_threshold = ALWAYS
        return list(self._watch(session, after))


def tokens_of(session: StreamingSession) -> int:
    """Tokens that went through the language model."""
    return int(session.stats.tokens or 0)


__all__ = ["SessionModel"]
