"""Scores of a model on encoded streams of the hard levels, after the true words and on its own words."""

import numpy as np
import torch

from ..containers import IGNORE_INDEX
from ..data.world_streams import FPS, Streams, pixels
from ..evaluation.lockstep import Said, narrate_in_lockstep
from ..evaluation.self_conditioned import best_pairs, precision_recall_f1, segments
from ..evaluation.teacher_forced import TurnScores, summarise
from ..evaluation.teacher_forced_model import forced_turns, teacher_forced_rows


def autocast(device: torch.device):
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@torch.no_grad()
def exact_narrations(model, streams: Streams, bank: torch.Tensor, processor, batch_size: int = 128) -> dict:
    """Teacher-forced percentages, also by depth. A narration is exact if, since the previous one, every silent
    decision, the decision to speak and every token of the reply was the most likely. It is timed if the decisions
    were."""
    eos = processor.tokenizer.eos_token_id
    decisions = torch.tensor([processor.stream_end_ids[0], processor.frame_separator_token_id], device=bank.device)
    exact, timed, depth = [], [], []
    for ids, labels, codes, depths in streams.batches(batch_size):
        with autocast(ids.device):
            logits = model(input_ids=ids, pixel_values_videos=pixels(bank, codes)).logits
        target = labels[:, 1:]
        wrong = (target != IGNORE_INDEX) & (logits[:, :-1].argmax(-1) != target)
        decides = torch.isin(target, decisions)
        ends = (target == eos).long()
        turn = ends.cumsum(1) - ends  # the narration that each label belongs to
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


def streaming_metrics(model, streams: Streams, bank: torch.Tensor, processor, batch_size: int = 128) -> dict:
    """LM-PPL, TimeDiff, Fluency and LM-Correctness of `evaluation.teacher_forced`."""
    scores: list[list[TurnScores]] = []
    for ids, labels, codes, _ in streams.batches(batch_size):
        with torch.no_grad(), autocast(ids.device):
            features = model.encode_frames(pixels(bank, codes)).pooler_output.unflatten(0, codes.shape[:2])
            rows = list(zip(ids.tolist(), labels.tolist(), strict=True))
            forced = teacher_forced_rows(model, processor, rows, list(features), threshold=0)
        scores += [stream.turns for stream in forced]
    return {name: None if value is None else round(value, 5) for name, value in summarise(scores, FPS).items()}


def true_narrations(ids: list[int], labels: list[int], processor) -> Said:
    """The narrations of an encoded stream with `ids` and `labels` `[T]`."""
    header = len(processor.assistant_header_ids)
    said = []
    for turn in forced_turns(ids, labels, processor):
        if any(turn.speak):  # the positions that predict the reply
            words = tuple(ids[position + 1] for position in turn.reply[header:-1])
            said.append((turn.first_frame + turn.frames - 1, words))
    return said


def self_conditioned(model, streams: Streams, bank: torch.Tensor, processor) -> dict:
    """On its own words: precision, recall and F1 at IoU 0.5, and narrations with the exact frame and words."""
    rows = [row for group in streams.groups for row in zip(*group, strict=True)]
    num_frames = torch.tensor([len(codes) for _, _, codes, _ in rows], device=bank.device)
    padded = torch.nn.utils.rnn.pad_sequence([codes for _, _, codes, _ in rows], batch_first=True)
    with autocast(bank.device):
        said = narrate_in_lockstep(
            model, processor, lambda some, count: pixels(bank, padded[some, :count]), num_frames, max_reply=24
        )
    true = [true_narrations(ids.tolist(), labels.tolist(), processor) for ids, labels, _, _ in rows]
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
        "worded_f1": round(precision_recall_f1(worded, *counts)["f1"], 3),  # matched with the same words
        "exact": round(100 * exact / max(1, counts[1]), 3),
        "said": counts[0],
        "true": counts[1],
    }
