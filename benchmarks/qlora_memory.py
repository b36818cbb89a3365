"""Peak GPU memory of the recipe for 24 GB GPUs: QLoRA of an 8B model on streams of 600 frames of 10 tokens.

    python -m videollm_mod.benchmarks.qlora_memory

A checkpoint of random weights is written, then loaded and trained for a few steps as `videollm-mod train
training/configs/qlora_24gb.yaml` does, in a process that may use at most `--limit` GiB.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from transformers import TrainerCallback

from videollm_mod import VideoLLMMoDProcessor
from videollm_mod.bench.geometries import GEOMETRIES
from videollm_mod.bench.record import summarise, surroundings, write_result
from videollm_mod.bench.streams import random_model
from videollm_mod.benchmarks.training_steps import train_streams
from videollm_mod.training.adapters import LoraOptions
from videollm_mod.training.config import TrainingConfig
from videollm_mod.training.train import load

ROOT = Path(__file__).resolve().parent.parent


def memory() -> dict[str, float]:
    """Peaks so far in GiB: of tensors, and of what the allocator reserved for them."""
    if not torch.cuda.is_available():
        return {"allocated_gib": 0.0, "reserved_gib": 0.0}
    return {
        "allocated_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
    }


class RouterGradients(TrainerCallback):
    """At each step, the largest entry of each router's gradient. The smallest of these is recorded, and that of the
    last layer, which is 0 if that layer does not keep the last token of a frame (`tests/test_training.py` shows
    why)."""

    def __init__(self):
        self.smallest, self.of_last_layer = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        trained = [p for n, p in model.named_parameters() if n.endswith("weight") and "layer_expert" in n]
        gradients = [p.grad.abs().max().item() for p in trained if p.requires_grad]  # in order of the layers
        self.smallest.append(min(gradients[:-1]))
        self.of_last_layer.append(gradients[-1])


def train(checkpoint: str, frames: int, steps: int, limit: float) -> dict:
    """Load and train as in the recipe, and return the memory and time."""
    cuda = torch.cuda.is_available()
    if cuda:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit * 2**30 / total))
    config = TrainingConfig.load(ROOT / "training" / "configs" / "qlora_24gb.yaml")
    stage = {**config.stream_stage, "max_steps": steps, "logging_steps": 1, "save_strategy": "no"}
    stage |= {"dataloader_num_workers": 0, "report_to": [], "gradient_accumulation_steps": 1, "use_cpu": not cuda}
    config = replace(config, model=checkpoint, stream_stage=stage, output_dir=f"{checkpoint}/run")
    arguments = config.arguments("stream")
    model, _ = load(config, arguments.device)
    loading = memory()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    gradients = RouterGradients()
    run = train_streams(model, arguments, frames, LoraOptions(**config.lora), gradients)
    return {
        "loading": loading,
        "training": memory(),
        **run,
        "smallest_router_gradient_before_the_last_layer": gradients.smallest,
        "router_gradient_of_the_last_layer": gradients.of_last_layer,
        "recipe": {key: stage[key] for key in sorted(stage)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", choices=GEOMETRIES, default="llama3-8b")
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument(
        "--limit", type=float, default=22.0, help="GiB that the training process may use (default: 22)"
    )
    parser.add_argument("--make", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:  # in a separate process, so that its memory does not count
        random_model(arguments.geometry, "cuda" if torch.cuda.is_available() else "cpu").save_pretrained(
            arguments.make
        )
        VideoLLMMoDProcessor.from_pretrained(ROOT).save_pretrained(arguments.make)
        return

    with tempfile.TemporaryDirectory() as checkpoint:
        make = [sys.executable, __file__, "--geometry", arguments.geometry, "--make", checkpoint]
        subprocess.run(make, check=True)
        run = train(checkpoint, arguments.frames, arguments.steps, arguments.limit)
    command = " ".join(["python -m videollm_mod.benchmarks.qlora_memory", *sys.argv[1:]])
    peak = max(run[part]["reserved_gib"] for part in ("loading", "training"))
    result = {
        "command": command,
        **surroundings("accelerate", "peft", "bitsandbytes"),
        "geometry": arguments.geometry,
        "sample": f"{arguments.frames} frames of 10 tokens",
        "limit_gib": arguments.limit,
        "peak_gib": peak,
        **run,
    }
    path = write_result("qlora_memory", result)
    summarise("qlora_600x10_peak_gib", round(peak, 2), f"benchmarks/results/{path.name}", command)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
