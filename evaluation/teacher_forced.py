"""Teacher-forced streaming metrics, as VideoLLM-online (arXiv 2406.11816) computes them.

They follow its `stream_evaluate`, with two peculiarities:
- The last turn of a stream has a frame difference of 0 if the model never wants to speak in it. So the Fluency of such
  a turn counts all its decisions as right.
- A stream that is interrupted by a user's question has no decision to speak, so staying silent in it counts as late.

In Fluency, wanting to speak early counts as right, together with the silent decisions before it.

Shapes: L tokens of a reply, S decisions of a turn (whether to speak after a frame), A frames fed after the turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TurnScores:
    """Scores of one turn. A score is None if it needs a reply or a decision and the turn has none.

    Args:
        ppl (`float`): exp of the mean cross-entropy of the reply's tokens.
        frame_diff (`int`): frame difference; negative if the model is late.
        fluency, correctness (`float`): in [0, 1].
    """

    ppl: float | None
    frame_diff: int | None
    fluency: float | None
    correctness: float | None


def leading(right: np.ndarray) -> int:
    """Length of the leading run of True in bool `[L]`."""
    right = np.asarray(right, dtype=bool)
    return len(right) if right.all() else int(np.argmin(right))


def wants_to_speak(silence: np.ndarray, silence_is_likeliest: np.ndarray, threshold: float) -> np.ndarray:
    """bool `[S]`: P(silence) is below `threshold`, or another token is more probable. With a threshold of 0 only the
    second condition counts."""
    return (np.asarray(silence) < threshold) | ~np.asarray(silence_is_likeliest, dtype=bool)


def num_following(frames: int, next_frames: int | None) -> int:
    """Number of following frames to feed if the model never wants to speak in a turn of `frames` frames. The next turn
    has `next_frames`; None after the last turn."""
    return 0 if next_frames is None else max(0, min(next_frames, frames - 1))


def frame_difference(wants: np.ndarray, later: np.ndarray | Sequence[bool] = ()) -> int:
    """Frames from the first decision to speak until the turn's last decision; negative if the model is late.

    Args:
        wants (bool `[S]`): whether the model wants to speak, for each decision of the turn, S >= 1.
        later (bool `[A]`): the same after each following frame, fed without the reply.
    """
    wants, after = np.asarray(wants, dtype=bool), np.asarray(later, dtype=bool)
    if not len(wants):
        raise ValueError("`wants` must have at least one decision, got none")
    if wants.any():
        return len(wants) - int(np.argmax(wants)) - 1
    return -(int(np.argmax(after)) + 1 if after.any() else len(after))


def score_turn(
    nll: np.ndarray, right: np.ndarray, wants: np.ndarray, later: np.ndarray | Sequence[bool] = ()
) -> TurnScores:
    """
    Args:
        nll (float `[L]`): cross-entropy of the reply's tokens, nats.
        right (bool `[L]`): whether the most probable token is the true one.
        wants (bool `[S]`), later (bool `[A]`): see `frame_difference`.
    """
    if len(nll) != len(right):
        raise ValueError(f"`nll` and `right` must have the same length, got {len(nll)} and {len(right)}")
    reply, decisions, correct = len(nll), len(wants), leading(right) if len(right) else 0
    difference = frame_difference(wants, later) if decisions else None
    fluency = None
    if reply and difference is not None:
        late = decisions - (difference if difference > 0 else 1)
        run = decisions + correct if difference == 0 else late
        fluency = run / (decisions + reply)
    return TurnScores(
        ppl=float(np.exp(np.mean(nll))) if reply else None,
        frame_diff=difference,
        fluency=fluency,
        correctness=correct / reply if reply else None,
    )


def summarise(streams: list[list[TurnScores]], fps: float | list[float]) -> dict[str, float | None]:
    """LM-PPL, TimeDiff (seconds), Fluency and LM-Correctness (percent): the mean over the turns of each stream, then
    over the streams. Streams without a value are ignored; the result is None if no stream has one. `fps` is one rate,
    or a list with the rate of each stream."""
    rates = fps if isinstance(fps, list) else [fps] * len(streams)
    values = {
        "lm_ppl": lambda turn, _: turn.ppl,
        "time_diff": lambda turn, fps: None if turn.frame_diff is None else abs(turn.frame_diff) / fps,
        "fluency": lambda turn, _: None if turn.fluency is None else 100 * turn.fluency,
        "lm_correctness": lambda turn, _: None if turn.correctness is None else 100 * turn.correctness,
    }
    result = {}
    for name, value in values.items():
        found = [[value(turn, rate) for turn in turns] for turns, rate in zip(streams, rates, strict=True)]
        measured = [[x for x in turns if x is not None] for turns in found]
        means = [float(np.mean(numbers)) for numbers in measured if numbers]
        result[name] = float(np.mean(means)) if means else None
    return result
