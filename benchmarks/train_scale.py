"""Training on two GPUs against one: samples a second under DDP, and that losses agree with one GPU and with FSDP2.

    python benchmarks/train_scale.py

LoRA of the paper's rank on random weights of Llama-3-8B's geometry, bfloat16, gradient checkpointing; a sample is a
stream of 600 frames of 10 tokens, given as features; one sample a GPU and step. One and two GPUs take turns, each in
fresh processes of the HF Trainer.
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
from random_streams import GEOMETRIES, RandomStreams, random_model
from record import summarise, surroundings, write_result
from transformers import TrainerCallback, TrainingArguments

from videollm_mod.data.collator import StreamCollator
from videollm_mod.training.adapters import LoraOptions, add_lora
from videollm_mod.training.freezing import freeze_unreached
from videollm_mod.training.trainer import StreamTrainer

WARM_UP = 4  # steps that are not timed


class StepClock(TrainerCallback):
    """When each optimizer step was done on the device, in seconds."""

    def __init__(self):
        self.times = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def work(arguments: argparse.Namespace) -> None:
    """One process of one run; the first one writes what was measured."""
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
    model = random_model(arguments.geometry, options.device)
    dataset = RandomStreams(model.config, arguments.frames)
    torch.manual_seed(0)  # so that the adapters start alike however many processes there are
    model = add_lora(model, LoraOptions())
    freeze_unreached(model, given_features=True)
    clock = StepClock()
    trainer = StreamTrainer(
        model=model.train(),
        args=options,
        train_dataset=dataset,
        data_collator=StreamCollator(pad_token_id=2),
        callbacks=[clock],
    )
    trainer.train()
    if trainer.is_world_process_zero():
        seconds = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
        result = {
            "seconds_per_step": seconds,
            "losses": [entry["loss"] for entry in history],
            "grad_norms": [entry["grad_norm"] for entry in history],
            "peak_allocated_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
        }
        Path(arguments.worker).write_text(json.dumps(result))


def launch(arguments: argparse.Namespace, processes: int, steps: int, *options: str) -> dict:
    """Run `processes` workers and return what the first one measured."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        shared = ["--geometry", arguments.geometry, "--frames", arguments.frames, "--steps", steps]
        command = [__file__, *shared, "--worker", result, *options]
        environment = dict(os.environ)
        if processes == 1:  # as one would on one GPU: no process group, no DDP around the model
            environment["CUDA_VISIBLE_DEVICES"] = "0"
        else:
            command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, *command]
        subprocess.run([sys.executable, *map(str, command)], check=True, env=environment)
        return json.loads(result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", choices=GEOMETRIES, default="llama-3-8b")
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--accumulate", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--fsdp", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)

    runs = {1: [], 2: []}
    for _ in range(arguments.repeats):
        for processes in (1, 2):
            run = launch(arguments, processes, arguments.steps)
            run["samples_per_second"] = processes / statistics.fmean(run["seconds_per_step"][WARM_UP - 1 :])
            runs[processes].append(run)
            print(f"{processes} GPU: {run['samples_per_second']:.3f} samples/s", flush=True)
    rates = {n: statistics.median(run["samples_per_second"] for run in runs[n]) for n in runs}
    command = " ".join(["python benchmarks/train_scale.py", *sys.argv[1:]])
    result = {
        "command": command,
        **surroundings("accelerate", "peft"),
        "geometry": arguments.geometry,
        "sample": f"{arguments.frames} frames of 10 tokens, a reply of 12 words after every 20th",
        "lora": {"r": LoraOptions().r, "alpha": LoraOptions().alpha},
        "ddp": {"1": runs[1], "2": runs[2]},
        "samples_per_second": {str(n): rate for n, rate in rates.items()},
        "ddp_speedup_2": rates[2] / rates[1],
    }
    path = write_result("train_scale", result)  # what is measured is kept, whatever becomes of the rest
    same_batches = launch(arguments, 1, 5, "--accumulate", "2")
    result["fsdp2"] = launch(arguments, 2, 5, "--fsdp")
    result["losses_of_the_same_global_batches"] = {
        "one GPU, two accumulated": same_batches["losses"],
        "two GPUs, DDP": runs[2][0]["losses"][:5],
        "two GPUs, FSDP2": result["fsdp2"]["losses"],
    }
    write_result("train_scale", result)
    summarise("ddp_speedup_2", round(rates[2] / rates[1], 3), f"benchmarks/results/{path.name}", command)
    print(json.dumps({k: result[k] for k in ("ddp_speedup_2", "losses_of_the_same_global_batches")}, indent=1))


if __name__ == "__main__":
    main()
