"""Teach the vision tower of a checkpoint to see frames of any size as it sees frames drawn at its own size.

    python -m videollm_mod.benchmarks.nano_scales --begin FOLDER --output FOLDER --minutes 12

The tower learned from frames that were drawn at its input size. Frames of a file are scaled to that size, which
changes the look of small things, such as those of the hard level. Here a copy of the tower sees scaled frames and
learns to produce the features that the tower produces for the same frames unscaled. Nothing else changes, so the
language model need not be trained again. Two CPU cores suffice. `--score` only counts exact narrations of the hard
level by frame size.
"""

import argparse
import copy
import json
import random
from pathlib import Path

import torch

from ..bench.record import surroundings
from ..data.world import world_stream
from ..data.world_hard import split_seeds
from ..training.saving import save
from .nano_run import Clock, Team
from .nano_scores import load, narrations

LEVELS = {"hard": 0.6, "hard_small": 0.2, "basic": 0.2}
SIZES = (None, 112, 128, 160, 192, 256, 320, 384, 512)  # pixels per side; None is the size of the tower
SCORED = (96, 128, 384)
LR, BATCH = 3e-4, 32
HELD_OUT = 6  # streams of each level


def frames_of(seed: int, level: str, size: int) -> torch.Tensor:
    """The distinct frames of a stream: uint8 `[E, 3, size, size]`."""
    return torch.from_numpy(world_stream(seed, level).drawn(size)).permute(0, 3, 1, 2)


def pairs(seed: int, level: str, size: int, processor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel values of a stream's frames: scaled from `size`, and drawn at the size of the tower."""
    own = processor.video_processor.size["height"]
    return tuple(
        processor.video_processor(frames_of(seed, level, side), return_tensors="pt")["pixel_values_videos"].squeeze(0)
        for side in (size, own)
    )


def distance(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Squared error of features `[E, N, Dv]`, relative to their variance over frames and tokens."""
    return (found - wanted).square().mean() / wanted.var(dim=(0, 1)).mean()


@torch.no_grad()
def errors(student, teacher, processor) -> dict[str, float]:
    student.eval()
    found = {}
    for level in LEVELS:
        for size in SCORED:
            total = 0.0
            for seed in split_seeds("validation", HELD_OUT):
                scaled, drawn = pairs(seed, level, size, processor)
                total += float(
                    distance(
                        *(model.encode_frames(x).pooler_output for model, x in ((student, scaled), (teacher, drawn)))
                    )
                )
            found[f"{level} {size}"] = round(total / HELD_OUT, 5)
    student.train()
    return found


def exact(model, processor, streams: int) -> dict[str, float]:
    """Percentage of exact narrations on test streams of `hard`, by the size of the drawn frames."""
    seeds = split_seeds("test", streams)
    return {str(x): round(narrations(model.eval(), processor, "hard", seeds, height=x)["exact"], 2) for x in SCORED}


def run(args) -> None:
    model, processor = load(args.begin, "cpu")
    if args.score:
        print(json.dumps(exact(model, processor, args.score)))
        return
    student, teacher = model.model, copy.deepcopy(model.model).eval()
    own = processor.video_processor.size["height"]
    result = {"command": args.command, **surroundings(), "before": errors(student, teacher, processor), "log": []}
    print(result["before"], flush=True)
    optimizer = torch.optim.AdamW(student.vision_tower.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.0)
    seeds, rng = iter(split_seeds("train", 10**7)[5 * 10**6 :]), random.Random(0)
    clock = Clock("scales", 60 * args.minutes, [optimizer], Team("cpu"), result["log"])
    while not clock.is_over:
        streams = []
        while sum(len(scaled) for scaled, _ in streams) < BATCH * 8:
            level = rng.choices(list(LEVELS), list(LEVELS.values()))[0]
            streams.append(pairs(next(seeds), level, rng.choice(SIZES) or own, processor))
        scaled, drawn = (torch.cat(x) for x in zip(*streams, strict=True))
        for some in torch.randperm(len(scaled)).split(BATCH):
            with torch.no_grad():
                wanted = teacher.encode_frames(drawn[some]).pooler_output
            clock.step(distance(student.encode_frames(scaled[some]).pooler_output, wanted))
            if clock.is_over:
                break
    result["after"] = errors(student, teacher, processor)
    print(result["after"])
    save(model.eval(), processor, args.output, torch.bfloat16)
    (args.output / "scales.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--begin", type=Path, required=True, help="a checkpoint")
    parser.add_argument("--output", type=Path, default=Path("runs/nano_scales"))
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument(
        "--score", type=int, metavar="STREAMS", help="do not train; count exact narrations of this many streams"
    )
    args = parser.parse_args(argv)
    args.command = f"python -m videollm_mod.benchmarks.nano_scales --begin FOLDER --minutes {args.minutes:g}"
    run(args)


if __name__ == "__main__":
    main()
