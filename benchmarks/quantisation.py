"""Weights of 8 and 4 bits against bfloat16: memory at the geometry of an 8B model, and narrations of the bundled one.

    python -m videollm_mod.benchmarks.quantisation memory   # on a GPU; writes 17 GB to a temporary folder
    python -m videollm_mod.benchmarks.quantisation quality  # on a GPU, or slowly on a CPU

Each command measures one half of `results/quantisation.json`, keeps the other half, and prints the table. Memory is
`get_memory_footprint()` and, on a GPU, what torch had allocated after loading. In each precision, the model watches
the same unseen streams frame by frame on its own words. float8 is that of `FineGrainedFP8Config`, whose layers need a
GPU and kernels from the Hub: the model watches with dense copies of its weights, as static steps read them.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import BitsAndBytesConfig

from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor
from videollm_mod.bench.geometries import GEOMETRIES
from videollm_mod.bench.record import RESULTS, summarise, surroundings, write_result
from videollm_mod.bench.streams import random_model
from videollm_mod.bench.weights import quantise
from videollm_mod.evaluation.free_running import Counts, watch_world
from videollm_mod.static_graphs import is_quantised
from videollm_mod.weights import stored_weight

ROOT = Path(__file__).resolve().parent.parent
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
PRECISIONS = {
    "bfloat16": None,
    "float8": None,
    "8 bit": {"load_in_8bit": True},
    "nf4": NF4 | {"bnb_4bit_compute_dtype": torch.bfloat16},
}


def load(path, precision: str, device: str):
    config = PRECISIONS[precision]
    options = {} if config is None else {"quantization_config": BitsAndBytesConfig(**config)}
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(
        path, dtype=torch.bfloat16, device_map={"": device}, **options
    ).eval()
    if precision == "float8":
        quantise(model, "fp8")
    return model


def use_dense_copies(model) -> None:
    """In place of the layers with weights of float8."""
    for name, linear in list(model.named_modules()):
        if type(linear).__name__ == "FP8Linear" and is_quantised(linear):
            weight: Any = stored_weight(linear)
            dense = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
            dense.weight = nn.Parameter(weight.dense(model.dtype), requires_grad=False)
            model.set_submodule(name, dense)


def memory(args) -> dict:
    device, rows = "cuda" if torch.cuda.is_available() else "cpu", {}
    with tempfile.TemporaryDirectory() as folder:
        random_model(args.geometry, device).save_pretrained(folder)
        for precision in PRECISIONS:
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()
            started = time.perf_counter()
            model = load(folder, precision, device)
            rows[precision] = {
                "footprint_bytes": model.get_memory_footprint(),
                "allocated_bytes": torch.cuda.memory_allocated() if device == "cuda" else None,
                "seconds_to_load": round(time.perf_counter() - started, 1),
            }
            del model
            print(precision, rows[precision], flush=True)
    ratios = {name: row["footprint_bytes"] / rows["bfloat16"]["footprint_bytes"] for name, row in rows.items()}
    return {"geometry": args.geometry, "rows": rows, "footprint_ratio": ratios}


def quality(args) -> dict:
    processor, rows = VideoLLMMoDProcessor.from_pretrained(ROOT), {}
    for precision in PRECISIONS:
        model, counts = load(ROOT, precision, "cuda" if torch.cuda.is_available() else "cpu"), Counts()
        footprint = model.get_memory_footprint()
        use_dense_copies(model)
        for seed in tqdm(range(args.first_seed, args.first_seed + args.streams), desc=precision):
            counts += watch_world(model, processor, seed).counts(2.0)
        rows[precision] = counts.summary() | {"footprint_bytes": footprint}
    return {"seeds": [args.first_seed, args.first_seed + args.streams], "rows": rows}


def table(result: dict) -> str:
    """The measurements so far as a Markdown table."""
    lines = [
        "| weights | memory, 8B geometry | of bfloat16 | nano: narrations exact | answers right |",
        "|" + " --- |" * 5,
    ]
    for precision in PRECISIONS:
        cells = ["", "", "", ""]
        if precision in result.get("memory", {}).get("rows", {}):
            cells[0] = f"{result['memory']['rows'][precision]['footprint_bytes'] / 1e9:.2f} GB"
            cells[1] = f"{result['memory']['footprint_ratio'][precision]:.3f}"
        if precision in result.get("quality", {}).get("rows", {}):
            row = result["quality"]["rows"][precision]
            cells[2] = f"{row['exact']:.1f} % of {row['narrations']}"
            cells[3] = f"{row['right']:.1f} % of {row['questions']}"
        lines.append(f"| {precision} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("half", choices=("memory", "quality"))
    parser.add_argument("--geometry", choices=GEOMETRIES, default="llama3-8b")
    parser.add_argument("--first-seed", type=int, default=3_000_000_000)
    parser.add_argument("--streams", type=int, default=40)
    args = parser.parse_args()
    if args.half == "quality":
        torch.set_num_threads(1)
    command = " ".join(["python -m videollm_mod.benchmarks.quantisation", *sys.argv[1:]])
    path = RESULTS / "quantisation.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    measured = {"memory": memory, "quality": quality}[args.half](args)
    result[args.half] = {"command": command, **surroundings("bitsandbytes"), **measured}
    write_result("quantisation", result)
    if args.half == "memory":
        ratio = round(measured["footprint_ratio"]["nf4"], 4)
        summarise("nf4_memory_ratio", ratio, f"benchmarks/results/{path.name}", command)
    print(table(result))


if __name__ == "__main__":
    main()
