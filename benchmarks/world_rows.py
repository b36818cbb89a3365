"""One row of the tables: train a small model on a hard level of the world, and count its exact narrations.

    python -m videollm_mod.benchmarks.world_rows dense --level hard --seed 0

The rows of the paper all start from one pretrained language model. Likewise, all rows of a seed start from one dense
model that was trained on few cells, and then train on the level with their own routing (`tables_recipes.py`). That
model and the streams are made once and kept in `--data`. A run writes one JSON file and is skipped if that exists.
Rows run in parallel on one GPU, each in its own process; the CUDA MPS server avoids that they wait for each other's
time slices.
"""

import argparse
import fcntl
import json
import math
import os
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count, islice, product
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from ..data.files import written_whole
from ..data.world_streams import CELL, Streams, encoded_streams, grid_of, normalised_sprites, pixels, training_texts
from ..routing import LayerExpert
from ..training.initialise import initialise
from ..training.keep_ratio import KeepRatioSchedule
from ..training.routers import initialise_routers
from .tables_recipes import STREAMS, TABLES, Stage, Table
from .world_scores import autocast, exact_narrations, self_conditioned, streaming_metrics


@dataclass(frozen=True)
class Row:
    """What differs between rows: options of the text config and of training."""

    routing: dict
    only_class_token: bool = False
    frozen: bool = False  # routers stay as initialised
    warmup: float = 0.0  # share of each stage in which the keep ratio falls from 1 to its value
    elastic: tuple[float, float] | None = None  # range of a keep ratio that is drawn at each step
    fitted: bool = False  # routers start from `initialise_routers` instead of at random
    refitted: int = 0  # steps after which they are fitted again, and again
    router_rate: float = 1.0  # learning rate of routers, relative to that of all else


ELASTIC = (0.1, 1.0)
STUCK = (3000, 50.0)  # a model with fewer exact narrations, in percent, after these steps starts anew
OTHER_WEIGHTS = 1000  # added to the seed of the weights then
REFITTED = 25  # steps
SLOW = 0.01  # `router_rate` of fitted routers: Adam moves weights by the rate, and theirs are small
FITTED: dict = {"fitted": True, "router_rate": SLOW}
FITTED_ON = (4, 64)  # batches that routers are fitted on, streams of each
SCORED_EVERY = 175  # steps, on the streams for the curve


def mod(**options) -> dict:
    return {"vision_routing": "mod", "mod_keep_ratio": 0.2, **options}


def deep(ratio: float) -> dict:
    return {"mod_layers": "all_deep", "mod_keep_ratio": ratio}


ROWS = {
    "dense": Row({"vision_routing": "full"}),
    "layer_skip": Row({"vision_routing": "layer_skip"}),
    "early_exit": Row({"vision_routing": "early_exit"}),
    "class_token": Row({"vision_routing": "full"}, only_class_token=True),
    "mod": Row(mod()),
    "random": Row(mod(mod_selection="random")),
    "uniform": Row(mod(mod_selection="uniform")),
    "frozen": Row(mod(mod_gate="none"), frozen=True),
    **{f"mod_{layers}": Row(mod(mod_layers=layers)) for layers in ("all", "all_deep", "interleaved_deep")},
    **{f"mod_r{ratio}": Row(mod(mod_keep_ratio=ratio)) for ratio in (0.1, 0.3, 0.5, 1.0)},
    **{f"mod_{gate}": Row(mod(mod_gate=gate)) for gate in ("output", "none")},
    "mod_keep_last": Row(mod(mod_force_keep_last=True)),
    "mod_warmup": Row(mod(), warmup=0.5),
    "mod_elastic": Row(mod(), elastic=ELASTIC),
    "mod_elastic_output": Row(mod(mod_gate="output"), elastic=ELASTIC),
    "mod_elastic_warmup": Row(mod(), elastic=ELASTIC, warmup=0.5),
    "mod_elastic_output_warmup": Row(mod(mod_gate="output"), elastic=ELASTIC, warmup=0.5),
    # elastic training with a selection that is not learned
    **{f"{chosen}_elastic": Row(mod(mod_selection=chosen), elastic=ELASTIC) for chosen in ("random", "uniform")},
}
# only of models with more layers
DEEP_ROWS = {
    **{f"early_exit_{n}": Row({"vision_routing": "early_exit", "early_exit_layer": n}) for n in (4, 6)},
    **{
        f"{chosen}_{layers}": Row(mod(mod_selection=chosen, mod_layers=layers))
        for chosen in ("random", "uniform")
        for layers in ("all_deep", "interleaved_deep")
    },
    "mod_all_deep_warmup": Row(mod(mod_layers="all_deep"), warmup=0.5),
    "mod_fitted": Row(mod(), **FITTED),
    "mod_all_deep_fitted": Row(mod(mod_layers="all_deep"), **FITTED),
    "mod_all_deep_fitted_frozen": Row(mod(mod_layers="all_deep"), fitted=True, frozen=True),
    "mod_all_deep_refitted": Row(mod(mod_layers="all_deep"), fitted=True, refitted=REFITTED, frozen=True),
    "mod_all_deep_gradual": Row(mod(mod_layers="all_deep"), warmup=0.5, fitted=True, refitted=REFITTED, frozen=True),
    "random_all_deep_gradual": Row(mod(mod_layers="all_deep", mod_selection="random"), warmup=0.5),
    "mod_all_deep_fitted_quick": Row(mod(mod_layers="all_deep"), fitted=True),
    "mod_all_deep_slow": Row(mod(mod_layers="all_deep"), router_rate=SLOW),
    **{f"random_all_deep_r{ratio}": Row(mod(mod_selection="random", **deep(ratio))) for ratio in (0.1, 0.26)},
    **{f"mod_all_deep_r{ratio}_fitted": Row(mod(**deep(ratio)), **FITTED) for ratio in (0.1, 0.26)},
}
ELASTIC_RATIOS = (0.1, 0.2, 0.3, 0.5, 1.0)


def row_of(name: str) -> Row:
    return (ROWS | DEEP_ROWS)[name]


def build(name: str, level: str, args, seed: int | None = None):
    """A model without vision layers: each patch goes straight through the connector, so the language model has to see.
    Its processor knows the words of every level."""
    grid, row, said = grid_of(level), row_of(name), training_texts()
    model, processor = initialise(
        {
            "frame_token_cls": True,
            "frame_token_pooled": None if row.only_class_token else [grid, grid],
            "text_config": {
                "hidden_size": args.hidden,
                "intermediate_size": 3 * args.hidden,
                "num_hidden_layers": args.layers,
                "num_attention_heads": args.hidden // 32,
                "num_key_value_heads": args.hidden // 32,
                "max_position_embeddings": 4096,
                "tie_word_embeddings": True,
                **row.routing,
            },
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 96,
                "intermediate_size": 192,
                "num_hidden_layers": 0,
                "num_attention_heads": 4,
                "image_size": CELL * grid,
                "patch_size": CELL,
            },
        },
        [*said, *["\nUser: \nAssistant:"] * len(said)],  # the headers need tokens too
        vocab_size=400,
        seed=args.seed if seed is None else seed,
    )
    if row.frozen:
        for module in model.modules():
            if isinstance(module, LayerExpert):
                module.requires_grad_(False)
    return model, processor


def stage_data(level: str, processor, args) -> list:
    """Training streams, lessons, and streams for the curve."""
    wanted = ((level, "train", args.streams), (f"{level}_lessons", "train", args.streams))
    wanted = (*wanted, (level, "validation", args.curve_streams))
    return [encoded_streams(*which, processor, args.data) for which in wanted]


@contextmanager
def compiled_blocks(model, **options):
    """Compile the blocks of the layers, once for all of them: on a GPU, launching the operations of such small layers
    one by one takes several times as long as the operations themselves. options: of `torch.compile`."""
    layers = model.model.language_model.layers
    for layer in layers:
        for name in ("attention_block", "mlp_block"):
            setattr(layer, name, torch.compile(getattr(layer, name), dynamic=True, **options))
    try:
        yield
    finally:
        for layer in layers:
            del layer.attention_block, layer.mlp_block


def is_stuck(curve: list[dict]) -> bool:
    """Whether a model has learned too little in its first steps to learn the rest in time."""
    return curve[-1]["step"] >= STUCK[0] and curve[-1]["exact"] < STUCK[1]


def fit_routers(model, streams: Streams, bank: torch.Tensor, rng: np.random.Generator) -> None:
    """`initialise_routers` on a few batches of the streams that are learned."""
    batches, batch_size = FITTED_ON
    inputs = (
        {"input_ids": ids, "labels": labels, "pixel_values_videos": pixels(bank, codes)}
        for ids, labels, codes, _ in islice(streams.batches(batch_size, rng), batches)
    )
    with autocast(model.device), torch.compiler.set_stance("force_eager"):
        initialise_routers(model, inputs)


def train(model, processor, row: Row, stage: Stage, lr: float, args, ends_at: float | None = None) -> list[dict]:
    """Train with AdamW, warm-up and cosine. Return the curve: loss, and score on validation streams, which ends the
    training early where it reaches `ends_at` percent of exact narrations, or is too low to do so."""
    level, steps, batch_size = stage
    rng, text_config = np.random.default_rng(args.seed), model.config.text_config
    placeholder = (model.config.num_frame_tokens, model.config.video_token_id, args.device)
    learned, lessons, scored = stage_data(level, processor, args)
    learned, scored = Streams(learned + lessons, *placeholder), Streams(scored, *placeholder)
    bank, keep_ratio = normalised_sprites(processor, args.device), text_config.mod_keep_ratio
    if row.fitted:
        fit_routers(model, learned, bank, np.random.default_rng(args.seed))
    schedule_of_ratio = KeepRatioSchedule(int(row.warmup * steps), row.elastic, args.seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    routers = {p for module in model.modules() if isinstance(module, LayerExpert) for p in module.parameters()}
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for p in trained if (p in routers, p.dim() > 1) == (is_router, is_matrix)],
                "lr": lr * (row.router_rate if is_router else 1),
                "weight_decay": 0.01 * is_matrix,
            }
            for is_router, is_matrix in product((False, True), repeat=2)
        ],
        lr=lr,
        betas=(0.9, 0.98),
        fused=args.device == "cuda",
    )
    warmup = max(1, min(300, steps // 8))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, s / steps))))
    )

    def loss_of(ids, labels, codes):
        with autocast(ids.device):
            return model(input_ids=ids, labels=labels, pixel_values_videos=pixels(bank, codes), use_cache=False).loss

    curve, losses, step, started = [], [], 0, time.perf_counter()
    while True:
        for ids, labels, codes, _ in learned.batches(batch_size, rng):
            if row.refitted and step and step % row.refitted == 0:
                fit_routers(model, learned, bank, rng)
            text_config.mod_keep_ratio = schedule_of_ratio.ratio(step, keep_ratio)
            loss = loss_of(ids, labels, codes)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
            step += 1
            text_config.mod_keep_ratio = keep_ratio
            if step % SCORED_EVERY == 0 or step == steps:
                model.eval()
                with torch.compiler.set_stance("force_eager"):  # scoring keeps a cache
                    score = exact_narrations(model, scored, bank, processor)
                model.train()
                seconds = round(time.perf_counter() - started, 1)
                mean_loss = round(float(torch.stack(losses).mean()), 5)
                curve.append({"level": level, "step": step, "seconds": seconds, "loss": mean_loss, **score})
                losses = []
                print(f"{args.row} seed {args.seed} {json.dumps(curve[-1])}", flush=True)
            if step == steps:
                return curve
            if ends_at is not None and curve and (curve[-1]["exact"] >= ends_at or is_stuck(curve)):
                return curve


def flops_per_stream(model, streams: Streams, bank: torch.Tensor) -> float:
    """Floating-point operations per stream, forward and backward, as torch counts them for matrix products."""
    ids, labels, codes, _ = next(streams.batches(32))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=labels, pixel_values_videos=pixels(bank, codes), use_cache=False).loss.backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops() / len(ids)


def scores(model, streams: Streams, bank: torch.Tensor, processor) -> dict:
    return {
        **exact_narrations(model, streams, bank, processor),
        "streaming": streaming_metrics(model, streams, bank, processor),
        "self_conditioned": self_conditioned(model, streams, bank, processor),
    }


def pretrained_path(folder: Path, table: Table, seed: int) -> Path:
    return folder / f"{table.start}_s{seed}.safetensors"


def start_from(model, weights: dict[str, torch.Tensor]) -> None:
    """Load the weights of another level's model, if any. A finer grid has other positions; the rest is the same."""
    own = model.state_dict()
    same = {name: value for name, value in weights.items() if value.shape == own[name].shape}
    missing = set(model.load_state_dict(same, strict=False).missing_keys) - {"lm_head.weight"}
    assert not weights or all("expert" in name or weights[name].shape != own[name].shape for name in missing)


def save_stage(path: Path, model, curves: list[dict]) -> None:
    weights = {name: value.to("cpu", torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    weights.pop("lm_head.weight", None)  # the embedding
    path.with_suffix(".json").write_text(json.dumps(curves) + "\n", encoding="utf-8")
    with written_whole(path) as partial:
        save_file(weights, partial)


def pretrain_stage(stage: Stage, weights: dict[str, torch.Tensor], args) -> tuple:
    """A dense model after a stage of pretraining that starts from `weights`, and its curve. Where there are none, a
    model that is stuck starts anew."""
    table = TABLES[args.level]
    learning = (ROWS["dense"], stage, table.pretraining_lr, args, table.ends_at)
    curves: list[dict] = []
    for attempt in count():
        model, processor = build("dense", stage[0], args, args.seed + OTHER_WEIGHTS * attempt)
        stage_data(stage[0], processor, args)  # made by other processes, before the GPU is in use
        start_from(model, weights)
        with compiled_blocks(model) if args.device == "cuda" else nullcontext():
            curve = train(model.to(args.device).train(), processor, *learning)
        curves += [{"attempt": attempt, **point} for point in curve]
        if weights or not is_stuck(curve):
            break
    return model, curves


def pretrained(args) -> dict[str, torch.Tensor]:
    """Weights of the dense model that all rows of a seed start from, in bfloat16. The first caller trains it, without
    the stages that an interrupted one has finished."""
    table = TABLES[args.level]
    path = pretrained_path(args.data, table, args.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = [path.with_name(f"{path.stem}_{level}.safetensors") for level, *_ in table.pretraining[:-1]] + [path]
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        weights: dict[str, torch.Tensor] = {}
        curves: list[dict] = []
        for part, stage in zip(saved, table.pretraining, strict=True) if not path.exists() else ():
            if not part.exists():
                model, curve = pretrain_stage(stage, weights, args)
                save_stage(part, model, curves + curve)
            weights, curves = load_file(part), json.loads(part.with_suffix(".json").read_text(encoding="utf-8"))
    return load_file(path)


def run(args) -> dict:
    torch.set_num_threads(1)
    table, row = TABLES[args.level], row_of(args.row)
    known = pretrained(args)
    model, processor = build(args.row, table.level, args)
    stage_data(table.level, processor, args)
    start_from(model, known)
    model.to(args.device)
    with compiled_blocks(model) if args.device == "cuda" else nullcontext():
        curve = train(model.train(), processor, row, table.stage, args.lr, args)
    bank, result, started = normalised_sprites(processor, args.device), {}, time.perf_counter()
    for split in ("validation", "test"):
        streams = encoded_streams(table.level, split, args.eval_streams, processor, args.data)
        streams = Streams(streams, model.config.num_frame_tokens, model.config.video_token_id, args.device)
        if split == "validation":
            flops = flops_per_stream(model.train(), streams, bank)
            model.eval()
        only_exact = split == "validation"  # which chooses rates and options
        result[split] = (exact_narrations if only_exact else scores)(model, streams, bank, processor)
    if row.elastic:
        for ratio in ELASTIC_RATIOS:
            model.config.text_config.mod_keep_ratio = ratio
            result[f"test_r{ratio:g}"] = exact_narrations(model, streams, bank, processor)
    if args.save is not None:
        model.save_pretrained(args.save)
        processor.save_pretrained(args.save)
    return {
        "row": args.row,
        **{name: getattr(args, name) for name in ("level", "seed", "lr", "layers", "hidden", "streams")},
        **{name: table.recipe[name] for name in ("pretraining", "stage")},
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops_per_stream": flops,
        "training_seconds": curve[-1]["seconds"],
        "scoring_seconds": round(time.perf_counter() - started, 1),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "CPU",
        "versions": {name: version(name) for name in ("torch", "transformers")},
        **result,
        "curve": curve,
    }


def path_of(folder: Path, row: str, level: str, seed: int, lr: float) -> Path:
    return folder / f"{level}_{row}_lr{lr:g}_s{seed}.json"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "row",
        choices=[*ROWS, *DEEP_ROWS, "pretrained"],
        help="name of a row; `pretrained` makes the model that all start from",
    )
    parser.add_argument(
        "--level", default="hard_small", choices=TABLES, help="of the world, and the number of layers if not 4"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, help="learning rate (default: the first of the table's)")
    parser.add_argument("--streams", type=int, default=STREAMS, help="training streams, and as many lessons")
    parser.add_argument("--curve-streams", type=int, default=150)
    parser.add_argument(
        "--eval-streams", type=int, default=640, help="evaluation streams, of eight narrations each (default: 640)"
    )
    parser.add_argument("--data", type=Path, default=Path("runs/world_rows"))
    parser.add_argument("--output", type=Path, default=Path("runs/tables"))
    parser.add_argument("--save", type=Path, help="folder to save the checkpoint to")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    args.layers, args.hidden = TABLES[args.level].layers, TABLES[args.level].hidden
    args.lr = args.lr or TABLES[args.level].rates[0]
    if args.row == "pretrained":
        pretrained(args)
        return
    path = path_of(args.output, args.row, args.level, args.seed, args.lr)
    if path.exists():
        print(f"{path} exists")
        return
    result = run(args)
    args.output.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")  # another program may have started the same run
    part.write_text(json.dumps(result) + "\n", encoding="utf-8")
    part.replace(path)
    print(path.stem, json.dumps(result["test"]))


if __name__ == "__main__":
    main()
