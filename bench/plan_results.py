"""The measurements that `bench plan` reads from files of results."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .plan_arithmetic import KEEP_RATIO, TOKENS, sample_tokens

STREAM = "videollm-mod bench stream --json benchmarks/results/stream_llama3_8b.json"
OFFLINE = "videollm-mod bench offline --json benchmarks/results/offline_llama3_8b.json"
GROWTH = "videollm-mod bench growth --json benchmarks/results/growth_llama3_8b.json"
POOL = "python -m videollm_mod.benchmarks.pool --geometry llama3-8b"
SCALE = "python -m videollm_mod.benchmarks.train_scale --steps 12"
MEMORY = "videollm-mod bench memory --json benchmarks/results/bench_memory.json"


@dataclass(frozen=True)
class Measurement:
    """A number that the page needs.

    Args:
        text: what it is, on the page.
        figure: entry of the summary that names the file of results.
        command: makes that file.
        find: takes the number from the file; the default is the value of the summary's entry.
    """

    text: str
    figure: str
    command: str
    find: Callable[[dict], float] | None = None


@dataclass(frozen=True)
class Measured:
    """A number that was measured, the GPUs it was measured on, and its file in the repository."""

    value: float
    gpus: str
    source: str


def cache_row(kind: str) -> Callable[[dict], float]:
    def find(raw: dict) -> float:
        rows = [(row["tokens_per_frame"], row["keep_ratio"], row[kind]) for row in raw["cache"]]
        return next(value for tokens, ratio, value in rows if (tokens, ratio) == (TOKENS, KEEP_RATIO))

    return find


def decode_row(raw: dict) -> float:
    return next(row["p50_ms"] for row in raw["rows"] if row["name"] == "decode")


MEASURED = {
    "live": Measurement("frames per second, one by one, from decoded frame to decision", "end_to_end_fps", STREAM),
    "block": Measurement(
        "frames per second, in blocks of 30, from decoded frame to decision", "end_to_end_block_fps", STREAM
    ),
    "pool": Measurement(
        "frames per second of a pool of 8 live streams",
        "pool_8_throughput",
        POOL,
        lambda raw: max(raw["ways"]["live"]["frames_per_second_pool"]),
    ),
    "offline": Measurement("frames per second from features, in large blocks", "offline_fps_10", OFFLINE),
    "decode_ms": Measurement("ms to decode a frame on one CPU core", "end_to_end_fps", STREAM, decode_row),
    "memory": Measurement("bytes of GPU memory", "growth_ms_100", GROWTH, lambda raw: raw["memory_bytes"]),
    "cache": Measurement("bytes of cache per frame", "cache_ratio_10", MEMORY, cache_row("mod")),
    "dense_cache": Measurement("bytes of cache per frame, dense", "cache_ratio_10", MEMORY, cache_row("dense")),
    "samples": Measurement(
        "training samples per second on one GPU", "ddp_speedup_2", SCALE, lambda raw: raw["samples_per_second"]["1"]
    ),
    "sample_tokens": Measurement(
        "tokens of a sample", "ddp_speedup_2", SCALE, lambda raw: sample_tokens(raw["sample"])[0]
    ),
    "sample_frames": Measurement(
        "frames of a sample", "ddp_speedup_2", SCALE, lambda raw: sample_tokens(raw["sample"])[1]
    ),
    "speedup": Measurement("speedup of training on two GPUs", "ddp_speedup_2", SCALE),
}


def read(folder: Path) -> dict[str, Measured]:
    """Those of `MEASURED` that the results in `folder` hold."""
    found = {}
    for name, wanted in MEASURED.items():
        result = result_of(wanted.figure, folder)
        if result is None:
            continue
        entry, raw = result
        try:
            value = entry["value"] if wanted.find is None else wanted.find(raw)
            gpus = ", ".join(dict.fromkeys(raw["machine"]["gpus"])) or "arithmetic"
        # an older format, or a row is missing
        except (KeyError, StopIteration, AttributeError, TypeError, ValueError):
            continue
        found[name] = Measured(value, gpus, entry["source"])
    return found


def growth_rows(folder: Path) -> list[dict]:
    """The rows of `bench growth`, if its result is in `folder`."""
    result = result_of("growth_ms_100", folder)
    return result[1]["rows"] if result else []


def result_of(figure: str, folder: Path) -> tuple[dict, dict] | None:
    """The summary's entry of a figure, and the content of the file that it comes from."""
    path = folder / "summary.json"
    entry = loaded(path).get(figure) if path.exists() else None
    if entry is None:
        return None
    file = folder / Path(entry["source"]).name
    return (entry, loaded(file)) if file.exists() else None


def loaded(path: Path) -> dict:
    """
    Raises:
        `ValueError`: if it holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value
