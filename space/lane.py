"""One model watching one stream: the requests of a session, which may also run in a separate process with a GPU.

Shapes: F frames, H and W pixels, N vision tokens per frame, Dv hidden size of the vision tower.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..speaking import StreamEvent, WatchedFrame
from ..streaming import StreamingSession
from .models import ZERO_GPU, Models, gpu


@dataclass(frozen=True)
class Controls:
    """What a visitor can change before and while a stream runs. The defaults are the model's.

    Args:
        keep_ratio (`float`, *optional*): in (0, 1].
        threshold (`float`, *optional*): in [0, 1].
        memory (`int`, *optional*): frames to remember.
    """

    keep_ratio: float | None = None
    threshold: float | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Request:
    """What a session is asked to do: watch frames with their times, or answer a question.

    Args:
        images (uint8 `[F, H, W, 3]`, *optional*): the frames.
        times (`tuple[float, ...]`): times of the frames, seconds.
        features (`[F, N, Dv]`, *optional*): features of the frames, if another session has encoded them.
        wait (`bool`): wait until a server has room for the frames; otherwise they are left out.
    """

    controls: Controls
    images: np.ndarray | None = None
    times: tuple[float, ...] = ()
    question: str | None = None
    features: torch.Tensor | None = None
    wait: bool = True


@dataclass(frozen=True)
class Seen:
    """A watched frame, the size of the cache after it in bytes (None if a server holds it), and the language model's
    time for it in milliseconds (for a server the time until its decision came)."""

    watched: WatchedFrame
    kv_bytes: int | None
    milliseconds: float


@dataclass(frozen=True)
class Result:
    """The result of a request: the watched frames, the events, and the features of the frames."""

    seen: list[Seen]
    events: list[StreamEvent]
    features: torch.Tensor | None = None


def run_request(session: StreamingSession, request: Request, on_piece: Callable[[str], None] | None = None) -> Result:
    """Run a request. `on_piece` is called with the answer so far."""
    session.keep_ratio = request.controls.keep_ratio
    if request.controls.threshold is not None:
        session.speak_threshold = request.controls.threshold
    if request.controls.memory not in (None, session.max_cached_frames):
        session.remember(request.controls.memory)
    if request.question is not None:
        pieces = []
        for piece in session.ask_tokens(request.question):
            pieces.append(piece)
            if on_piece is not None:
                on_piece("".join(pieces))
        return Result([], [StreamEvent(session.time or 0.0, "answer", "".join(pieces), request.question)])
    features = (
        session.encode(request.images) if request.features is None else request.features.to(session.model.device)
    )
    before = language_seconds(session)
    seen: list[Seen] = []
    for watched in session.watch_encoded(features, list(request.times)):
        kept = tuple(None if tokens is None else tokens.cpu() for tokens in watched.kept)
        seen.append(Seen(replace(watched, kept=kept), session.stats["kv_bytes"], 0.0))
    spent = 1000 * (language_seconds(session) - before) / max(1, len(seen))
    seen = [replace(frame, milliseconds=spent) for frame in seen]
    return Result(seen, [frame.watched.event for frame in seen if frame.watched.event is not None], features)


def language_seconds(session: StreamingSession) -> float:
    """The language model's time for watching frames, with that for verifying narrations."""
    seconds = session.stats["seconds"]
    return seconds["language"] + seconds.get("verify", 0.0)


MODELS: Models  # for this process, and those forked from it; set by `Lane`


@gpu
def run_saved(path: Path, name: str, request: Request) -> Result:
    """`run_request` for the session saved at `path`. On ZeroGPU every call runs in its own process."""
    session = StreamingSession.load(path, MODELS.lanes[name], MODELS.processor)
    result = run_request(session, request)
    session.save(path)
    return result if result.features is None else replace(result, features=result.features.cpu())


class Lane:
    """
    Args:
        models (`Models`), name (`str`): the models, and which of them watches.
        controls (`Controls`), instruction (`str`, *optional*), rule (`str`): how the stream opens.
        folder (`Path`): where the session is saved between calls on ZeroGPU.
    """

    settled = True  # unlike those of a `RemoteLane`, results are there when `run` returns
    problem: str | None = None

    def __init__(
        self, models: Models, name: str, controls: Controls, instruction: str | None, rule: str, folder: Path
    ):
        global MODELS
        MODELS = models
        self.models, self.name = models, name
        self.seen: list[Seen] = []
        self.events: list[StreamEvent] = []
        self._path = folder / f"{name}.session.safetensors"
        self._session = models.lanes[name].stream(
            models.processor,
            speak_rule=rule,
            speak_threshold=controls.threshold,
            keep_ratio=controls.keep_ratio,
            max_cached_frames=controls.memory or models.max_frames,
        )
        if instruction:
            self._session.instruct(instruction)
        if ZERO_GPU:
            self._session = self._session.save(self._path)

    def run(self, request: Request, on_piece: Callable[[str], None] | None = None) -> Request:
        """Run a request, and store its result. Returns it with the features of its frames, for another lane."""
        with self.models.slots:
            if ZERO_GPU:
                result = run_saved(self._path, self.name, request)
            else:
                result = run_request(self._session, request, on_piece)
        self.seen += result.seen
        self.events += result.events
        return replace(request, features=result.features)

    def collect(self) -> None:
        """See `RemoteLane`."""

    def rest(self) -> None:
        """See `RemoteLane`."""

    def close(self) -> None:
        """See `RemoteLane`."""

    def state(self) -> dict | None:
        """See `RemoteLane`."""
        return None


__all__ = ["Controls", "Lane", "Request", "Seen"]
