"""`videollm-mod bench plan`: what fleets of GPUs would do, from what was measured on one or two.

Every number of the page is a result in a file, or arithmetic on such. Where a result is missing, the page says which
command makes it.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from ..cache import SPARE
from ..configuration_videollm_mod import VideoLLMMoDConfig
from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
from .geometries import config_values
from .growth import WORKING_BYTES
from .record import ROOT

GEOMETRY, TOKENS, KEEP_RATIO = "llama3-8b", 10, 0.2
FPS, SOURCE_FPS = 2, 30  # frames of a second of video that are watched, and that its file holds
HOURS, FLEETS = 1_000_000, (1, 8, 64)
PAGE = ROOT / "docs" / "planning.md"


# arithmetic ----------------------------------------------------------------------------------------------------------


def live_streams(frames_per_second: float) -> int:
    """That one GPU keeps up with."""
    return math.floor(frames_per_second / FPS)


def frames_held(memory: float, weights: float, streams: int, bytes_per_frame: float) -> int:
    """Frames that each of the streams of one GPU can remember; rooms of caches are larger than what they hold."""
    free = memory - weights - WORKING_BYTES
    return max(0, math.floor(free / (streams * bytes_per_frame * (1 + 1 / SPARE))))


def gpu_hours(hours: float, frames_per_second: float) -> float:
    """For so many hours of recorded video."""
    return hours * FPS / frames_per_second


def decoding_cores(frames_per_second: float, decode_ms: float) -> float:
    """CPU cores that decode what one GPU watches; of a file every frame has to be decoded."""
    return frames_per_second / FPS * SOURCE_FPS * decode_ms / 1000


def training_efficiency(speedup_of_2: float, gpus: int) -> float:
    """If every further doubling of the GPUs costs the share that the first one did."""
    return (speedup_of_2 / 2) ** math.log2(gpus)


def feature_bytes(hours: float, width: int) -> float:
    """Of the features of so many hours, in bfloat16."""
    return hours * 3600 * FPS * TOKENS * width * torch.bfloat16.itemsize


def sample_tokens(sample: str) -> tuple[int, int]:
    """Tokens and frames of a training sample of `benchmarks/random_streams.py`, from its description."""
    frames, tokens, words, every = map(
        int, re.match(r"(\d+) frames of (\d+) tokens, a reply of (\d+) words after every (\d+)th", sample).groups()
    )
    replies = math.ceil(frames / every)
    # each frame has one token behind it, each turn one before it and a reply with its end, the sequence one before it
    return 1 + frames * (tokens + 1) + replies * (1 + words + 1), frames


# what was measured ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """value: of what was asked for; gpus: what it was measured on; source: file, in the repository."""

    value: float
    gpus: str
    source: str


STREAM = "videollm-mod bench stream --json benchmarks/results/stream_llama3_8b.json"
OFFLINE = "videollm-mod bench offline --json benchmarks/results/offline_llama3_8b.json"
GROWTH = "videollm-mod bench growth --json benchmarks/results/growth_llama3_8b.json"
POOL = "python -m videollm_mod.benchmarks.pool --geometry llama3-8b"
SCALE = "python benchmarks/train_scale.py --steps 16"
MEMORY = "videollm-mod bench memory --json benchmarks/results/bench_memory.json"


def cache_row(kind: str):
    def find(raw: dict) -> float:
        rows = [(row["tokens_per_frame"], row["keep_ratio"], row[kind]) for row in raw["cache"]]
        return next(value for tokens, ratio, value in rows if (tokens, ratio) == (TOKENS, KEEP_RATIO))

    return find


def decode_row(raw: dict) -> float:
    return next(row["p50_ms"] for row in raw["rows"] if row["name"] == "decode")


# name: how it reads on the page, the summary's figure, the way to the value in that figure's file if it is not the
# figure itself, and the command that makes the file
MEASURED = {
    "live": ("frames a second, one by one, from decoded frame to decision", "end_to_end_fps", None, STREAM),
    "block": (
        "frames a second, in blocks of 30, from decoded frame to decision",
        "end_to_end_block_fps",
        None,
        STREAM,
    ),
    "pool": (
        "frames a second of a pool of 8 live streams",
        "pool_8_throughput",
        lambda raw: max(raw["ways"]["live"]["frames_per_second_pool"]),
        POOL,
    ),
    "offline": ("frames a second from features, in large blocks", "offline_fps_10", None, OFFLINE),
    "decode_ms": ("ms to decode a frame on one CPU core", "end_to_end_fps", decode_row, STREAM),
    "memory": ("bytes of memory of the GPU", "growth_ms_100", lambda raw: raw["memory_bytes"], GROWTH),
    "cache": ("bytes of cache a frame", "cache_ratio_10", cache_row("mod"), MEMORY),
    "dense_cache": ("bytes of cache a frame, dense", "cache_ratio_10", cache_row("dense"), MEMORY),
    "samples": (
        "training samples a second on one GPU",
        "ddp_speedup_2",
        lambda raw: raw["samples_per_second"]["1"],
        SCALE,
    ),
    "sample_tokens": ("tokens of a sample", "ddp_speedup_2", lambda raw: sample_tokens(raw["sample"])[0], SCALE),
    "sample_frames": ("frames of a sample", "ddp_speedup_2", lambda raw: sample_tokens(raw["sample"])[1], SCALE),
    "speedup": ("training on two GPUs against one", "ddp_speedup_2", None, SCALE),
}


def result_of(figure: str, folder: Path) -> tuple[dict, dict] | None:
    """The summary's entry of a figure, and the file that it comes from."""
    path = folder / "summary.json"
    entry = loaded(path).get(figure) if path.exists() else None
    file = None if entry is None else folder / Path(entry["source"]).name
    return (entry, loaded(file)) if file is not None and file.exists() else None


def loaded(path: Path) -> dict:
    """
    Raises:
        `ValueError`: if it holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def read(folder: Path) -> dict[str, Measured]:
    """Those of `MEASURED` that the results in `folder` hold."""
    found = {}
    for name, (_, figure, way, _) in MEASURED.items():
        result = result_of(figure, folder)
        if result is None:
            continue
        entry, raw = result
        try:
            value = entry["value"] if way is None else way(raw)
            gpus = ", ".join(dict.fromkeys(raw["machine"]["gpus"])) or "arithmetic"
        except (KeyError, StopIteration, AttributeError, TypeError):  # of another form, or a row that is not there
            continue
        found[name] = Measured(value, gpus, entry["source"])
    return found


def sizes() -> dict[str, int]:
    """Of the geometry, counted: bytes of its weights in bfloat16, and the width of features."""
    config = VideoLLMMoDConfig(**config_values(GEOMETRY, TOKENS))
    with torch.device("meta"):
        model = VideoLLMMoDForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return {"weights": weights, "width": config.vision_config.hidden_size}


def bench(results: Path, output: Path) -> None:
    """Write the page."""
    from .plan_page import page

    found = read(results)
    output.parent.mkdir(parents=True, exist_ok=True)
    grown = result_of("growth_ms_100", results)
    output.write_text(page(found, sizes(), grown[1]["rows"] if grown else []), encoding="utf-8")
    print(output)
    for command in dict.fromkeys(row[3] for name, row in MEASURED.items() if name not in found):
        print(f"missing: {command}")
