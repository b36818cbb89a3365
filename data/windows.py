"""Long streams cut into windows of so many tokens, so that all that is said in them is learned, and once."""

import math

import numpy as np

from ..containers import IGNORE_INDEX
from ..conversation import Turn
from .frames import TOLERANCE, frame_range
from .timeline import groups_of, is_answer, messages_of

CARRIED = 0.25  # of a window's tokens: what came before at most


def windows(stream: dict, fps: float, max_tokens: int, processor, num_frames: int | None = None) -> list[dict]:
    """Cut the line of a stream into lines that have at most `max_tokens` tokens.

    Every window begins with what opened the stream and the instruction that holds, then with frames and turns that
    came before, from which nothing is learned again, as many as a quarter of its tokens hold. It ends after any frame
    and what was said there. So every reply, and every decision whether to speak up to the last turn, is learned in
    one window. What comes after the last turn is silence: the last window takes as much of it as it holds.

    Args:
        stream (`dict`): a line as `jsonl.read_streams` gives it; its media are not looked at.
        fps (`float`): of its frames.
        max_tokens (`int`): of a window.
        processor (`VideoLLMMoDProcessor`): that makes the tokens.
        num_frames (`int`, *optional*): of the whole video, where known; turns beyond its end come after the last.

    Returns:
        the line with other `start`, `end` and `turns` for each window, and
        - `opening` (`int`): how many of the turns stand before all frames;
        - `learned_from` (`float`): the time in seconds of the first frame from which on it is learned.

    Raises:
        `ValueError`: if a frame and what is said after it do not fit.
    """
    turns, step = stream["turns"], processor.num_frame_tokens + processor.frame_text_tokens
    first, stop = frame_range(fps, stream.get("start"), stream.get("end"))
    count = max(1, math.ceil(turns[-1]["time"] * fps - TOLERANCE) + 1 - first)
    count = min(count, (stop or math.inf) - first, max(1, (num_frames or math.inf) - first))
    groups = groups_of(turns, (first + np.arange(count)) / fps)
    instructions = [
        (place, turn)
        for place, group in enumerate(groups)
        for turn, following in zip(group, [*group, {}][1:], strict=False)
        if turn["role"] == "user" and not is_answer(turn, following)
    ]
    # of frame i and what follows it, i = 1, 2, ...
    costs, held, waiting = [0], [], list(instructions)
    for place, group in enumerate(groups[1:], 1):
        while waiting and waiting[0][0] < place:
            held = [waiting.pop(0)[1]]
        costs.append(step + added_tokens(group, processor, held))
    instructions = [(place, turn) for place, turn in instructions if place]
    lines, learned = [], 0
    while learned < count:
        begin, free = learned, CARRIED * max_tokens
        while begin and (free := free - costs[begin]) >= 0:
            begin -= 1
        done = learned
        while True:
            opening = groups[0] + [turn for place, turn in instructions if place <= begin][-1:]
            tokens = opening_tokens(opening, processor) + sum(costs[begin + 1 : learned + 1])
            while done < count and tokens + costs[done + 1] <= max_tokens:
                done += 1
                tokens += costs[done]
            if done > learned or begin == learned:
                break
            begin += 1  # what is to be learned comes first
        if done == learned:
            raise ValueError(
                f"the frame at {(first + learned) / fps:g} seconds with what is said before and after it takes "
                f"{tokens + costs[learned + 1]} tokens, `max_tokens` is {max_tokens}"
            )
        end = first + done
        if done == count:
            end = min(stop or math.inf, end + (max_tokens - tokens) // step)
        lines.append(
            {
                **stream,
                "start": (first + begin) / fps,
                "end": end / fps,
                "turns": opening + [turn for group in groups[begin + 1 : done + 1] for turn in group],
                "opening": len(opening),
                "learned_from": (first + learned) / fps,
            }
        )
        learned = done
    return lines


def added_tokens(turns: list[dict], processor, held: list[dict]) -> int:
    """By how many tokens a stream is longer with turns between two of its frames. held: the instruction before them,
    which a family's prompts repeat before each narration."""
    if not turns:
        return 0
    frame, opening = {"role": "stream", "num_frames": 1}, messages_of(held)
    parted = processor.encode_conversation([*opening, frame, *messages_of(turns), frame])[0]
    return len(parted) - len(processor.encode_conversation([*opening, {**frame, "num_frames": 2}])[0])


def opening_tokens(turns: list[dict], processor) -> int:
    """Tokens before the first frame."""
    messages = [*messages_of(turns), {"role": "stream", "num_frames": 1}]
    return processor.encode_conversation(messages).turns[-1].frames[0]


def mask_before(labels: list[int], turns: list[Turn], frame: int) -> list[int]:
    """Labels from which nothing is learned before a frame, counted from 0, or before the last one if there are
    fewer."""
    starts = [start for turn in turns for start in turn.frames]
    start = starts[min(frame, len(starts) - 1)]
    return [IGNORE_INDEX] * start + labels[start:]
