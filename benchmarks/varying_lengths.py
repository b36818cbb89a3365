"""Seconds of training steps on streams of one length and of many, with cuDNN's attention and without.

    python -m videollm_mod.benchmarks.varying_lengths --geometry llama3-8b --json FILE

Where cuDNN is torch's first choice for attention, as on Hopper GPUs, it makes a plan for every length and kind of
layer that it has not met. Streams of one length pay for that once, streams that differ pay again at each step. The
model is MoD with LoRA, random weights, every layer computed again in the backward pass, frames of 10 tokens.

Each list of `seconds` is of steps that follow one another; the first of a list also holds what is done once.
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
    """Of a training step on a stream of so many frames, for each of `lengths`."""
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
    """What is measured. Of many lengths no step's has been met before: with cuDNN they are above `frames`, without it
    below, by as much."""
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
    parser.add_argument("--frames", type=int, default=200, help="of a stream; many lengths lie around it")
    parser.add_argument("--long-frames", type=int, default=1200, help="of a long stream")
    parser.add_argument("--json", type=Path, metavar="FILE", help="for the result")
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
