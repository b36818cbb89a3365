"""An 8B model on two GPUs with `tp_plan="auto"` against one GPU: time per frame, and agreement of the logits.

    python -m videollm_mod.benchmarks.tensor_parallel

Random weights are written once. One process, then two, load them and watch the same random features: blocks of 16
frames until the cache holds `--frames`, then frame by frame. Logits are compared with every token kept, since the
scores of random routers are so close that rounding changes the selection.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from videollm_mod import MoDCache, VideoLLMMoDForConditionalGeneration
from videollm_mod.bench.geometries import BOS, GEOMETRIES, SEPARATOR, START, VIDEO
from videollm_mod.bench.record import summarise, surroundings, write_result
from videollm_mod.bench.streams import random_model

BLOCK = 16  # frames
WARM_UP = 4


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Clock:
    def __init__(self, device: torch.device):
        self.device, self.seconds = device, []

    def __enter__(self):
        self.wait()
        self.start = time.perf_counter()

    def __exit__(self, *error):
        self.wait()
        self.seconds.append(time.perf_counter() - self.start)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@torch.no_grad()
def work(args) -> None:
    """One process of a run; the first process writes the measurements."""
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    cuda = torch.cuda.is_available()
    where = {"device_map": {"": 0}} if cuda else {}
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(
        args.checkpoint, dtype=torch.bfloat16, **({"tp_plan": "auto"} if distributed else where)
    ).eval()
    config, device = model.config, model.device
    shape = (BLOCK, config.num_frame_tokens, config.vision_config.hidden_size)
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
    frame = [VIDEO] * config.num_frame_tokens

    def feed(cache: MoDCache, count: int, opening: list[int]) -> torch.Tensor:
        ids = opening + frame + [SEPARATOR, *frame] * (count - 1)
        ids = torch.tensor([ids], device=device)
        return model(
            input_ids=ids, video_features=features[:count], cache=cache, logits_to_keep=1, use_cache=True
        ).logits

    model.keep_ratio = 1.0
    cache = MoDCache(config)
    logits = [feed(cache, 4, [BOS, START]), *(feed(cache, 1, [SEPARATOR]) for _ in range(3))]
    logits = torch.cat([whole(x)[0].float().cpu() for x in logits])
    model.keep_ratio = args.keep_ratio
    cache, blocks, frames = MoDCache(config), Clock(device), Clock(device)
    feed(cache, BLOCK, [BOS, START])
    for _ in range(args.frames // BLOCK):
        with blocks:
            feed(cache, BLOCK, [SEPARATOR])
    for _ in range(args.steps):
        with frames:
            feed(cache, 1, [SEPARATOR])
    if not distributed or torch.distributed.get_rank() == 0:
        save_file({"logits": logits}, f"{args.worker}.safetensors")
        result = {
            "seconds_per_block": blocks.seconds[WARM_UP:],
            "seconds_per_frame": frames.seconds[WARM_UP:],
            "peak_allocated_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
        }
        Path(args.worker).write_text(json.dumps(result))
    if distributed:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def launch(args, processes: int, checkpoint: str) -> tuple[dict, torch.Tensor]:
    worker = f"{checkpoint}/{processes}.json"
    options = ["--frames", args.frames, "--steps", args.steps, "--keep-ratio", args.keep_ratio]
    command = [__file__, "--worker", worker, "--checkpoint", checkpoint, *options]
    if processes > 1:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, *command]
    subprocess.run([sys.executable, *map(str, command)], check=True)
    return json.loads(Path(worker).read_text()), load_file(f"{worker}.safetensors")["logits"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", choices=GEOMETRIES, default="llama3-8b")
    parser.add_argument(
        "--frames", type=int, default=960, help="frames in the cache before single frames are timed (default: 960)"
    )
    parser.add_argument("--steps", type=int, default=60, help="single frames to time (default: 60)")
    parser.add_argument("--keep-ratio", type=float, default=0.2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args)
    # 17 GB are written and read twice, in memory if there is enough
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as checkpoint:
        model = random_model(args.geometry, "cuda" if torch.cuda.is_available() else "cpu")
        model.save_pretrained(checkpoint)
        del model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        runs = {processes: launch(args, processes, checkpoint) for processes in (1, 2)}
    medians = {
        name: {n: statistics.median(run[f"seconds_per_{name}"]) for n, (run, _) in runs.items()}
        for name in ("frame", "block")
    }
    (_, alone), (_, halves) = runs[1], runs[2]
    command = " ".join(["python -m videollm_mod.benchmarks.tensor_parallel", *sys.argv[1:]])
    result = {
        "command": command,
        **surroundings(),
        "geometry": args.geometry,
        "keep_ratio": args.keep_ratio,
        "frames_in_cache": args.frames,
        "frames_of_a_block": BLOCK,
        "runs": {str(n): run for n, (run, _) in runs.items()},
        "median_ms": {name: {str(n): 1000 * s for n, s in of.items()} for name, of in medians.items()},
        "time_ratio_frame": medians["frame"][2] / medians["frame"][1],
        "time_ratio_block": medians["block"][2] / medians["block"][1],
        "logits": {
            "largest_difference": (alone - halves).abs().max().item(),
            "spread": alone.std().item(),
            "same_likeliest_token": (alone.argmax(-1) == halves.argmax(-1)).float().mean().item(),
        },
    }
    path = write_result("tensor_parallel", result)
    ratio = round(result["time_ratio_frame"], 3)
    summarise("tp2_time_ratio", ratio, f"benchmarks/results/{path.name}", command)
    print(
        json.dumps({k: result[k] for k in ("median_ms", "time_ratio_frame", "time_ratio_block", "logits")}, indent=1)
    )


if __name__ == "__main__":
    main()
