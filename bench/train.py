"""`videollm-mod bench train`: time and memory of a training step, mixture of depths next to dense.

First every way is tried with every choice of what is recomputed. Then the best ways take turns. All ways have the same
weights, adapters, optimizer, attention and stream. They differ in the tokens that enter the routed layers and, where
the name says so, in the logits that are computed.
"""

import statistics
from pathlib import Path

import torch
from tqdm import tqdm

from .arithmetic import layer_tokens, measured_rates, step_operations
from .geometries import check_fits
from .record import enter, header, write
from .step import Bench, Deadline, Way

# for 32 layers; `scaled` adapts them to other depths
CHOICES = (
    "pairs",
    "pairs:24+entered:8",
    "pairs:16+entered:16",
    "entered",
    "entered:16+attention:16",
    "entered:8+attention:24",
    "attention",
    "attention:24+mlp:8",
    "attention:16+mlp:16",
    "layer",
    "mlp",
    "mlp:24+none:8",
    "mlp:20+activation:12",
    "mlp:16+activation:16",
    "mlp:14+activation:18",
    "mlp:12+activation:20",
    "mlp:10+activation:22",
    "mlp:8+activation:24",
    "mlp:4+activation:28",
    "activation",
    "activation:16+none:16",
    "none",
)
DENSE_CHOICES = ("layer", "entered", "attention", "mlp", "activation", "none")
REFERENCE = Way(routed=False, all_logits=True, recompute="layer")
STOCK = Way(routed=False, all_logits=True, stock=True, recompute="layer")


def scaled(choice: str, num_layers: int) -> str:
    """A choice for 32 layers, adapted to `num_layers`."""
    parts = [part.partition(":") for part in choice.split("+")]
    if not parts[0][2]:
        return choice
    counts = [int(count) * num_layers // 32 for _, _, count in parts]
    counts[-1] += num_layers - sum(counts)
    return "+".join(f"{name}:{count}" for (name, _, _), count in zip(parts, counts, strict=True))


def ways(num_layers: int) -> list[Way]:
    reference = [REFERENCE, STOCK]
    mod = [Way(routed=True, recompute=scaled(choice, num_layers)) for choice in CHOICES]
    dense = [Way(routed=False, recompute=scaled(choice, num_layers)) for choice in DENSE_CHOICES]
    full = [Way(routed=False, all_logits=True, recompute=scaled(c, num_layers)) for c in DENSE_CHOICES[1:]]
    return [*reference, *mod, *dense, *full]


def row(way: Way, steps: list[tuple | None]) -> dict:
    measured = [step for step in steps if step is not None]
    return {
        "row": way.name,
        "recompute": way.recompute,
        "seconds": [seconds for _, seconds, _ in measured],
        "peak_gib": max((peak for _, _, peak in measured), default=None),
        "loss": measured[-1][0] if measured else None,
        "out_of_memory": None in steps,
    }


def line(entry: dict) -> str:
    if not entry["seconds"]:
        why = "out of memory" if entry["out_of_memory"] else "no time left"
        return f"{entry['row']:<32} {entry['recompute']:<24} {why}"
    seconds = statistics.median(entry["seconds"])
    return (
        f"{entry['row']:<32} {entry['recompute']:<24} {1000 * seconds:>8.0f} ms {entry['peak_gib']:>8.2f} GiB "
        f"loss {entry['loss']:.4f}"
    )


def search(bench: Bench, deadline: Deadline, result: dict, path: Path | None) -> dict[Way, dict]:
    """One timed step of every way, until the deadline."""
    found: dict[Way, dict] = {}
    for way in tqdm(ways(bench.model.config.text_config.num_hidden_layers), desc="choices", leave=False):
        if deadline.passed():
            break
        found[way] = row(way, [bench.try_alone(way)])
        result["search"] = list(found.values())
        write(path, result)
        tqdm.write(line(found[way]))
    return found


def pick(found: dict[Way, dict]) -> dict[str, Way]:
    """The ways that the figures compare, by role. MoD is compared with two dense models that compute all logits:
    `stock` consists of parts of transformers and peft, `reference` of parts of this package."""
    fits = {way: entry for way, entry in found.items() if entry["seconds"]}
    if REFERENCE not in fits or STOCK not in fits:
        return {}
    picked: dict[str, Way | None] = {"stock": STOCK, "reference": REFERENCE}

    def best(key, routed: bool, memory: float = float("inf"), seconds: float = float("inf")) -> Way | None:
        chosen = [
            way
            for way, entry in fits.items()
            if not way.all_logits
            and way.routed == routed
            and entry["peak_gib"] <= memory
            and entry["seconds"][0] <= seconds
        ]
        return min(chosen, key=lambda way: fits[way][key][0] if key == "seconds" else fits[way][key], default=None)

    memory = fits[REFERENCE]["peak_gib"]
    picked["fast"] = fast = best("seconds", routed=True, memory=memory)
    picked["small"] = best("peak_gib", routed=True, seconds=0.615 * fits[STOCK]["seconds"][0])
    picked["small, ours"] = best("peak_gib", routed=True, seconds=0.615 * fits[REFERENCE]["seconds"][0])
    picked["dense"] = best("seconds", routed=False, memory=memory)
    if fast is not None:  # both recompute the same
        picked["alike"] = Way(routed=False, recompute=fast.recompute)
        picked["alike, layer"], picked["alike, MoD, layer"] = Way(routed=False), Way(routed=True)
    return {role: way for role, way in picked.items() if way is not None and (way in fits or way not in found)}


def take_turns(
    bench: Bench, picked: dict[str, Way], found: dict[Way, dict], repeats: int, deadline: Deadline
) -> dict[str, dict]:
    """Let the picked ways take turns, and return a row for each role. A way that runs out of memory in every turn, or
    has no turn before the deadline, keeps its row of the search and is marked."""
    steps: dict[Way, list] = {way: [] for way in picked.values()}
    bench.clear()
    for repeat in tqdm(range(repeats + 1), desc="repeats", leave=False):  # the first is not timed
        for way in steps:
            if deadline.passed():
                continue
            step = bench.try_step(way)
            if step is None:
                tqdm.write(f"{way.name}, {way.recompute}: OUT OF MEMORY after other ways; trying again alone")
                step = bench.try_alone(way)
            if repeat:
                steps[way].append(step)
    rows = {}
    for role, way in picked.items():
        rows[role] = row(way, steps[way])
        failed, searched = steps[way].count(None), found.get(way, {}).get("seconds")
        if failed:
            print(f"{role}: OUT OF MEMORY in {failed} of {len(steps[way])} turns", flush=True)
        elif not steps[way]:
            print(f"{role}: no time left for its turns", flush=True)
        if failed == len(steps[way]) and searched:
            print(f"{role}: using its single step of the search", flush=True)
            rows[role] = {**found[way], "out_of_memory": failed > 0, "of_search": True}
    return rows


# figure -> roles of numerator and denominator, and whether it compares memory
RATIOS = {
    "train_time_vs_dense": ("fast", "stock", False),
    "train_time_vs_own_dense_all_logits": ("fast", "reference", False),
    "train_memory_vs_dense": ("small", "stock", True),
    "train_time_of_least_memory": ("small", "stock", False),
    "train_memory_vs_own_dense_all_logits": ("small, ours", "reference", True),
    "train_time_like_for_like": ("fast", "alike", False),
    "train_time_like_for_like_layer": ("alike, MoD, layer", "alike, layer", False),
}


def figures(rows: dict[str, dict], shape: str) -> dict[str, float]:
    """The ratios for which both rows were measured."""
    out = {}
    for name, (above, below, of_memory) in RATIOS.items():
        sides = [rows[role] for role in (above, below) if rows.get(role, {}).get("seconds")]
        if len(sides) < 2:
            continue
        values = [side["peak_gib"] if of_memory else statistics.median(side["seconds"]) for side in sides]
        if values[1]:
            out[f"{name}_{shape}"] = values[0] / values[1]
    return out


def bench(
    geometry: str,
    json: Path | None,
    frames: int,
    tokens: int,
    keep_ratio: float,
    repeats: int,
    minutes: float,
    profile: bool,
) -> None:
    deadline = Deadline(minutes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    check_fits(geometry, device)
    machine = Bench(geometry, frames, tokens, device, mod_keep_ratio=keep_ratio)
    measure(machine, frames, tokens, json, repeats, deadline, profile)


def profile_kernels(machine: Bench, result: dict, path: Path | None) -> None:
    """Add to the result which kernels take the time of a step, and what routing alone takes."""
    from .kernels import kernel_table
    from .overhead import routing_seconds

    num_layers = machine.model.config.text_config.num_hidden_layers
    for way in (Way(True, recompute="mlp"), Way(False, recompute="mlp"), Way(True)):
        if machine.try_step(way) is not None:
            result.setdefault("kernels", {})[f"{way.name}, {way.recompute}"] = table = kernel_table(machine, way)
            print(f"--- {way.name}, {way.recompute}, {num_layers} layers\n{table['text']}", flush=True)
            write(path, result)
    result["routing_seconds"] = routing_seconds(machine)
    print(f"routing alone: {result['routing_seconds']}", flush=True)
    write(path, result)


def measure(
    machine: Bench, frames: int, tokens: int, path: Path | None, repeats: int, deadline: Deadline, profile: bool
) -> dict:
    """Measure streams of one shape. The result is also written to `path`, again after every step."""
    machine.use_stream(frames, tokens)
    length, kept = layer_tokens(machine.model, machine.inputs)
    labelled = int((machine.inputs["labels"] != -100).sum())
    result = {**header(), "frames": frames, "tokens_per_frame": tokens}
    result |= {"sequence_tokens": length, "tokens_in_routed_layers": kept, "labelled_tokens": labelled}
    result["rates"] = rates = measured_rates(machine.device)
    print(f"{length} tokens, {kept} in routed layers, {labelled} labelled; rates {rates}", flush=True)
    if profile:
        profile_kernels(machine, result, path)
    found = search(machine, deadline, result, path)
    picked = pick(found)
    rows = take_turns(machine, picked, found, repeats, deadline)
    result["rows"] = rows
    for role, entry in rows.items():
        print(f"{role:<18} {line(entry)}")
        if entry["seconds"]:
            way = picked[role]
            operations = step_operations(machine.model, machine.inputs, machine.rank, way.routed, way.all_logits)
            share = operations / statistics.median(entry["seconds"]) / rates["matmul_operations_per_s"]
            entry["operations"], entry["share_of_matmul_rate"] = operations, share
            print(f"{'':<18} {operations / 1e12:.1f} T operations, {100 * share:.0f}% of the speed of a large product")
    result["figures"] = figures(rows, f"{frames}x{tokens}")
    if "routing_seconds" in result and rows.get("fast", {}).get("seconds"):
        seconds = statistics.median(rows["fast"]["seconds"])
        name = "routing_overhead" if tokens == 10 else f"routing_overhead_{frames}x{tokens}"  # the default shape
        result["figures"][name] = result["routing_seconds"]["device"] / seconds
    write(path, result)
    for name, value in result["figures"].items():
        print(f"{name}: {value:.4f}", flush=True)
    if path is not None:
        from .plots import plot_training

        plot_training(result, path.with_suffix(".png"))
    enter(path, result["figures"], result["command"])
    return result
