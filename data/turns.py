"""A tokenised sequence taken apart into its turns again, and cut where no turn and no frame is cut.

That works because message text can not forge structure: no text holds a placeholder or an end of sequence, nor the
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
        closed (`bool`): whether a stream has its end, as when a turn follows.
    """

    kind: str
    start: int
    stop: int
    num_frames: int = 0
    closed: bool = False


def read_turns(input_ids: list[int], processor) -> list[Turn]:
    """The turns of a sequence of `VideoLLMMoDProcessor.encode_conversation`, which follow each other without gaps."""
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
            closed = stands(stream_end, position)
            position += len(stream_end) * closed
            turns.append(Turn(kind, start, position, num_frames, closed))
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
    """Where to cut a sequence so that whole turns are left, and of the last stream whole frames: what is left is the
    sequence of the messages up to there, with an open stream if it ends in one.

    Returns:
        `(tokens, frames)` that are left, at most `max_tokens` tokens.

    Raises:
        `ValueError`: if what comes before the first frame, and that frame, do not fit.
    """
    if len(input_ids) <= max_tokens:
        return len(input_ids), sum(turn.num_frames for turn in read_turns(input_ids, processor))
    tokens, frames, last = 0, 0, None
    turns = read_turns(input_ids, processor)
    per_frame, before = 1 + processor.num_frame_tokens, len(processor.stream_start_ids) - 1
    for turn in turns:
        if turn.stop <= max_tokens:
            tokens, frames, last = turn.stop, frames + turn.num_frames, turn
            continue
        if turn.kind == STREAM:
            # a stream that fits but for its end stays open too
            fitting = min((max_tokens - turn.start - before) // per_frame, turn.num_frames)
            if fitting > 0:
                tokens, frames, last = turn.start + before + fitting * per_frame, frames + fitting, None
        break
    if not frames and any(turn.num_frames for turn in turns):
        first = next(turn.start for turn in turns if turn.num_frames) + before + per_frame
        raise ValueError(f"`max_tokens` must be at least {first} to hold the first frame, got {max_tokens}")
    if not tokens:
        raise ValueError(f"`max_tokens` must be at least {turns[0].stop} for the first turn, got {max_tokens}")
    if last is not None and last.closed:
        tokens -= len(processor.stream_end_ids)
    return tokens, frames
