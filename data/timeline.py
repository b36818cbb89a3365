"""Where the turns of a stream stand among its frames."""

import numpy as np

from .frames import TOLERANCE


def places(turns: list[dict], times: np.ndarray, opening: int | None = None) -> list[int]:
    """How many frames come before each turn.

    A turn at the time of a frame comes after that frame. Between two frames, a reply comes after the second, the first
    that can show what it tells, and a user's turn after the first, all that was seen when it was said. Besides,
    - a system turn, and users' turns before all replies and no later than the first frame, come before all frames;
    - a reply at the time of the user's turn right before it is the answer and follows at once, after a frame at least.

    Args:
        turns (`list[dict]`): `time` (seconds), `role`, `content`, in order of time.
        times (float64 `[F]`): of the frames, seconds.
        opening (`int`, *optional*): instead of that rule, how many turns come before all frames.
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
    """Turns that no frame parts. Replies that follow each other are one: a session speaks once after a frame."""
    messages = []
    for turn in turns:
        if turn["role"] == "assistant" and messages and messages[-1]["role"] == "assistant":
            messages[-1]["content"] += " " + turn["content"]
        else:
            messages.append({"role": turn["role"], "content": turn["content"]})
    return messages


def groups_of(turns: list[dict], times: np.ndarray, opening: int | None = None) -> list[list[dict]]:
    """The turns (as for `places`) after 0, 1, ... and all `F` frames."""
    groups = [[] for _ in range(len(times) + 1)]
    for turn, place in zip(turns, places(turns, times, opening), strict=True):
        groups[place].append(turn)
    return groups


def conversation(turns: list[dict], times: np.ndarray, opening: int | None = None) -> list[dict]:
    """Turns (as for `places`) and frames as messages for `VideoLLMMoDProcessor.encode_conversation`."""
    messages, num_frames = [], 0
    for place, group in enumerate(groups_of(turns, times, opening)):
        num_frames += place > 0
        if group and num_frames:
            messages.append({"role": "stream", "num_frames": num_frames})
            num_frames = 0
        messages += messages_of(group)
    if num_frames:
        messages.append({"role": "stream", "num_frames": num_frames})
    return messages
