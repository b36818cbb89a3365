"""A stock image model becomes a streaming one without training: how well it narrates unseen streams of the world.

    python -m videollm_mod.benchmarks.sight measure runs/stock_vlm/llava_conversation --json sight_llava.json
    python -m videollm_mod.benchmarks.sight report benchmarks/results/sight_*.json --plot sight.png

`measure` takes a model of `stock_vlm`, builds a streaming one of it with `from_vlm`, and lets it narrate by
`speak_rule="verify"`. The reference is the stock model, asked anew at every frame. Instruction, margin, frames to
remember and routing are chosen on validation streams, and the chosen ones are scored on test streams. `report` draws
what was measured, and enters the figures of the best model into `summary.json` if the files are in its folder.
"""

import argparse
import json
import math
import random
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch

from videollm_mod import StreamPool, VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor

from ..bench.record import ROOT, enter, surroundings, write
from ..calibration.clips import read_clip
from ..calibration.measuring import Divergence, Measured, candidates, choose, routed
from ..data.world import world_stream
from ..data.world_basic import BasicStream
from ..data.world_hard import split_seeds
from .sight_scores import Counts, changes, score, spoken_anew
from .stock_vlm_data import SEE, ask, describe, of_image
from .stock_vlm_families import Family, load

FPS = 2.0
MARGINS = (0.0, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0)  # nats
REMEMBERED = (None, 12, 4, 1)  # frames; None: all
QUESTIONS = 4  # of each stream
AT_ONCE = 64  # streams of a pool
REPLY = 40  # tokens at most
DIVERGENCES = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1)  # nats, budgets of calibration
CLIPS = 16  # streams to calibrate on


def streams_of(split: str, count: int) -> list[BasicStream]:
    return [world_stream(seed) for seed in split_seeds(split, count)]


def questions_of(stream: BasicStream, query: str) -> list[tuple[int, str, str]]:
    """`(frame, question, answer)` in order, about what is in view after that frame. A question says which image it is
    about if the instruction does."""
    rng, times = random.Random(f"sight/{stream.seed}"), stream.frame_times(FPS)
    asked = []
    for frame in sorted(rng.sample(range(len(times)), QUESTIONS)):
        _, question, answer = ask(rng, stream.things(times[frame]))
        asked.append((frame, question if query == SEE else of_image(question), answer))
    return asked


def watch(model, processor, streams: list[BasicStream], asked=None, **options) -> list[list]:
    """What a model says about each of some streams, as events.

    Args:
        asked: `questions_of` each stream, to ask too.
        options: of `StreamingSession`.
    """
    said: list[list] = []
    for first in range(0, len(streams), AT_ONCE):
        pool, members = StreamPool(model, processor), {}
        for index, stream in enumerate(streams[first : first + AT_ONCE], first):
            member = pool.join(max_new_tokens=REPLY, **options)
            members[member] = []
            frames, times, done = stream.frames(FPS), stream.frame_times(FPS).tolist(), 0
            for frame, question, _ in asked[index] if asked else ():
                if frame + 1 > done:
                    member.push(frames[done : frame + 1], times[done : frame + 1])
                member.ask(question)
                done = frame + 1
            if done < len(frames) and not asked:
                member.push(frames[done:], times[done:])
        for member, event in pool.run():
            members[member].append(event)
        said += members.values()
    return said


def narrated(model, processor, streams: list[BasicStream], **options) -> Counts:
    said = watch(model, processor, streams, **options)
    return sum(
        (
            score(changes(stream), [(event.time, event.text.strip()) for event in events], stream.seconds)
            for stream, events in zip(streams, said, strict=True)
        ),
        Counts(),
    )


def answered(model, processor, streams: list[BasicStream], **options) -> float:
    """Percentage of questions that are answered exactly while the model narrates."""
    asked = [questions_of(stream, processor.default_query) for stream in streams]
    right = total = 0
    for events, questions in zip(watch(model, processor, streams, asked, **options), asked, strict=True):
        answers = [event.text.strip() for event in events if event.kind == "answer"]
        right += sum(own == answer for own, (*_, answer) in zip(answers, questions, strict=True))
        total += len(questions)
    return round(100 * right / total, 2)


@torch.no_grad()
def say(model, family: Family, pictures: np.ndarray, question: str) -> list[str]:
    """The stock model's answers about pictures, uint8 `[M, H, W, 3]`, each in a conversation of its own."""
    prompt = family.prompt_ids(question)
    pixels = family.one_each(family.pixel_values(torch.from_numpy(pictures).permute(0, 3, 1, 2)))
    pixels = pixels.to(model.device, model.dtype)
    ids = torch.tensor([prompt] * len(pictures), device=model.device)
    said = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, max_new_tokens=REPLY, do_sample=False
    )
    return [text.strip() for text in family.tokenizer.batch_decode(said[:, len(prompt) :], skip_special_tokens=True)]


def reference(model, family: Family, streams: list[BasicStream]) -> dict:
    """The stock model asked anew at every frame: it speaks when its answer is another one than before."""
    counts, right, total, asked_right = Counts(), 0, 0, 0
    for stream in streams:
        shown, times = stream.shown(FPS), stream.frame_times(FPS)
        texts = say(model, family, stream.drawn(), SEE)
        texts = [texts[event] for event in shown]
        counts += score(changes(stream), spoken_anew(texts, times.tolist()), stream.seconds)
        right += sum(text == describe(stream.things(time)) for text, time in zip(texts, times, strict=True))
        total += len(times)
        for frame, question, answer in questions_of(stream, SEE):
            asked_right += say(model, family, stream.drawn()[shown[frame]][None], question) == [answer]
    answers = round(100 * asked_right / (QUESTIONS * len(streams)), 2)
    return {**counts.summary(), "answers": answers, "exact_frames": round(100 * right / total, 2)}


def seconds_of(work, device: str) -> float:
    started = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def milliseconds(session, frames: np.ndarray, device: str) -> float:
    """Of a frame, pushed one by one, narrations included."""
    return 1000 * seconds_of(lambda: [session.push(frame[None]) for frame in frames], device) / len(frames)


def costs(built, stock, streams: list[BasicStream], device: str, **options) -> dict:
    """Milliseconds per frame, one by one: narrating by `verify`, asking the stock model anew; and the bundled model by
    each rule on the same frames, where both rules say nothing but what they narrate."""
    (model, processor), (stock_model, family) = built, stock
    frames = np.concatenate([stream.frames(FPS) for stream in streams])
    rows = {}
    for count in (8, len(frames)):  # the first is a warm-up
        session = model.stream(processor, max_new_tokens=REPLY, **options)
        rows["verify"] = milliseconds(session, frames[:count], device)
        anew = seconds_of(lambda n=count: [say(stock_model, family, frame[None], SEE) for frame in frames[:n]], device)
        rows["asked_anew"] = 1000 * anew / count
    bundled = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT, dtype=model.dtype).to(device).eval()
    own = VideoLLMMoDProcessor.from_pretrained(ROOT)
    for count in (8, len(frames)):
        for rule in ("trained", "verify"):
            session = bundled.stream(own, speak_rule=rule, max_cached_frames=24, **silent(rule))
            session.push(frames[:1])  # under `verify` it speaks here, and has something to verify from then on
            rows[f"bundled_{rule}"] = milliseconds(session, frames[1:count], device)
    return {name: round(value, 3) for name, value in rows.items()}


def silent(rule: str) -> dict:
    """The bundled model is to be silent under both rules, so that only the rules differ."""
    return {"speak_threshold": 0.0 if rule == "trained" else 1e-30}


def calibrations(built, streams: list[BasicStream], options: dict) -> list[tuple[Measured, dict]]:
    """For each budget the routing that calibration chooses, and its scores."""
    model, processor = built
    session, clips = model.stream(processor), []
    with routed(model, None):
        for stream in streams_of("train", CLIPS):
            features, times = session.encode(stream.frames(FPS)), stream.frame_times(FPS).tolist()
            asked = [(times[-1], questions_of(stream, processor.default_query)[-1][1])]
            clips.append(read_clip(model, processor, str(stream.seed), features, times, asked, **options))
    divergence = Divergence(model, clips)
    tried = candidates([*divergence.ranked_layers()], model.config.num_frame_tokens)
    measured, rows = [divergence.measured(name, routing) for name, routing in tried], []
    for budget in DIVERGENCES:
        try:
            chosen = choose(measured, budget, None)
        except ValueError as error:  # no routing is within this budget
            print(error, flush=True)
            continue
        if not rows or chosen != rows[-1][0]:
            with routed(model, chosen.routing):
                rows.append((chosen, scores_of(built, streams, options)))
            print(json.dumps(chosen.as_dict() | rows[-1][1]), flush=True)
    return rows


def scores_of(built, streams: list[BasicStream], options: dict) -> dict:
    counts = narrated(*built, streams, **options)
    return {**counts.summary(), "answers": answered(*built, streams, **options)}


def best_of(grid: list[dict]) -> dict:
    """The row with the highest F1; among equal ones that with the fewest false narrations."""
    return max(grid, key=lambda row: (row["f1"], -row["false_per_minute"]))


def cheapest(rows: list[tuple[Measured, dict]], dense: dict) -> Measured | None:
    """The routing with the fewest operations that costs at most one point of exact answers, and one of F1."""
    fit = [routing for routing, scores in rows if all(scores[name] >= dense[name] - 1 for name in ("answers", "f1"))]
    return min(fit, key=lambda routing: routing.operations, default=None)


def grid_of(build, streams: list[BasicStream], margins: list[float]) -> list[dict]:
    """Scores for each instruction at one margin, and for the better one at all margins and frames to remember."""

    def row(built, remembered: int | None, margin: float) -> dict:
        counts = narrated(*built, streams, **session_options(remembered, margin))
        chosen = {"query": built[1].default_query, "remembered": remembered, "margin": margin}
        print(json.dumps(chosen | counts.summary()), flush=True)
        return chosen | counts.summary()

    models = [build(query) for query in (SEE, of_image(SEE))]
    rows = [row(built, None, 1.0) for built in models]
    built = models[rows.index(best_of(rows))]
    for remembered in REMEMBERED:
        rows += [row(built, remembered, margin) for margin in margins if (remembered, margin) != (None, 1.0)]
    return rows


def session_options(remembered: int | None, margin: float) -> dict:
    return {"speak_threshold": math.exp(-margin), "max_cached_frames": remembered}


def measure(args) -> dict:
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    stock, family = load(args.folder, dtype=dtype)
    stock.to(args.device)

    def build(query: str) -> tuple:
        options = {"dtype": dtype, "default_query": query}
        model, processor = VideoLLMMoDForConditionalGeneration.from_vlm(str(args.folder), **options)
        return model.to(args.device), processor

    trying, testing = streams_of("validation", args.streams), streams_of("test", args.streams)
    given = [Path(part).name if "/" in part else part for part in args.command]  # paths differ between machines
    command = shlex.join(["python", "-m", "videollm_mod.benchmarks.sight", *given])
    result = {"command": command, **surroundings(), "model": args.folder.name, "fps": FPS, "streams": args.streams}
    result["reference"] = {"validation": reference(stock, family, trying), "test": reference(stock, family, testing)}
    print(json.dumps(result["reference"]), flush=True)
    result["validation"] = grid_of(build, trying, args.margins)
    best = best_of(result["validation"])
    result["chosen"] = {name: best[name] for name in ("query", "remembered", "margin")}
    built, options = build(best["query"]), session_options(best["remembered"], best["margin"])
    result["test"] = {"dense": scores_of(built, testing, options)}
    print(json.dumps(result["chosen"] | result["test"]["dense"]), flush=True)
    write(args.json, result)  # what was measured stays if a machine is taken away
    result["milliseconds_per_frame"] = costs(built, (stock, family), testing[:6], args.device, **options)
    write(args.json, result)
    if args.calibrate:
        dense, rows = scores_of(built, trying, options), calibrations(built, trying, options)
        routed_rows = [routing.as_dict() | scores for routing, scores in rows]
        result["calibration"] = {"dense": dense, "routed": routed_rows}
        chosen = cheapest(rows, dense)
        if chosen is not None:
            with routed(built[0], chosen.routing):
                result["test"]["routed"] = chosen.as_dict() | scores_of(built, testing, options)
    write(args.json, result)
    return result


def figures(result: dict) -> dict[str, float]:
    """What `summary.json` gets of a result of `measure`."""
    dense, spent = result["test"]["dense"], result["milliseconds_per_frame"]
    found = {
        "verify_f1": dense["f1"],
        "verify_false_per_minute": dense["false_per_minute"],
        "verify_ms_per_frame_ratio": spent["bundled_verify"] / spent["bundled_trained"],
    }
    routed = result["test"].get("routed")
    return found if routed is None else {**found, "calibrated_operations_ratio": routed["operations"]}


def report(args) -> None:
    results = {path: json.loads(path.read_text(encoding="utf-8")) for path in args.results}
    path = max(results, key=lambda path: results[path]["test"]["dense"]["f1"])
    enter(path, figures(results[path]), results[path]["command"])
    if args.plot is not None:
        plot([*results.values()], args.plot)
    for each, result in results.items():
        print(each.name, json.dumps({"reference": result["reference"]["test"], **result["test"]}, indent=1))


def plot(results: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * 3, 3.1 * len(results)), layout="constrained")
    panels = figure.subplots(len(results), 3, squeeze=False)
    for (quality, false, saved), result in zip(panels, results, strict=True):
        query = result["validation"][-1]["query"]  # of the curves
        curves = [row for row in result["validation"] if row["query"] == query]
        margins = sorted({row["margin"] for row in curves})
        for remembered in dict.fromkeys(row["remembered"] for row in curves):
            rows = {row["margin"]: row for row in curves if row["remembered"] == remembered}
            for axis, name in ((quality, "f1"), (false, "false_per_minute")):
                label = "all frames remembered" if remembered is None else f"{remembered} frames"
                axis.plot(range(len(margins)), [rows[margin][name] for margin in margins], marker="o", label=label)
        known = result["reference"]["validation"]
        for axis, name in ((quality, "f1"), (false, "false_per_minute")):
            axis.axhline(known[name], color="black", linestyle=":", label="stock, asked anew at each frame")
            axis.set_xticks(range(len(margins)), [f"{margin:g}" for margin in margins])
            axis.set_xlabel("margin, nats")
        quality.set_ylabel("F1 of narrations, percent")
        quality.set_ylim(0, 102)
        quality.set_title(f"{result['model']}\n“{query}”", fontsize=10)
        false.set_ylabel("false narrations per minute")
        false.set_ylim(bottom=0)
        quality.legend(fontsize=7)
        draw_saved(saved, result)
    figure.savefig(path, dpi=110)


def draw_saved(axis, result: dict) -> None:
    """Scores on validation streams against the operations of the routings that calibration chose."""
    found = result.get("calibration")
    if found is None:
        axis.set_axis_off()
        return
    rows = sorted([{**found["dense"], "operations": 1.0}, *found["routed"]], key=lambda row: row["operations"])
    for name, label in (("f1", "F1 of narrations"), ("answers", "answers")):
        axis.plot([row["operations"] for row in rows], [row[name] for row in rows], marker="o", label=label)
    axis.set_xlabel("operations, share of dense")
    axis.set_ylabel("percent")
    axis.set_ylim(0, 102)
    axis.set_title("routed by calibration", fontsize=10)
    axis.legend(fontsize=7)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    measured = commands.add_parser("measure", help="measure one model")
    measured.add_argument("folder", type=Path, help="a model of stock_vlm")
    measured.add_argument("--streams", type=int, default=64, help="of each split (default: 64)")
    measured.add_argument("--margins", type=float, nargs="+", default=MARGINS, help="in nats")
    measured.add_argument("--calibrate", action="store_true", help="also route by calibration")
    measured.add_argument("--json", type=Path)
    measured.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    measured.set_defaults(run=measure)
    drawn = commands.add_parser("report", help="draw results, and enter the figures of the best model")
    drawn.add_argument("results", type=Path, nargs="+", help="files of measure")
    drawn.add_argument("--plot", type=Path)
    drawn.set_defaults(run=report)
    args = parser.parse_args(argv)
    args.command = sys.argv[1:] if argv is None else argv
    args.run(args)


if __name__ == "__main__":
    main()
