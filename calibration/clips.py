"""What the dense model says about clips: the text on which routing is measured.

Shapes: F frames, N vision tokens per frame, Dv hidden size of the vision tower, T tokens of a clip's conversation, P
of them after which the model predicts a word or silence.
"""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from ..containers import IGNORE_INDEX
from ..decoding import iter_video_frames
from ..speaking import StreamEvent

FRAMES_AT_ONCE = 16


@dataclass(frozen=True)
class Clip:
    """
    Args:
        name (`str`): for messages.
        features (`[F, N, Dv]`), times (`list[float]`): of its frames.
        questions (`list[tuple[float, str]]`): asked after the last frame until these seconds, in order.
        events (`list[StreamEvent]`): what the dense model says.
        ids (`int64 [1, T]`): frames, questions and these events as one conversation.
        read_at (`int64 [P]`): tokens after which the model predicts.
    """

    name: str
    features: torch.Tensor
    times: list[float]
    questions: list[tuple[float, str]]
    events: list[StreamEvent]
    ids: torch.Tensor
    read_at: torch.Tensor


def first_frames(path: Path, fps: float, count: int) -> list[np.ndarray]:
    """The first `count` frames of a video, uint8 `[H, W, 3]` each.

    Raises:
        `ValueError`, `OSError`: as `iter_video_frames`.
    """
    with closing(iter_video_frames(path, fps)) as frames:
        return [image for image, _ in islice(frames, count)]


def encoded(model, processor, frames: Iterable[np.ndarray]) -> torch.Tensor:
    """The features `[F, N, Dv]` of frames."""
    session, left, parts = model.stream(processor), iter(frames), []
    while block := list(islice(left, FRAMES_AT_ONCE)):
        parts.append(session.encode(np.stack(block)))
    return torch.cat(parts)


def watch(model, processor, features, times: list[float], questions, **options) -> list[StreamEvent]:
    """What the model says while a session watches frames, and answers questions at their times. options: of
    `StreamingSession`."""
    session, events, shown = model.stream(processor, **options), [], 0
    for time, question in [*questions, (float("inf"), None)]:
        due = sum(own <= time for own in times)
        if due > shown:
            seen = session.watch_encoded(features[shown:due], times[shown:due])
            events += [frame.event for frame in seen if frame.event is not None]
            shown = due
        if question is not None:
            events += session.ask(question)
    return events


def messages_of(events: list[StreamEvent], times: list[float]) -> list[dict]:
    """The conversation of frames at `times` and what was said and asked."""
    messages, done = [], 0

    def show(due: int) -> None:
        nonlocal done
        if due > done:
            messages.append({"role": "stream", "num_frames": due - done})
            done = due

    for event in events:
        show(sum(time <= event.time for time in times))
        if event.kind == "answer":
            messages.append({"role": "user", "content": event.query})
        if event.text:
            messages.append({"role": "assistant", "content": event.text})
    show(len(times))
    return messages


def read_clip(model, processor, name: str, features, times, questions=(), **options) -> Clip:
    """Let the model, as it is configured now, watch a clip.

    Raises:
        `ValueError`: if it says nothing.
    """
    events = watch(model, processor, features, times, questions, **options)
    if not any(event.text for event in events):
        raise ValueError(f"the model says nothing about {name}; ask it something with `--question`")
    encoded = processor.encode_conversation(messages_of(events, times))
    predicted = [i for i, label in enumerate(encoded.labels[1:]) if label != IGNORE_INDEX]
    ids, read_at = (torch.tensor(x, device=model.device) for x in ([encoded.input_ids], predicted))
    return Clip(name, features, list(times), list(questions), events, ids, read_at)


__all__ = ["Clip", "encoded", "first_frames", "messages_of", "read_clip", "watch"]
