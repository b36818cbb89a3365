"""What the dense model says about clips: the text on which routing is measured.

Shapes: F frames, N vision tokens per frame, Dv hidden size of the vision tower, T tokens of a clip's conversation, P
of them after which the model predicts a word or silence.
"""

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from math import inf
from pathlib import Path

import numpy as np
import torch

from ..containers import IGNORE_INDEX
from ..data.turns import timed
from ..decoding import iter_video_frames
from ..speaking import StreamEvent, WatchedFrame
from ..steps import Step, run_together
from ..streaming import StreamingSession
from .following import Leader

FRAMES_AT_ONCE = 16


@dataclass(frozen=True)
class Clip:
    """
    Args:
        name (`str`): for messages.
        features (`[F, N, Dv]`), times (`list[float]`): of its frames.
        questions (`list[tuple[float, str]]`): asked after the last frame until these seconds, in order.
        lead (`Leader`): the dense model's session, without its cache.
        events (`list[StreamEvent]`): what it said.
        ids (`int64 [1, T]`): frames, questions and these events as one conversation.
        read_at (`int64 [P]`): tokens after which the model predicts.
    """

    name: str
    features: torch.Tensor
    times: list[float]
    questions: list[tuple[float, str]]
    lead: Leader
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


def watching(session: StreamingSession, features, times: list[float], questions) -> Generator[Step | StreamEvent]:
    """Let a new session watch frames, and ask it questions at their times. Yields steps, and what it says."""
    shown = 0
    for time, question in [*questions, (inf, None)]:
        due = sum(own <= time for own in times)
        if due > shown:
            for item in session.watching((features[shown:due], times[shown:due])):
                if isinstance(item, Step):
                    yield item
                elif isinstance(item, WatchedFrame) and item.event is not None:
                    yield item.event
            shown = due
        if question is not None:
            yield from answering(session, question)


def answering(session: StreamingSession, question: str) -> Generator[Step | StreamEvent]:
    """Ask a session. Yields steps, and the answer."""
    session.add_question(question)
    text = ""
    for item in session.answering():
        if isinstance(item, Step):
            yield item
        else:
            text += item
    yield StreamEvent(session.time or 0.0, "answer", text, question)


def run_abreast(works: list[Generator]) -> list[list]:
    """Run the steps of generators of the same kind together; returns what else each of them yields."""
    found: list[list] = [[] for _ in works]

    def next_step(index: int) -> Step | None:
        for item in works[index]:
            if isinstance(item, Step):
                return item
            found[index].append(item)
        return None

    waiting = [*range(len(works))]
    while steps := {index: step for index in waiting if (step := next_step(index)) is not None}:
        run_together([*steps.values()])
        waiting = [*steps]
    return found


def watch(session: StreamingSession, features, times: list[float], questions) -> list[StreamEvent]:
    """What a new session says while it watches frames, and answers questions at their times."""
    return run_abreast([watching(session, features, times, questions)])[0]


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
    """Let the model watch a clip with its present configuration. options: of `StreamingSession`.

    Raises:
        `ValueError`: if it says nothing.
    """
    lead = Leader(model, processor, **options)
    events = watch(lead, features, times, questions)
    lead.reset()  # frees the cache
    if not any(event.text for event in events):
        raise ValueError(f"the model says nothing about {name}; ask it something with `--question`")
    messages = timed(messages_of(events, times), times)
    if model.config.frame_separator_token_id is None:  # it has not learned when to be silent
        messages = [{**message, "learn": message["role"] != "stream"} for message in messages]
    encoded = processor.encode_conversation(messages)
    predicted = [i for i, label in enumerate(encoded.labels[1:]) if label != IGNORE_INDEX]
    ids, read_at = (torch.tensor(x, device=model.device) for x in ([encoded.input_ids], predicted))
    return Clip(name, features, list(times), list(questions), lead, events, ids, read_at)


__all__ = [
    "Clip",
    "answering",
    "encoded",
    "first_frames",
    "messages_of",
    "read_clip",
    "run_abreast",
    "watch",
    "watching",
]
