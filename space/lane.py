"""One model watching one stream: the work of a session, in steps that can also be done by a process with a GPU.

Shapes: F frames, H and W pixels, N vision tokens per frame, Dv hidden size of the vision tower.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..speaking import DEFAULT_THRESHOLD, StreamEvent, WatchedFrame
from ..streaming import StreamingSession
from .models import ZERO_GPU, Models, gpu


@dataclass(frozen=True)
class Controls:
    """What a visitor may change while a stream runs, and how it opens. Defaults are the model's.

    Args:
        keep_ratio (`float`, *optional*): in (0, 1].
        threshold (`float`): in [0, 1].
        memory (`int`, *optional*): frames that are remembered.
    """

    keep_ratio: float | None = None
    threshold: float = DEFAULT_THRESHOLD
    memory: int | None = None


@dataclass(frozen=True)
class Step:
    """Work for one session: frames with their times, or a question.

    Args:
        images (uint8 `[F, H, W, 3]`, *optional*): the frames.
        times (`tuple[float, ...]`): of the frames, in seconds.
        features (`[F, N, Dv]`, *optional*): of the frames, where another session has encoded them already.
    """

    controls: Controls
    images: np.ndarray | None = None
    times: tuple[float, ...] = ()
    question: str | None = None
    features: torch.Tensor | None = None


@dataclass(frozen=True)
class Seen:
    """A frame that was watched, the bytes of the cache after it, and milliseconds of the language model for it."""

    watched: WatchedFrame
    kv_bytes: int
    milliseconds: float


@dataclass(frozen=True)
class Done:
    """The result of a step: the frames that were watched, what was said, and the features of the frames."""

    seen: list[Seen]
    events: list[StreamEvent]
    features: torch.Tensor | None = None


def take(session: StreamingSession, step: Step, on_piece: Callable[[str], None] | None = None) -> Done:
    """Do a step. `on_piece` gets an answer as it grows."""
    session.keep_ratio, session.speak_threshold = step.controls.keep_ratio, step.controls.threshold
    if step.controls.memory not in (None, session.max_cached_frames):
        session.remember(step.controls.memory)
    if step.question is not None:
        pieces = []
        for piece in session.ask_tokens(step.question):
            pieces.append(piece)
            if on_piece is not None:
                on_piece("".join(pieces))
        return Done([], [StreamEvent(session.time or 0.0, "answer", "".join(pieces), step.question)])
    features = session.encode(step.images) if step.features is None else step.features.to(session.model.device)
    seen, before = [], session.stats.seconds["language"]
    for watched in session.watch_encoded(features, list(step.times)):
        kept = tuple(None if tokens is None else tokens.cpu() for tokens in watched.kept)
        seen.append(Seen(replace(watched, kept=kept), session.stats.kv_bytes, 0.0))
    spent = 1000 * (session.stats.seconds["language"] - before) / max(1, len(seen))
    seen = [replace(frame, milliseconds=spent) for frame in seen]
    return Done(seen, [frame.watched.event for frame in seen if frame.watched.event is not None], features)


MODELS: Models | None = None  # of this process, and of those it forks


@gpu
def take_apart(path: Path, name: str, step: Step) -> Done:
    """As `take`, on the session saved at `path`: on ZeroGPU a call is a process that leaves nothing on the GPU."""
    session = StreamingSession.load(path, MODELS.lanes[name], MODELS.processor)
    done = take(session, step)
    session.save(path)
    return done if done.features is None else replace(done, features=done.features.cpu())


class Lane:
    """
    Args:
        models (`Models`), name (`str`): which of its models.
        controls (`Controls`), instruction (`str`, *optional*): that opens the stream.
        folder (`Path`): for the session between calls, where these have no memory in common.
    """

    def __init__(self, models: Models, name: str, controls: Controls, instruction: str | None, folder: Path):
        global MODELS
        MODELS = models
        self.models, self.name = models, name
        self.seen: list[Seen] = []
        self.events: list[StreamEvent] = []
        self._path = folder / f"{name}.session.safetensors"
        self._session = models.lanes[name].stream(
            models.processor,
            speak_threshold=controls.threshold,
            keep_ratio=controls.keep_ratio,
            max_cached_frames=controls.memory or models.most_frames,
        )
        if instruction:
            self._session.instruct(instruction)
        if ZERO_GPU:
            self._session = self._session.save(self._path)

    def step(self, step: Step, on_piece: Callable[[str], None] | None = None) -> Step:
        """Do a step, and keep the result. Returns the step with the features of its frames, for another lane."""
        with self.models.turns:
            done = take_apart(self._path, self.name, step) if ZERO_GPU else take(self._session, step, on_piece)
        self.seen += done.seen
        self.events += done.events
        return replace(step, features=done.features)


__all__ = ["Controls", "Lane", "Seen", "Step"]
