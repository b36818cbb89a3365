"""`videollm-mod bench offline`: features of recorded video through the language model in large blocks."""

import functools
import time
from pathlib import Path

import torch

from ..cache import MoDCache
from ..static_graphs import static_language_model
from .record import enter, header, write
from .watching import build, clock, configured, stock, summary


def blocks(model, frames: int, count: int, repeats: int, static: bool = True) -> dict:
    """`count` calls of `frames` frames each, starting from an empty cache, with static steps or without."""
    config = model.config
    ids = ([config.frame_separator_token_id] + [config.video_token_id] * config.num_frame_tokens) * frames
    size = (frames, config.num_frame_tokens, config.vision_config.hidden_size)
    features = torch.randn(size, device=model.device, dtype=model.dtype)
    static_model, why_not = static_language_model(model) if static else (None, "switched off")
    inputs = {"input_ids": torch.tensor([ids], device=model.device), "video_features": features}

    @torch.no_grad()
    def call(index):
        cache = MoDCache(config)
        for _ in range(count):
            if static_model is None:
                model(**inputs, cache=cache, logits_to_keep=1)
            else:
                static_model.feed(cache, ids, features, None)

    return {**summary(clock(call, model.device, repeats), frames * count), "why_not_static": why_not}


def bench(geometry: str, json: Path | None, device: str, repeats: int, minutes: float, frames: int) -> None:
    """Measure frames per second of streams of `frames` frames: 10 tokens each in blocks of 256, and 50 tokens each in
    blocks of 128.

    Args:
        json (`Path`, *optional*): result file, written after every row.
        repeats (`int`): timed streams of each row.
        minutes (`float`): no row is started after this time.
    """
    place, end = torch.device(device), time.perf_counter() + 60 * minutes
    result: dict = {**header(), "geometry": geometry, "device": device, "rows": []}
    found: dict[str, float] = {}
    for tokens, block in ((10, 256), (50, 128)):
        block = min(block, frames)
        if geometry == "nano" and tokens != 10:
            continue
        model, _ = build(geometry, place, tokens)
        count = max(1, frames // block)
        for way, measure, dense in (
            ("mod", blocks, False),
            ("dense", blocks, True),
            ("mod, eager", functools.partial(blocks, static=False), False),
            ("stock", lambda model, *sizes: stock(model, 0, repeats, block), True),  # noqa: B023
        ):
            if time.perf_counter() > end:
                break
            with configured(model, dense):
                row: dict = {"name": "offline", "way": way, "tokens": tokens, "block": block, "blocks": count}
                row |= measure(model, block, count, repeats)
            result["rows"].append(row)
            write(json, result)
            print(*(f"{key}={value}" for key, value in row.items() if key != "raw_ms"), flush=True)
            if way == "mod" and geometry == "llama3-8b":
                found[f"offline_fps_{tokens}"] = row["per_second"]
            if place.type == "cuda":
                torch.cuda.empty_cache()
        del model
    if not result["rows"]:
        raise ValueError(f"no row was started within --minutes {minutes:g}")
    enter(json, found, result["command"])
    if json is not None:
        from .stream_plot import plot_offline

        print(plot_offline(result, json.with_suffix(".png")))
