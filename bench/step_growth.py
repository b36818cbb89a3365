"""Time and memory of a training step against frames, tokens per frame, batch size and keep ratio."""

from collections.abc import Iterator

import torch

from .geometries import check_fits
from .step import Bench, Deadline, Way

FRAMES, TOKENS, KEEP_RATIO = 600, 10, 0.2  # of a size that does not vary
BATCHES = (1, 2, 4, 8)


def growth(
    geometry: str, frames: tuple[int, ...], tokens: tuple[int, ...], keep_ratios: tuple[float, ...], minutes: float
) -> Iterator[dict]:
    """Yield a row for each size, routed and dense, smaller sizes first. The second of two steps is measured."""
    deadline = Deadline(minutes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    check_fits(geometry, device)
    bench = Bench(geometry, FRAMES, TOKENS, device)
    cases = [("frames", (count, TOKENS, 1, KEEP_RATIO)) for count in frames]
    cases += [("tokens_per_frame", (FRAMES, count, 1, KEEP_RATIO)) for count in tokens]
    cases += [("batch", (FRAMES, TOKENS, count, KEEP_RATIO)) for count in BATCHES]
    cases += [("keep_ratio", (FRAMES, TOKENS, 1, ratio)) for ratio in (*keep_ratios, 1.0)]
    cases.sort(key=lambda case: case[1][0] * case[1][1] * case[1][2])
    for grows, (count, per_frame, batch, ratio) in cases:
        bench.use_stream(count, per_frame, batch)
        bench.model.keep_ratio = ratio
        for way in (Way(True, recompute="attention"), Way(False, recompute="attention")):
            if deadline.passed():
                return
            steps = [bench.try_step(way) for _ in range(2)]
            row = {"grows": grows, "row": way.name, "recompute": way.recompute, "frames": count}
            row |= {"tokens_per_frame": per_frame, "batch": batch, "keep_ratio": ratio}
            if steps[-1] is not None:
                row |= {"seconds": steps[-1][1], "peak_gib": steps[-1][2]}
            print(row, flush=True)
            yield row
