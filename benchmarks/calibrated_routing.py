"""Routing by calibration on the procedural world: operations, divergence from the dense model, and exact answers.

    python benchmarks/calibrated_routing.py                          # the bundled model, made dense; on a CPU
    python benchmarks/calibrated_routing.py --model DIR --name NAME  # any model; level, streams and device as given

A few streams calibrate, as `videollm-mod calibrate` does: for each limit of the divergence they give the routing of
least operations. Then dense and routed model watch other streams and answer questions about them, each on its own
words. An answer or narration is exact if the dense model gives the same at the same time. The figure
`calibrated_operations_ratio` is the least share of the dense operations at which 99 % are. Beside it, as many or more
operations are spent on random tokens, and on random layers.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from videollm_mod.bench.record import RESULTS, commit, summarise, surroundings, write_result
from videollm_mod.calibration.clips import encoded, read_clip
from videollm_mod.calibration.measuring import CONTROLS, Divergence, Measured, Routing, candidates, choose, routed
from videollm_mod.calibration.report import plot, table
from videollm_mod.data.world import conversation, world_stream
from videollm_mod.evaluation.free_running import Counts, watch
from videollm_mod.loading.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
FPS = 2.0
LIMITS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # of the divergence, nats
EXACT = 99.0  # percent
FEWEST = 80.0  # percent: no larger limits are tried
LONGEST = 32  # tokens of a reply; a model that is routed too much does not end its replies


@dataclass(frozen=True)
class Stream:
    """A stream of the world, encoded: features `[F, N, Dv]`, seconds `[F]`, and the conversation."""

    features: torch.Tensor
    times: np.ndarray
    messages: list[dict]
    questions: list[tuple[float, str]]


def read_stream(model, processor, seed: int, args) -> Stream:
    stream = world_stream(seed, args.level)
    features = encoded(model, processor, stream.frames(FPS, processor.video_processor.size["height"]))
    asked = [(time, question) for time, question, _ in stream.questions(FPS, args.questions)]
    messages = conversation(stream, FPS, num_questions=args.questions)
    return Stream(features, stream.frame_times(FPS), messages, asked)


def watch_all(model, processor, streams: list[Stream], routing: Routing | None) -> tuple[dict, list[set]]:
    """Percentages that are right by the truth of the world, and for each stream all that the model says."""
    counts, said = Counts(), []
    with routed(model, routing):
        for stream in streams:
            watched = watch(model, processor, stream.messages, stream.features, stream.times, max_new_tokens=LONGEST)
            counts += watched.counts(FPS)
            said.append({(event.time, event.kind, event.text) for event in watched.events})
    return {name: counts.summary()[name] for name in ("narrations", "exact", "questions", "right")}, said


def as_dense(dense: list[set], said: list[set]) -> float:
    """Percentage of what the dense model says that the routed model says too, at the same time."""
    same = sum(len(own & other) for own, other in zip(dense, said, strict=True))
    return 100 * same / sum(map(len, dense))


def nearest_control(rows: list[Measured], name: str, chosen: Measured) -> Measured | None:
    """The row of least divergence of a control that takes no more operations than what was chosen allows."""
    own = [row for row in rows if row.name == name and row.operations <= chosen.operations + 1e-9]
    return min(own, key=lambda row: row.divergence, default=None)


def measure(model, processor, args) -> dict:
    seeds = range(args.first_seed, args.first_seed + args.calibrate + args.streams)
    streams = [read_stream(model, processor, seed, args) for seed in tqdm(seeds, desc="encode")]
    with routed(model, None):
        clips = [
            read_clip(model, processor, f"seed {seed}", own.features, own.times.tolist(), own.questions)
            for seed, own in zip(seeds, streams[: args.calibrate], strict=False)
        ]
    divergence = Divergence(model, clips)
    ranked = divergence.ranked_layers()
    tried = candidates(list(ranked), model.config.num_frame_tokens)
    rows = [divergence.measured(name, routing) for name, routing in tqdm(tried, desc="routings")]
    print(table(rows), flush=True)
    unseen, points, known = streams[args.calibrate :], [], {}
    dense, said = watch_all(model, processor, unseen, None)
    print(f"dense: {dense}", flush=True)
    for limit in LIMITS:
        if not any(row.divergence <= limit for row in rows if row.name not in CONTROLS):
            continue
        chosen = choose(rows, limit, None)
        point = {"limit": limit}
        controls = {name: nearest_control(rows, name, chosen) for name in CONTROLS}
        for name, row in {"chosen": chosen, **controls}.items():
            if row is not None and row.routing not in known:
                right, own = watch_all(model, processor, unseen, row.routing)
                known[row.routing] = right | {"as_dense": as_dense(said, own)}
            point[name] = None if row is None else row.as_dict() | known[row.routing]
        points.append((point, chosen))
        told = {name: row["as_dense"] for name, row in point.items() if isinstance(row, dict)}
        print(f"at most {limit} nats, {chosen.operations:.3f} of the operations: as dense {told}", flush=True)
        if told["chosen"] < FEWEST:
            break
    good = [own for own in points if own[0]["chosen"]["as_dense"] >= EXACT]
    best, drawn = min(good or points, key=lambda own: own[1].operations)
    plot(rows, drawn, RESULTS / f"calibrated_routing_{args.name}.png")
    return {
        "model": args.name,
        "level": args.level,
        "seeds": [seeds.start, seeds.start + args.calibrate, seeds.stop],
        "questions_per_stream": args.questions,
        "predictions": divergence.predictions,
        "layers": [{"layer": layer, "divergence": value} for layer, value in ranked.items()],
        "dense": dense,
        "points": [point for point, _ in points],
        "best": best if good else None,
        "calibrated_operations_ratio": drawn.operations if good else 1.0,
        "rows": [row.as_dict() for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT), help="folder of a checkpoint; its routing is left out")
    parser.add_argument("--name", default="nano", help="of the model, for the names of the results")
    parser.add_argument("--level", default="basic")
    parser.add_argument("--first-seed", type=int, default=3_100_000_000)
    parser.add_argument("--calibrate", type=int, default=4, help="streams to calibrate on")
    parser.add_argument("--streams", type=int, default=20, help="unseen streams")
    parser.add_argument("--questions", type=int, default=4, help="of each stream")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    model, processor = load_checkpoint(args.model, device=args.device)
    command = " ".join(["python benchmarks/calibrated_routing.py", *sys.argv[1:]])
    result = {"command": command, "commit": commit(), **surroundings(), **measure(model, processor, args)}
    path = write_result(f"calibrated_routing_{args.name}", result)
    ratio = round(result["calibrated_operations_ratio"], 4)
    summarise("calibrated_operations_ratio", ratio, f"benchmarks/results/{path.name}", command)
    print(json.dumps(result["best"], indent=1))


if __name__ == "__main__":
    main()
