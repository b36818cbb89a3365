"""How well checkpoints predict what is said in streams of a minute, with a bounded memory in force and without.

    OMP_NUM_THREADS=1 python -m videollm_mod.benchmarks.carried_loss bundled=. carried=DIR whole=DIR

Each stream is read with its true narrations, questions and answers. `nats` is the mean loss of a token of an answer,
of a narration, and of the decision whether to speak after a frame; `exact_percent` the share of answers and narrations
of which every token is the most probable one. `apart` are differences of nats to the first checkpoint on the same
streams, with their standard errors.
"""

import argparse
import json
import shlex
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..bench.record import surroundings, write_result
from ..data.collator import StreamCollator
from ..data.turns import encode_example
from ..data.world import conversation, world_stream
from ..data.world_hard import split_seeds
from ..training.carried import CarriedCollator, CarriedStreams, Carrying
from .long_streams import nano

FPS, QUESTIONS = 2.0, 8
BOUND = Carrying(24, max_cached_text=480)
KINDS = ("answer", "narration", "decision")


def kinds_of(example: dict) -> dict[str, list[list[int]]]:
    """The tokens of each answer, of each narration, and of each decision, alone."""
    found: dict[str, list[list[int]]] = {kind: [] for kind in KINDS}
    before = None
    for turn in example["turns"]:
        learned = [i for i in range(turn.start, turn.stop) if example["labels"][i] >= 0]
        if turn.role == "assistant":
            found["answer" if before == "user" else "narration"].append(learned)
        elif turn.role == "stream":
            found["decision"] += [[i] for i in learned]
        before = turn.role
    return found


@torch.no_grad()
def scores(model, processor, example: dict, bounded: bool) -> tuple[np.ndarray, np.ndarray]:
    """The loss of each token after the first, and whether it is the most probable one."""
    pad = processor.tokenizer.pad_token_id
    if bounded:
        batch = CarriedCollator(pad, processor=processor, carrying=BOUND)([example])
        streams, parts = CarriedStreams(model, BOUND, batch), []
        for span in streams.spans:
            for window, inputs in zip(span, streams.span(span), strict=True):
                outputs = model(**inputs)
                parts.append(outputs.logits[0])
                streams.add(window, outputs.router_scores, end_of_span=True)
        logits = torch.cat(parts)
    else:
        batch = StreamCollator(pad)([example])
        logits = model(**{name: x for name, x in batch.items() if name != "labels"}).logits[0]
    targets = torch.tensor(example["input_ids"][1:])
    losses = torch.nn.functional.cross_entropy(logits[:-1].float(), targets, reduction="none")
    return losses.numpy(), (logits[:-1].argmax(-1) == targets).numpy()


def measure(folder: str, seeds: range, level: str) -> dict:
    """For each memory and kind: `nats` of each stream, and how many are `exact` of how many."""
    model, processor = nano(Path(folder))
    rows: dict = {memory: {kind: defaultdict(list) for kind in KINDS} for memory in ("bounded", "everything")}
    for seed in tqdm(seeds, desc=folder):
        stream = world_stream(seed, level)
        example = encode_example(conversation(stream, FPS, QUESTIONS), processor)
        drawn = torch.from_numpy(stream.drawn()).permute(0, 3, 1, 2)
        with torch.no_grad():
            pixels = processor.video_processor(drawn, return_tensors="pt")["pixel_values_videos"]
            example["video_features"] = model.encode_frames(pixels).pooler_output[stream.shown(FPS)]
        for memory, row in rows.items():
            losses, right = scores(model, processor, example, memory == "bounded")
            for kind, spans in kinds_of(example).items():
                places = np.array([i - 1 for span in spans for i in span], dtype=int)
                if len(places):
                    row[kind]["nats"].append(float(losses[places].mean()))
                    row[kind]["exact"] += [bool(right[np.array(span) - 1].all()) for span in spans]
    return rows


def summary(rows: dict, first: dict) -> dict:
    found: dict = {}
    for memory, row in rows.items():
        for kind, own in row.items():
            apart = np.array(own["nats"]) - np.array(first[memory][kind]["nats"])
            found.setdefault(memory, {})[kind] = {
                "nats": round(float(np.mean(own["nats"])), 4),
                "apart": round(float(apart.mean()), 4),
                "standard_error": round(float(apart.std(ddof=1) / len(apart) ** 0.5), 4),
                "exact_percent": round(100 * sum(own["exact"]) / len(own["exact"]), 1),
                "count": len(own["exact"]),
            }
    return found


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--level", choices=("minute", "minutes"), default="minute")
    parser.add_argument("--streams", type=int, default=24)
    args = parser.parse_args(argv)
    folders = dict(given.split("=", 1) for given in args.checkpoints)
    seeds = split_seeds("test", args.streams)
    rows = {name: measure(folder, seeds, args.level) for name, folder in folders.items()}
    found = {name: summary(row, next(iter(rows.values()))) for name, row in rows.items()}
    command = f"OMP_NUM_THREADS=1 python -m videollm_mod.benchmarks.carried_loss {shlex.join(argv)}"
    bound = {name: getattr(BOUND, name) for name in ("max_cached_frames", "max_cached_text")}
    about = {"level": args.level, "streams": args.streams, "first_seed": seeds.start, "bound": bound}
    write_result("carried_loss", {"command": command, **surroundings(), **about, "checkpoints": found})
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
