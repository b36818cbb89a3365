"""The order of a stream's turns and frames."""

import numpy as np

from .frames import TOLERANCE


def frames_before(turns: list[dict], times: np.ndarray, opening: int | None = None) -> list[int]:
    """The number of frames before each turn.

    A turn at the time of a frame comes after that frame. A reply between two frames comes after the second one, which
    is the first that can show what the reply tells. A user turn between two frames comes after the first one, since
    nothing later had been seen. There are two exceptions:
    - A system turn comes before all frames, and so do user turns before the first reply and no later than the first
      frame.
    - A reply at the time of the preceding user turn is its answer and follows it at once, after at least one frame.

    Args:
        turns (`list[dict]`): `time` (seconds), `role`, `content`, in order of time.
        times (float64 `[F]`): times of the frames, seconds.
        opening (`int`, *optional*): number of turns before all frames; replaces the first exception.
    """
    found, done, opens = [], 0, True
    for index, turn in enumerate(turns):
        time, role = turn["time"], turn["role"]
        by_rule = role == "system" or (role == "user" and time <= times[0] + TOLERANCE)
        opens = opens and (by_rule if opening is None else index < opening)
        if opens:
            seen = 0
        elif role == "assistant" and index and is_answer(turns[index - 1], turn):
            seen = max(done, 1)
        elif role == "assistant":
            seen = int(np.searchsorted(times, time - TOLERANCE)) + 1
        else:
            seen = int(np.searchsorted(times, time + TOLERANCE, side="right"))
        done = min(max(seen, done), len(times))
        found.append(done)
    return found


def is_answer(previous: dict, turn: dict) -> bool:
    return previous["role"] == "user" and turn.get("role") == "assistant" and previous["time"] == turn["time"]


def messages_of(turns: list[dict]) -> list[dict]:
    """Messages of turns without a frame between them. Consecutive replies are joined, since a session replies at most
    once after a frame."""
    messages: list[dict] = []
    for turn in turns:
        if turn["role"] == "assistant" and messages and messages[-1]["role"] == "assistant":
            messages[-1]["content"] += " " + turn["content"]
        else:
            messages.append({"role": turn["role"], "content": turn["content"]})
    return messages


def groups_of(turns: list[dict], times: np.ndarray, opening: int | None = None) -> list[list[dict]]:
    """`F + 1` groups of turns: group `i` follows frame `i` and precedes frame `i + 1`, counted from 1. For the
    arguments see `frames_before`."""
    groups: list[list[dict]] = [[] for _ in range(len(times) + 1)]
    for turn, count in zip(turns, frames_before(turns, times, opening), strict=True):
        groups[count].append(turn)
    return groups


def conversation(turns: list[dict], times: np.ndarray, opening: int | None = None) -> list[dict]:
    """Turns and frames as messages for `VideoLLMMoDProcessor.encode_conversation`. For the arguments see
    `frames_before`."""
    messages, num_frames = [], 0
    for index, group in enumerate(groups_of(turns, times, opening)):
        num_frames += index > 0
        if group and num_frames:
            messages.append({"role": "stream", "num_frames": num_frames})
            num_frames = 0
        messages += messages_of(group)
    if num_frames:
        messages.append({"role": "stream", "num_frames": num_frames})
    return messages
