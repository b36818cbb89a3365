"""`videollm-mod narrate`: from a source of frames to events, as they come."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

import numpy as np

from ..data.frames import TOLERANCE
from ..loading.find import find_checkpoint
from ..sources.source import Source, open_source
from .options import NarrateOptions, Query, stated_fps
from .outputs import Outputs

BLOCK_FRAMES = 16  # frames of a recorded video that are watched together, at most
BLOCK_PIXELS = 16 * 1920 * 1080


class Narration:
    """
    Lets a session watch a source, asks questions at their times, and passes on events and frames.

    Args:
        session (`StreamingSession`), source (`Source`).
        fps (`float`): frames per second of the source.
        queries (`list[Query]`): instructions, which come first, and questions with their times. A question is asked
            after the frames until its time, as in training (`data/timeline.py`), and after at least one.
        on_event (`Callable[[StreamEvent], None]`): called with each event as it is made.
        on_frame (`Callable`): called with each frame, uint8 `[H, W, 3]`, and its `WatchedFrame`.
    """

    def __init__(
        self, session, source: Source, fps: float, queries: list[Query], on_event: Callable, on_frame: Callable
    ):
        self.session, self.source, self.fps = session, source, fps
        self.on_event, self.on_frame = on_event, on_frame
        self.decode_seconds, self._start = 0.0, perf_counter()
        self._failure: Exception | None = None
        for query in queries:
            if query.time is None:
                session.instruct(query.text)
        timed = ((query.time, query.text) for query in queries if query.time is not None)
        self._questions = sorted(timed, key=lambda question: question[0])

    def run(self) -> None:
        """Narrate until the source has ended and the last question is answered.

        Raises:
            `ValueError`, `OSError`: from the source and the session, after all decoded frames have been watched.
            `ValueError`: if the source ended long before its stated duration.
        """
        block: list[tuple[np.ndarray, float]] = []
        time = 0.0
        for image, time in self._decoded():
            if self._next_time < time:
                self._watch(block)
                block = []
                self._ask_before(time)
            block.append((image, time))
            limit = max(1, min(BLOCK_FRAMES, BLOCK_PIXELS // (image.shape[0] * image.shape[1])))
            if self.source.one_by_one or len(block) >= limit:
                self._watch(block)
                block = []
        self._watch(block)
        if self._failure is not None:
            raise self._failure
        self._ask_before(math.inf)
        self._check_end(time)

    @property
    def _next_time(self) -> float:
        """Time of the next question, in seconds; infinity if there is none. Frames until then come before it."""
        return self._questions[0][0] + TOLERANCE if self._questions else math.inf

    def stats(self) -> dict:
        """The session's statistics so far, with the seconds of decoding and of everything."""
        found = dict(self.session.stats)
        seconds = {"decode": self.decode_seconds, **found["seconds"], "all": perf_counter() - self._start}
        keep_ratio = self.session.keep_ratio
        return {
            **found,
            "seconds": seconds,
            "keep_ratio": self.session.model.keep_ratio if keep_ratio is None else keep_ratio,
        }

    def _decoded(self) -> Iterator[tuple[np.ndarray, float]]:
        while True:
            start = perf_counter()
            try:
                frame = next(self.source.frames, None)
            except (ValueError, OSError) as error:  # raised once the decoded frames have been watched
                frame, self._failure = None, error
            self.decode_seconds += perf_counter() - start
            if frame is None:
                return
            yield frame

    def _watch(self, block: list[tuple[np.ndarray, float]]) -> None:
        if not block:
            return
        images, times = zip(*block, strict=True)
        for image, watched in zip(images, self.session.watch(np.stack(images), list(times)), strict=True):
            if watched.event is not None:
                self.on_event(watched.event)
            self.on_frame(image, watched)

    def _ask_before(self, time: float) -> None:
        """Ask what is to be asked before the frame at `time`, which is nothing before the first one."""
        while self._next_time < time and self.session.time is not None:
            _, question = self._questions.pop(0)
            for event in self.session.ask(question):
                self.on_event(event)

    def _check_end(self, time: float) -> None:
        duration = self.source.duration
        if duration is not None and time + 1 / self.fps + 0.5 < 0.9 * duration:
            raise ValueError(f"{self.source.name} is cut off: it ended at {time:.1f} of {duration:.1f} seconds")


class LiveNarration(Narration):
    """
    Narrates a live source until it ends or is interrupted.

    Args:
        when_behind (`str`): `"drop"` or `"wait"`, see `LiveWatch`; the others as of `Narration`.
    """

    def __init__(self, *args, when_behind: str = "drop"):
        super().__init__(*args)
        from ..sources.live import LiveWatch

        assert self.source.live is not None
        self.live = LiveWatch(self.session, self.source.live, when_behind)

    def stats(self) -> dict:
        return {**super().stats(), "live": self.live.stats}

    def run(self) -> None:
        """Raises what a stage of `LiveWatch` raised, after the frames before it have been watched."""
        with self.live:
            for block in self.live.blocks():
                while block:
                    self._ask_before(block[0].time)
                    until = max(self._next_time, block[0].time)
                    part = [frame for frame in block if frame.time <= until]
                    for frame, watched in self.live.watch(part):
                        if watched.event is not None:
                            self.on_event(watched.event)
                        self.on_frame(frame.image, watched)
                    block = block[len(part) :]
        self._ask_before(math.inf)


@contextmanager
def readable_memory_errors() -> Iterator[None]:
    """Replace torch's long message about a full device by one sentence that says what helps."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            "the GPU is out of memory; `--max-cached-frames`, `--dtype bfloat16` or `--load-in-4bit` take less of it"
        ) from error


def narrate(options: NarrateOptions, load: Callable = NarrateOptions.load, echo: Callable | None = None) -> dict:
    """Narrate `options.source`.

    Args:
        load (`Callable[[NarrateOptions], tuple]`): returns `(model, processor)`.
        echo (`Callable[[StreamEvent], None]`, *optional*): called with each event, besides writing it.

    Returns:
        The statistics, as in the last line of the format `jsonl`.

    Raises:
        `ValueError`, `OSError`, `ImportError`, `MemoryError`: naming what is wrong; files that were begun stay whole.
    """
    options.check()
    queries = options.parsed_queries()
    quiet_decoder()
    if options.output is None and sys.stdout is None:
        raise OSError("there is no standard output to write to; give `--output`")
    # the source is opened first: if it cannot be read, no model is loaded and no output begun
    fps = options.fps or stated_fps(find_checkpoint(options.model).base)
    source = open_source(options.source, fps, options.when_behind, options.limits)
    with readable_memory_errors():
        model, processor = load(options)
        check_instructions(queries, processor)
        session = open_session(options, model, processor)
        video_processor, threshold = processor.video_processor, session.speak_threshold
        with Outputs(options, source, model.config, video_processor, fps, threshold, echo) as outputs:
            arguments = (session, source, fps, queries, outputs.event, outputs.frame)
            if source.live is None:
                narration = Narration(*arguments)
            else:
                narration = LiveNarration(*arguments, when_behind=options.when_behind or "drop")
            try:
                narration.run()
            except BaseException:
                if source.live is not None:  # a live stream usually ends by an interrupt
                    outputs.finish(narration.stats())
                raise
            stats = narration.stats()
            outputs.finish(stats)
            return stats


def check_instructions(queries: list[Query], processor) -> None:
    """Raise `ValueError` for several instructions to a model that narrates after the last one alone."""
    given = sum(query.time is None for query in queries)
    if given > 1 and getattr(processor, "default_query", None) is not None:
        raise ValueError(f"this model narrates after one instruction: give one `--query` without a time, got {given}")


def open_session(options: NarrateOptions, model, processor):
    """A `StreamingSession` with the options of the command. A margin implies the rule that it is for."""
    from ..memory import frames_in_context  # as slow to import as the model

    return model.stream(
        processor,
        speak_rule=options.speak_rule if options.margin is None else "verify",
        speak_threshold=options.threshold if options.margin is None else math.exp(-options.margin),
        keep_ratio=options.keep_ratio,
        max_cached_frames=options.max_cached_frames or frames_in_context(model.config),
    )


def quiet_decoder() -> None:
    """Silence FFmpeg's own messages: what matters comes back as an error."""
    try:
        import av
    except ImportError:
        return  # the source that needs it says so
    av.logging.set_level(av.logging.PANIC)


__all__ = ["Narration", "narrate"]
