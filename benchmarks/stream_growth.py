"""Time and memory per frame at frame 1,000 and at frame 200,000 of a stream with a bounded cache.

    OMP_NUM_THREADS=1 python -m videollm_mod.benchmarks.stream_growth --policy window

The bundled model on a CPU watches the same 1,000 frames again and again, ten scenes of 100 frames each, and narrates
the changes. After every 1,000 frames, the processor time of the process, its resident memory and the bytes of the
cache are recorded. Other load on the machine changes the time per frame over an hour. At the end, the sessions that
were saved at both points therefore watch the same 1,000 frames in turn, several times, in one process.

Give the command again to continue an interrupted run from its last saved session.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from tqdm import tqdm

from videollm_mod import StreamingSession

from ..bench.record import RESULTS, summarise, surroundings, write_result
from .long_streams import blocks, held_scenes, nano, rss_bytes

CYCLE, BLOCK = 1000, 20  # frames that repeat, and frames per push
SAVED_EVERY = 5  # cycles


def watch_cycle(session, frames) -> dict:
    """Watch one cycle of frames: processor time, and bytes of the cache after each block."""
    source, held, start, events = blocks(frames, BLOCK), [], time.process_time(), 0
    for _ in range(CYCLE // BLOCK):
        events += len(session.push(next(source)))
        held.append(session.stats.kv_bytes)
    return {
        "cpu_seconds": round(time.process_time() - start, 4),
        "kv_bytes_mean": round(statistics.fmean(held)),
        "kv_bytes_max": max(held),
        "narrations": events,
    }


def run(args) -> dict:
    model, processor = nano()
    frames = held_scenes(10, CYCLE // 10)
    folder = args.state / args.policy
    folder.mkdir(parents=True, exist_ok=True)
    progress = folder / "rows.json"
    rows = json.loads(progress.read_text()) if progress.exists() else []
    last, early = folder / "last.safetensors", folder / "early.safetensors"
    if rows:
        session = StreamingSession.load(last, model, processor)
        rows = rows[: session.stats.frames // CYCLE]
    else:
        session = model.stream(processor, max_cached_frames=args.max_cached_frames, cache_policy=args.policy)
    cycles = args.frames // CYCLE
    for index in tqdm(range(len(rows), cycles), initial=len(rows), total=cycles, unit="k frames"):
        row = watch_cycle(session, frames)
        rows.append({"frame": (index + 1) * CYCLE, **row, "rss_bytes": rss_bytes()})
        if index == 0:
            session.save(early)
        if (index + 1) % SAVED_EVERY == 0 or index + 1 == cycles:
            session.save(last)
            progress.write_text(json.dumps(rows))
    pairs = []
    for _ in tqdm(range(args.repeats), desc="side by side"):
        at = {}
        for name, path in (("early", early), ("late", last)):
            at[name] = watch_cycle(StreamingSession.load(path, model, processor), frames)
        pairs.append(at)
    seconds = {name: [pair[name]["cpu_seconds"] for pair in pairs] for name in ("early", "late")}
    return {
        "max_cached_frames": args.max_cached_frames,
        "frames": args.frames,
        "side_by_side": pairs,
        "time_ratio": round(statistics.median(seconds["late"]) / statistics.median(seconds["early"]), 4),
        "memory_ratio": round(pairs[0]["late"]["kv_bytes_mean"] / pairs[0]["early"]["kv_bytes_mean"], 4),
        "rss_ratio": round(rows[-1]["rss_bytes"] / rows[0]["rss_bytes"], 4),
        "rows": rows,
    }


def plot(policies: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 1, figsize=(8, 6), sharex=True)
    for policy, result in policies.items():
        frames = [row["frame"] / 1000 for row in result["rows"]]
        milliseconds = [row["cpu_seconds"] for row in result["rows"]]
        axes[0].plot(frames, milliseconds, label=policy, linewidth=1)
        axes[1].plot(frames, [row["kv_bytes_mean"] / 2**20 for row in result["rows"]], label=policy, linewidth=1)
    axes[0].set_ylabel("processor time per frame, ms")
    axes[1].set_ylabel("cache, MiB")
    axes[1].set_xlabel("frames watched, thousands")
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right")
    bound = next(iter(policies.values()))["max_cached_frames"]
    axes[0].set_title(f"One stream, at most {bound} frames remembered")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="window", choices=("window", "router"))
    parser.add_argument("--frames", type=int, default=200_000)
    parser.add_argument("--max-cached-frames", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--state", type=Path, default=Path("runs/stream_growth"))
    parser.add_argument("--output", default="stream_growth", help="name of the result (default: stream_growth)")
    args = parser.parse_args(argv)
    result = run(args)
    path = RESULTS / f"{args.output}.json"
    policies = json.loads(path.read_text())["policies"] if path.exists() else {}
    command = f"OMP_NUM_THREADS=1 python -m videollm_mod.benchmarks.stream_growth --policy {args.policy}"
    policies[args.policy] = {"command": command, **result}
    write_result(args.output, {**surroundings(), "policies": policies})
    plot(policies, path.with_suffix(".png"))
    if args.output == "stream_growth":
        source = f"benchmarks/results/{path.name}"
        for figure in ("time", "memory"):
            worse = max(policies.values(), key=lambda policy, figure=figure: policy[f"{figure}_ratio"])
            summarise(f"stream_growth_{figure}", worse[f"{figure}_ratio"], source, worse["command"])


if __name__ == "__main__":
    main()
