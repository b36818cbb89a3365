"""Frames per second of eight streams in a pool against a single stream, on one model.

    python -m videollm_mod.benchmarks.pool --geometry llama3-8b

Weights and frames are random, which does not change what a frame costs. There are two ways of watching: `live`, where
every stream gets its next frame only after the one before, as from cameras, and `backlog`, where all frames are
available and go through the model in blocks. The streams never speak. A single stream is a `StreamingSession` without
a pool. Each figure is the best of the repeats, after a warm-up.

`tick_ms` shows where the time of one live frame of each stream goes: the stages, as timed on the device, and the rest,
in which the device is idle.

`mixed` compares a pool whose streams keep different shares of their vision tokens with one in which all keep the
highest share, in turns; `speedup` is the median of the pairs.
"""

import argparse
import shlex
import sys
import time
from itertools import cycle, islice
from statistics import median

import numpy as np
import torch

from videollm_mod import StreamPool

from ..bench.filled import fill
from ..bench.geometries import NAMES
from ..bench.record import commit, summarise, surroundings, write_result
from ..bench.watching import build, synchronise


def frames_of(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)


def watch(model, processor, way: str, count: int, args, ratios=(None,), ready=lambda: None) -> tuple[float, list]:
    """Seconds that `count` streams in a pool, or one session alone, take for `args.frames` frames each, with
    `args.before` frames in their caches; and the counters of the sessions. ratios: keep ratios that streams have by
    turns. ready: is called before the clock starts."""
    own = islice(cycle(ratios), count)
    sessions = [model.stream(processor, speak_threshold=0.0, keep_ratio=ratio) for ratio in own]
    for session in sessions:
        fill(session, args.before)
    pool = StreamPool(model, processor, max_waiting_frames=args.frames)
    members = sessions if count == 1 else [pool.join(session) for session in sessions]
    frames = [frames_of(seed, args.frames) for seed in range(count)]
    synchronise(model.device)
    ready()
    start = time.perf_counter()
    for block in np.split(np.arange(args.frames), args.frames if way == "live" else 1):
        for member, own in zip(members, frames, strict=True):
            member.push(own[block])
        pool.run()
    synchronise(model.device)
    return time.perf_counter() - start, [session.stats for session in sessions]


def split_of(seconds: float, stats: list, frames: int) -> dict:
    """Milliseconds of each stage for one frame of every stream."""
    stages = {name: sum(own.seconds[name] for own in stats) for name in stats[0].seconds}
    stages = {"all": seconds, **stages, "rest": seconds - sum(stages.values())}
    return {name: round(1000 * value / frames, 3) for name, value in stages.items()}


def compare_mixed(model, processor, way: str, args) -> dict:
    """Frames per second of streams with different keep ratios, and of as many with the highest."""
    compared = {"own": args.ratios, "highest": [max(args.ratios)]}
    rates = {name: [] for name in compared}
    for turn in range(args.repeats + 1):
        for name, ratios in compared.items():
            seconds, _ = watch(model, processor, way, args.streams, args, ratios)
            rates[name] += [round(args.streams * args.frames / seconds, 3)] * (turn > 0)  # the first warms up
    pairs = zip(rates["own"], rates["highest"], strict=True)
    found = {f"frames_per_second_{name}": own for name, own in rates.items()}
    return {"ratios": args.ratios, **found, "speedup": round(median(own / highest for own, highest in pairs), 3)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", default="nano", choices=NAMES)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--before", type=int, default=160, help="frames in each cache when the clock starts")
    parser.add_argument("--frames", type=int, default=48, help="timed frames of each stream")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.2, 0.5, 1.0], help="of `mixed`")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    model, processor = build(args.geometry, device)
    ways = {}
    for way in ("live", "backlog"):
        counts = (1, args.streams)
        for count in counts:
            watch(model, processor, way, count, args)  # warm-up, also of the allocator
        rates, splits = {count: [] for count in counts}, {}
        for _ in range(args.repeats):
            for count in counts:  # in turn, so that other load on the machine affects both
                seconds, stats = watch(model, processor, way, count, args)
                rates[count].append(round(count * args.frames / seconds, 3))
                if rates[count][-1] == max(rates[count]):
                    splits[count] = split_of(seconds, stats, args.frames)
        ways[way] = {
            "frames_per_second_alone": rates[1],
            "frames_per_second_pool": rates[args.streams],
            "speedup": round(max(rates[args.streams]) / max(rates[1]), 3),
            "kv_bytes": sum(own.kv_bytes for own in stats),
            "tick_ms": splits,
            "why_not_static": stats[0].why_not_static,
            "mixed": compare_mixed(model, processor, way, args),
        }
        print(way, ways[way], flush=True)
    command = shlex.join(["python", "-m", "videollm_mod.benchmarks.pool", *(sys.argv[1:] if argv is None else argv)])
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    sizes = {name: getattr(args, name) for name in ("geometry", "streams", "before", "frames", "device")}
    result = {"command": command, "commit": commit(), **surroundings(), **sizes, "peak_bytes": peak, "ways": ways}
    path = write_result(f"pool_{args.geometry.replace('-', '_')}", result)
    if args.geometry == "llama3-8b":
        summarise("pool_8_throughput", ways["live"]["speedup"], f"benchmarks/results/{path.name}", command)


if __name__ == "__main__":
    main()
