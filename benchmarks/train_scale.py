"""Training on two GPUs against one: samples per second under DDP, the steps of DDP and FSDP2, and their losses.

    python -m videollm_mod.benchmarks.train_scale

It trains LoRA of the paper's rank on random weights of Llama-3-8B's geometry, in bfloat16 with gradient checkpointing,
and at last all weights, in float32 with autocast. A sample is a stream of 600 frames of 10 tokens, given as features,
with one sample per GPU and step. Runs of the same processes follow each other, each with the HF Trainer.
"""

import argparse
import gc
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainingArguments

from videollm_mod.bench.geometries import GEOMETRIES
from videollm_mod.bench.record import commit, summarise, surroundings, write, write_result
from videollm_mod.bench.streams import random_model
from videollm_mod.benchmarks.training_steps import train_streams
from videollm_mod.training.adapters import LoraOptions

WARM_UP = 4  # steps that are not timed


@dataclass(frozen=True)
class Way:
    """A way to train, with its options of FSDP2 if it shards."""

    fsdp: dict | None = None
    accumulate: int = 1
    lora: bool = True


WAYS = {
    "plain": Way(),
    "accumulated": Way(accumulate=2),
    "ddp": Way(),
    "fsdp2": Way({"reshard_after_forward": False}),
    "fsdp2, frozen weights sharded": Way({"reshard_after_forward": True}),
    "fsdp2, all weights trained": Way({"reshard_after_forward": True}, lora=False),
}
# of each start of processes: their number, and the ways that they train, one after the other; DDP first, as accelerate
# asks the environment for FSDP, and keeps it there
STARTS = (
    (1, ("plain", "accumulated", "plain")),
    (2, ("ddp", "ddp", "fsdp2", "fsdp2, frozen weights sharded")),
    (2, ("fsdp2, all weights trained",)),
)


class StepClock(TrainerCallback):
    """The time in seconds at which the device finished each optimizer step."""

    def __init__(self):
        self.times = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def train(way: Way, arguments: argparse.Namespace, folder: Path) -> tuple[dict, bool]:
    """The measurements of one run, and whether this is the first process."""
    cuda = torch.cuda.is_available()
    options = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=arguments.steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=way.accumulate,
        learning_rate=2e-4 if way.lora else 1e-5,
        lr_scheduler_type="constant",
        bf16=True,
        gradient_checkpointing=True,
        ddp_find_unused_parameters=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=2,
        remove_unused_columns=False,
        use_cpu=not cuda,
        **({"fsdp": True, "fsdp_config": {"version": 2, **way.fsdp}} if way.fsdp else {}),
    )
    clock, dtype = StepClock(), torch.bfloat16 if way.lora else torch.float32
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() / 2**30 if cuda else None  # by the runs before, which should be 0
    model = random_model(arguments.geometry, options.device, dtype=dtype)
    run = train_streams(model, options, arguments.frames, LoraOptions() if way.lora else None, clock)
    run["seconds_per_step"] = [after - before for before, after in pairwise(clock.times)]
    run["seconds"] = statistics.median(run["seconds_per_step"][WARM_UP - 1 :])
    if cuda:
        run |= {"held_gib": held, "peak_allocated_gib": torch.cuda.max_memory_allocated() / 2**30}
    return run, options.process_index == 0


def work(arguments: argparse.Namespace) -> None:
    """One process of a start; the first process writes the measurements after every run."""
    runs, path = [], Path(arguments.worker)
    for name in STARTS[arguments.part][1]:
        run, first = train(WAYS[name], arguments, path.parent)
        runs.append({"way": name, **run})
        if first:
            write(path, runs)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def launch(arguments: argparse.Namespace, start: int) -> list[dict]:
    """The runs of one of `STARTS`; fewer if one of them fails."""
    processes = STARTS[start][0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.json"
        shared = ["--geometry", arguments.geometry, "--frames", arguments.frames, "--steps", arguments.steps]
        command = [__file__, *shared, "--worker", path, "--part", start]
        environment = dict(os.environ)
        if processes == 1:  # as usual on one GPU: without a process group and DDP
            environment["CUDA_VISIBLE_DEVICES"] = "0"
        else:
            command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, *command]
        code = subprocess.run([sys.executable, *map(str, command)], env=environment).returncode
        print(f"start {start} ended with {code}", flush=True)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def conclude(result: dict) -> dict[str, float]:
    """The figures of the summary. Adds them to the result, with what they come from."""
    found = defaultdict(list)
    for run in result["runs"]:
        found[run["way"]].append(run)
    seconds = {name: statistics.median(run["seconds"] for run in own) for name, own in found.items()}
    rates = {"1": 1 / seconds["plain"], "2": 2 / seconds["ddp"]}
    figures = {
        "ddp_speedup_2": round(rates["2"] / rates["1"], 3),
        "fsdp2_step_vs_ddp": round(seconds["fsdp2"] / seconds["ddp"], 3),
    }
    result |= {"seconds_per_step": seconds, "samples_per_second": rates, **figures}
    if "peak_allocated_gib" in result["runs"][0]:
        own = {name: min(run["peak_allocated_gib"] - run["held_gib"] for run in of) for name, of in found.items()}
        result["peak_gib"] = {name: round(peak, 2) for name, peak in own.items()}
    alike = ("accumulated", *STARTS[1][1])
    result["losses_of_the_same_global_batches"] = {name: found[name][0]["losses"] for name in alike}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", choices=GEOMETRIES, default="llama3-8b")
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--steps", type=int, default=12, help="of each run, the first 4 of which are not timed")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)

    command = shlex.join(["python", "-m", "videollm_mod.benchmarks.train_scale", *sys.argv[1:]])
    runs: list[dict] = []
    result = {
        "command": command,
        "commit": commit(),
        **surroundings("accelerate", "peft"),
        "geometry": arguments.geometry,
        "sample": f"{arguments.frames} frames of 10 tokens, a reply of 12 words after every 20th",
        "lora": {"r": LoraOptions().r, "alpha": LoraOptions().alpha},
        "runs": runs,
    }
    for start in range(len(STARTS)):
        runs += launch(arguments, start)
        write_result("train_scale", result)  # keep what is measured if the rest fails
    figures = conclude(result)
    path = write_result("train_scale", result)
    for name, value in figures.items():
        summarise(name, value, f"benchmarks/results/{path.name}", command)
    print(json.dumps({**figures, "losses": result["losses_of_the_same_global_batches"]}, indent=1))
    missing = {name for _, names in STARTS for name in names} - {run["way"] for run in runs}
    if missing:
        sys.exit(f"these runs failed: {', '.join(sorted(missing))}")


if __name__ == "__main__":
    main()
