"""Self-conditioned evaluation: a session watches streams frame by frame and hears only its own past replies."""

from dataclasses import dataclass, field, fields

import numpy as np

from ..data.frames import input_size
from ..data.world import conversation, world_stream
from ..speaking import StreamEvent
from ..streaming import StreamingSession


@dataclass
class Counts:
    """Counts over streams, which can be added."""

    narrations: int = 0  # true narrations
    exact: int = 0  # those that the model says with the same text at the same frame, matched one to one
    said: int = 0  # narrations of the model
    matched: int = 0  # those with the text of a true one at any time, matched one to one
    seconds_off: float = 0.0  # sum of the absolute time differences of matched narrations
    questions: int = 0
    right: int = 0  # answers identical to the true one

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Counts)))

    def summary(self) -> dict[str, float | None]:
        """`exact` and `false` in percent of the true narrations, `right` in percent of the questions, `time_diff` in
        seconds. A share is None if there is nothing to divide by."""

        def mean(total: float, count: int) -> float | None:
            return total / count if count else None

        return {
            "narrations": self.narrations,
            "exact": mean(100 * self.exact, self.narrations),
            "false": mean(100 * (self.said - self.exact), self.narrations),
            "time_diff": mean(self.seconds_off, self.matched),
            "unmatched": self.narrations - self.matched,
            "questions": self.questions,
            "right": mean(100 * self.right, self.questions),
        }


def match(true: list[tuple[float, str]], said: list[tuple[float, str]], tolerance: float) -> tuple[int, int, float]:
    """Match narrations one to one.

    Args:
        true, said (`list[(seconds, text)]`): in order of time.
        tolerance (`float`): seconds within which two times are the same frame.

    Returns:
        `(exact, matched, seconds_off)`: the number of pairs with the same text at the same frame, the number of pairs
        with the same text (nearest in time first), and the sum of their absolute time differences.
    """
    pairs = sorted(
        (abs(t - s), i, j)
        for i, (t, true_text) in enumerate(true)
        for j, (s, said_text) in enumerate(said)
        if true_text == said_text
    )
    used_true, used_said, exact, seconds = set(), set(), 0, 0.0
    for difference, i, j in pairs:
        if i not in used_true and j not in used_said:
            used_true.add(i)
            used_said.add(j)
            exact += difference <= tolerance
            seconds += difference
    return exact, len(used_true), seconds


@dataclass
class Watched:
    """What a model said about a stream, and the ground truth.

    Args:
        true, said (`list[tuple[float, str]]`): true narrations and the model's, `(seconds, text)`.
        questions (`list[tuple[str, str, str]]`): question, true answer, answer of the model.
        events (`list[StreamEvent]`): events of the session.
    """

    true: list[tuple[float, str]] = field(default_factory=list)
    said: list[tuple[float, str]] = field(default_factory=list)
    questions: list[tuple[str, str, str]] = field(default_factory=list)
    events: list[StreamEvent] = field(default_factory=list)

    def counts(self, fps: float) -> Counts:
        exact, matched, seconds = match(self.true, self.said, tolerance=0.5 / fps)
        right = sum(true == said for _, true, said in self.questions)
        return Counts(len(self.true), exact, len(self.said), matched, seconds, len(self.questions), right)


def watch(model, processor, messages: list[dict], frames, times: np.ndarray, **options) -> Watched:
    """Let a session watch a stream. It gets the user's instructions and questions, but not the assistant's messages.

    Args:
        messages: the conversation, with `num_frames` instead of frames.
        frames (uint8 `[F, 3, H, W]` or `[F, H, W, 3]`, or features `[F, N, Dv]`), times (float `[F]`): all frames of
            the conversation, and their times in seconds.
        options: options of `StreamingSession`.
    """
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    session = StreamingSession(model, processor, system_prompt=system, **options)
    watched, shown, due = Watched(), 0, 0

    def show() -> None:
        nonlocal shown
        if due > shown:
            see = session.watch if frames.ndim == 4 else session.watch_encoded
            seen = see(frames[shown:due], times[shown:due].tolist())
            watched.events += [frame.event for frame in seen if frame.event is not None]
            shown = due

    asked = None
    for message, following in zip(messages, [*messages[1:], {"role": None}], strict=True):
        role = message["role"]
        if role == "stream":
            due += message["num_frames"]
        elif role == "user":
            show()
            asked = message["content"] if following["role"] == "assistant" else None
            if asked is None:
                session.instruct(message["content"])
            else:
                watched.events += session.ask(asked)
        elif role == "assistant" and asked is not None:
            watched.questions.append((asked, message["content"], watched.events[-1].text))
            asked = None
        elif role == "assistant":
            watched.true.append((float(times[max(due, 1) - 1]), message["content"]))
    show()
    watched.said = [(event.time, event.text) for event in watched.events if event.kind == "narration"]
    return watched


def watch_world(
    model, processor, seed: int, level: str = "basic", fps: float = 2.0, num_questions: int = 1, **options
) -> Watched:
    """`watch` on the stream of a seed of the world, with its questions."""
    stream = world_stream(seed, level)
    frames = stream.frames(fps, input_size(processor.video_processor)[0])
    return watch(
        model, processor, conversation(stream, fps, num_questions), frames, stream.frame_times(fps), **options
    )
