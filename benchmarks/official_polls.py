"""Official code that polls, on scripted answers: OVO-Bench, StreamingBench, and the probes of OmniPro."""

import contextlib
import importlib
import io
import json
import os
import random
import re
import runpy
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..data import omnipro, ovo_bench, streamingbench
from ..data.benchmark_items import Item
from ..data.benchmark_sources import entries
from ..evaluation.benchmarks import omnipro_answers
from .official_answers import LONG, compare, pick, polled, stand_in, table
from .official_samples import omnipro_samples

WORDS = ["", "No", "Yes", "N", "Y", "yes", "no.", "YES", "Nothing is seen.", "Yesterday", "No, yes", "I don't know"]


def items_of(module: Any, path: Path, duration: float = LONG) -> list[Item]:
    return [source.make("video.mp4", duration) for source in module.sources(entries(path), path)]


def ovo(clone: Path) -> dict:
    """`OVOBenchOffline.eval`, then `OVOBenchOfflineScore.score`, on all items of the published file."""
    sys.path.insert(0, str(clone))
    evaluation = importlib.import_module("utils.OVOBench")
    path = clone / "data" / "ovo_bench_new.json"
    items = items_of(ovo_bench, path)

    def answer(item: Item, number: int, text: str) -> str:
        seed = (item.id, number)
        if item.kind == "choice":
            right = item.truth["answer"]
            letters = ["A", "B", "C", "D", "E"]
            return pick(seed, [right, f"{right}.", f" ({right}) so", "Because of it", "Dogs and Cats", "", *letters])
        if item.kind == "count":
            count = item.truth["counts"][number]
            return pick(
                seed, [str(count), f"{count} times", f"{count} or {count}", f"0{count}", "none", "", "1.0", "12"]
            )
        return pick(seed, WORDS)

    outcomes = [polled(item, answer) for item in items]
    scripted = {
        item.id if item.kind == "choice" else f"{item.id}_{number}": each
        for item, outcome in zip(items, outcomes, strict=True)
        for number, each in enumerate(outcome.answers)
    }
    same = 0

    class Model(evaluation.OVOBenchOffline):
        def inference(self, video_file_name, prompt, start_time=0, end_time=0):
            nonlocal same
            found = scripted[Path(video_file_name).stem]
            same += prompt == found["asked"]
            return found["text"]

    annotations = json.loads(path.read_text(encoding="utf-8"))
    parts = {
        name: [entry for entry in annotations if ovo_bench.GROUPS[entry["task"]] == group]
        for name, group in OVO_GROUPS.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        options = SimpleNamespace(chunked_dir=folder, result_dir=folder, model="scripted", save_results=True)
        for key in scripted:
            Path(folder, f"{key}.mp4").touch()  # the script asserts that its clips exist
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            Model(options).eval(parts, ["all"])
        results = json.loads(next(Path(folder, "scripted").iterdir()).read_text())
    ours = table(items, outcomes, "poll")
    found = compare(ovo_scores(clone, results), ours["official"], len(scripted), same, PRINTED)
    return found | {"strict": ours["strict"]}


OVO_GROUPS = {"backward": ovo_bench.BACKWARD, "realtime": ovo_bench.REAL_TIME, "forward": ovo_bench.FORWARD}
PRINTED = 0.005 + 1e-9  # official code prints two digits


def ovo_scores(clone: Path, results: dict) -> dict:
    """What `OVOBenchOfflineScore.score` prints. It ends with an error, before the total, if a group has no results."""
    sys.path.insert(0, str(clone))
    scorer = importlib.import_module("utils.OVOBenchScore").OVOBenchOfflineScore
    with contextlib.redirect_stdout(io.StringIO()) as stream, contextlib.suppress(UnboundLocalError):
        scorer(SimpleNamespace(model="scripted"), results).score()
    printed, official = stream.getvalue(), {}
    for task, value in re.findall(r"Task: (\w+), Acc: ([\d.]+)", printed):
        official.setdefault(ovo_bench.GROUPS[task], {})[task] = float(value)
    for name, group in zip(("Backward", "Realtime", "Forward"), OVO_GROUPS.values(), strict=True):
        if average := re.search(rf"{name} Avg.: ([\d.]+)", printed):
            official[group]["average"] = float(average[1])
    total = re.search(r"Total Avg.: ([\d.]+)", printed)
    return official | ({"overall": float(total[1])} if total else {})


def streaming(clone: Path) -> dict:
    """The three scripts of `src/benchmark`, then `count`, on all items of the four published files."""
    sys.path.insert(0, str(clone / "src"))
    stand_in("ffmpeg")  # only `split_video` uses it, which is replaced
    modules = {name: importlib.import_module(f"benchmark.{name}") for name in SCRIPTS.values()}
    official: dict = {}
    ours: dict = {}
    asked = same = 0
    for task, script in SCRIPTS.items():
        path = clone / "src" / "data" / f"questions_{task}.json"
        items = items_of(streamingbench, path)
        outcomes = [polled(item, streaming_answer) for item in items]
        queue = [each for outcome in outcomes for each in outcome.answers]
        asked += len(queue)
        following = iter(queue)

        class Model:
            @staticmethod
            def name():
                return "scripted"

            @staticmethod
            def Run(clip, prompt, following=following):
                nonlocal same
                found = next(following)
                same += (prompt, *clip) == (found["asked"], found["since"], found["time"])
                return found["text"]

        module, data = modules[script], json.loads(path.read_text(encoding="utf-8"))
        module.split_video = lambda video, start, end: (start, end)
        module.json = SimpleNamespace(dump=lambda *given, **options: None)  # it rewrites its output for each question
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            getattr(module, script)(data).eval(data, Model, os.devnull, -1)
        official[task] = streaming_counts(clone, task, data)
        ours[task] = streaming_tasks(table(items, outcomes, "poll"))
    return compare(official, ours, asked, same)


def streaming_counts(clone: Path, task: str, data: list) -> dict:
    """What `count` writes, in per cent."""
    count = runpy.run_path(str(clone / "src" / "data" / "count.py"))["count"]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        Path(folder, "answers.json").write_text(json.dumps(data))
        with contextlib.chdir(folder):
            count(SimpleNamespace(task=task, src="answers.json", model="scripted"))
            stats = json.loads(Path("scripted_stats.json").read_text())
    if task == "proactive":
        (name,) = stats
        return {name: 100 * stats[name]["answer_accuracy"], "in time": 100 * stats[name]["time_accuracy"]}
    return {name: 100 * each["accuracy"] for name, each in stats.items() if task == "real" or name != "total"}


def streaming_tasks(mine: dict) -> dict:
    """The tasks of our table under the names of the official one."""
    tables = [mine["official"], mine.get("with sound", {}).get("official", {"overall": None})]
    found = {"total": mine["official"]["overall"], "in time": mine.get("alerts in time")}
    return found | {name: value for each in tables for name, value in tasks_of(each).items() if name != "overall"}


SCRIPTS = {
    "real": "StreamingBench",
    "omni": "StreamingBench",
    "sqa": "StreamingBenchSQA",
    "proactive": "StreamingBenchProactive",
}


def streaming_answer(item: Item, number: int, text: str) -> str:
    seed = (item.id, number)
    if item.kind == "choice":
        right = item.truth["answer"]
        choices = [
            right,
            f"{right}. {item.options[0]}",
            f" {right}",
            f"({right})",
            "As seen",
            "Dogs",
            "A",
            "B",
            "C",
            "D",
        ]
        return pick(seed, [*choices, ""] if item.task == streamingbench.SEQUENTIAL else choices)  # others end `count`
    if text == item.truth["then_ask"]:
        output = item.truth["output"]
        return pick(seed, [output, f"The output is {output}.", output.upper(), "nothing", "yes", ""])
    near = abs(item.polls[number].time - item.truth["time"]) <= 3
    return pick(seed, ["No", "no", "no.", "Yes", " YES.", "Not yes"] if near else ["No", *["no"] * 8, "yes"])


def omnipro_probes(clone: Path) -> dict:
    """`ProbeEvaluator`, then `compute_all_metrics`, on samples of all nine tasks in the published schema, and the
    official parsers of answers on random words."""
    sys.path.insert(0, str(clone))
    stand_in("requests")
    evaluator = importlib.import_module("evaluators.probe_evaluator")
    metrics, prompts = importlib.import_module("metrics.probe"), importlib.import_module("utils.prompts")
    samples = omnipro_samples()
    items = [
        omnipro.source(sample, f"[{index}]").make("video.mp4", sample["duration"])
        for index, sample in enumerate(samples)
    ]
    outcomes = [polled(item, omnipro_answer) for item in items]
    following = iter([each for outcome in outcomes for each in outcome.answers])
    same = 0

    class Model:
        @staticmethod
        def name():
            return "scripted"

        @staticmethod
        def generate(prompt, clip):
            nonlocal same
            found = next(following)
            same += (prompt, clip) == (found["asked"], found["time"])
            return found["text"]

    evaluator.split_video = lambda video, start, end, folder: float(end)
    predictions = []
    for sample in samples:  # the official seed depends on Python's hash of a string
        draw = random.Random(f"{omnipro.SEED} {sample['id']}")
        evaluator.random = SimpleNamespace(Random=lambda seed, draw=draw: draw)
        predictions.append(evaluator.ProbeEvaluator(Model)._evaluate_gt_probe(sample))
    found = metrics.compute_all_metrics(predictions)
    official = {task: 100 * found[task]["paired_accuracy"] for task in omnipro.GROUPS}
    official["overall"] = 100 * found["overall"]["avg_f1"]
    mine = table(items, outcomes, "poll")
    ours = tasks_of(mine["official"])
    questions = sum(len(outcome.answers) for outcome in outcomes)
    result = compare(official, ours, questions, same, PRINTED)
    texts = [fuzzed(number) for number in range(20_000)]
    differing = [text for text in texts if not same_parse(prompts, text)]
    return result | {
        "answers read the same": f"{len(texts) - len(differing)} of {len(texts)}",
        "read differently": differing[:3],
        "equal": result["equal"] and not differing,
    }


def tasks_of(table: dict) -> dict:
    """The tasks of all groups of a table, and its total."""
    groups = [group for group in table.values() if isinstance(group, dict)]
    return {name: value for group in groups for name, value in group.items() if name != "average"} | {
        "overall": table["overall"]
    }


PIECES = [
    *("yes", "no", "YES:", "NO", "Position:", "position", "center", "top-left", "center-right", "bottom", "A", "B"),
    *("(C)", "I", "option", "answer is", "Answer:", "choice", "total of", "times", "count is", "3", "12", "0", "-4"),
    *(
        "0:21",
        "1:",
        "01:02:03",
        "playing",
        "not playing",
        "the",
        "A dog",
        ".",
        ",",
        "\n",
        ":",
        "response is",
        "select",
    ),
    *("d", "e.g.", "'5'"),
]
STATES = ["playing", "not playing", "Paused"]


def fuzzed(number: int) -> str:
    draw = random.Random(number)
    return draw.choice(["", " "]).join(draw.choice(PIECES) + draw.choice(["", " "]) for _ in range(draw.randint(0, 7)))


def same_parse(prompts: Any, text: str) -> bool:
    alert, count = prompts.parse_response("instant_event_alert", text), prompts.parse_response("dedup_counting", text)
    grounded, shot = (
        prompts.parse_response(name, text) for name in ("explicit_target_grounding", "snapshot_counting")
    )
    state = prompts.parse_response("realtime_state_monitor", text, states=STATES)
    letter = prompts.parse_response("event_narration", text)
    yes = omnipro_answers.says_yes(text)
    return (
        alert["triggered"] == yes
        and count.get("count") == omnipro_answers.total(text)
        and state["state"] == omnipro_answers.state(text, STATES)
        and letter["choice"] == omnipro_answers.letter(text)
        and (not yes or grounded.get("position") == omnipro_answers.region(text))
        and (not yes or shot.get("count") == omnipro_answers.snapshot(text))
    )


def omnipro_answer(item: Item, number: int, text: str) -> str:
    probe, seed = item.truth["probes"][number], (item.id, number)
    event, expected = item.truth["events"][probe["event"]], probe["expected"]
    if "options" in item.truth:
        right = chr(65 + expected)
        return pick(seed, [right, right, f"({right}) it is", f"The answer is {right}.", "A", "I think B", "none", ""])
    if item.task in ("cumulative_counting", "dedup_counting"):
        return pick(
            seed, [str(expected), str(expected), f"{expected} times at 0:12", f"1, then {expected}", "0", "no", ""]
        )
    if item.task == "realtime_state_monitor":
        return pick(seed, [expected, expected.upper(), f"It is {expected} now", *item.truth["states"], "unknown", ""])
    right = {
        "explicit_target_grounding": f"YES: seen. Position: {event['position']}",
        "snapshot_counting": f"YES: {event['count']}",
    }.get(item.task, "YES: seen")
    odd = ["NO", "yes", "The answer is YES, 4 at the top-left", "No. Yes!", "YES: 0:21, 3 in the center", ""]
    return pick(seed, [right if expected else "NO"] * 4 + [right, *odd])


RUNS = {
    "OVO-Bench, polls": ("OVO-Bench", ovo),
    "StreamingBench, polls": ("StreamingBench", streaming),
    "OmniPro, polls": ("OmniPro", omnipro_probes),
}
