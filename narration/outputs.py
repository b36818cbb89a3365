"""Everything that `videollm-mod narrate` writes: the events, the overlay video, and a progress bar."""

import math
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from ..sources.source import Source
from .options import NarrateOptions
from .writers import OutputFile, file_writer

if TYPE_CHECKING:  # torch is slow to import, and an error should come at once
    from ..speaking import StreamEvent, WatchedFrame


class Outputs:
    """
    The outputs of one narration. On leaving the context every file is closed as a whole file, whatever happened.

    Args:
        options (`NarrateOptions`): which outputs there are.
        source (`Source`): for the progress bar.
        config (`VideoLLMMoDConfig`), video_processor (`VideoLLMMoDVideoProcessor`): of the model, for the overlay.
        fps (`float`): frames per second of the source.
        threshold (`float`): of P(silence), for the overlay.
        echo (`Callable[[StreamEvent], None]`, *optional*): called with each event.
    """

    def __init__(
        self,
        options: NarrateOptions,
        source: Source,
        config,
        video_processor,
        fps: float,
        threshold: float,
        echo: Callable | None = None,
    ):
        self.fps, self.duration, self.echo = fps, source.duration or math.inf, echo
        with ExitStack() as stack:
            file = sys.stdout if options.output is None else stack.enter_context(OutputFile(options.output))
            self.writer = file_writer(options.output_format, file)
            stack.callback(self.writer.close)
            self.overlay = None
            if options.overlay is not None:
                from .overlay import OverlayVideo, frame_fit

                fit = frame_fit(video_processor)
                self.overlay = OverlayVideo(options.overlay, config, fps, threshold, fit)
                stack.callback(self.overlay.close)
            self.bar = stack.enter_context(progress_bar(source))
            self._open = stack.pop_all()

    def __enter__(self) -> "Outputs":
        return self

    def __exit__(self, *error) -> None:
        self._open.__exit__(*error)

    def event(self, event: "StreamEvent") -> None:
        """Write an event."""
        with self.bar.external_write_mode():
            self.writer.event(event)
            if self.echo is not None:
                self.echo(event)
        if self.overlay is not None:
            self.overlay.event(event)

    def frame(self, image: np.ndarray, watched: "WatchedFrame") -> None:
        """Add a frame that was watched, uint8 `[H, W, 3]`."""
        self.writer.reached(watched.time)
        if self.overlay is not None:
            self.overlay.frame(image, watched)
        self.bar.update(min(watched.time + 1 / self.fps, self.duration) - self.bar.n)

    def finish(self, stats: dict) -> None:
        """Write the statistics, where the format has room for them."""
        self.writer.close(stats)


def progress_bar(source: Source) -> tqdm:
    """A bar of the stream's seconds on standard error, if that is a terminal."""
    layout = "{desc}: {n:.1f} s, {elapsed} passed"
    if source.duration:
        layout = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f} of {total:.1f} s, {elapsed} passed, {remaining} left"
    name = source.name if len(source.name) <= 40 else "…" + source.name[-39:]
    return tqdm(total=source.duration, desc=name, disable=None, bar_format=layout, dynamic_ncols=True)


__all__ = ["Outputs"]
