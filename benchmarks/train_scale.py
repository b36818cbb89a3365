"""Training on two GPUs against one: samples per second under DDP, and agreement of the losses with one GPU and FSDP2.

    python -m videollm_mod.benchmarks.train_scale

It trains LoRA of the paper's rank on random weights of Llama-3-8B's geometry, in bfloat16 with gradient checkpointing.
A sample is a stream of 600 frames of 10 tokens, given as features, with one sample per GPU and step. One and two GPUs
take turns, each in new processes of the HF Trainer.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainingArguments

from videollm_mod.bench.geometries import GEOMETRIES
from videollm_mod.bench.record import summarise, surroundings, write_result
from videollm_mod.bench.streams import random_model
from videollm_mod.benchmarks.lora import train_lora
from videollm_mod.training.adapters import LoraOptions

WARM_UP = 4  # steps that are not timed


class StepClock(TrainerCallback):
    """The time in seconds at which the device finished each optimizer step."""

    def __init__(self):
        self.times = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def work(arguments: argparse.Namespace) -> None:
    """One process of a run; the first process writes the measurements."""
    options = TrainingArguments(
        output_dir=str(Path(arguments.worker).parent / "trainer"),
        max_steps=arguments.steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=arguments.accumulate,
        learning_rate=2e-4,
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
        use_cpu=not torch.cuda.is_available(),
        **({"fsdp": True, "fsdp_config": {"version": 2}} if arguments.fsdp else {}),
    )
    clock = StepClock()
    model = random_model(arguments.geometry, options.device)
    run = train_lora(model, options, arguments.frames, LoraOptions(), clock)
    if options.process_index == 0:
        run["seconds_per_step"] = [after - before for before, after in pairwise(clock.times)]
        if torch.cuda.is_available():
            run["peak_allocated_gib"] = torch.cuda.max_memory_allocated() / 2**30
        Path(arguments.worker).write_text(json.dumps(run))


def launch(arguments: argparse.Namespace, processes: int, steps: int, *options: str) -> dict:
    """Run `processes` workers and return the measurements of the first."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        shared = ["--geometry", arguments.geometry, "--frames", arguments.frames, "--steps", steps]
        command = [__file__, *shared, "--worker", result, *options]
        environment = dict(os.environ)
        if processes == 1:  # as usual on one GPU: without a process group and DDP
            environment["CUDA_VISIBLE_DEVICES"] = "0"
        else:
            command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, *command]
        subprocess.run([sys.executable, *map(str, command)], check=True, env=environment)
        return json.loads(result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", choices=GEOMETRIES, default="llama3-8b")
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--accumulate", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--fsdp", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)

    command = " ".join(["python -m videollm_mod.benchmarks.train_scale", *sys.argv[1:]])
    runs = {"1": [], "2": []}
    result = {
        "command": command,
        **surroundings("accelerate", "peft"),
        "geometry": arguments.geometry,
        "sample": f"{arguments.frames} frames of 10 tokens, a reply of 12 words after every 20th",
        "lora": {"r": LoraOptions().r, "alpha": LoraOptions().alpha},
        "ddp": runs,
    }
    for _ in range(arguments.repeats):
        for processes in (1, 2):
            run = launch(arguments, processes, arguments.steps)
            run["samples_per_second"] = processes / statistics.fmean(run["seconds_per_step"][WARM_UP - 1 :])
            runs[str(processes)].append(run)
            path = write_result("train_scale", result)  # keep what is measured if the rest fails
            print(f"{processes} GPU: {run['samples_per_second']:.3f} samples/s", flush=True)
    rates = {n: statistics.median(run["samples_per_second"] for run in runs[n]) for n in runs}
    result |= {"samples_per_second": rates, "ddp_speedup_2": rates["2"] / rates["1"]}
    write_result("train_scale", result)
    summarise("ddp_speedup_2", round(result["ddp_speedup_2"], 3), f"benchmarks/results/{path.name}", command)
    print(f"ddp_speedup_2: {result['ddp_speedup_2']:.3f}", flush=True)

    same_batches = launch(arguments, 1, 5, "--accumulate", "2")
    result["fsdp2"] = launch(arguments, 2, 5, "--fsdp")
    result["losses_of_the_same_global_batches"] = {
        "one GPU, two accumulated": same_batches["losses"],
        "two GPUs, DDP": runs["2"][0]["losses"][:5],
        "two GPUs, FSDP2": result["fsdp2"]["losses"],
    }
    write_result("train_scale", result)
    print(json.dumps(result["losses_of_the_same_global_batches"], indent=1))


if __name__ == "__main__":
    main()
