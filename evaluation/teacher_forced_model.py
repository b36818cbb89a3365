"""Run a model on streams with given replies, for the metrics of `teacher_forced`.

A batch of streams goes through the model once. For turns in which the model stays silent but should speak, the cache
is rolled back to that frame, and the following frames are fed without the reply, again as a batch.

This follows VideoLLM-online's `stream_evaluate` (arXiv 2406.11816), with three peculiarities:
- A turn ends with a reply, so frames after the last reply are ignored.
- The frames that follow a turn are those of the next turn. If a user's question interrupts a stream, the frame before
  it has no decision, and is not one of them.
- The tokens of a reply are all that have a label, including its header.

Shapes: F frames of a stream, N vision tokens per frame, Dv hidden size of the vision tower, V vocabulary.
"""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from ..cache import MoDCache
from ..containers import IGNORE_INDEX
from ..decoding import frame_times
from ..sequence import DEFAULT_THRESHOLD
from ..speaking import silence_probability
from .teacher_forced import TurnScores, num_following, score_turn, wants_to_speak


@dataclass(frozen=True)
class ForcedTurn:
    """The positions of a turn's decisions and reply.

    Args:
        decisions (`list[int]`): positions of the last tokens of frames whose next token has a label.
        speak (`list[bool]`): whether the model should speak, for each decision.
        reply (`list[int]`): positions that predict the reply's tokens.
        frames (`int`): number of frames of the turn.
        first_frame (`int`): number of frames before the turn.
    """

    decisions: list[int]
    speak: list[bool]
    reply: list[int]
    frames: int
    first_frame: int


@dataclass(frozen=True)
class ForcedStream:
    """
    Args:
        turns (`list[TurnScores]`): scores of each reply.
        exact (`list[bool]`): for each reply that does not answer a question, whether all decisions of its turn and all
            tokens of the reply are right.
        silence (`list[float]`): P(silence) for each decision.
        speak (`list[bool]`): whether the model should speak, for each decision.
    """

    turns: list[TurnScores]
    exact: list[bool]
    silence: list[float]
    speak: list[bool]


def forced_turns(input_ids: list[int], labels: list[int], processor) -> list[ForcedTurn]:
    """The turns of a sequence of `VideoLLMMoDProcessor.encode_conversation`; each ends with the end of a reply. In a
    family's sequence, where other turns may end with the same token, it is one that is learned."""
    video, silence, offset = processor.video_token_id, processor.frame_separator_token_id, processor.decision_offset
    targets = [*labels[1:], IGNORE_INDEX]
    turns, start, seen = [], 0, 0
    ends = labels if processor.sequence.one_turn else input_ids
    stops = [index + 1 for index, token in enumerate(ends) if token == processor.reply_stop_id]
    if not processor.reply_end_ids and labels[-1] != IGNORE_INDEX:  # nothing stands after the last reply
        stops.append(len(labels))
    for stop in stops:
        learned = [i for i in range(start, stop) if targets[i] != IGNORE_INDEX]
        decisions = [i for i in learned if i >= offset and input_ids[i - offset] == video]
        frames = input_ids[start:stop].count(video) // processor.num_frame_tokens
        if learned:
            speak = [targets[i] != silence for i in decisions]
            reply = [i for i in learned if i not in decisions]
            turns.append(ForcedTurn(decisions, speak, reply, frames, seen))
        start, seen = stop, seen + frames
    return turns


def teacher_forced(
    model,
    processor,
    conversations: list[list[dict]],
    features: list[torch.Tensor],
    threshold: float = DEFAULT_THRESHOLD,
) -> list[ForcedStream]:
    """
    Args:
        conversations: messages of each stream, with `num_frames` instead of frames, and `times` if they are known.
        features (`list[Tensor]`): `[F, N, Dv]` of each stream, on the model's device.
        threshold (`float`): the model wants to speak when P(silence) is below this, or another token is more probable.
    """
    rows = [processor.encode_conversation(messages)[:2] for messages in conversations]
    times = [times_of(messages, processor) for messages in conversations]
    return teacher_forced_rows(model, processor, rows, features, threshold, times)


def times_of(messages: list[dict], processor) -> list[float]:
    """The time of each frame of a conversation, in seconds."""
    times: list[float] = []
    for turn in messages:
        if turn["role"] == "stream":
            last = times[-1] if times else None
            times += frame_times(turn.get("times"), turn["num_frames"], processor.video_processor.fps, last)
    return times


@torch.no_grad()
def teacher_forced_rows(
    model,
    processor,
    rows: list[tuple[list[int], list[int]]],
    features: list[torch.Tensor],
    threshold: float = DEFAULT_THRESHOLD,
    times: list[list[float]] | None = None,
) -> list[ForcedStream]:
    """`teacher_forced` for tokenised streams: `(input_ids, labels)` of each. times: of their frames, which the prompts
    of a family may write."""
    turns_of = [forced_turns(ids, labels, processor) for ids, labels in rows]
    cache = MoDCache(model.config)
    hidden = forward(model, processor, [ids for ids, _ in rows], torch.cat(features), cache)
    streams, late = [], []
    for row, ((_, labels), turns) in enumerate(zip(rows, turns_of, strict=True)):
        targets = torch.tensor([*labels[1:], IGNORE_INDEX], device=hidden.device)
        predicted = []
        for number, turn in enumerate(turns):
            silence, wants = decide(model, hidden[row, turn.decisions], threshold)
            logits = model.lm_head(hidden[row, turn.reply]).float()
            expected = targets[turn.reply]
            nll = torch.nn.functional.cross_entropy(logits, expected, reduction="none")
            predicted.append((silence, wants, nll.cpu().numpy(), (logits.argmax(-1) == expected).cpu().numpy()))
            following = turns[number + 1].frames if number + 1 < len(turns) else None
            count = num_following(turn.frames, following)
            if turn.decisions and not wants.any() and count:
                first = turn.first_frame + turn.frames
                frames = features[row][first : first + count]
                seconds = [None] * len(frames) if times is None else times[row][first : first + count]
                late.append((row, number, turn.decisions[-1] + 1, frames, seconds))
        streams.append((turns, predicted))
    later: dict[tuple[int, int], np.ndarray] = {}
    for first in range(0, len(late), len(rows)):
        later |= later_decisions(model, processor, cache, late[first : first + len(rows)], threshold)
    return [score_stream(turns, predicted, row, later) for row, (turns, predicted) in enumerate(streams)]


def forward(model, processor, rows: list[list[int]], features: torch.Tensor, cache: MoDCache) -> torch.Tensor:
    """Hidden states `[B, T, D]` of rows of tokens that continue the cache; padding is on the right."""
    length = max(map(len, rows))
    pad = processor.tokenizer.pad_token_id
    device = model.device
    return model.model(
        input_ids=torch.tensor([row + [pad] * (length - len(row)) for row in rows], device=device),
        attention_mask=torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=device),
        video_features=features if len(features) else None,
        cache=cache,
        use_cache=True,
    ).last_hidden_state


def decide(model, hidden: torch.Tensor, threshold: float):
    """P(silence), float `[S]`, and whether the model wants to speak, bool `[S]`, from the hidden states `[S, D]` of
    the frames' last tokens."""
    separator = model.config.frame_separator_token_id
    logits = model.lm_head(hidden)
    silence = silence_probability(logits, separator).cpu().numpy()
    return silence, wants_to_speak(silence, (logits.argmax(-1) == separator).cpu().numpy(), threshold)


def later_decisions(
    model, processor, cache: MoDCache, late: list[tuple], threshold: float
) -> dict[tuple[int, int], np.ndarray]:
    """`(row, turn) -> bool [A]`: whether the model wants to speak after each frame that follows a late turn.

    Args:
        late: `(row, turn, position, features [A, N, Dv], times)` of each late turn; the frames are fed from `position`
            on.
    """
    rows = torch.tensor([row for row, *_ in late], device=model.device)
    cache = cache.copy()
    cache.batch_select_indices(rows)
    cache.rollback(torch.tensor([position for _, _, position, *_ in late], device=model.device))
    pieces = [[processor.between_frames_ids + processor.frame_ids_at(time) for time in times] for *_, times in late]
    ids = [[token for piece in own for token in piece] for own in pieces]
    hidden = forward(model, processor, ids, torch.cat([frames for *_, frames, _ in late]), cache)
    decisions = {}
    for index, (row, number, *_) in enumerate(late):
        ends = [end - 1 for end in accumulate(len(piece) for piece in pieces[index])]
        decisions[row, number] = decide(model, hidden[index, ends], threshold)[1]
    return decisions


def score_stream(
    turns: list[ForcedTurn], predicted: list[tuple], row: int, later: dict[tuple[int, int], np.ndarray]
) -> ForcedStream:
    scores, exact, silences, speak = [], [], [], []
    for number, (turn, (silence, wants, nll, right)) in enumerate(zip(turns, predicted, strict=True)):
        scores.append(score_turn(nll, right, wants, later.get((row, number), ())))
        if any(turn.speak):
            exact.append(wants.tolist() == turn.speak and bool(right.all()))
        silences += silence.tolist()
        speak += turn.speak
    return ForcedStream(scores, exact, silences, speak)
