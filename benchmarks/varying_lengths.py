"""Seconds per training step on streams of one length and of many lengths, with cuDNN's attention and without.

    python -m videollm_mod.benchmarks.varying_lengths --geometry llama3-8b --json FILE

Where cuDNN is torch's first choice for attention, as on Hopper GPUs, it makes a plan for every new length and kind of
layer. Streams of one length pay for that once; streams of different lengths pay at every step. The model is MoD with
LoRA, random weights, and every layer recomputed in the backward pass, with frames of 10 tokens.

Each list of `seconds` has successive steps. The first step of a list also includes one-time work.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch

from ..bench.geometries import GEOMETRIES
from ..bench.record import commit, surroundings, write
from ..bench.step import Bench, Way

TOKENS, STEPS, LONG_STEPS = 10, 7, 3


def seconds_of(bench: Bench, lengths: Iterable[int], cudnn: bool) -> list[float]:
    """Seconds of a training step on a stream of each of `lengths` frames."""
    before, seconds = torch.backends.cuda.cudnn_sdp_enabled(), []
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    try:
        for frames in lengths:
            bench.use_stream(frames, TOKENS)
            seconds.append(round(bench.step(Way(routed=True, recompute="layer"))[1], 3))
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
    return seconds


def rows(bench: Bench, frames: int, long_frames: int) -> list[dict]:
    """All measurements. With many lengths, the length of every step is new: with cuDNN they are above `frames`, and
    without it below by the same amounts."""
    found = []

    def measure(about: str, lengths: list[int], cudnn: bool) -> None:
        seconds = seconds_of(bench, lengths, cudnn)
        found.append({"streams": about, "cudnn": cudnn, "frames": lengths, "seconds": seconds})
        print(found[-1], flush=True)

    for cudnn in (True, False):
        measure("one length", [frames] * STEPS, cudnn)
    for cudnn, sign in ((True, 1), (False, -1)):
        measure("many lengths", [frames + sign * (2 * step + 1) for step in range(STEPS)], cudnn)
    for cudnn in (True, False):
        measure("one length, long", [long_frames] * LONG_STEPS, cudnn)
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", default="llama3-8b", choices=GEOMETRIES)
    parser.add_argument(
        "--frames", type=int, default=200, help="frames of a stream; many lengths are around it (default: 200)"
    )
    parser.add_argument("--long-frames", type=int, default=1200, help="frames of a long stream (default: 1200)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="result file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    if args.frames < 2 * STEPS or args.long_frames < 1:
        parser.error(f"--frames must be at least {2 * STEPS}, --long-frames at least 1")
    bench = Bench(args.geometry, args.frames, TOKENS, args.device)
    command = f"python -m videollm_mod.benchmarks.varying_lengths --geometry {args.geometry}"
    command += f" --frames {args.frames} --long-frames {args.long_frames}"
    result = {"command": command, "commit": commit(), **surroundings("peft"), "geometry": args.geometry}
    result |= {"tokens_per_frame": TOKENS, "rows": rows(bench, args.frames, args.long_frames)}
    write(args.json, result)


if __name__ == "__main__":
    main()
