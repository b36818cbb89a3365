"""`videollm-mod bench memory`: bytes of the cache, counted exactly, and growth of time and memory in training."""

from pathlib import Path

from tqdm import tqdm

from .cache_bytes import bytes_per_frame
from .record import enter, header, write

TOKENS, KEEP_RATIOS, FRAMES = (1, 10, 50, 101), (0.1, 0.2, 0.5), (100, 300, 600, 1200, 2400, 4800, 9600, 20_000)


def cache_rows(geometry: str) -> list[dict]:
    cases = [(tokens, ratio) for tokens in TOKENS for ratio in KEEP_RATIOS]
    return [
        {"tokens_per_frame": tokens, "keep_ratio": ratio, **bytes_per_frame(geometry, tokens, ratio)}
        for tokens, ratio in tqdm(cases, desc="caches", leave=False)
    ]


def bench(geometry: str, json: Path | None, training: bool, minutes: float) -> None:
    result = {**header(), "geometry": geometry, "cache": cache_rows(geometry)}
    write(json, result)
    print(f"{'tokens/frame':>15} {'keep':>5} {'MoD KiB/frame':>14} {'dense KiB/frame':>16} {'ratio':>7}")
    for row in result["cache"]:
        mod, dense = row["mod"] / 1024, row["dense"] / 1024
        counts = f"{row['tokens_per_frame']:>15} {row['keep_ratio']:>5}"
        print(f"{counts} {mod:>14.1f} {dense:>16.1f} {row['ratio']:>7.4f}")
    result["figures"] = {
        f"cache_ratio_{row['tokens_per_frame']}": row["ratio"]
        for row in result["cache"]
        if row["keep_ratio"] == 0.2 and row["tokens_per_frame"] in (10, 50)
    }
    if training:
        from .step_growth import growth

        result["training"] = []
        for row in growth(geometry, FRAMES, TOKENS, KEEP_RATIOS, minutes):
            result["training"].append(row)
            write(json, result)
    write(json, result)
    if json is not None:
        from .plots import plot_memory

        plot_memory(result, FRAMES, json.with_suffix(".png"))
    enter(json, result["figures"], result["command"])
