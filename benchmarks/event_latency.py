"""Seconds from the arrival of a frame to its event, for a live stream from an RTSP server on this machine.

    python -m videollm_mod.benchmarks.event_latency

The bundled model watches a test picture at 2 frames per second on two threads, and speaks after every frame, which is
the most work that a stream can be. In a second run at 10 frames per second, it is slowed down until it cannot keep up.
"""

import argparse
import sys

import torch

from videollm_mod.bench.record import RESULTS, summarise, surroundings, write_result
from videollm_mod.loading.checkpoint import load_checkpoint
from videollm_mod.narration.narrate import quiet_decoder
from videollm_mod.sources.live import LiveWatch
from videollm_mod.sources.source import open_live

sys.path.append(str(RESULTS.parent.parent / "tests" / "helpers"))
from media_servers import RtspServer, Slow


def measure(model, processor, url: str, fps: float, frames: int, delay: float) -> dict:
    """Statistics of a `LiveWatch` after `frames` frames."""
    session = model.stream(processor, speak_threshold=1.0, max_cached_frames=24)
    with LiveWatch(Slow(session, delay), open_live(url, fps)) as live:
        for count, _ in enumerate(live, 1):
            if count == frames:
                break
    return {"fps": fps, "added_delay_s": delay, "frames": frames, **live.stats}


def main(frames: int) -> None:
    quiet_decoder()
    torch.set_num_threads(2)
    model, processor = load_checkpoint(device="cpu")
    server = RtspServer(fps=10)
    try:
        runs = {
            "usual": measure(model, processor, server.url, 2.0, frames, 0.0),
            "behind": measure(model, processor, server.url, 10.0, frames, 0.3),
        }
    finally:
        server.kill()
    command = f"python -m videollm_mod.benchmarks.event_latency --frames {frames}"
    result = {"what": __doc__.splitlines()[0], "command": command, **surroundings("av"), "runs": runs}
    source = write_result("event_latency", result)
    latency = runs["usual"]["latency"]["event"]
    summarise("event_latency_s", latency["p50"], f"benchmarks/results/{source.name}", command)
    print({name: run["latency"]["event"] | run["dropped"] for name, run in runs.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=200)
    main(**vars(parser.parse_args()))
