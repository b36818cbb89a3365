"""`videollm-mod bench stream`: what watching costs frame by frame, in blocks, and when a question is asked."""

import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import torch

from .record import enter, header, write
from .watching import build, configured, decode, end_to_end, first_token, generation, joined, language, stock
from .weights import quantise

# as published by their authors, for other machines
PUBLISHED = [
    {"name": "VideoLLM-online 8B, end to end, A100", "frames_per_second": [10, 15], "source": "arXiv 2406.11816"},
    {
        "name": "ViCoStream, Qwen2.5-VL, end to end, A100",
        "frames_per_second": [134, 134],
        "first_token_ms": 50,
        "source": "arXiv 2606.19849",
    },
]
HELD = (100, 600, 3000)
TURNS = 4
ALSO_FRAMES = (15, 30)  # half a second at 30 and at 60 frames per second


class Rows:
    """Measures row by row, and writes the result after each.

    Args:
        model: the model of all rows.
        json (`Path`, *optional*), result (`dict`): the file and its content, of which `rows` grow.
        end (`float`): no row is started after this time of `perf_counter`.
    """

    def __init__(self, model, json: Path | None, result: dict, end: float):
        self.model, self.json, self.result, self.end = model, json, result, end

    def add(self, name: str, measure, *arguments, ways=("mod",), static=True, **about) -> None:
        """A row of each way. Two ways take turns, since the speed of a machine varies over time."""
        if time.perf_counter() > self.end:
            return
        parts: dict[str, list[dict]] = {way: [] for way in ways}
        for turn in range(TURNS if len(ways) > 1 else 1):
            for way in ways[:: -1 if turn % 2 else 1]:
                with configured(self.model, way != "mod", static):
                    parts[way].append(measure(self.model, *arguments))
        for way, found in parts.items():
            row = {"name": name, "way": way if static else f"{way}, eager", **about, **joined(found, **about)}
            self.result["rows"].append(row)
            shown = {key: value for key, value in row.items() if key != "raw_ms"}
            print(*(f"{key}={value}" for key, value in shown.items()), flush=True)
        write(self.json, self.result)
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()


def bench(
    geometry: str,
    json: Path | None,
    device: str,
    repeats: int,
    minutes: float,
    size: tuple[int, int],
    weights: str = "bf16",
) -> None:
    """Measure all rows, and plot them.

    Args:
        json (`Path`, *optional*): result file, written after every row.
        repeats (`int`): timed calls of each row, approximately.
        minutes (`float`): no row is started after this time.
        size (`(int, int)`): height and width of decoded frames.
        weights (`str`): of the layers, see `quantise`. Rows of stock parts are measured for bf16 only.
    """
    end, result = time.perf_counter() + 60 * minutes, {**header(), "geometry": geometry, "device": device, "rows": []}
    result |= {"published": PUBLISHED, "weights": weights}
    model, processor = build(geometry, torch.device(device))
    quantise(model, weights)
    result["weight_bytes"] = model.get_memory_footprint()
    row, is_large = Rows(model, json, result, end).add, geometry != "nano"
    helds, both = HELD if is_large else (100, 300), ("mod", "dense")
    a_turn, few = -(-repeats // TURNS), max(5, repeats // 4)
    for held in helds:
        row("language", language, processor, held, a_turn, ways=both, held=held)
    for held in helds if is_large else ():
        if model.device.type == "cuda" and weights != "fp8":  # whose layers fetch kernels from the Hub
            row("language", language, processor, held, few, static=False, held=held)
        if weights == "bf16":
            row("stock LlamaForCausalLM", stock, held, few, ways=("stock",), held=held)
    middle, last = 600 if is_large else 100, helds[-1]
    row("end to end", end_to_end, processor, middle, a_turn, 1, size, ways=both, held=middle, frames=1)
    for frames in ALSO_FRAMES:
        row("end to end", end_to_end, processor, middle, few, frames, size, held=middle, frames=frames)
    for frames in ALSO_FRAMES if is_large else ():
        row("language, blocks", language, processor, middle, 10, frames, held=middle, frames=frames)
    row("first token", first_token, processor, last, a_turn, ways=both, held=last)
    row("generation", generation, processor, last, a_turn, ways=both, held=last)
    if find_spec("av") is None:
        print("decode: not measured, since it needs PyAV (pip install av)")
    else:
        with tempfile.TemporaryDirectory() as folder:
            row("decode", lambda model: decode(60, Path(folder)))
    if not result["rows"]:
        raise ValueError(f"no row was started within --minutes {minutes:g}")
    enter(json, figures(result), result["command"])
    if json is not None:
        from .stream_plot import plot

        print(plot(result, json.with_suffix(".png")))


def figures(result: dict) -> dict[str, float]:
    """The figures for the summary that the rows hold."""

    def find(name: str, key: str, **about):
        rows = [x for x in result["rows"] if x["name"] == name and x["way"] == "mod"]
        return next((x.get(key) for x in rows if all(x.get(k) == v for k, v in about.items())), None)

    if result["weights"] != "bf16":
        name = f"stream_p50_ms_600_{result['weights']}"
        found = {name: find("language", "p50_ms", held=600)} if result["geometry"] == "llama3-8b" else {}
    elif result["geometry"] == "nano":
        # recordings are processed in blocks, frames of a camera one by one
        fps = {"nano_cpu_fps": ALSO_FRAMES[-1], "nano_cpu_fps_one_by_one": 1} if result["device"] == "cpu" else {}
        found = {name: find("end to end", "per_second", frames=frames) for name, frames in fps.items()}
    elif result["geometry"] == "llama3-8b":
        found = {
            "stream_p50_ms_600": find("language", "p50_ms", held=600),
            "stream_p50_ms_3000": find("language", "p50_ms", held=3000),
            "stream_host_ms": find("language", "host_ms", held=600),
            "end_to_end_fps": find("end to end", "per_second", frames=1),
            "end_to_end_block_fps": find("end to end", "per_second", frames=ALSO_FRAMES[-1]),
            "first_token_ms": find("first token", "p95_ms"),
            "generate_tokens_per_s": find("generation", "per_second"),
        }
    else:
        found = {}
    return {name: value for name, value in found.items() if value is not None}
