"""`videollm-mod bench growth`: time and memory of watching against frames held, tokens per frame, parallel streams and
keep ratio.

A row is one or more streams that hold a number of frames. It has the bytes of their caches, counted exactly, and
whether they fit. If they do, it has the time of one more frame of each stream and of a block of recorded frames, in
the language model alone. A result file that exists is continued.
"""

import json as jsons
import math
import os
import time
from pathlib import Path

import torch

from ..cache import MoDCache
from ..steps import Feed, Step, run_together
from .filled import filled_cache
from .growth_cases import FRAMES, MIDDLE, WORKING_BYTES, cache_bytes, cases, key_of, layer_lengths
from .growth_plot import plot
from .record import enter, header, write
from .streams import random_model
from .watching import WARM_UP, configured, summary, synchronise

BLOCK_TOKENS, BLOCK_FRAMES = 4096, 256  # at most, of a block of recorded frames


def memory_of(device: torch.device) -> int:
    """Bytes of memory of a GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def advance(model, caches: list[MoDCache], keep_ratio: float, frames: int, repeats: int) -> tuple[dict, str | None]:
    """Time of `frames` more frames of each stream, always from the same state of its cache; with it, why these were
    no static steps on a GPU."""
    config, device, seconds = model.config, model.device, []
    ids = ([config.frame_separator_token_id] + [config.video_token_id] * config.num_frame_tokens) * frames
    size = (frames, config.num_frame_tokens, config.vision_config.hidden_size)
    features, end = torch.randn(size, device=device, dtype=model.dtype), caches[0].get_seq_length()
    for _ in range(WARM_UP + repeats):
        steps: list[Step] = [Feed(model, cache, ids, features, keep_ratio) for cache in caches]
        synchronise(device)
        start = time.perf_counter()
        run_together(steps)
        synchronise(device)
        seconds.append(time.perf_counter() - start)
        for step, cache in zip(steps, caches, strict=True):
            why_not_static = step.result().why_not_static
            cache.rollback(end)
    found = {"frames": frames, **summary(seconds[WARM_UP:], frames * len(caches))}
    found["ms_per_frame"] = round(found["p50_ms"] / frames / len(caches), 4)
    return found, why_not_static


def measure(model, case: dict, repeats: int, total: int) -> dict:
    """A row."""
    text, device = model.config.text_config, model.device
    side = math.isqrt(case["tokens"] - 1)
    model.config.frame_token_pooled = [side, side] if side else None
    lengths = layer_lengths(text, case["frames"], case["tokens"], case["keep_ratio"], case["way"] == "mod")
    held, buffers = (case["batch"] * count for count in cache_bytes(text, lengths, model.dtype.itemsize))
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    row = {**case, "cache_bytes": held, "needs_bytes": weights + buffers + WORKING_BYTES}
    row["fits"] = row["needs_bytes"] <= total
    if not row["fits"]:
        return row
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with configured(model, dense=case["way"] == "dense"):
            ratio = case["keep_ratio"]
            caches = [filled_cache(model, case["frames"], ratio) for _ in range(case["batch"])]
            row["stream"], why_not_static = advance(model, caches, ratio, 1, repeats)
            if case["batch"] == 1:
                block = min(BLOCK_FRAMES, BLOCK_TOKENS // (case["tokens"] + 1))
                row["block"], why_not_static = advance(model, caches, ratio, block, max(2, repeats // 4))
            row["why_not_static"] = why_not_static
    except torch.OutOfMemoryError:
        row["fits"] = False
        row["why"] = "the device ran out of memory, although it should fit by arithmetic"
    if device.type == "cuda":
        row["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return row


def line(row: dict) -> str:
    size = (
        f"{row['frames']:>6} frames x {row['tokens']:>3} tokens, {row['batch']:>2} streams, kept {row['keep_ratio']}"
    )
    size += f", {row['way']:<5} cache {row['cache_bytes'] / 2**30:8.3f} GiB"
    if not row["fits"]:
        return f"{size}  does not fit: it needs {row['needs_bytes'] / 2**30:.1f} GiB"
    block = f", in blocks {row['block']['ms_per_frame']:.3f} ms" if "block" in row else ""
    return f"{size}  a frame {row['stream']['ms_per_frame']:.3f} ms{block}"


def figures(result: dict) -> dict[str, float]:
    """The figures for the summary: ms per frame in a short and in a long stream."""
    if (result["geometry"], result["device"]) != ("llama3-8b", "cuda"):
        return {}
    wanted = {f"growth_ms_{count}": {**MIDDLE, "frames": count, "way": "mod"} for count in (FRAMES[0], FRAMES[-1])}
    rows = {key_of(row): row for row in result["rows"]}
    found = {name: rows.get(key_of(case), {}) for name, case in wanted.items()}
    return {name: row["stream"]["ms_per_frame"] for name, row in found.items() if "stream" in row}


def earlier_rows(json: Path | None, about: dict) -> list[dict]:
    """The rows of an earlier run, if the file exists.

    Raises:
        `ValueError`: if it is of another geometry or machine, or not a result.
    """
    if json is None or not json.exists():
        return []
    try:
        known = jsons.loads(json.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{json} is not a result of `bench growth`: {error}; give another --json") from error
    if not isinstance(known, dict) or not isinstance(known.get("rows"), list):
        raise ValueError(f"{json} is not a result of `bench growth`: it has no rows; give another --json")
    for key, value in about.items():
        if known.get(key) != value:
            raise ValueError(f"{json} has {key} {known.get(key)!r}, here it is {value!r}; give another --json")
    return known["rows"]


def bench(
    geometry: str,
    json: Path | None,
    device: str,
    repeats: int,
    minutes: float,
    frames: tuple[int, ...],
    tokens: tuple[int, ...],
) -> None:
    """Measure all sizes, routed and dense.

    Args:
        json (`Path`, *optional*): result file, written after every row. If it exists, its rows are kept.
        repeats (`int`): timed calls of each row; blocks take a quarter of them.
        minutes (`float`): no row is started after this time.
    """
    place, end = torch.device(device), time.perf_counter() + 60 * minutes
    result = {**header(), "geometry": geometry, "device": device, "memory_bytes": memory_of(place)}
    about = {key: result[key] for key in ("geometry", "device", "machine")}
    result["rows"] = rows = earlier_rows(json, about)
    done = set(map(key_of, rows))
    wanted = [case for case in cases(tuple(frames), tuple(tokens)) if key_of(case) not in done]
    if wanted:
        dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
        model = random_model(geometry, device, dtype=dtype).eval()
    for index, case in enumerate(wanted):
        if time.perf_counter() > end:
            print(f"rows left: {len(wanted) - index}; run the same command again")
            break
        row = {**measure(model, case, repeats, result["memory_bytes"]), "commit": result["commit"]}
        print(line(row), flush=True)
        rows.append(row)
        write(json, result)
    enter(json, figures(result), result["command"])
    if json is not None:
        print(plot(result, json.with_suffix(".png")))
