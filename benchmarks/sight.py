"""A stock image model becomes a streaming one without training: how well it narrates unseen streams of the world.

    python -m videollm_mod.benchmarks.sight measure runs/stock_vlm/llava_conversation --json sight_llava.json
    python -m videollm_mod.benchmarks.sight calibrate runs/stock_vlm/llava_conversation --json sight_llava.json
    python -m videollm_mod.benchmarks.sight report benchmarks/results/sight_*.json --plot sight.png

`measure` takes a model of `stock_vlm`, builds a streaming one of it with `from_vlm`, and lets it narrate by
`speak_rule="verify"`. The reference is the stock model, asked anew at every frame. Instruction, margin and frames to
remember are chosen on validation streams, and the chosen ones are scored on test streams. `calibrate` continues a
result of `measure`: it chooses a routing, and scores it on test streams too. `report` draws what was measured, and
enters the figures of the best model into `summary.json` if the files are in its folder.
"""

import argparse
import json
import math
import shlex
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from videollm_mod import VideoLLMMoDForConditionalGeneration

from ..bench.record import enter, surroundings, write
from ..calibration.measuring import Routing, routed
from ..data.world import world_stream
from ..data.world_basic import BasicStream
from ..data.world_hard import split_seeds
from .sight_plot import plot
from .sight_routing import (
    CLIPS,
    FPS,
    REPLY,
    Watched,
    calibrated,
    cheapest,
    compared,
    encode,
    questions_of,
    search,
    watch,
)
from .sight_scores import Counts, changes, score, spoken_anew
from .stock_vlm_data import SEE, describe, of_image
from .stock_vlm_families import Family, load

MARGINS = (0.0, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0)  # nats
REMEMBERED = (None, 12, 4, 1)  # frames; None: all


def streams_of(split: str, count: int) -> list[BasicStream]:
    return [world_stream(seed) for seed in split_seeds(split, count)]


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
    counts, right, total = Counts(), 0, 0
    for stream in streams:
        times = stream.frame_times(FPS)
        texts = say(model, family, stream.drawn(), SEE)
        texts = [texts[event] for event in stream.shown(FPS)]
        counts += score(changes(stream), spoken_anew(texts, times.tolist()), stream.seconds)
        right += sum(text == describe(stream.things(time)) for text, time in zip(texts, times, strict=True))
        total += len(times)
    answers = reference_answers(model, family, streams)
    return {**counts.summary(), "answers": answers, "exact_frames": round(100 * right / total, 2)}


def reference_answers(model, family: Family, streams: list[BasicStream]) -> float:
    """Percentage of `questions_of` the streams that the stock model answers exactly, from one picture each."""
    asked: dict[str, list[tuple[np.ndarray, str]]] = {}
    for stream in streams:
        pictures = stream.drawn()
        for event, (question, answer) in zip(stream.shown(FPS), questions_of(stream, SEE), strict=True):
            asked.setdefault(question, []).append((pictures[event], answer))
    right = total = 0
    for question, pairs in asked.items():
        said = say(model, family, np.stack([picture for picture, _ in pairs]), question)
        right += sum(own == answer for own, (_, answer) in zip(said, pairs, strict=True))
        total += len(pairs)
    return round(100 * right / total, 2)


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
    """Milliseconds per frame, one by one: narrating by `verify`, and asking the stock model anew. What `verify` costs
    against the trained rule is measured by `verify_cost`."""
    (model, processor), (stock_model, family) = built, stock
    frames = np.concatenate([stream.frames(FPS) for stream in streams])
    rows = {}
    for count in (8, len(frames)):  # the first is a warm-up
        session = model.stream(processor, max_new_tokens=REPLY, **options)
        rows["verify"] = milliseconds(session, frames[:count], device)
        anew = seconds_of(lambda n=count: [say(stock_model, family, frame[None], SEE) for frame in frames[:n]], device)
        rows["asked_anew"] = 1000 * anew / count
    return {name: round(value, 3) for name, value in rows.items()}


def best_of(grid: list[dict]) -> dict:
    """The row with the highest F1 and the fewest false narrations; of equal ones the middle one, which is the farthest
    from margins that are worse."""

    def merit(row: dict) -> tuple[float, float]:
        return row["f1"], -row["false_per_minute"]

    best = max(map(merit, grid))
    equal = [row for row in grid if merit(row) == best]
    return equal[(len(equal) - 1) // 2]


def grid_of(build, streams: list[BasicStream], margins: list[float]) -> list[dict]:
    """Scores for each instruction at one margin, and for the better one at all margins and frames to remember."""

    def row(built, watched: list[Watched], remembered: int | None, margin: float) -> dict:
        counts = watch(built, watched, asks=False, **session_options(remembered, margin)).counts
        chosen = {"query": built[1].default_query, "remembered": remembered, "margin": margin}
        print(json.dumps(chosen | counts.summary()), flush=True)
        return chosen | counts.summary()

    models = [build(query) for query in (SEE, of_image(SEE))]
    watched = encode(models[0], streams)
    rows = [row(built, watched, None, 1.0) for built in models]
    built = models[rows.index(best_of(rows))]
    for remembered in REMEMBERED:
        rows += [row(built, watched, remembered, margin) for margin in margins if (remembered, margin) != (None, 1.0)]
    return rows


def session_options(remembered: int | None, margin: float) -> dict:
    return {"max_cached_frames": remembered, **threshold_of(margin)}


def threshold_of(margin: float) -> dict:
    return {"speak_threshold": math.exp(-margin)}


def build(folder: Path, device: str, query: str) -> tuple:
    """`(model, processor)`."""
    options = {"dtype": dtype_on(device), "default_query": query}
    model, processor = VideoLLMMoDForConditionalGeneration.from_vlm(str(folder), **options)
    return model.to(device), processor


def load_stock(args) -> tuple:
    """`(stock model, family)`."""
    stock, family = load(args.folder, dtype=dtype_on(args.device))
    return stock.to(args.device), family


def dtype_on(device: str) -> torch.dtype:
    return torch.float32 if device == "cpu" else torch.bfloat16


def command_of(args) -> str:
    """Paths differ between machines, so their names are enough."""
    given = [Path(part).name if "/" in part else part for part in args.command]
    return shlex.join(["python", "-m", "videollm_mod.benchmarks.sight", *given])


def measure(args) -> None:
    stock, family = load_stock(args)
    trying, testing = streams_of("validation", args.streams), streams_of("test", args.streams)
    result = {"command": command_of(args), **surroundings(), "model": args.folder.name, "fps": FPS}
    result["streams"] = args.streams
    result["reference"] = {"validation": reference(stock, family, trying), "test": reference(stock, family, testing)}
    print(json.dumps(result["reference"]), flush=True)
    result["validation"] = grid_of(partial(build, args.folder, args.device), trying, args.margins)
    best = best_of(result["validation"])
    result["chosen"] = {name: best[name] for name in ("query", "remembered", "margin")}
    built, options = (
        build(args.folder, args.device, best["query"]),
        session_options(best["remembered"], best["margin"]),
    )
    result["test"] = {"dense": watch(built, encode(built, testing), **options).summary()}
    print(json.dumps(result["chosen"] | result["test"]["dense"]), flush=True)
    write(args.json, result)  # what was measured stays if a machine is taken away
    result["milliseconds_per_frame"] = costs(built, (stock, family), testing[:6], args.device, **options)
    write(args.json, result)


def calibrate(args) -> None:
    result = json.loads(args.json.read_text(encoding="utf-8"))
    chosen = result["chosen"]
    built, options = (
        build(args.folder, args.device, chosen["query"]),
        session_options(chosen["remembered"], chosen["margin"]),
    )
    trying, testing = (encode(built, streams_of(split, result["streams"])) for split in ("validation", "test"))
    if "questions" not in result.get("calibration", {}):
        divergence, rows = calibrated(built, streams_of("train", CLIPS), options)
        print(f"{len(rows)} routings", flush=True)
        found = search(built, trying, divergence, rows, options, args.seconds)
        result["calibration"] = {"command": command_of(args), "clips": CLIPS, **found}
        write(args.json, result)  # a run that is cut off later continues from here
    dense, best = watch(built, testing, **options), cheapest(result["calibration"]["routed"])
    result["test"] = {"dense": dense.summary()}
    if best is not None:
        with routed(built[0], Routing(tuple(best["layers"]), best["keep_ratio"], best["selection"])):
            margins = [
                {"margin": margin, **watch(built, trying, False, **options | threshold_of(margin)).summary()}
                for margin in args.margins
            ]
            margin = best_of(margins)["margin"]
            again = compared(dense, watch(built, testing, **options | threshold_of(margin)))
        result["calibration"]["margins"] = margins
        result["test"]["routed"] = {**best, "margin": margin, **again}
    print(json.dumps(result["test"]), flush=True)
    write(args.json, result)
    stock, family = load_stock(args)
    for split, watched in (("validation", trying), ("test", testing)):  # of the same questions
        answers = reference_answers(stock, family, [own.stream for own in watched])
        result["reference"][split]["answers"] = answers
    write(args.json, result)


def figures(result: dict) -> dict[str, float]:
    """What `summary.json` gets of a result."""
    dense, routed = result["test"]["dense"], result["test"].get("routed")
    found = {"verify_f1": dense["f1"], "verify_false_per_minute": dense["false_per_minute"]}
    return found if routed is None else {**found, "calibrated_operations_ratio": routed["operations"]}


def report(args) -> None:
    results = {path: json.loads(path.read_text(encoding="utf-8")) for path in args.results}
    path = max(results, key=lambda path: results[path]["test"]["dense"]["f1"])
    best = results[path]
    commands = [best["command"], *([best["calibration"]["command"]] if "routed" in best["test"] else [])]
    enter(path, figures(best), "; ".join(commands))
    if args.plot is not None:
        plot([*results.values()], args.plot)
    for each, result in results.items():
        print(each.name, json.dumps({"reference": result["reference"]["test"], **result["test"]}, indent=1))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    measured = commands.add_parser("measure", help="measure one model")
    measured.add_argument("--streams", type=int, default=64, help="of each split (default: 64)")
    measured.add_argument("--json", type=Path)
    measured.set_defaults(run=measure)
    calibrated = commands.add_parser("calibrate", help="choose a routing for a model that was measured")
    calibrated.add_argument("--json", type=Path, required=True, help="result of measure; it is continued")
    calibrated.add_argument("--seconds", type=float, default=90, help="for the search (default: 90)")
    calibrated.set_defaults(run=calibrate)
    for command in (measured, calibrated):
        command.add_argument("folder", type=Path, help="a model of stock_vlm")
        command.add_argument("--margins", type=float, nargs="+", default=MARGINS, help="in nats")
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    drawn = commands.add_parser("report", help="draw results, and enter the figures of the best model")
    drawn.add_argument("results", type=Path, nargs="+", help="files of measure")
    drawn.add_argument("--plot", type=Path)
    drawn.set_defaults(run=report)
    args = parser.parse_args(argv)
    args.command = sys.argv[1:] if argv is None else argv
    args.run(args)


if __name__ == "__main__":
    main()
