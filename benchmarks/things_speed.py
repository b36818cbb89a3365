"""Frames per second of one core that the world's levels of things make, and where the time goes.

    VIDEOLLM_MOD_THINGS=things.npz python -m videollm_mod.benchmarks.things_speed

Seconds are those of the processor, so that other programs on the machine count as little as they can.
"""

import argparse
import shlex
import sys
import time

from ..bench.record import commit, surroundings, write_result
from ..data.world import world_stream

SIDES = (96, 160, 384)  # pixels
LEVELS = ("things", "things_camera")


def measured(level: str, side: int, seeds: range, fps: float) -> list[dict]:
    """Of each codec of the level's streams, and of all: streams, frames, and milliseconds."""
    rows: dict[str, dict] = {}
    for seed in seeds:
        started = time.process_time()
        stream = world_stream(seed, level)
        made = time.process_time()
        frames = len(stream.frames(fps, side))
        drawn = time.process_time()
        for codec in {"all", getattr(stream, "codec", "all")}:
            row = rows.setdefault(codec, {"streams": 0, "frames": 0, "made": 0.0, "drawn": 0.0})
            row["streams"] += 1
            row["frames"] += frames
            row["made"] += made - started
            row["drawn"] += drawn - made
    return [
        {
            "level": level,
            "side": side,
            "codec": codec,
            "streams": row["streams"],
            "frames": row["frames"],
            "ms_per_stream_without_frames": round(1e3 * row["made"] / row["streams"], 2),
            "ms_per_frame": round(1e3 * row["drawn"] / row["frames"], 2),
            "frames_per_second": round(row["frames"] / (row["made"] + row["drawn"])),
        }
        for codec, row in sorted(rows.items())
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=100, help="of each level and size (default: 100)")
    parser.add_argument("--fps", type=float, default=2.0, help="frames per second of the streams (default: 2)")
    args = parser.parse_args(argv)
    if args.streams < 1:
        parser.error(f"--streams must be at least 1, got {args.streams}")
    rows = []
    for level in LEVELS:
        measured(level, SIDES[0], range(5), args.fps)  # reads files, and fills caches
        for side in SIDES:
            rows += measured(level, side, range(args.streams), args.fps)
            print(*rows[-4 if level == "things_camera" else -1 :], sep="\n", flush=True)
    words = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "-m", "videollm_mod.benchmarks.things_speed", *words])
    result = {"command": command, "commit": commit(), **surroundings("av", "pillow"), "rows": rows}
    write_result("things_speed", result)


if __name__ == "__main__":
    main()
