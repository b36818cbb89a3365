"""Examples to learn from with the spans of their turns, and where they can be cut."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from ..containers import IGNORE_INDEX
from ..conversation import Turn
from ..sequence import NO_SILENCE


def timed(messages: list[dict], times: Iterable[float]) -> list[dict]:
    """Messages whose streams have the times of their frames, which are those of all streams in order, in seconds."""
    left = iter(times)
    return [
        {**x, "times": [float(time) for time in islice(left, x["num_frames"])]} if x["role"] == "stream" else x
        for x in messages
    ]


def encode_example(messages: list[dict], processor, times: Iterable[float] | None = None) -> dict:
    """`{"input_ids", "labels", "turns"}` of a conversation to learn from, see `processor.encode_conversation`. If it
    ends with a stream, silence after the last frame is learned too: one more separator, without which nothing would
    tell the model that it has nothing to say there. times: of the frames, which the prompts of a family may write.

    Raises:
        `ValueError`: if no token can mean silence in the prompts of this processor.
    """
    separator = processor.frame_separator_token_id
    if separator is None:
        raise ValueError(NO_SILENCE)
    if times is not None:
        messages = timed(messages, times)
    input_ids, labels, _, turns = processor.encode_conversation(messages)
    if messages[-1]["role"] == "stream":
        learn = messages[-1].get("learn", True) is True
        input_ids.append(separator)
        labels.append(separator if learn else IGNORE_INDEX)
        turns[-1] = replace(turns[-1], stop=len(input_ids))
    elif (
        messages[-1]["role"] == "assistant" and not processor.reply_end_ids
    ):  # the template writes nothing after a reply, but the model has to end it
        input_ids.append(processor.reply_stop_id)
        labels.append(processor.reply_stop_id if messages[-1].get("learn", True) else IGNORE_INDEX)
        turns[-1] = replace(turns[-1], stop=len(input_ids))
    return {"input_ids": input_ids, "labels": labels, "turns": turns}


def check_turns(example: dict) -> None:
    """Raise `ValueError` for an example that does not know its turns."""
    if "turns" not in example:
        raise ValueError("an example that is cut or altered needs its `turns`, as `encode_conversation` returns them")


def clip(turns: list[Turn], max_tokens: int) -> tuple[int, int]:
    """Where to cut a sequence so that whole turns are left, and of the last stream whole frames with the separator
    after each: the tokens that are left encode the messages up to there. A stream that is cut off from the turn after
    it stays open, so it is not learned that nothing was said.

    Returns:
        `(tokens, frames)` that are left, at most `max_tokens` tokens.

    Raises:
        `ValueError`: if the first frame and the tokens before it, or without frames the first turn, do not fit.
    """
    tokens, frames, seen = 0, 0, 0
    for turn in turns:
        for stop, num_frames in cuts(turn, turn is turns[-1]):
            if stop <= max_tokens:
                tokens, seen = stop, frames + num_frames
        if turn.stop > max_tokens:
            break
        frames += len(turn.frames)
    first = next((turn for turn in turns if turn.frames), None)
    if not tokens or (first is not None and not seen):
        turn = first or turns[0]
        least, what = cuts(turn, turn is turns[-1])[0][0], "frame" if first else "turn"
        raise ValueError(f"`max_tokens` must be at least {least} for the first {what}, got {max_tokens}")
    return tokens, seen


def cuts(turn: Turn, is_last: bool) -> list[tuple[int, int]]:
    """Where a sequence may end in a turn, and how many of the turn's frames stand before."""
    if not turn.frames:
        return [(turn.stop, 0)]
    between = [(start, count) for count, start in enumerate(turn.frames) if count]
    end = turn.stop if is_last or isinstance(turn.frames, tuple) else turn.frames.stop - 1
    return [*between, (end, len(turn.frames))]
