"""Train a checkpoint for all levels of the world and their tasks against the clock, on one GPU, and score it.

    python -m videollm_mod.benchmarks.nano_run --seconds 500 --output OUT

As `videollm-mod train` does it in two stages: the vision tower learns to name what is in a frame, then the language
model learns the streams. But all streams are made before, and all frames are encoded once, so that a step takes what
the language model takes; and each stage lasts for a share of the seconds: its learning rate and its keep ratio follow
the clock and not the number of steps. OUT gets `result.json`, and the checkpoint as `nano.tar` in parts of 15 MiB:
`cat nano.tar.* | tar x`.
"""

import argparse
import json
import math
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import torch

from ..data.world import texts
from ..data.world_hard import split_seeds
from ..evaluation.tasks import ANSWERING
from ..training.freezing import freeze_unreached
from ..training.initialise import initialise
from ..training.keep_ratio import KeepRatioSchedule
from ..training.saving import save
from ..training.vision_stage import CellNamer
from .nano_data import Chunks, StreamBank
from .nano_scores import load, scores
from .record import surroundings

LEVELS = {"basic": 16_000} | {
    f"{level}{kind}": 8_000 for level in ("hard_small", "hard") for kind in ("", "_lessons", "_tasks_lessons")
}
MODEL = {
    "frame_token_cls": True,
    "frame_token_pooled": [3, 3],
    "text_config": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 704,  # its longest streams have 690 tokens
        "tie_word_embeddings": True,
        "mod_layers": "interleaved",
        "mod_keep_ratio": 0.2,
        "mod_gate": "output",
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "image_size": 96,
        "patch_size": 8,
    },
}
FPS, QUESTIONS = 2.0, 3
ELASTIC, WARMUP = (0.1, 1.0), 0.5  # the recipe of the tables' `mod_elastic_output_warmup`
SHARES = {"vision": 0.15, "stream": 0.6}  # of the seconds; the rest is for making streams, encoding and scores
VISION_CHUNKS = 400  # whose frames the tower learns from
TICKS = 1_000_000  # of a stage, as steps of its schedule


def autocast(device: str):
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


class Clock:
    """One stage: `progress` goes from 0 to 1 in `seconds`."""

    def __init__(self, name: str, seconds: float, parameters: list[torch.nn.Parameter], lr: float, log: list[dict]):
        self.name, self.seconds, self.lr, self.log = name, seconds, lr, log
        matrices, others = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
        fused = parameters[0].device.type == "cuda"
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=fused)
        self.parameters, self.losses, self.steps = parameters, [], 0
        self.started = self.shown = time.monotonic()

    @property
    def progress(self) -> float:
        return min(1.0, (time.monotonic() - self.started) / self.seconds)

    def step(self, loss: torch.Tensor, **about) -> None:
        """Warm-up over a twentieth of the time, then a cosine."""
        progress = self.progress
        rate = min(progress / 0.05 + 1e-3, 0.5 * (1 + math.cos(math.pi * progress)) + 1e-3)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, rate)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(loss.detach())
        self.steps += 1
        if time.monotonic() - self.shown > self.seconds / 20 or progress == 1.0:
            mean = float(torch.stack(self.losses).mean())
            entry = {"stage": self.name, "progress": round(progress, 3), "step": self.steps, "loss": round(mean, 5)}
            self.log.append({**entry, **about})
            print(json.dumps(self.log[-1]), flush=True)
            self.losses, self.shown = [], time.monotonic()


def learn_to_see(model, processor, bank: StreamBank, seconds: float, batch_size: int, log: list[dict]) -> None:
    freeze_unreached(model, given_features=False)
    namer = CellNamer(model).to(bank.device).train()
    frames, states = bank.pictures(VISION_CHUNKS)
    clock = Clock("vision", seconds, [p for p in namer.parameters() if p.requires_grad], 1e-3, log)
    while clock.progress < 1:
        some = torch.randint(len(frames), (batch_size,), device=frames.device)
        pixels = processor.video_processor(frames[some], return_tensors="pt")["pixel_values_videos"]
        with autocast(bank.device):
            loss = namer(pixels, states[some].long())["loss"]
        clock.step(loss)


@torch.no_grad()
def encode_all(model, processor, bank: StreamBank) -> None:
    def encode(frames: torch.Tensor) -> torch.Tensor:
        pixels = processor.video_processor(frames, return_tensors="pt")["pixel_values_videos"]
        with autocast(bank.device):
            return model.encode_frames(pixels).pooler_output.to(torch.bfloat16)

    model.eval()
    bank.encode(encode)


def learn_streams(model, bank: StreamBank, seconds: float, batch_size: int, log: list[dict]) -> None:
    model.train().model.vision_tower.requires_grad_(False)
    freeze_unreached(model, given_features=True)
    clock = Clock("stream", seconds, [p for p in model.parameters() if p.requires_grad], 1e-3, log)
    schedule, rng = KeepRatioSchedule(int(WARMUP * TICKS), ELASTIC), np.random.default_rng(0)
    own = model.keep_ratio
    while clock.progress < 1:
        for batch in bank.epoch(batch_size, rng):
            ratio = schedule.ratio(int(clock.progress * TICKS), own)
            batch["video_features"] = batch["video_features"].float()
            with autocast(bank.device):
                loss = model(**batch, keep_ratio=ratio, use_cache=False).loss
            clock.step(loss, keep_ratio=round(ratio, 3))
            if clock.progress == 1:
                break


def run(args) -> None:
    started, args.output = time.monotonic(), args.output.resolve()
    args.output.mkdir(parents=True, exist_ok=True)
    result = {"command": args.command, **surroundings(), "levels": LEVELS, "model": MODEL, "log": []}
    result["seconds"] = seconds = {}
    said = [text for level in LEVELS for text in texts(split_seeds("train", 300), level)]
    model, processor = initialise(MODEL, said, vocab_size=1000, seed=args.seed)
    levels = {level: max(1, int(args.streams_share * count)) for level, count in LEVELS.items()}
    chunks = Chunks(levels, processor, MODEL["frame_token_pooled"], FPS, QUESTIONS)
    bank = StreamBank.make(chunks, args.device, processor.tokenizer.pad_token_id, args.workers)
    seconds["streams_made"] = time.monotonic() - started
    model.to(args.device)
    learn_to_see(model, processor, bank, SHARES["vision"] * args.seconds, args.batch_size * 4, result["log"])
    seconds["seeing_learned"] = time.monotonic() - started
    encode_all(model, processor, bank)
    seconds["frames_encoded"] = time.monotonic() - started
    learn_streams(model, bank, SHARES["stream"] * args.seconds, args.batch_size, result["log"])
    seconds["streams_learned"] = time.monotonic() - started
    final = args.output / "nano"
    save(model.eval(), processor, final, torch.bfloat16)
    del bank
    keep(final, args.output)
    write(result, args.output)
    for ratio in (None, 1.0):  # the checkpoint's own, and dense
        found = scores(*load(final, args.device, ratio), args.score_streams, ANSWERING if ratio is None else ())
        result.setdefault("scores", []).append({"keep_ratio": ratio or "own", **found})
        print(json.dumps(result["scores"][-1]), flush=True)
        seconds["scored"] = time.monotonic() - started
        write(result, args.output)


def keep(final: Path, output: Path) -> None:
    with tarfile.open(output / "nano.tar", "w") as archive:
        archive.add(final, "nano")
    content = (output / "nano.tar").read_bytes()
    for part, first in enumerate(range(0, len(content), 15 << 20)):
        (output / f"nano.tar.{part}").write_bytes(content[first : first + (15 << 20)])
    (output / "nano.tar").unlink()


def write(result: dict, output: Path) -> None:
    (output / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/nano"))
    parser.add_argument("--seconds", type=float, default=500, help="for all of it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=128, help="streams of a step; of frames four times as many")
    parser.add_argument("--streams-share", type=float, default=1.0, help="of the streams to learn from")
    parser.add_argument("--score-streams", type=int, default=64, help="of each level and task")
    parser.add_argument("--workers", type=int, help="processes that make streams; by default one a core")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    args.command = " ".join(["python -m videollm_mod.benchmarks.nano_run", *(sys.argv[1:] if argv is None else argv)])
    run(args)


if __name__ == "__main__":
    main()
