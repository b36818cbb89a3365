"""A tokenised sequence taken apart into its turns again, and cut where no turn and no frame is cut.

That works because message text cannot forge structure: no text holds a placeholder or an end of sequence, nor the
line break with which every turn begins.
"""

from dataclasses import dataclass

STREAM, REPLY, USER, OPENING = "stream", "reply", "user", "opening"


@dataclass(frozen=True)
class Turn:
    """
    Args:
        kind (`str`): `"stream"`, `"reply"`, `"user"` or `"opening"`, the beginning of sequence with a system prompt.
        start, stop (`int`): its tokens.
        num_frames (`int`): of a stream.
        end (`int`): tokens behind a stream's last frame: its end where a turn follows, one separator where silence
            does, none otherwise.
    """

    kind: str
    start: int
    stop: int
    num_frames: int = 0
    end: int = 0


def encode_example(messages: list[dict], processor) -> tuple[list[int], list[int]]:
    """`(input_ids, labels)` of a conversation to learn from. Where it ends with a stream, silence after the last frame
    is learned too: one more separator, without which nothing would tell a model that it has nothing to say there."""
    input_ids, labels, _ = processor.encode_conversation(messages)
    if messages[-1]["role"] == STREAM:
        input_ids.append(processor.frame_separator_token_id)
        labels.append(input_ids[-1] if messages[-1].get("learn", True) is True else -100)
    return input_ids, labels


def read_turns(input_ids: list[int], processor) -> list[Turn]:
    """The turns of a sequence of `encode_example`, which follow each other without gaps."""
    frame, separator = processor.frame_ids, [processor.frame_separator_token_id]
    stream_start, stream_end = processor.stream_start_ids, processor.stream_end_ids
    user, assistant = processor.user_header_ids, processor.assistant_header_ids
    eos = processor.tokenizer.eos_token_id

    def stands(ids: list[int], position: int) -> bool:
        return input_ids[position : position + len(ids)] == ids

    def kind_at(position: int) -> str | None:
        for kind, ids in ((STREAM, stream_start + frame), (REPLY, assistant), (USER, user)):
            if stands(ids, position):
                return kind
        return None

    turns, position = [], 0
    while position < len(input_ids):
        start, kind = position, kind_at(position) or OPENING
        if kind == STREAM:
            position += len(stream_start) + len(frame)
            num_frames = 1
            while stands(separator + frame, position):
                position += 1 + len(frame)
                num_frames += 1
            end = next((len(ids) for ids in (stream_end, separator) if stands(ids, position)), 0)
            position += end
            turns.append(Turn(kind, start, position, num_frames, end))
            continue
        position += 1
        if kind == REPLY:
            while position < len(input_ids) and input_ids[position - 1] != eos:
                position += 1
        else:
            while position < len(input_ids) and kind_at(position) is None:
                position += 1
        turns.append(Turn(kind, start, position))
    return turns


def clip(input_ids: list[int], max_tokens: int, processor) -> tuple[int, int]:
    """Where to cut a sequence so that whole turns are left, and of the last stream whole frames, each with the
    separator after it: what is left is the sequence of the messages up to there. Where the cut parts a stream from the
    turn that follows, the stream stays open: it is not to be learned that nothing was said.

    Returns:
        `(tokens, frames)` that are left, at most `max_tokens` tokens.

    Raises:
        `ValueError`: if what comes before the first frame, and that frame, do not fit.
    """
    turns = read_turns(input_ids, processor)
    if len(input_ids) <= max_tokens:
        return len(input_ids), sum(turn.num_frames for turn in turns)
    tokens, frames = 0, 0
    for turn in turns:
        for stop, num_frames in cuts(turn, turn.stop == len(input_ids), processor):
            if stop <= max_tokens:
                tokens, seen = stop, frames + num_frames
        if turn.stop > max_tokens:
            break
        frames += turn.num_frames
    first = next((turn for turn in turns if turn.num_frames), None)
    if not tokens or (first is not None and not seen):
        turn = first or turns[0]
        least, what = cuts(turn, turn.stop == len(input_ids), processor)[0][0], "frame" if first else "turn"
        raise ValueError(f"`max_tokens` must be at least {least} for the first {what}, got {max_tokens}")
    return tokens, seen


def cuts(turn: Turn, is_last: bool, processor) -> list[tuple[int, int]]:
    """Where a sequence may end in a turn, and how many of the turn's frames stand before."""
    if turn.kind != STREAM:
        return [(turn.stop, 0)]
    step, first = processor.num_frame_tokens + 1, turn.start + len(processor.stream_start_ids)
    between = [(first + count * step, count) for count in range(1, turn.num_frames)]
    return [*between, (turn.stop if is_last else turn.stop - turn.end, turn.num_frames)]
