"""`videollm-mod narrate`: from a source of frames to events, as they come."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from ..loading.find import find_checkpoint
from ..sources.source import Source, open_source
from .options import NarrateOptions, Query, stated_fps
from .writers import OutputFile, file_writer

if TYPE_CHECKING:  # torch is slow to import, and an error should come at once
    from ..sources.live import LiveWatch
    from ..speaking import StreamEvent

BLOCK_FRAMES = 16  # of a recorded video that are pushed together
BLOCK_PIXELS = 16 * 1920 * 1080


class Narration:
    """
    Lets a session watch a source, asks it questions at their times, and hands on what comes out.

    Args:
        session (`StreamingSession`), source (`Source`).
        fps (`float`): of the source's frames.
        queries (`list[Query]`): instructions, put before everything, and questions with their times.
        on_event (`Callable[[StreamEvent], None]`): called with each event as it is made.
        on_frame (`Callable`): called with each frame, uint8 `[H, W, 3]`, and its `WatchedFrame`.
    """

    def __init__(
        self, session, source: Source, fps: float, queries: list[Query], on_event: Callable, on_frame: Callable
    ):
        self.session, self.source, self.fps = session, source, fps
        self.on_event, self.on_frame = on_event, on_frame
        self.decode_seconds = 0.0
        self._failure: Exception | None = None
        for query in queries:
            if query.time is None:
                session.instruct(query.text)
        self._questions = sorted((q for q in queries if q.time is not None), key=lambda q: q.time)

    def run(self) -> None:
        """Until the source ends and the last question is answered.

        Raises:
            `ValueError`, `OSError`: as the source and the session do, after everything that was decoded has been
                watched; `ValueError` too if the source ended long before its stated duration.
        """
        block: list[tuple[np.ndarray, float]] = []
        time = 0.0
        for image, time in self._decoded():
            if self._questions and self._questions[0].time <= time:
                self._watch(block)
                block = []
                self._ask_until(time)
            block.append((image, time))
            limit = max(1, min(BLOCK_FRAMES, BLOCK_PIXELS // (image.shape[0] * image.shape[1])))
            if self.source.one_by_one or len(block) >= limit:
                self._watch(block)
                block = []
        self._watch(block)
        if self._failure is not None:
            raise self._failure
        self._ask_until(float("inf"))
        self._check_end(time)

    def _decoded(self) -> Iterator[tuple[np.ndarray, float]]:
        while True:
            start = perf_counter()
            try:
                frame = next(self.source.frames, None)
            except (ValueError, OSError) as error:  # after what was decoded has been watched
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

    def _ask_until(self, time: float) -> None:
        while self._questions and self._questions[0].time <= time:
            for event in self.session.ask(self._questions.pop(0).text):
                self.on_event(event)

    def _check_end(self, time: float) -> None:
        duration = self.source.duration
        if duration is not None and time + 1 / self.fps + 0.5 < 0.9 * duration:
            raise ValueError(f"{self.source.name} is cut off: it ended at {time:.1f} of {duration:.1f} seconds")


class LiveNarration(Narration):
    """The same of a live source, until it ends or is broken off. `watch` (`LiveWatch`): of the session and source."""

    def __init__(self, watch: "LiveWatch", queries: list[Query], on_event: Callable, on_frame: Callable):
        super().__init__(watch.session, Source("", iter(())), watch.source.fps, queries, on_event, on_frame)
        self.live = watch

    def run(self) -> None:
        """Raises as the stages of `LiveWatch` do, after everything before has been watched."""
        with self.live:
            for block in self.live.blocks():
                while block:
                    self._ask_until(block[0].time)
                    next_time = self._questions[0].time if self._questions else math.inf
                    part = [frame for frame in block if frame.time < next_time]
                    for frame, watched in self.live.watch(part):
                        if watched.event is not None:
                            self.on_event(watched.event)
                        self.on_frame(frame.image, watched)
                    block = block[len(part) :]
        self._ask_until(math.inf)


@contextmanager
def readable_memory_errors() -> Iterator[None]:
    """Say in one sentence that the device is full, where torch says much."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            "the GPU is out of memory; `--max-cached-frames`, `--dtype bfloat16` or `--load-in-4bit` take less of it"
        ) from error


def narrate(options: NarrateOptions, load: Callable = NarrateOptions.load, echo: Callable | None = None) -> dict:
    """Narrate `options.source` as the options say; returns the statistics of the last line of `jsonl`.

    Args:
        load (`Callable[[NarrateOptions], tuple]`): returns `(model, processor)`.
        echo (`Callable[[StreamEvent], None]`, *optional*): called with each event too.

    Raises:
        `ValueError`, `OSError`, `ImportError`, `MemoryError`: naming what is wrong; what was written before is whole.
    """
    options.check()
    queries = options.parsed_queries()
    quiet_decoder()
    if options.output is None and sys.stdout is None:
        raise OSError("there is no standard output to write to; give `--output`")
    # a source that cannot be read is known before a model is loaded, and before an output is begun
    fps = options.fps or stated_fps(find_checkpoint(options.model).base)
    source = open_source(options.source, fps, options.when_behind, options.limits)
    with readable_memory_errors():
        model, processor = load(options)
    from ..memory import frames_in_context  # as slow to import as the model

    session = model.stream(
        processor,
        speak_threshold=options.threshold,
        keep_ratio=options.keep_ratio,
        max_cached_frames=options.max_cached_frames or frames_in_context(model.config),
    )

    with ExitStack() as stack:
        stack.enter_context(readable_memory_errors())
        file = sys.stdout
        if options.output is not None:
            file = stack.enter_context(OutputFile(options.output))
        writer = file_writer(options.output_format, file)
        stack.callback(writer.close)
        overlay = None
        if options.overlay is not None:
            from .overlay import OverlayVideo

            overlay = OverlayVideo(
                options.overlay, model.config, fps, options.threshold, processor.video_processor.do_pad
            )
            stack.callback(overlay.close)
        bar = stack.enter_context(progress_bar(source))

        def on_event(event: "StreamEvent") -> None:
            with bar.external_write_mode():
                writer.event(event)
                if echo is not None:
                    echo(event)
            if overlay is not None:
                overlay.event(event)

        def on_frame(image: np.ndarray, watched) -> None:
            writer.reached(watched.time)
            if overlay is not None:
                overlay.frame(image, watched)
            bar.update(min(watched.time + 1 / fps, source.duration or math.inf) - bar.n)

        start, live = perf_counter(), None
        if source.live is None:
            narration = Narration(session, source, fps, queries, on_event, on_frame)
        else:
            from ..sources.live import LiveWatch

            live = LiveWatch(session, source.live, options.when_behind or "drop")
            narration = LiveNarration(live, queries, on_event, on_frame)

        def stats() -> dict:
            found = dict(session.stats)
            found["seconds"] = {"decode": narration.decode_seconds, **found["seconds"], "all": perf_counter() - start}
            found["keep_ratio"] = model.keep_ratio if options.keep_ratio is None else options.keep_ratio
            return found if live is None else found | {"live": live.stats}

        try:
            narration.run()
        except BaseException:
            if live is not None:  # which most often ends by being broken off
                writer.close(stats())
            raise
        result = stats()
        writer.close(result)
        return result


def quiet_decoder() -> None:
    """FFmpeg's own messages go nowhere: what matters of them comes back as an error."""
    try:
        import av
    except ImportError:
        return  # said by the source that needs it
    av.logging.set_level(av.logging.PANIC)


def progress_bar(source: Source) -> tqdm:
    """Of seconds of the stream, on standard error, if somebody looks at it."""
    layout = "{desc}: {n:.1f} s, {elapsed} passed"
    if source.duration:
        layout = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f} of {total:.1f} s, {elapsed} passed, {remaining} left"
    name = source.name if len(source.name) <= 40 else "…" + source.name[-39:]
    return tqdm(total=source.duration, desc=name, disable=None, bar_format=layout, dynamic_ncols=True)


__all__ = ["Narration", "narrate"]
