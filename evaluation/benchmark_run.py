"""`videollm-mod evaluate --benchmark`: a model on the items of a benchmark, and controls beside it.

An interrupted run loses at most the item that it was at, and any number of processes gives the same outcomes.
"""

import json
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from accelerate.utils import gather_object
from tqdm import tqdm

from ..data.files import STANDARD, write_whole
from ..data.processes import process_state
from .benchmark_models import about_model, load_model
from .benchmark_options import BenchmarkOptions
from .benchmark_rows import MODEL, WITH_MODEL, Items, all_outcomes, choose_rows
from .benchmark_table import plot_rows, table_of
from .benchmark_views import Model
from .benchmarks import Outcome
from .chat_server import ChatServer
from .judging import Verdicts, judged
from .protocols import changes, run
from .results import Results
from .surroundings import surroundings


def run_model(options: BenchmarkOptions, items: Items, model: Model, rows: list[str], state, results: Results) -> None:
    """Find this process's outcomes that are not there yet."""
    jobs = [
        (items.number(row, index), row, index)
        for row in rows
        for index, item in enumerate(items.items)
        if row in WITH_MODEL and changes(row, str(options.protocol), item)
    ]
    own = jobs[state.process_index :: state.num_processes]
    todo = [job for job in own if job[0] not in results.done]
    show = {"desc": "items", "total": len(own), "initial": len(own) - len(todo), "disable": not state.is_main_process}
    if state.num_processes > 1:
        show["desc"] = f"items of process 1 of {state.num_processes}"
    with tqdm(**show) as progress:
        for number, row, index in todo:
            item = items.items[index]
            control = None if row == MODEL else row
            arguments = (str(options.protocol), control, options.context_seconds)
            try:
                outcome = run(model, items.benchmark, item, items.videos[index], *arguments)
            except ValueError as error:
                raise ValueError(f"{items.path}, item {item.id}: {error}") from error
            results.add([{"index": number, "row": row, **asdict(outcome)}])
            progress.update(1)


def gathered(done: dict[int, dict]) -> dict[int, dict]:
    """The lines of all processes, the same as read from a file."""
    every: dict[int, dict] = {}
    for part in gather_object([done]):
        every |= part
    return {index: json.loads(json.dumps(every[index])) for index in sorted(every)}


def judge_all(
    options: BenchmarkOptions, items: Items, outcomes: dict, state, file: Path | None, settings: dict
) -> dict:
    """Add the judge's verdicts to the outcomes; returns what is to be said of the judge."""
    url, name = str(options.judge), str(options.judge_model)
    settings = {**settings, "judge": url, "judge_model": name}
    verdicts = Verdicts(None if file is None else file.with_suffix(".verdicts.jsonl"), settings)
    state.wait_for_everyone()
    if state.is_main_process:
        verdicts.results.begin()
    state.wait_for_everyone()
    jobs = [
        (items.number(row, index), items.items[index], outcome)
        for row, of_row in outcomes.items()
        for index, outcome in enumerate(of_row)
    ]
    judge = ChatServer(url, name, options.judge_key_env)
    verdicts.ask(judge, items.benchmark, jobs[state.process_index :: state.num_processes], state.is_main_process)
    done = gathered(verdicts.results.done)
    for row, of_row in outcomes.items():
        first = items.number(row, 0)
        outcomes[row] = [judged(outcome, first + index, done) for index, outcome in enumerate(of_row)]
    given = [verdict for of_row in outcomes.values() for outcome in of_row for verdict in outcome.verdicts]
    unread = sum(verdict["value"] is None for verdict in given)
    return {"url": url, "model": name, "settings": judge.settings, "verdicts": len(given), "unreadable": unread}


def scores_of(items: Items, outcomes: list[Outcome], protocol: str) -> dict:
    """The scores of a row, and what it cost."""
    pairs = zip(items.items, outcomes, strict=True)
    scores = [items.benchmark.score(item, outcome, protocol) for item, outcome in pairs]  # type: ignore[arg-type]
    return {**items.benchmark.summarise(items.items, scores), "cost": cost_of(outcomes)}


def cost_of(outcomes: list[Outcome]) -> dict:
    """Means per item of `seconds`, `frames` and `tokens`, and the largest `peak_cache_bytes`."""
    costs = [outcome.cost for outcome in outcomes]
    total: dict = {}
    for name in ("seconds", "frames", "tokens"):
        values = [cost[name] for cost in costs]
        total[name] = None if None in values else round(sum(values) / len(values), 4)
    peaks = [cost["peak_cache_bytes"] for cost in costs]
    return total | {"peak_cache_bytes": None if None in peaks else max(peaks)}


def evaluate_benchmark(options: BenchmarkOptions, command: str = "") -> dict | None:
    """Run a model and its controls on a benchmark, or resume an interrupted run with the same `json`: outcomes are
    kept next to it in `NAME.streams.jsonl`, verdicts of a judge in `NAME.verdicts.jsonl`.

    Returns:
        The result in the main process, None in others.

    Raises:
        `ValueError`, `OSError`, `ImportError`: for wrong options or items, before the model is loaded; for a damaged
            video, or a server or judge that does not answer, later on. What was found so far is kept.
    """
    items = Items(Path(str(options.benchmark)), options.streams)
    state = process_state(on_cpu=options.device == "cpu", timeout=timedelta(days=1))
    settings = {
        "benchmark": items.items[0].benchmark,
        "data": items.about,
        "protocol": options.protocol,
        "context_seconds": options.context_seconds,
        "max_new_tokens": items.benchmark.max_new_tokens,
        **about_model(options),
    }
    file = None if options.json in (None, STANDARD) else options.json
    results = Results(None if file is None else file.with_suffix(".streams.jsonl"), settings)
    state.wait_for_everyone()
    if state.is_main_process:
        results.begin()
    model = load_model(options, str(state.device) if options.device == "auto" else options.device)
    rows = choose_rows(items, model, str(options.protocol), options.control)
    state.wait_for_everyone()

    run_model(options, items, model, rows, state, results)
    outcomes = all_outcomes(items, rows, str(options.protocol), gathered(results.done))
    judge = None if options.judge is None else judge_all(options, items, outcomes, state, file, settings)
    if not state.is_main_process:
        return None
    scores = {row: scores_of(items, of_row, str(options.protocol)) for row, of_row in outcomes.items()}
    overall = {row: {way: of_row[way]["overall"] for way in ("official", "strict")} for row, of_row in scores.items()}
    result = {
        "command": command,
        **settings,
        "fps": model.fps,
        "decoding": model.decoding,
        "summary": overall,
        "scores": scores,
        "judge": judge,
        "processes": state.num_processes,
        **surroundings("accelerate", "openai", "videollm-mod"),
        "items": [asdict(item) for item in items.items],
        "outcomes": {row: [asdict(outcome) for outcome in of_row] for row, of_row in outcomes.items()},
    }
    if judge is not None and judge["unreadable"]:
        result["note"] = f"{judge['unreadable']} of {judge['verdicts']} verdicts of the judge cannot be read"
    pairs = zip(items.items, outcomes[MODEL], strict=True)
    if judge is None and any(items.benchmark.judge_prompts(*pair) for pair in pairs):
        result["note"] = "some items need a judge, and have no score: give `--judge`"
    write_all(options, result)
    return result


def write_all(options: BenchmarkOptions, result: dict) -> None:
    """Write the result, its table and its plot."""
    if options.json is not None:
        write_whole(options.json, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if options.table is not None:
        write_whole(options.table, table_of(result))
    if options.plot is not None:
        plot_rows(result, options.plot)


__all__ = ["evaluate_benchmark"]
