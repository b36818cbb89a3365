"""Train a checkpoint on all levels of the world and their tasks, within a given time.

    torchrun --nproc-per-node 3 -m videollm_mod.benchmarks.nano_run --part 1/2 --seconds 500 --output ONE
    torchrun --nproc-per-node 3 -m videollm_mod.benchmarks.nano_run --part 2/2 --begin ONE/nano --output TWO

As in `videollm-mod train`, the vision tower first learns to name what is in a frame, and then the language model
learns the streams. Unlike there, all streams are made and all frames are encoded in advance, so that a step takes only
the time of the language model. Each stage lasts a number of seconds, and learning rate and keep ratio follow the clock
instead of the steps. Each process has its own streams and its own GPU, and each part of a run has its own streams. The
output folder gets `result.json`, and the checkpoint as `nano.tar` in pieces of 15 MiB: `cat nano.tar.* | tar x`.
`nano_scores` evaluates it.
"""

import argparse
import json
import math
import os
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from ..bench.record import surroundings
from ..data.world import DOMAIN, texts
from ..data.world_hard import split_seeds
from ..training.freezing import freeze_unreached
from ..training.initialise import initialise
from ..training.keep_ratio import KeepRatioSchedule
from ..training.saving import save
from ..training.vision_stage import CellClassifier
from .nano_data import Chunks, StreamBank
from .nano_scores import load

LEVELS = {  # shares of the streams; the level that takes longest to learn has the largest
    "basic": 2.0, "hard_small": 1.0, "hard_small_lessons": 0.5, "hard_small_tasks_lessons": 0.5,
    "hard": 4.0, "hard_lessons": 2.0, "hard_tasks_lessons": 1.0,
}  # fmt: skip
MODEL = {
    "domain": DOMAIN,
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
ELASTIC, WARMUP = (0.1, 1.0), 0.5  # as in the row `mod_elastic_output_warmup` of the tables
VISION_SHARE = 0.12  # of the time
VISION_CHUNKS = 400  # of which the tower sees the frames
TICKS = 1_000_000  # steps of a stage's schedule
LR = 1e-3
CHECKED = 128  # validation streams of each level
SAVING = 8.0  # seconds


def autocast(device: str):
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


class Team:
    """The processes of a run; just one if torchrun did not start it."""

    def __init__(self, device: str):
        self.rank, self.size = (
            int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1))
        )
        self.device = device
        if self.size > 1:
            if device == "cuda":
                self.device = f"cuda:{os.environ['LOCAL_RANK']}"
                torch.cuda.set_device(self.device)
            dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")

    def agree(self, value: float) -> float:
        """Broadcast the value of the first process to all."""
        if self.size == 1:
            return value
        agreed = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(agreed, 0)
        return agreed.item()

    @torch.no_grad()
    def average_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:  # of routers, when every token is kept
                parameter.grad = torch.zeros_like(parameter)
        gradients = torch.cat([parameter.grad.flatten() for parameter in parameters])
        dist.all_reduce(gradients.div_(self.size))
        for parameter, own in zip(parameters, gradients.split([p.numel() for p in parameters]), strict=True):
            parameter.grad.copy_(own.view_as(parameter))

    def same_weights(self, module: torch.nn.Module) -> None:
        for value in (*module.parameters(), *module.buffers()) if self.size > 1 else ():
            dist.broadcast(value.data, 0)


class Optimizers:
    """Several optimizers as one, each with its own parameters."""

    def __init__(self, *optimizers: torch.optim.Optimizer):
        self.optimizers = optimizers
        self.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.rates = [group["lr"] for group in self.param_groups]
        self.parameters = [parameter for group in self.param_groups for parameter in group["params"]]

    def step(self, share_of_rate: float) -> None:
        for group, rate in zip(self.param_groups, self.rates, strict=True):
            group["lr"] = rate * share_of_rate
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def adamw(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    matrices, others = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98), fused=parameters[0].device.type == "cuda")


def muon_and_adamw(model) -> list[torch.optim.Optimizer]:
    """Muon for the matrices in layers, and AdamW for embeddings, routers and vectors. AdamW alone needs over twice the
    time and four times the steps for the same result (`nano_training.json`)."""
    looked_up = {id(model.get_input_embeddings().weight), id(model.lm_head.weight)}
    trained = [p for p in model.parameters() if p.requires_grad]
    inner = [p for p in trained if p.dim() == 2 and len(p) > 1 and id(p) not in looked_up]  # routers have one row
    known = {id(p) for p in inner}
    muon = torch.optim.Muon(inner, lr=LR, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")  # since torch 2.9
    return [muon, adamw([p for p in trained if id(p) not in known])]


class Clock:
    """One stage: in `seconds`, `progress` goes from the start to the end of a span within 0 to 1."""

    def __init__(self, name: str, seconds: float, optimizers: list, team: Team, log: list, span=(0.0, 1.0)):
        self.name, self.seconds, self.team, self.log, self.span = name, seconds, team, log, span
        self.optimizer, self.losses, self.steps, self.passed = Optimizers(*optimizers), [], 0, 0.0
        self.started, self.shown = time.monotonic(), 0.0

    @property
    def progress(self) -> float:
        return self.span[0] + self.passed * (self.span[1] - self.span[0])

    @property
    def is_over(self) -> bool:
        return self.passed >= 1

    def step(self, loss: torch.Tensor, check=None, **about) -> None:
        """A warm-up over a twentieth of the time, also in later parts, whose optimizer is new; then a cosine."""
        loss.backward()
        self.team.average_gradients(self.optimizer.parameters)
        torch.nn.utils.clip_grad_norm_(self.optimizer.parameters, 1.0)
        rate = min(1.0, 0.5 * (1 + math.cos(math.pi * self.progress)) + 1e-3)
        self.optimizer.step(rate * min(1.0, self.passed / 0.05 + 1e-3))
        self.losses.append(loss.detach())
        self.steps += 1
        self.passed = self.team.agree(min(1.0, (time.monotonic() - self.started) / self.seconds))
        if self.passed - self.shown > 0.05 or self.is_over:
            mean, self.losses, self.shown = float(torch.stack(self.losses).mean()), [], self.passed
            entry = {
                "stage": self.name,
                "progress": round(self.progress, 3),
                "step": self.steps,
                "loss": round(mean, 5),
            }
            self.log.append({**entry, **about, **(check() if check and self.team.rank == 0 else {})})
            if self.team.rank == 0:
                print(json.dumps(self.log[-1]), flush=True)


def learn_to_see(model, processor, bank: StreamBank, seconds: float, batch_size: int, team: Team, log: list) -> None:
    freeze_unreached(model, given_features=False)
    classifier = CellClassifier(model).to(bank.device).train()
    team.same_weights(classifier)
    frames, states = bank.pictures(VISION_CHUNKS)
    clock = Clock("vision", seconds, [adamw([p for p in classifier.parameters() if p.requires_grad])], team, log)
    while not clock.is_over:
        some = torch.randint(len(frames), (batch_size,), device=frames.device)
        pixels = processor.video_processor(frames[some], return_tensors="pt")["pixel_values_videos"]
        with autocast(bank.device):
            loss = classifier(pixels, states[some].long())["loss"]
        clock.step(loss)


@torch.no_grad()
def encode_all(model, processor, bank: StreamBank) -> None:
    def encode(frames: torch.Tensor) -> torch.Tensor:
        pixels = processor.video_processor(frames, return_tensors="pt")["pixel_values_videos"]
        with autocast(bank.device):
            return model.encode_frames(pixels).pooler_output.to(torch.bfloat16)

    model.eval()
    bank.encode(encode)


@torch.no_grad()
def right_tokens(model, banks: dict[str, StreamBank]) -> dict[str, float]:
    """For each level, the percentage of tokens that the model predicts correctly after the true ones, including the
    decisions at the ends of frames."""
    model.eval()
    found = {}
    for level, bank in banks.items():
        right = count = 0
        for batch in bank.epoch(CHECKED, np.random.default_rng(0)):
            labels = batch.pop("labels")[:, 1:]
            with autocast(bank.device):
                said = model(**batch, use_cache=False).logits[:, :-1].argmax(-1)
            right, count = right + (said == labels).sum(), count + (labels >= 0).sum()
        found[level] = round(100 * float(right / count), 3)
    model.train()
    return {"right_tokens": found}


def learn_streams(model, bank, checked: dict, seconds: float, batch_size: int, team: Team, log: list, span) -> None:
    model.train().model.vision_tower.requires_grad_(False)
    freeze_unreached(model, given_features=True)
    team.same_weights(model)
    clock = Clock("stream", seconds, muon_and_adamw(model), team, log, span)
    schedule, rng = KeepRatioSchedule(int(WARMUP * TICKS), ELASTIC), np.random.default_rng(0)
    own = model.keep_ratio
    while not clock.is_over:
        for batch in bank.epoch(batch_size, rng):
            ratio = schedule.ratio(int(clock.progress * TICKS), own)
            with autocast(bank.device):
                loss = model(**batch, keep_ratio=ratio, use_cache=False).loss
            clock.step(loss, lambda: right_tokens(model, checked), keep_ratio=round(ratio, 3))
            if clock.is_over:
                break


def bank_of(levels: dict[str, int], split: str, skip: int, processor, args) -> StreamBank:
    chunks = Chunks(levels, processor, MODEL["frame_token_pooled"], FPS, QUESTIONS, split, skip)
    return StreamBank.make(chunks, args.device, processor.tokenizer.pad_token_id, args.workers)


def run(args) -> None:
    started, team = time.monotonic(), Team(args.device)
    args.device, args.output = team.device, args.output.resolve()
    args.output.mkdir(parents=True, exist_ok=True)
    # streams have many lengths, and cuDNN's plan for each takes longer to make than a step
    torch.backends.cuda.enable_cudnn_sdp(False)
    part, parts = args.part
    result = {"command": args.command, **surroundings(), "processes": team.size, "levels": LEVELS, "model": MODEL}
    log, seconds = result.setdefault("log", []), result.setdefault("seconds", {})
    torch.manual_seed(args.seed + 1000 * part + team.rank)
    if args.begin is None:
        said = [text for level in LEVELS for text in texts(split_seeds("train", 300), level)]
        model, processor = initialise(MODEL, said, vocab_size=1000, seed=args.seed)
    else:
        model, processor = load(args.begin, "cpu")
    levels = {level: int(args.streams * share) for level, share in LEVELS.items()}
    skip = ((part - 1) * team.size + team.rank) * max(levels.values())
    bank = bank_of(levels, "train", skip, processor, args)
    checked = {level: bank_of({level: CHECKED}, "validation", 0, processor, args) for level in LEVELS}
    seconds["streams_made"] = time.monotonic() - started
    model.to(args.device)
    if args.begin is None:
        learn_to_see(model, processor, bank, VISION_SHARE * args.seconds, args.batch_size * 4, team, log)
        seconds["seeing_learned"] = time.monotonic() - started
    for each in (bank, *checked.values()):
        encode_all(model, processor, each)
    seconds["frames_encoded"] = time.monotonic() - started
    left = args.seconds - SAVING - seconds["frames_encoded"]
    if left <= 0:
        raise SystemExit(
            f"error: nothing of --seconds {args.seconds:g} is left for the streams, want at least twice that"
        )
    learn_streams(model, bank, checked, left, args.batch_size, team, log, ((part - 1) / parts, part / parts))
    seconds["streams_learned"] = time.monotonic() - started
    if team.rank == 0:
        save(model.eval(), processor, args.output / "nano", torch.bfloat16)
        keep(args.output / "nano", args.output)
        (args.output / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def keep(final: Path, output: Path) -> None:
    with tarfile.open(output / "nano.tar", "w") as archive:
        archive.add(final, "nano")
    content = (output / "nano.tar").read_bytes()
    for part, first in enumerate(range(0, len(content), 15 << 20)):
        (output / f"nano.tar.{part}").write_bytes(content[first : first + (15 << 20)])
    (output / "nano.tar").unlink()


def part_of(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"must be like 1/2, got {text!r}")
    return int(part), int(parts)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/nano"))
    parser.add_argument("--seconds", type=float, default=500, help="time of the run, or of this part (default: 500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=128, help="streams per process and step (default: 128)")
    parser.add_argument("--streams", type=int, default=16_000, help="training streams of a level whose share is 1")
    parser.add_argument(
        "--part", type=part_of, default=(1, 1), metavar="P/N", help="part P of a run that is cut into N parts"
    )
    parser.add_argument("--begin", type=Path, help="checkpoint of the part before")
    parser.add_argument("--workers", type=int, help="processes that make streams (default: one per core)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    if args.part[0] > 1 and args.begin is None:
        parser.error("--part after the first needs --begin, the checkpoint of the part before")
    if args.streams < 2 or args.batch_size < 1:
        parser.error("--streams must be at least 2, --batch-size at least 1")
    args.command = " ".join(["python -m videollm_mod.benchmarks.nano_run", *(sys.argv[1:] if argv is None else argv)])
    run(args)


if __name__ == "__main__":
    main()
