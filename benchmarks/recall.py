"""What a session still knows of an event N seconds ago, by age and by memory policy.

    OMP_NUM_THREADS=1 python -m videollm_mod.benchmarks.recall

The bundled model watches streams of the world. Nothing changes after the last event, and at each age the model is
asked "What happened last?", the only question of its training whose evidence lies in the past. There are two ways:
`narrating`, where it can also read its own narration of the event, and `silent`, where it never speaks and has only
the vision tokens of the past frames. Only exact answers count. In training, the last event is at most a few seconds
ago, and a stream lasts at most 16 seconds.
"""

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from ..bench.record import RESULTS, surroundings, write_result
from ..data.world import world_stream
from .long_streams import nano

AGES = (0, 2, 4, 8, 16, 32, 64, 128)  # seconds
FPS = 2
QUESTION = "What happened last?"
BOUNDS = {
    "everything": {},
    "window": {"max_cached_frames": 24},
    "router": {"max_cached_frames": 24, "cache_policy": "router"},
}
WAYS = {"narrating": {}, "silent": {"speak_threshold": 0.0}}


def answers(model, processor, seed: int, options: dict) -> list[bool]:
    """Whether the answer is right at each of `AGES`."""
    stream, session, right = world_stream(seed), model.stream(processor, **options), []
    frames = stream.frames(FPS)
    last = int(stream.events[-1].time * FPS)
    session.push(frames[: last + 1])
    after = 0
    for age in AGES:
        if age * FPS > after:
            session.push(frames[last : last + 1].repeat(age * FPS - after, axis=0))
            after = age * FPS
        answer = session.fork().ask(QUESTION)[0].text
        right.append(answer == stream.events[-1].text)
    return right


def plot(rows: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(WAYS), figsize=(9, 3.6), sharey=True)
    styles = {"everything": "-", "window": "--", "router": ":"}
    for axis, way in zip(axes, WAYS, strict=True):
        for bound, style in styles.items():
            axis.plot(range(len(AGES)), rows[way][bound]["percent"], style, marker="o", label=bound)
        axis.set_xticks(range(len(AGES)), AGES)
        axis.set_title(way)
        axis.set_xlabel("seconds since the event")
        axis.grid(alpha=0.3)
    axes[0].set_ylim(-3, 103)
    axes[0].set_ylabel(f"right answers, percent\n“{QUESTION}”")
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=24)
    args = parser.parse_args(argv)
    model, processor = nano()
    seeds = [seed for seed in range(6000, 7000) if len(world_stream(seed).events) > 1][: args.streams]
    rows = {way: {bound: {"right": []} for bound in BOUNDS} for way in WAYS}
    for seed in tqdm(seeds):
        for way, bound in [(way, bound) for way in WAYS for bound in BOUNDS]:
            rows[way][bound]["right"].append(answers(model, processor, seed, {**WAYS[way], **BOUNDS[bound]}))
    for row in (row for bounds in rows.values() for row in bounds.values()):
        row["percent"] = [round(100 * sum(column) / len(seeds), 1) for column in zip(*row["right"], strict=True)]
    command = "OMP_NUM_THREADS=1 python -m videollm_mod.benchmarks.recall"
    result = {"command": command, **surroundings(), "ages_seconds": AGES, "question": QUESTION, "seeds": seeds}
    write_result("recall", {**result, "bounds": BOUNDS, "ways": rows})
    plot(rows, RESULTS / "recall.png")
    print(json.dumps({way: {b: r["percent"] for b, r in bounds.items()} for way, bounds in rows.items()}, indent=1))


if __name__ == "__main__":
    main()
