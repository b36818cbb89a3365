"""What a session still knows of a moment so many seconds ago: by age, by memory, and whether it was said.

    OMP_NUM_THREADS=1 python -m videollm_mod.benchmarks.recall --model CHECKPOINT --level minutes

The model watches streams of minutes and narrates them in its own words, except for what the stream's instruction keeps
it from saying. Now and then it is asked about a moment of a certain age, in a fork of the session, so that no question
leaves a trace. Only exact answers count. `said` is what was to be narrated, `unsaid` what was only shown. Every memory
watches the same streams and is asked the same questions. Intervals are Wilson's, at 95 %.
"""

import argparse
import json
import math
import random
import shlex
import sys
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path

from tqdm import tqdm

from ..bench.record import RESULTS, surroundings, write_result
from ..data.world import world_stream
from ..data.world_hard import split_seeds
from ..data.world_minutes import QUESTIONS, MinutesStream, Question
from .long_streams import ROOT, nano

AGES = (10, 30, 60, 120, 300)  # seconds
NEAR = 0.25  # a question has one of these ages within this share of it
EACH = 4  # questions of an age, of what was said and of what was not, in a stream
TRIES = 24  # moments at which they are looked for
FPS = 2.0
STYLES = {"everything": "-", "window": "--", "router": ":"}


def plan(stream: MinutesStream, kinds: tuple[str, ...]) -> list[tuple[int, Question]]:
    """`(age, question)` in order of time: for each of `AGES` up to `EACH` of what was said and of what was not, at
    different moments."""
    rng, times = random.Random(f"recall/{stream.seed}"), stream.frame_times(FPS).tolist()
    found: list[tuple[int, Question]] = []
    for age, said in product(AGES, (True, False)):
        enough = len(found) + EACH
        for time in rng.sample(times, min(TRIES, len(times))):
            fitting = [
                x
                for x in stream.askable(time)
                if abs(x.age - age) <= NEAR * age and x.said == said and x.kind in kinds
            ]
            if fitting:
                kind = rng.choice(sorted({x.kind for x in fitting}))
                chosen = rng.choice([x for x in fitting if x.kind == kind])
                found.append((age, replace(chosen, wording=rng.randrange(len(QUESTIONS[kind])))))
            if len(found) == enough:
                break
    return sorted(found, key=lambda asked: asked[1].time)


def watch(model, processor, stream: MinutesStream, questions: list[Question], options: dict) -> dict:
    """`right`, whether each answer is; `exact`, the share of narrations that came at their time; `kv_bytes`."""
    system, instruction = stream.opening()
    session = model.stream(processor, system_prompt=system, **options)
    if instruction is not None:
        session.instruct(instruction)
    drawn, shown, times = stream.drawn(), stream.shown(FPS), stream.frame_times(FPS).tolist()
    done, right, said, most = 0, [], set(), 0
    for question in questions:
        stop = times.index(question.time) + 1
        if stop > done:
            events = session.push(drawn[shown[done:stop]], times[done:stop])
            said |= {(event.time, event.text) for event in events}
        done, most = stop, max(most, session.stats.kv_bytes)
        right.append(session.fork().ask(question.text)[0].text == question.answer)
    true = {narration for narration in stream.narrations if done and narration[0] <= times[done - 1]}
    return {"right": right, "exact": (len(true & said), len(true), len(said)), "kv_bytes": most}


def interval(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share, in percent."""
    share, spread = right / count, z * z / count
    middle = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / count + spread / count / 4)
    low, high = ((middle + sign * half) / (1 + spread) for sign in (-1, 1))
    return round(100 * max(low, 0.0), 1), round(100 * min(high, 1.0), 1)


def cell(answers: list[bool]) -> dict:
    low, high = interval(sum(answers), len(answers))
    return {"count": len(answers), "percent": round(100 * sum(answers) / len(answers), 1), "low": low, "high": high}


def measure(model, processor, level: str, seeds, bounds: dict[str, dict], kinds: tuple[str, ...]) -> dict:
    """For each memory: `said` and `unsaid` by age, all answers by `kind`, `narrations`, and the size of the cache."""
    rows = {}
    plans = [(stream, plan(stream, kinds)) for stream in (world_stream(seed, level) for seed in seeds)]
    for bound, options in bounds.items():
        cells: dict[tuple, list[bool]] = defaultdict(list)
        by_kind: dict[str, list[bool]] = defaultdict(list)
        exact, most = (0, 0, 0), 0
        for stream, asked in tqdm(plans, desc=bound):
            watched = watch(model, processor, stream, [question for _, question in asked], options)
            for (age, question), right in zip(asked, watched["right"], strict=True):
                cells["said" if question.said else "unsaid", age].append(right)
                by_kind[question.kind].append(right)
            exact = tuple(sum(pair) for pair in zip(exact, watched["exact"], strict=True))
            most = max(most, watched["kv_bytes"])
        rows[bound] = {
            "options": options,
            "max_kv_bytes": model.stream(processor, **options).max_kv_bytes,
            "most_kv_bytes": most,
            "narrations": {"true": exact[1], "exact": exact[0], "said": exact[2]},
            **{way: {age: cell(cells[way, age]) for age in AGES if cells[way, age]} for way in ("said", "unsaid")},
            "kinds": {kind: cell(answers) for kind, answers in sorted(by_kind.items())},
        }
    return rows


def plot(rows: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, way in zip(axes, ("said", "unsaid"), strict=True):
        for shift, (bound, row) in enumerate(rows.items()):
            places = [AGES.index(age) + 0.06 * (shift - 1) for age in row[way]]
            cells = list(row[way].values())
            errors = [[x["percent"] - x["low"] for x in cells], [x["high"] - x["percent"] for x in cells]]
            size = f"{row['most_kv_bytes'] / 2**20:.1f} MiB"
            axis.errorbar(
                places, [x["percent"] for x in cells], errors, ls=STYLES[bound], marker="o", capsize=3,
                label=f"{bound}, {size}",
            )  # fmt: skip
        axis.set_xticks(range(len(AGES)), AGES)
        axis.set_xlim(-0.4, len(AGES) - 0.6)
        axis.set_title({"said": "what was narrated", "unsaid": "what was only shown"}[way])
        axis.set_xlabel("seconds since the moment")
        axis.grid(alpha=0.3)
    axes[0].set_ylim(-3, 103)
    axes[0].set_ylabel("right answers, percent")
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT, help="folder of a checkpoint (default: the bundled one)")
    parser.add_argument("--level", choices=("minute", "minutes"), default="minutes")
    parser.add_argument("--streams", type=int, default=24)
    parser.add_argument("--kinds", nargs="+", choices=tuple(QUESTIONS), default=tuple(QUESTIONS))
    parser.add_argument("--memories", nargs="+", choices=tuple(STYLES), default=tuple(STYLES))
    parser.add_argument("--max-cached-frames", type=int, help="(default: 24, without --max-cached-bytes)")
    parser.add_argument("--max-cached-bytes", type=int, help="the same for each policy")
    parser.add_argument("--max-cached-text", type=int)
    parser.add_argument("--name", default="recall", help="of the result, a JSON and a picture (default: recall)")
    args = parser.parse_args(argv)
    names = ("max_cached_frames", "max_cached_bytes", "max_cached_text")
    bound = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if not bound.keys() & {"max_cached_frames", "max_cached_bytes"}:
        bound["max_cached_frames"] = 24
    bounds = {name: {**bound, "cache_policy": name} if name != "everything" else {} for name in args.memories}
    model, processor = nano(args.model)
    seeds = split_seeds("test", args.streams)
    rows = measure(model, processor, args.level, seeds, bounds, tuple(args.kinds))
    command = f"OMP_NUM_THREADS=1 python -m videollm_mod.benchmarks.recall {shlex.join(argv)}".rstrip()
    about = {"level": args.level, "fps": FPS, "streams": args.streams, "first_seed": seeds.start, "near": NEAR}
    write_result(args.name, {"command": command, **surroundings(), **about, "memories": rows})
    plot(rows, RESULTS / f"{args.name}.png")
    short = {bound: {way: row[way] for way in ("said", "unsaid")} for bound, row in rows.items()}
    print(json.dumps(short, indent=1))


if __name__ == "__main__":
    main()
