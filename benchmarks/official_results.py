"""The official code on the answers that `videollm-mod evaluate --benchmark ... --json` stored, of each row."""

import importlib
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from ..data import omnipro, ovo_bench
from ..data.benchmark_items import Item, item_of
from ..evaluation.benchmarks import BENCHMARKS, Outcome
from ..evaluation.benchmarks.proactivevideoqa import replies
from .official_answers import compare, stand_in, table
from .official_polls import OVO_GROUPS, PRINTED, ovo_scores, streaming_counts, streaming_tasks, tasks_of
from .official_streams import alerts_of, omegas_of, omnimmi_scores, omnipro_scores, proactive_scores


def ovo(clone: Path, items: list[Item], outcomes: list[Outcome], mine: dict) -> dict:
    results: dict = {name: [] for name in OVO_GROUPS}
    for item, outcome in zip(items, outcomes, strict=True):
        texts = [answer["text"] for answer in outcome.answers] + [None] * (len(item.polls) - len(outcome.answers))
        if item.kind == "choice":
            given = {"response": texts[0], "ground_truth": item.truth["answer"]}
        else:
            facts = item.truth["counts"] if item.kind == "count" else item.truth["types"]
            name = "count" if item.kind == "count" else "type"
            given = {"test_info": [{"response": text, name: fact} for text, fact in zip(texts, facts, strict=True)]}
        group = next(name for name, group in OVO_GROUPS.items() if group == ovo_bench.GROUPS[item.task])
        results[group].append({"task": item.task} | given)
    return compare(ovo_scores(clone, results), mine["official"], 0, 0, PRINTED)


def streaming(clone: Path, items: list[Item], outcomes: list[Outcome], mine: dict) -> dict:
    parts: dict[str, list] = {"real": [], "omni": [], "sqa": [], "proactive": []}
    for item, outcome in zip(items, outcomes, strict=True):
        if item.kind == "alert":
            nothing = [{"time": item.polls[-1].time, "text": ""}]  # the script ends with an error without a poll
            time = int(item.truth["time"])
            history = [each | {"content": each["text"]} for each in outcome.answers or nothing]
            clock = f"{time // 3600:02d}:{time // 60 % 60:02d}:{time % 60:02d}"
            facts = {"ground_truth_time_stamp": clock, "ground_truth_output": item.truth["output"]}
            question = facts | {"task_type": item.task, "scripted": {"dialog_history": history}}
            parts["proactive"].append({"questions": [question]})
            continue
        text = outcome.answers[0]["text"] if outcome.answers else ""
        question = {"task_type": item.task, "answer": item.truth["answer"], "scripted": text}
        if item.task == "Sequential Question Answering":
            parts["sqa"].append([{"questions": [question]}])
        else:  # the script ends with an error at an empty answer
            parts["omni"].append({"questions": [question | {"scripted": text or " "}]})
    official: dict = {}
    for task, data in parts.items():
        official |= streaming_counts(clone, task, data) if data else {}
    return compare(official, streaming_tasks(mine), 0, 0)


def omnimmi(clone: Path, items: list[Item], outcomes: list[Outcome], mine: dict) -> dict:
    lines = [
        {"answer": item.truth["span"], "pred": [one["time"] for one in outcome.said if int(one["time"]) != 0]}
        for item, outcome in zip(items, outcomes, strict=True)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    return compare(omnimmi_scores(clone, text), alerts_of(mine), 0, 0)


def sample_of(item: Item) -> dict:
    events = [event | {"trigger_time_sec": event["time"]} for event in item.truth["events"]]
    facts = {"id": item.id, "task": item.task, "question": item.truth["question"], "ground_truth": events}
    return facts | {
        "states": item.truth["states"],
        "duration": item.end,
        "video_id": item.id,
        "video_path": item.video,
    }


def omnipro_polls(clone: Path, items: list[Item], outcomes: list[Outcome], mine: dict) -> dict:
    sys.path.insert(0, str(clone))
    stand_in("requests")
    evaluator, metrics = (importlib.import_module(name) for name in ("evaluators.probe_evaluator", "metrics.probe"))
    evaluator.split_video = lambda *given: None
    predictions = []
    for item, outcome in zip(items, outcomes, strict=True):
        following = iter([answer["text"] for answer in outcome.answers])
        model = SimpleNamespace(
            name=lambda: "", generate=lambda prompt, clip, following=following: next(following, "")
        )
        draw = random.Random(f"{omnipro.SEED} {item.id}")
        evaluator.random = SimpleNamespace(Random=lambda seed, draw=draw: draw)
        predictions.append(evaluator.ProbeEvaluator(model)._evaluate_gt_probe(sample_of(item)))
    found = metrics.compute_all_metrics(predictions)
    official = {task: 100 * each["paired_accuracy"] for task, each in found.items() if task != "overall"}
    return compare(official, every_task(mine), 0, 0, PRINTED)


def omnipro_streams(clone: Path, items: list[Item], outcomes: list[Outcome], mine: dict) -> dict:
    sys.path[:0] = [str(clone), str(clone / "scripts")]
    stand_in("requests")
    merge = importlib.import_module("evaluators.online_evaluator")._merge_continuation_fragments
    scoring, predictions = importlib.import_module("compute_online_metrics"), []
    verdicts: dict = {}
    for item, outcome in zip(items, outcomes, strict=True):
        said = [one for one in outcome.said if one["time"] >= item.stream.time and one["text"].strip()]
        emits = merge([{"t_sec": one["time"], "raw": one["text"]} for one in said])
        predictions.append(sample_of(item) | {"predictions": emits})
        given = {verdict["name"]: verdict["value"] for verdict in outcome.verdicts}
        for prompt in BENCHMARKS["omnipro"].judge_prompts(item, outcome):
            verdicts[prompt["truth"], prompt["said"]] = given.get(prompt["name"])
    judge = (
        (lambda truth, text: {"score": verdicts[truth, text.strip()] or 0})
        if any(outcome.verdicts for outcome in outcomes)
        else None
    )
    official = omnipro_scores(scoring, predictions, judge)
    return compare(
        {task: value for task, value in official.items() if task != "overall"}, every_task(mine), 0, 0, PRINTED
    )


def every_task(mine: dict) -> dict:
    """The tasks of our tables; one whose items are partly in each cannot be compared."""
    tables = [tasks_of(mine["official"]), tasks_of(mine.get("with sound", {}).get("official", {"overall": None}))]
    if twice := (set(tables[0]) & set(tables[1])) - {"overall"}:
        raise ValueError(f"{', '.join(sorted(twice))}: some items need sound, and some do not")
    return tables[1] | tables[0]


def proactive(clone: Path, items: list[Item], outcomes: list[Outcome], mine: dict) -> dict:
    texts = {}
    for item, outcome in zip(items, outcomes, strict=True):
        given = {verdict["name"]: verdict["text"] for verdict in outcome.verdicts}
        for prompt in BENCHMARKS["proactivevideoqa"].judge_prompts(item, outcome):
            texts[prompt["prompt"]] = given[prompt["name"]]
    said = [replies(outcome) for outcome in outcomes]
    return compare(proactive_scores(clone, items, said, texts.__getitem__), omegas_of(mine), 0, 0, PRINTED)


Rescore = Callable[[Path, list[Item], list[Outcome], dict], dict]
SCORERS: dict[tuple[str, str], tuple[str, Rescore]] = {
    ("ovo-bench", "poll"): ("OVO-Bench", ovo),
    ("streamingbench", "poll"): ("StreamingBench", streaming),
    ("omnimmi-pa", "stream"): ("OmniMMI", omnimmi),
    ("omnipro", "poll"): ("OmniPro", omnipro_polls),
    ("omnipro", "stream"): ("OmniPro", omnipro_streams),
    ("proactivevideoqa", "poll"): ("VideoChat3", proactive),
    ("proactivevideoqa", "stream"): ("VideoChat3", proactive),
}


def rescore(folder: Path, file: Path) -> dict[str, dict]:
    """Official numbers and ours, of each row of a result."""
    result = json.loads(file.read_text(encoding="utf-8"))
    repository, scorer = SCORERS[result["benchmark"], result["protocol"]]
    items = [item_of(value) for value in result["items"]]
    rows: dict[str, dict] = {}
    for row, values in result["outcomes"].items():
        outcomes = [Outcome(**value) for value in values]
        mine = table(items, outcomes, result["protocol"])
        found = scorer((folder / repository).resolve(), items, outcomes, mine)
        rows[row] = {name: found[name] for name in ("equal", "numbers")}
    return rows
