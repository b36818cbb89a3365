"""Frames a second of eight streams in a pool against one stream alone, on one model.

    python -m videollm_mod.benchmarks.pool --geometry llama3-8b

Weights and frames are random: what a frame costs does not depend on what the numbers are. Two ways of watching:
`live`, where every stream gets its next frame only after the one before it, as from cameras; and `backlog`, where all
frames are there and go through the model in blocks. The streams never speak. One stream alone is a `StreamingSession`
without a pool. Each figure is the best of the repeats, after a warm-up.
"""

import argparse
import time

import numpy as np
import torch

from videollm_mod import StreamPool

from ..bench.geometries import NAMES
from ..bench.watching import build
from .record import summarise, surroundings, write_result


def synchronize(model) -> None:
    if model.device.type != "cpu":
        torch.accelerator.synchronize(model.device)


def frames_of(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)


def alone(model, processor, way: str, args) -> float:
    """Seconds that one stream takes for `args.frames` frames, after `args.before` that are in its cache."""
    session = model.stream(processor, speak_threshold=0.0)
    session.push(frames_of(0, args.before))
    frames = frames_of(1, args.frames)
    synchronize(model)
    start = time.perf_counter()
    for block in np.split(frames, len(frames)) if way == "live" else [frames]:
        session.push(block)
    synchronize(model)
    return time.perf_counter() - start


def together(model, processor, way: str, count: int, args) -> tuple[float, int]:
    """Seconds that `count` streams take for as many frames each, and the bytes of their caches."""
    pool = StreamPool(model, processor, max_waiting_frames=max(args.before, args.frames))
    streams = [pool.join(speak_threshold=0.0) for _ in range(count)]
    for seed, stream in enumerate(streams):
        stream.push(frames_of(seed, args.before))
    pool.run()
    frames = [frames_of(100 + seed, args.frames) for seed in range(count)]
    synchronize(model)
    start = time.perf_counter()
    for index in range(args.frames if way == "live" else 1):
        for stream, own in zip(streams, frames, strict=True):
            stream.push(own[index : index + 1] if way == "live" else own)
        pool.run()
    synchronize(model)
    return time.perf_counter() - start, sum(stream.session.stats.kv_bytes for stream in streams)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", default="nano", choices=NAMES)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--before", type=int, default=160, help="frames in each cache when the clock starts")
    parser.add_argument("--frames", type=int, default=48, help="frames of each stream that are timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    model, processor = build(args.geometry, device)
    ways = {}
    for way in ("live", "backlog"):
        alone(model, processor, way, args)  # warm-up, also of the allocator
        together(model, processor, way, args.streams, args)
        ones, many, held = [], [], 0
        for _ in range(args.repeats):  # in turn, so that other work on the machine meets both
            ones.append(args.frames / alone(model, processor, way, args))
            seconds, held = together(model, processor, way, args.streams, args)
            many.append(args.streams * args.frames / seconds)
        ways[way] = {
            "frames_per_second_alone": [round(x, 3) for x in ones],
            "frames_per_second_pool": [round(x, 3) for x in many],
            "speedup": round(max(many) / max(ones), 3),
            "kv_bytes": held,
        }
        print(way, ways[way], flush=True)
    command = f"python -m videollm_mod.benchmarks.pool --geometry {args.geometry}"
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    sizes = {name: getattr(args, name) for name in ("geometry", "streams", "before", "frames", "device")}
    result = {"command": command, **surroundings(), **sizes, "peak_bytes": peak, "ways": ways}
    path = write_result(f"pool_{args.geometry.replace('-', '_')}", result)
    if args.geometry == "llama3-8b":
        summarise("pool_8_throughput", ways["live"]["speedup"], f"benchmarks/results/{path.name}", command)


if __name__ == "__main__":
    main()
