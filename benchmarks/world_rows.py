"""One row of the tables: a small model learns a hard level of the world, and its exact narrations are counted.

    python -m videollm_mod.benchmarks.world_rows dense --level hard --seed 0

The streams are made once for a level and kept in `--data`. A run writes one JSON file, and is not run again if it is
there. Rows run side by side on one card, as processes of their own; there the CUDA MPS server keeps them from waiting
for each other's time slices.
"""

import argparse
import json
import math
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from ..data.world_streams import (
    CELL,
    Streams,
    encoded_streams,
    grid_of,
    normalised_sprites,
    pixels,
    training_texts,
)
from ..training.initialise import initialise

ROWS = {
    "dense": {"vision_routing": "full"},
    "layer_skip": {"vision_routing": "layer_skip"},
    "early_exit": {"vision_routing": "early_exit"},
    "class_token": {"vision_routing": "full"},
    "learned": {"vision_routing": "mod", "mod_selection": "learned"},
    "random": {"vision_routing": "mod", "mod_selection": "random"},
    "uniform": {"vision_routing": "mod", "mod_selection": "uniform"},
}
# (level, steps, streams a step): among 50 tokens a frame nothing is found in two minutes, unless few came first
STAGES = {
    "hard_small": (("hard_small", 2000, 128),),
    "hard": (("hard_small", 1200, 128), ("hard", 800, 64)),
}


def build(row: str, level: str, args):
    """A model without vision layers, so that seeing is left to the language model: each patch goes straight through
    the connector. Its processor knows the words of every level."""
    grid = grid_of(level)
    routing = dict(ROWS[row])
    if routing["vision_routing"] == "mod":
        routing |= {"mod_keep_ratio": args.ratio, "mod_layers": args.mod_layers}
    said = training_texts()
    return initialise(
        {
            "frame_token_cls": True,
            "frame_token_pooled": None if row == "class_token" else [grid, grid],
            "text_config": {
                "hidden_size": args.hidden,
                "intermediate_size": 3 * args.hidden,
                "num_hidden_layers": args.layers,
                "num_attention_heads": args.hidden // 32,
                "num_key_value_heads": args.hidden // 32,
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
        [*said, *["\nUser: \nAssistant:"] * len(said)],  # the headers are words too
        vocab_size=400,
        seed=args.seed,
    )


@torch.no_grad()
def evaluate(model, streams: Streams, bank: torch.Tensor, processor, batch_size: int = 128) -> dict:
    """Teacher-forced. A narration is exact if, since the one before it, every silent decision, the decision to speak,
    and every token of the reply was the likeliest; timed if the decisions were. In percent, and exact by depth."""
    training = model.training
    model.eval()
    eos, decisions = (
        processor.tokenizer.eos_token_id,
        [processor.stream_end_ids[0], processor.frame_separator_token_id],
    )
    exact, timed, depth = [], [], []
    for ids, labels, codes, depths in streams.batches(batch_size):
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.is_cuda):
            logits = model(input_ids=ids, pixel_values_videos=pixels(bank, codes)).logits
        target = labels[:, 1:]
        wrong = (target != -100) & (logits[:, :-1].argmax(-1) != target)
        decides = torch.isin(target, torch.tensor(decisions, device=ids.device))
        ends = (target == eos).long()
        turn = ends.cumsum(1) - ends  # which narration each label leads to
        for i in range(depths.shape[1]):
            exact.append(~(wrong & (turn == i)).any(1))
            timed.append(~(wrong & decides & (turn == i)).any(1))
            depth.append(depths[:, i])
    model.train(training)
    exact, timed, depth = (torch.cat(x).cpu().numpy() for x in (exact, timed, depth))
    return {
        "narrations": len(exact),
        "exact": round(100 * float(exact.mean()), 3),
        "timed": round(100 * float(timed.mean()), 3),
        "exact_by_depth": {int(d): round(100 * float(exact[depth == d].mean()), 3) for d in np.unique(depth)},
    }


def stage_data(level: str, processor, args) -> list:
    """Streams to learn from, lessons beside them, and streams for the curve."""
    wanted = ((level, "train", args.streams), (f"{level}_lessons", "train", args.streams))
    wanted = (*wanted, (level, "validation", args.curve_streams))
    return [encoded_streams(*which, processor, args.data) for which in wanted]


def train_stage(model, processor, stage: tuple[str, int, int], args, rng: np.random.Generator) -> list[dict]:
    """One stage of AdamW with warm-up and cosine; the curve: loss and score on validation streams, whole steps."""
    level, steps, batch_size = stage
    placeholder = (model.config.num_frame_tokens, model.config.video_token_id, args.device)
    learned, lessons, scored = stage_data(level, processor, args)
    learned, scored = Streams(learned + lessons, *placeholder), Streams(scored, *placeholder)
    bank = normalised_sprites(processor, args.device)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.01},
            {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=args.lr,
        betas=(0.9, 0.98),
        fused=args.device == "cuda",
    )
    warmup = max(1, min(300, steps // 8))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, s / steps))))
    )
    curve, losses, step, started = [], [], 0, time.perf_counter()
    while step < steps:
        for ids, labels, codes, _ in learned.batches(batch_size, rng):
            with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
                loss = model(
                    input_ids=ids, labels=labels, pixel_values_videos=pixels(bank, codes), use_cache=False
                ).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
            step += 1
            if step % 200 == 0 or step == steps:
                score = evaluate(model, scored, bank, processor)
                seconds = round(time.perf_counter() - started, 1)
                mean_loss = round(float(torch.stack(losses).mean()), 5)
                curve.append({"level": level, "step": step, "seconds": seconds, "loss": mean_loss, **score})
                losses = []
                print(f"{args.row} seed {args.seed} {json.dumps(curve[-1])}", flush=True)
            if step == steps:
                break
    return curve


def run(args) -> dict:
    torch.set_num_threads(1)
    rng, curve, known = np.random.default_rng(args.seed), [], {}
    for level, *_ in STAGES[args.level]:  # made by forked processes, so before the card is in use
        stage_data(level, build(args.row, level, args)[1], args)
    for stage in STAGES[args.level]:
        model, processor = build(args.row, stage[0], args)
        own = model.state_dict()  # a finer grid has other positions, all else goes on
        model.load_state_dict({n: v for n, v in known.items() if v.shape == own[n].shape}, strict=False)
        model.to(args.device).train()
        curve += train_stage(model, processor, stage, args, rng)
        known = {name: value.cpu() for name, value in model.state_dict().items()}
    streams = encoded_streams(args.level, args.split, args.eval_streams, processor, args.data)
    streams = Streams(streams, model.config.num_frame_tokens, model.config.video_token_id, args.device)
    return {
        **{k: v for k, v in vars(args).items() if k not in ("data", "output", "device")},
        "stages": STAGES[args.level],
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "CPU",
        "versions": {name: version(name) for name in ("torch", "transformers")},
        **evaluate(model, streams, normalised_sprites(processor, args.device), processor),
        "curve": curve,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--level", default="hard_small", choices=STAGES)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--ratio", type=float, default=0.2, help="of vision tokens that a routed layer keeps")
    parser.add_argument("--mod-layers", default="interleaved")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--streams", type=int, default=20_000, help="to learn from, and as many lessons")
    parser.add_argument("--curve-streams", type=int, default=150)
    parser.add_argument("--eval-streams", type=int, default=640, help="of eight narrations each")
    parser.add_argument("--data", type=Path, default=Path("runs/world_rows"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/world_hard"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    routed = f"_r{args.ratio:g}_{args.mod_layers}" if ROWS[args.row]["vision_routing"] == "mod" else ""
    name = f"{args.level}_{args.row}{routed}_l{args.layers}_d{args.hidden}_lr{args.lr:g}_s{args.seed}_{args.split}"
    path = args.output / f"{name}.json"
    if path.exists():
        print(f"{path} exists")
        return
    result = run(args)
    args.output.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(json.dumps(result) + "\n", encoding="utf-8")
    path.with_suffix(".part").replace(path)
    print(name, *(f"{key} {result[key]}" for key in ("exact", "timed", "exact_by_depth")))


if __name__ == "__main__":
    main()
