"""What a frame costs under the rule "verify", against the trained rule, on the bundled checkpoint.

    python -m videollm_mod.benchmarks.verify_cost

Two sessions watch the same streams of the world, each under one of the rules, in turn in one run. Both narrate after
the first frame and never again, so that they hold the same tokens; from then on one of them verifies the narration.
`live`: frames come one by one. `blocks`: all frames of a stream are there, which the trained rule feeds in blocks.
The figure is the ratio of the medians of live frames.
"""

import argparse
import shlex
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from ..bench.record import RESULTS, commit, enter, surroundings, write
from ..bench.watching import synchronise
from ..data.world import world_stream
from ..data.world_hard import split_seeds
from ..loading.checkpoint import load_checkpoint

FPS = 2.0
REMEMBERED = 24  # frames
RULES = ("trained", "verify")


def sessions_of(model, processor, first: np.ndarray) -> dict:
    """A session for each rule that has narrated after a first frame, uint8 `[H, W, 3]`, and now stays silent."""
    sessions = {}
    for rule in RULES:
        session = model.stream(processor, speak_rule=rule, speak_threshold=1.0, max_cached_frames=REMEMBERED)
        assert session.push(first[None]), "the model must speak at threshold 1"
        session.speak_threshold = 0.0
        sessions[rule] = session
    return sessions


def milliseconds(session, frames: np.ndarray, device: torch.device) -> float:
    start = time.perf_counter()
    events = session.push(frames)
    synchronise(device)
    assert not events
    return 1000 * (time.perf_counter() - start)


def measure(model, processor, streams: list[np.ndarray]) -> dict:
    """Milliseconds of each frame, by way and rule; and tokens that were verified per frame."""
    times: dict = {way: {rule: [] for rule in RULES} for way in ("live", "blocks")}
    replies, shares = [], []
    for number, frames in enumerate(streams):
        sessions = sessions_of(model, processor, frames[0])
        replies.append(len(sessions["verify"].state.narration.ids))
        for index in range(1, len(frames)):
            for rule in RULES[:: 1 if index % 2 else -1]:
                one = milliseconds(sessions[rule], frames[index : index + 1], model.device)
                times["live"][rule].append(one)
        stats = sessions["verify"].stats
        assert stats.verified == len(frames) - 1
        shares.append(stats.seconds["verify"] / (stats.seconds["verify"] + stats.seconds["language"]))
        sessions = sessions_of(model, processor, frames[0])
        for rule in RULES[:: 1 if number % 2 else -1]:
            own = milliseconds(sessions[rule], frames[1:], model.device)
            times["blocks"][rule].append(own / (len(frames) - 1))
    return {"narration_tokens": statistics.mean(replies), "verify_share": statistics.mean(shares), "times": times}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=12)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, default=RESULTS / "verify_cost.json")
    args = parser.parse_args(argv)
    model, processor = load_checkpoint(device=args.device)
    height = processor.video_processor.size["height"]
    streams = [world_stream(seed).frames(FPS, height) for seed in split_seeds("test", args.streams)]
    measure(model, processor, streams[:1])  # warm-up
    measured = measure(model, processor, streams)
    ways = {}
    for way, rules in measured.pop("times").items():
        medians = {rule: statistics.median(values) for rule, values in rules.items()}
        ways[way] = {f"{rule}_ms": round(value, 3) for rule, value in medians.items()}
        ways[way]["ratio"] = round(medians["verify"] / medians["trained"], 4)
    command = shlex.join(["python", "-m", "videollm_mod.benchmarks.verify_cost", *(argv or sys.argv[1:])])
    result = {"what": __doc__.splitlines()[0], "command": command, "commit": commit(), **surroundings()}
    device = f"{model.device.type}, {str(model.dtype).removeprefix('torch.')}"
    result |= {"device": device, "streams": args.streams, "frames": sum(map(len, streams)), **measured, **ways}
    write(args.json, result)
    enter(args.json, {"verify_ms_per_frame_ratio": ways["live"]["ratio"]}, command)
    print({**measured, **ways})


if __name__ == "__main__":
    main()
