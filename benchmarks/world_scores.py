"""Scores of one model on encoded streams of the hard level: with the true words before, and on its own words."""

import numpy as np
import torch

from ..data.world_streams import FPS, Streams, pixels
from ..evaluation.lockstep import Said, narrate_in_step
from ..evaluation.self_conditioned import best_pairs, precision_recall_f1, segments
from ..evaluation.teacher_forced import TurnScores, num_following, score_turn, summarise


def autocast(device: torch.device):
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@torch.no_grad()
def exact_narrations(model, streams: Streams, bank: torch.Tensor, processor, batch_size: int = 128) -> dict:
    """Teacher-forced. A narration is exact if, since the one before it, every silent decision, the decision to speak,
    and every token of the reply was the likeliest; timed if the decisions were. In percent, and exact by depth."""
    eos = processor.tokenizer.eos_token_id
    decisions = torch.tensor([processor.stream_end_ids[0], processor.frame_separator_token_id], device=bank.device)
    exact, timed, depth = [], [], []
    for ids, labels, codes, depths in streams.batches(batch_size):
        with autocast(ids.device):
            logits = model(input_ids=ids, pixel_values_videos=pixels(bank, codes)).logits
        target = labels[:, 1:]
        wrong = (target != -100) & (logits[:, :-1].argmax(-1) != target)
        decides = torch.isin(target, decisions)
        ends = (target == eos).long()
        turn = ends.cumsum(1) - ends  # which narration each label leads to
        for i in range(depths.shape[1]):
            exact.append(~(wrong & (turn == i)).any(1))
            timed.append(~(wrong & decides & (turn == i)).any(1))
            depth.append(depths[:, i])
    exact, timed, depth = (torch.cat(x).cpu().numpy() for x in (exact, timed, depth))
    return {
        "narrations": len(exact),
        "exact": round(100 * float(exact.mean()), 3),
        "timed": round(100 * float(timed.mean()), 3),
        "exact_by_depth": {int(d): round(100 * float(exact[depth == d].mean()), 3) for d in np.unique(depth)},
    }


def turns_of(ids: np.ndarray, labels: np.ndarray, video: int, eos: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """`(decisions, reply)` of each turn, as positions in `ids` `[T]`: the last tokens of its frames, and the tokens of
    the words that follow, the header before them included. A last turn without words has an empty `reply`."""
    position = np.arange(len(ids))
    is_video = ids == video
    last = is_video & ~np.append(is_video[1:], False)
    after_frame = np.append(False, last[:-1])
    ends = [*position[labels == eos], len(ids) - 1]
    turns, start = [], 0
    for end in ends:
        within = (position >= start) & (position <= end)
        frames, reply = position[within & last], position[within & (labels != -100) & ~after_frame]
        if len(frames):
            turns.append((frames, reply))
        start = end + 1
    return turns


@torch.no_grad()
def streaming_metrics(model, streams: Streams, bank: torch.Tensor, processor, batch_size: int = 128) -> dict:
    """LM-PPL, TimeDiff, Fluency and LM-Correctness of `evaluation.teacher_forced`."""
    video, eos = processor.video_token_id, processor.tokenizer.eos_token_id
    separator = processor.frame_separator_token_id
    scores: list[list[TurnScores]] = []
    for ids, labels, codes, _ in streams.batches(batch_size):
        with autocast(ids.device):
            logits = model(input_ids=ids, pixel_values_videos=pixels(bank, codes)).logits.float()
        nll = torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), labels[:, 1:].clamp(min=0), reduction="none"
        )
        nll, likeliest = nll.cpu().numpy(), logits.argmax(-1).cpu().numpy()
        for row in range(len(ids)):
            row_ids, row_labels = ids[row].cpu().numpy(), labels[row].cpu().numpy()
            turns, of_row, fed = turns_of(row_ids, row_labels, video, eos), [], 0
            for number, (frames, reply) in enumerate(turns):
                # the stream's very last frame has no decision, unless words follow
                decisions = frames if len(reply) else frames[:-1]
                wants, later = likeliest[row, decisions] != separator, []
                following = len(turns[number + 1][0]) if number + 1 < len(turns) else None
                count = num_following(len(frames), following)
                if len(decisions) and not wants.any() and count:
                    later = _later(
                        model,
                        ids[row, : frames[-1] + 1],
                        codes[row, : fed + len(frames) + count],
                        count,
                        bank,
                        processor,
                    )
                fed += len(frames)
                of_row.append(
                    score_turn(nll[row, reply - 1], likeliest[row, reply - 1] == row_ids[reply], wants, later)
                )
            scores.append(of_row)
    return {name: None if value is None else round(value, 5) for name, value in summarise(scores, FPS).items()}


def _later(model, ids: torch.Tensor, codes: torch.Tensor, count: int, bank: torch.Tensor, processor) -> list[bool]:
    """Whether the model wants to speak after each of `count` more frames, which follow `ids` without words."""
    more = torch.tensor([processor.frame_separator_token_id, *processor.frame_ids] * count, device=ids.device)
    with autocast(ids.device):
        logits = model(input_ids=torch.cat([ids, more])[None], pixel_values_videos=pixels(bank, codes[None])).logits
    step = 1 + len(processor.frame_ids)
    last = [-1 - step * back for back in range(count - 1, -1, -1)]
    return (logits[0, last].argmax(-1) != processor.frame_separator_token_id).tolist()


def true_narrations(ids: torch.Tensor, labels: torch.Tensor, processor) -> Said:
    """What is said in one encoded stream, `ids` and `labels` `[T]`."""
    ids, labels = ids.cpu().numpy(), labels.cpu().numpy()
    header, said, seen = len(processor.assistant_header_ids), [], 0
    for frames, reply in turns_of(ids, labels, processor.video_token_id, processor.tokenizer.eos_token_id):
        seen += len(frames)
        if len(reply):
            said.append((seen - 1, tuple(ids[reply[header:-1]].tolist())))
    return said


def self_conditioned(model, streams: Streams, bank: torch.Tensor, processor) -> dict:
    """On its own words: precision, recall and F1 at IoU 0.5, and narrations that are exact in frame and words."""
    rows = [row for group in streams.groups for row in zip(*group, strict=True)]
    num_frames = torch.tensor([len(codes) for _, _, codes, _ in rows], device=bank.device)
    padded = torch.nn.utils.rnn.pad_sequence([codes for _, _, codes, _ in rows], batch_first=True)
    with autocast(bank.device):
        said = narrate_in_step(
            model, processor, lambda some, count: pixels(bank, padded[some, :count]), num_frames, max_reply=24
        )
    true = [true_narrations(ids, labels, processor) for ids, labels, _, _ in rows]
    matched = worded = exact = 0
    for frames, mine, theirs in zip(num_frames.tolist(), said, true, strict=True):
        predicted, wanted = ([(frame / FPS, words) for frame, words in part] for part in (mine, theirs))
        predicted, wanted = segments(predicted, frames / FPS), segments(wanted, frames / FPS)
        pairs = best_pairs(predicted, wanted)
        matched += len(pairs)
        worded += sum(predicted[i][2] == wanted[j][2] for i, j in pairs)
        exact += len(set(mine) & set(theirs))
    counts = sum(map(len, said)), sum(map(len, true))
    return {
        **{name: round(value, 3) for name, value in precision_recall_f1(matched, *counts).items()},
        "worded_f1": round(precision_recall_f1(worded, *counts)["f1"], 3),  # matched, and the same words
        "exact": round(100 * exact / max(1, counts[1]), 3),
        "said": counts[0],
        "true": counts[1],
    }
