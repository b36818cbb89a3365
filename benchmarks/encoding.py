"""Frames per second of the vision tower in one run: through a live source, a session, and the plain model.

    python -m videollm_mod.benchmarks.encoding --geometry llama3-8b

Weights and frames are random: the time of a frame does not depend on their values. Every way gets the same decoded
frames in the memory of the host, as many at once as a live source hands over when the model is behind (`--at-once`),
and the clock stops when the features are on the device. Live and session are the same code, which replays the CUDA
graphs of the tower on a GPU; the plain model is `model.encode_frames` after the video processor. The ways take turns;
each figure is the best of the repeats, after a warm-up.
"""

import argparse
import time

import numpy as np
import torch

from ..bench.geometries import NAMES
from ..bench.record import commit, surroundings, write_result
from ..bench.watching import build, synchronise
from ..sources.live import WAITING, LiveWatch
from ..sources.live_source import LiveCounts, LiveFrame

WARM_UP = 3  # calls: the second captures a graph


class NoSource:
    """A live source from which nothing comes."""

    counts = LiveCounts()

    def __iter__(self):
        return iter(())

    def stop(self) -> None:
        pass


def ways_of(model, processor) -> dict:
    """Functions that encode frames, uint8 `[F, H, W, 3]`, by name."""
    session = model.stream(processor)
    live = LiveWatch(session, NoSource())

    def by_live(frames: np.ndarray) -> torch.Tensor:
        return live.encode([LiveFrame(image, 0.0, 0.0) for image in frames])

    @torch.no_grad()
    def by_model(frames: np.ndarray) -> torch.Tensor:
        on_device = torch.from_numpy(frames).movedim(-1, 1).to(model.device)
        pixels = processor.video_processor(on_device, return_tensors="pt", input_data_format="channels_first")
        return model.encode_frames(pixels["pixel_values_videos"]).pooler_output

    return {"live": by_live, "session": session.encode, "plain": by_model}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", default="nano", choices=NAMES)
    parser.add_argument("--at-once", type=int, default=WAITING, help="frames that are encoded together")
    parser.add_argument("--calls", type=int, default=50, help="calls that are timed in each repeat")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    model, processor = build(args.geometry, device)
    frames = np.random.default_rng(0).integers(0, 256, (args.at_once, args.height, args.width, 3), np.uint8)
    ways = ways_of(model, processor)
    rates = {name: [] for name in ways}
    for way in ways.values():
        for _ in range(WARM_UP):
            way(frames)
    for _ in range(args.repeats):
        for name, way in ways.items():  # in turn, so that other work on the machine meets all
            synchronise(device)
            start = time.perf_counter()
            for _ in range(args.calls):
                way(frames)
                synchronise(device)
            rates[name].append(round(args.calls * args.at_once / (time.perf_counter() - start), 2))
    for name, found in rates.items():
        print(f"{name}: {max(found)} frames per second")
    command = f"python -m videollm_mod.benchmarks.encoding --geometry {args.geometry} --at-once {args.at_once}"
    sizes = {name: getattr(args, name) for name in ("geometry", "at_once", "calls", "height", "width", "device")}
    result = {"command": command, "commit": commit(), **surroundings(), **sizes, "frames_per_second": rates}
    write_result(f"encoding_{args.geometry.replace('-', '_')}_{args.at_once}", result)


if __name__ == "__main__":
    main()
