"""One row of the tables: a small model learns a hard level of the world, and its exact narrations are counted.

    python -m videollm_mod.benchmarks.world_rows dense --level hard --seed 0

What is learned from is made once for a level and kept in `--data`; the result is one JSON file a run, and a run whose
file exists is not run again. Several rows run side by side on one card as processes of their own.
"""

import argparse
import json
import math
import os
import time
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from ..data.world import conversation, world_stream
from ..data.world_hard import SPLITS, sprites
from ..processing_videollm_mod import VideoLLMMoDProcessor
from ..training.initialise import initialise

ROWS = {
    "dense": {"vision_routing": "full"},
    "layer_skip": {"vision_routing": "layer_skip"},
    "early_exit": {"vision_routing": "early_exit"},
    "class_token": {"vision_routing": "full", "frame_token_pooled": None},
}
CELL = 8  # pixels, one patch


def build(row: str, level: str, layers: int, hidden: int, seed: int):
    """A model without vision layers: what is in a patch goes straight through the connector."""
    grid = world_stream(0, level).GRID
    routing = dict(ROWS[row])
    pooled = routing.pop("frame_token_pooled", [grid, grid])
    texts = [text for index in range(300) for text in said(world_stream(SPLITS["train"] + index, level))]
    return initialise(
        {
            "frame_token_cls": True,
            "frame_token_pooled": pooled,
            "text_config": {
                "hidden_size": hidden,
                "intermediate_size": 3 * hidden,
                "num_hidden_layers": layers,
                "num_attention_heads": hidden // 32,
                "num_key_value_heads": hidden // 32,
                "max_position_embeddings": 4096,
                "tie_word_embeddings": True,
                **routing,
            },
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 96,
                "intermediate_size": 192,
                "num_hidden_layers": 0,
                "num_attention_heads": 4,
                "image_size": CELL * grid,
                "patch_size": CELL,
            },
        },
        texts,
        vocab_size=400,
        seed=seed,
    )


def said(stream) -> list[str]:
    messages = conversation(stream, num_questions=1)
    return [m["content"] for m in messages if m["role"] != "stream"] + ["\nUser: \nAssistant:"]


class Streams:
    """Encoded streams, grouped by length so that no batch is padded.

    A stream is `ids` and `labels` with one placeholder a frame, the codes of its cells `[F, h, w]`, its background, and
    how deep each narration is.
    """

    def __init__(self, streams: list[tuple], num_frame_tokens: int, video_token_id: int, device):
        self.groups = {}
        for ids, labels, codes, background, depths in streams:
            ids, labels = np.array(ids), np.array(labels)
            counts = np.where(ids == video_token_id, num_frame_tokens, 1)
            row = (np.repeat(ids, counts), np.repeat(labels, counts), codes, np.full(len(codes), background), depths)
            self.groups.setdefault((int(counts.sum()), len(codes)), []).append(row)
        self.device = device
        for key, rows in self.groups.items():
            self.groups[key] = [torch.from_numpy(np.stack([row[i] for row in rows])).to(device) for i in range(4)] + [
                [row[4] for row in rows]
            ]
        self.sizes = {key: len(rows[0]) for key, rows in self.groups.items()}

    def batches(self, batch_size: int, rng: np.random.Generator | None = None):
        """Batches of one epoch; in random order with `rng`, whole batches only."""
        plan = []
        for key, size in self.sizes.items():
            order = np.arange(size) if rng is None else rng.permutation(size)
            stop = size if rng is None else size // batch_size * batch_size
            plan += [(key, order[i : i + batch_size]) for i in range(0, stop, batch_size)]
        for i in range(len(plan)) if rng is None else rng.permutation(len(plan)):
            key, rows = plan[i]
            ids, labels, codes, background, depths = self.groups[key]
            index = torch.from_numpy(rows).to(self.device)
            yield ids[index], labels[index], codes[index], background[index], [depths[r] for r in rows]


def encode(job) -> list[tuple]:
    level, seeds, processor = job
    processor = VideoLLMMoDProcessor(processor.video_processor, processor.tokenizer, num_frame_tokens=1)
    encoded = []
    for seed in seeds:
        stream = world_stream(seed, level)
        ids, labels, _ = processor.encode_conversation(conversation(stream, num_questions=0, opening=False))
        codes = np.stack(stream.codes)[stream.shown(2.0)].astype(np.int16)
        encoded.append((ids, labels, codes, stream.background_index, stream.depths))
    return encoded


def encoded_streams(level: str, split: str, count: int, processor, folder: Path) -> list[tuple]:
    path = folder / f"{level}_{split}_{count}.pt"
    if not path.exists():
        seeds = range(SPLITS[split], SPLITS[split] + count)
        step = 500
        jobs = [(level, seeds[i : i + step], processor) for i in range(0, count, step)]
        with get_context("fork").Pool(os.cpu_count()) as pool:
            streams = [stream for part in pool.imap(encode, jobs) for stream in part]
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        torch.save(streams, partial)
        partial.replace(path)
    return torch.load(path, weights_only=False)


def pixels(bank: torch.Tensor, codes: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
    """codes int16 `[B, F, h, w]`, background `[B, F]` -> `[B * F, 3, H, W]` in [-1, 1]."""
    codes, background = codes.flatten(0, 1).long(), background.flatten()
    cells = bank[background[:, None, None], codes]  # [F, h, w, p, p, 3]
    frames, h, w, p, _, _ = cells.shape
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(frames, 3, h * p, w * p)


@torch.no_grad()
def evaluate(model, streams: Streams, bank, eos: int, end: int, batch_size: int) -> dict:
    """Percent of narrations whose silent decisions, moment and words are all the likeliest, and by depth."""
    model.eval()
    right, timed, depths = [], [], []
    for ids, labels, codes, background, of_rows in streams.batches(batch_size):
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.is_cuda):
            logits = model(input_ids=ids, pixel_values_videos=pixels(bank, codes, background)).logits
        target = labels[:, 1:]
        learned = target != -100
        hit = (logits[:, :-1].argmax(-1) == target) | ~learned
        ends = target == eos
        turn = ends.long().cumsum(1) - ends.long()  # of each label
        decision = learned & ((target == end) | (target == model.config.frame_separator_token_id))
        for i in range(len(of_rows[0])):
            own = turn == i
            right.append((hit | ~own).all(1))
            timed.append((hit | ~own | ~decision).all(1))
            depths += [row[i] for row in of_rows]
    model.train()
    right, timed, depths = torch.cat(right).cpu().numpy(), torch.cat(timed).cpu().numpy(), np.array(depths)
    return {
        "narrations": len(right),
        "exact": round(100 * right.mean(), 2),
        "timed": round(100 * timed.mean(), 2),
        "by_depth": {int(d): round(100 * right[depths == d].mean(), 2) for d in np.unique(depths)},
    }


def run(args) -> dict:
    torch.set_num_threads(1)
    model, processor = build(args.row, args.level, args.layers, args.hidden, args.seed)
    model.to(args.device).train()
    learned = encoded_streams(args.level, "train", args.streams, processor, args.data)
    learned += encoded_streams(f"{args.level}_lessons", "train", args.streams // 2, processor, args.data)
    scored = encoded_streams(args.level, args.split, args.eval_streams, processor, args.data)
    placeholder = (model.config.num_frame_tokens, model.config.video_token_id, args.device)
    data = {"train": Streams(learned, *placeholder), args.split: Streams(scored, *placeholder)}
    bank = torch.from_numpy(sprites(CELL)).to(args.device).float() / 127.5 - 1
    eos, end = processor.tokenizer.eos_token_id, processor.stream_end_ids[0]
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
        fused=args.device == "cuda",
    )
    warmup = min(300, args.steps // 10)
    started, stopped = time.perf_counter(), False

    def rate(s: int) -> float:
        done = (time.perf_counter() - started) / args.seconds if args.seconds else s / args.steps
        return min((s + 1) / warmup, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, done))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    rng, step, curve, losses = np.random.default_rng(args.seed), 0, [], []
    while step < args.steps and not stopped:
        for ids, labels, codes, background, _ in data["train"].batches(args.batch, rng):
            with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
                loss = model(
                    input_ids=ids, labels=labels, pixel_values_videos=pixels(bank, codes, background), use_cache=False
                ).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
            step += 1
            if step % args.every == 0:
                scores = evaluate(model, data[args.split], bank, eos, end, 128)
                mean_loss = float(torch.stack(losses).mean())
                losses = []
                seconds = time.perf_counter() - started
                curve.append({"step": step, "seconds": round(seconds, 1), "loss": round(mean_loss, 4), **scores})
                print(args.row, args.level, f"s{args.seed}", json.dumps(curve[-1]), flush=True)
            if step == args.steps:
                break
            if args.seconds and time.perf_counter() - started > args.seconds:
                stopped = True
                break
    final = evaluate(model, data[args.split], bank, eos, end, 128)
    return {
        **{name: getattr(args, name) for name in ("row", "level", "layers", "hidden", "seed", "split", "lr", "batch")},
        "steps": step,
        "seconds": round(time.perf_counter() - started, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "versions": {name: version(name) for name in ("torch", "transformers")},
        **final,
        "curve": curve,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--level", default="hard")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--streams", type=int, default=100_000, help="to learn from")
    parser.add_argument("--eval-streams", type=int, default=1250)
    parser.add_argument("--every", type=int, default=500, help="steps between two scores of the curve")
    parser.add_argument("--seconds", type=float, help="stop then, whatever the step")
    parser.add_argument("--data", type=Path, default=Path("runs/world_rows"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/world_hard"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    name = (
        f"{args.level}_{args.row}_l{args.layers}_d{args.hidden}_lr{args.lr:g}_{args.steps}_s{args.seed}_{args.split}"
    )
    path = args.output / f"{name}.json"
    if path.exists():
        print(f"{path} exists")
        return
    result = run(args)
    args.output.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(result) + "\n", encoding="utf-8")
    partial.replace(path)
    print("RESULT", name, result["steps"], result["seconds"], result["exact"], result["timed"], result["by_depth"])


if __name__ == "__main__":
    main()
