"""Official code that reads streams or asks a judge, on scripted answers: OmniPro, OmniMMI, LiveSports-3K-CC, and a
port of that of ProactiveVideoQA."""

import contextlib
import importlib
import io
import json
import random
import re
import runpy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..data import livesports_3k, omnimmi_pa, omnipro, proactivevideoqa
from ..data.benchmark_items import Item
from ..data.benchmark_sources import entries
from ..evaluation.benchmarks import Outcome, omnipro_answers
from ..evaluation.benchmarks.omnipro import JUDGED
from .official_answers import LONG, compare, judged, pick, stand_in, table
from .official_polls import PRINTED, STATES, fuzzed, items_of, tasks_of
from .official_samples import omnipro_samples, proactive_annotations


def omnipro_streams(clone: Path) -> dict:
    """`OnlineEvaluator`, then `score_sample` and `_aggregate_samples`, with a scripted judge, on samples of all nine
    tasks, and the official parser of what was said on random words."""
    sys.path[:0] = [str(clone), str(clone / "scripts")]
    stand_in("requests")
    evaluator = importlib.import_module("evaluators.online_evaluator")
    base, scoring = importlib.import_module("models.streaming_base"), importlib.import_module("compute_online_metrics")
    parser = importlib.import_module("utils.online_parser")
    evaluator._extract_all_frames = lambda video, duration, fps: {}
    samples = omnipro_samples()
    pairs = enumerate(samples)
    items = [omnipro.source(sample, f"[{index}]").make("video.mp4", sample["duration"]) for index, sample in pairs]
    said = {item.id: omnipro_said(item) for item in items}
    same = 0

    class Model(base.StreamingModel):
        def name(self):
            return "scripted"

        def begin(self, instruction, task_meta):
            nonlocal same
            self.item = next(item for item in items if item.id == task_meta["id"])
            same += instruction == self.item.stream.text
            self.said = {one["time"]: one["text"] for one in said[self.item.id]}

        def observe(self, frame, t_sec, history, audio_chunk=None):
            return self.said.get(t_sec)

        def end(self):
            pass

    def verdict(truth: str, prediction: str) -> int:
        return random.Random(f"{truth}|{prediction}").randint(0, 5)

    predictions = [evaluator.OnlineEvaluator(Model())._run_sample(sample) for sample in samples]
    numbers = omnipro_scores(scoring, predictions, lambda truth, text: {"score": verdict(truth, text)})

    def reply(prompt: str) -> str:
        found = re.search(r"happened\): (.*?)\n\nModel's prediction: (.*?)\n\nRate", prompt, re.DOTALL)
        return f'Here: {{"score": {verdict(*found.groups())}, "explanation": "scripted"}}'

    outcomes = [judged(item, Outcome(item.id, said=said[item.id]), reply) for item in items]
    mine = table(items, outcomes, "stream")
    result = compare(numbers, tasks_of(mine["official"]), len(items), same, PRINTED)
    texts = [fuzzed(number) for number in range(20_000)]
    differing = [text for text in texts if text.strip() and not same_parse(parser, text)]
    return result | {
        "answers read the same": f"{len(texts) - len(differing)} of {len(texts)}",
        "equal": result["equal"] and not differing,
    }


def omnipro_scores(scoring: Any, predictions: list[dict], judge: Callable[[str, str], dict] | None) -> dict:
    """What `_aggregate_samples` and `_macro_overall` find, in per cent; a task that waits for a judge has none."""
    official: dict = {}
    for task in dict.fromkeys(each["task"] for each in predictions):
        ask = (lambda question, truth, text: judge(truth, text)) if judge and task in JUDGED else None
        scored = [scoring.score_sample(each, 3.0, gpt_judge=ask) for each in predictions if each["task"] == task]
        official[task] = scoring._aggregate_samples(scored)
    numbers = {task: each["joint_f1"] for task, each in official.items()}
    numbers["overall"] = scoring._macro_overall(official)["macro_joint_f1"]
    return {name: None if value is None else 100 * value for name, value in numbers.items()}


def same_parse(parser: Any, text: str) -> bool:
    def parse(task: str) -> dict:
        return parser.parse_streaming_output(text, task)

    return (
        parse("snapshot_counting")["count"] == omnipro_answers.streamed_number(text)
        and parse("explicit_target_grounding")["position"] == omnipro_answers.streamed_region(text)
        and parse("realtime_state_monitor")["state"].strip() == omnipro_answers.streamed_state(text)
    )


def omnipro_said(item: Item) -> list[dict]:
    """What a scripted model says at whole seconds: around each event, and sometimes for no reason."""
    draw, said = random.Random(item.id), {}
    for event in item.truth["events"]:
        texts = [
            event["response"],
            str(event.get("count")),
            f"{event.get('count')} at 0:12",
            event["state_to"],
            "'Paused'",
        ]
        texts += [f"Seen. Position: {event['position']}", "center", "7", *STATES]
        for _ in range(draw.randint(0, 2)):
            said[float(max(0, event["time"] + draw.randint(-5, 5)))] = draw.choice(texts)
    for _ in range(draw.randint(0, 3)):
        said[float(draw.randint(0, 100))] = draw.choice(["something", "3", "playing", " "])
    return [{"time": time, "text": said[time], "kind": "answer"} for time in sorted(said) if time <= item.end]


def omnimmi(clone: Path) -> dict:
    """`online_inference`, then the part `pa` of `evaluate.py`, on all items of the published file."""
    importlib.import_module("transformers")  # it looks for torchvision itself
    stand_in("torchvision")
    sys.path.insert(0, str(clone / "evaluations"))
    inference = importlib.import_module("online_inference_utils")
    inference.logger.setLevel("ERROR")
    inference.ffmpeg_once = lambda *given, **options: None
    path, rate = clone / "omnimmi" / "proactive_alerting.json", 2
    items = items_of(omnimmi_pa, path, 200.0)
    said, same = [omnimmi_said(item) for item in items], 0
    asked = {item.stream.text: each for item, each in zip(items, said, strict=True)}

    class Model:
        frame_fps, frame_resolution, video_duration, device = rate, 384, 200, "cpu"
        video_time = 0.0

        def load_video(self, path):
            pass

        def reset(self):
            pass

        def input_query_stream(self, query):
            nonlocal same
            same += query in asked
            self.times = {one["time"] for one in asked[query]}

        def input_video_stream(self, time):
            self.video_time = time

        def __call__(self):
            return None, "Now!" if self.video_time in self.times else None, self.video_time

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        inference.online_inference(Model(), "scripted", "pa", str(path), 1, 0, folder, folder)
        lines = Path(folder, "pa_scripted_0.json").read_text()
    official = omnimmi_scores(clone, lines)
    mine = table(items, [Outcome(item.id, said=each) for item, each in zip(items, said, strict=True)], "stream")
    return compare(official, alerts_of(mine), len(items), same) | {"strict": mine["strict"]["overall"]}


def omnimmi_scores(clone: Path, lines: str) -> dict:
    """What `evaluate.py` prints, in per cent."""
    stand_in("dotenv", load_dotenv=lambda: None)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
        Path(folder, "answers.json").write_text(lines)
        arguments = ["--model_name", "M4Online", "--benchmark_name", "pa", "--output_dir", folder]
        sys.argv = ["evaluate.py", *arguments, "--pred_path", str(Path(folder, "answers.json"))]
        runpy.run_path(str(clone / "evaluations" / "evaluate.py"), run_name="__main__")
    names = {"overall": "Accuracy", "precision": "precision", "iou": "IoU"}
    return {
        name: 100 * float(re.search(rf"Average {label}:\s+([\d.e-]+)", printed.getvalue())[1])
        for name, label in names.items()
    }


def alerts_of(mine: dict) -> dict:
    return {"overall": mine["official"]["overall"], "precision": mine["precision"], "iou": mine["iou"]}


def omnimmi_said(item: Item) -> list[dict]:
    draw, (start, end) = random.Random(item.id), item.truth["span"]
    times = [draw.randint(0, 399) / 2 for _ in range(draw.randint(0, 3))]
    times += [draw.choice([start, end, (start + end) / 2, 0.5])] if draw.random() < 0.6 else []
    times = [int(2 * time) / 2 for time in times]
    return [{"time": time, "text": "Now!", "kind": "answer"} for time in sorted(set(times))]


def livesports(clone: Path) -> dict:
    """`llm_judge.py` with a scripted judge, on the published commentaries of LiveCC-7B-Instruct and GPT-4o; and our
    scorer on the published verdicts of GPT-4o, whose result is in `judges/log.txt`."""
    home, model = clone / "evaluation" / "livesports3kcc", "LiveCC-7B-Instruct"
    baseline = livesports_3k.read_baseline(entries(home / "captions" / "GPT-4o.jsonl"))
    predictions = [json.loads(line) for line in (home / "livecc" / f"{model}.jsonl").read_text().splitlines()]
    rows = [
        {name: str(each[name]) for name in ("video_id", "event_id", "begin", "end")}
        | {"video": f"{each['video_id']}.mp4", "event_asr_text": f"What a human said of {each['video_id']}."}
        for each in predictions
    ]
    found = ((f"line {number}", row) for number, row in enumerate(rows, start=2))
    items = [source.make("v.mp4", LONG) for source in livesports_3k.sources(found, Path("test.csv"), baseline)]
    # a stream that says all at once, without the dots that joining its pieces adds
    said = [
        [{"time": each["end"], "text": each["pred"].removesuffix("..."), "kind": "narration"}] for each in predictions
    ]
    seen: set[str] = set()

    def reply(prompt: str) -> str:
        choices = ["Commentary A is better", "Commentary B is better", "Commentary B, not Commentary A", "Neither."]
        return pick(prompt, choices)

    class Client:
        def __init__(self, **options):
            self.chat = SimpleNamespace(completions=self)

        def create(self, messages, **options):
            prompt = messages[0]["content"][0]["text"]
            seen.add(prompt)
            message = SimpleNamespace(content=reply(prompt))
            return SimpleNamespace(choices=[SimpleNamespace(message=message)])

    events = [row | {"event_id": int(row["event_id"])} for row in rows]
    stand_in("openai", AzureOpenAI=Client)
    stand_in("datasets", load_dataset=lambda *given, **options: events)
    sys.path.insert(0, str(clone))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(clone):
        sys.argv = ["llm_judge.py", "--model_id", model, "--output_dir", folder]
        sys.argv += ["--prediction_jsonl", str(home / "livecc" / f"{model}.jsonl")]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            runpy.run_path(str(home / "llm_judge.py"), run_name="__main__")
        official = float(re.search(r"([\d.]+)%", Path(folder, "log.txt").read_text())[1])
    ours = [judged(item, Outcome(item.id, said=each), reply) for item, each in zip(items, said, strict=True)]
    prompts = [verdict for outcome in ours for verdict in outcome.verdicts]
    published = published_verdicts(home, model, items, said)
    logged = float(re.search(rf"{model} vs. GPT-4o: ([\d.]+)", (home / "judges" / "log.txt").read_text())[1])
    numbers = {"scripted judge": official, "published verdicts": logged}
    mine = {
        "scripted judge": table(items, ours, "stream")["official"]["overall"],
        "published verdicts": table(items, published, "stream")["official"]["overall"],
    }
    asked = {
        prompt["prompt"]
        for item, outcome in zip(items, ours, strict=True)
        for prompt in livesports_prompts(item, outcome)
    }
    return compare(numbers, mine, len(prompts), len(prompts) if asked == seen else len(asked & seen), 0.005 + 1e-9)


def livesports_prompts(item: Item, outcome: Outcome) -> list[dict]:
    from ..evaluation.benchmarks import BENCHMARKS

    return BENCHMARKS["livesports-3k"].judge_prompts(item, outcome)


def published_verdicts(home: Path, model: str, items: list[Item], said: list[list[dict]]) -> list[Outcome]:
    winners = {}
    for line in (home / "judges" / f"GPT-4o_{model}.jsonl").read_text().splitlines():
        verdict = json.loads(line)
        winners[verdict["video_event_id"]] = verdict
    outcomes = []
    for item, each in zip(items, said, strict=True):
        won = {order: winners[item.id][f"{order}_winner"] == model for order in ("ab", "ba")}
        texts = {order: f"Commentary {'A' if won[order] == (order == 'ab') else 'B'} is better" for order in won}
        verdicts = [{"name": order, "text": texts[order], "value": float(won[order])} for order in won]
        outcomes.append(Outcome(item.id, said=each, verdicts=verdicts))
    return outcomes


def proactive(clone: Path) -> dict:
    """The port of PAUC that VideoChat3 has, with a scripted judge, on annotations in the published schema. The
    official code could not be read."""
    annotations = proactive_annotations()
    numbered = enumerate(annotations)
    items = [
        proactivevideoqa.source(each, f"[{index}]", "WEB").make("v.mp4", each["duration"]) for index, each in numbered
    ]
    said = [proactive_said(item) for item in items]
    asked: set[str] = set()

    def reply(prompt: str) -> str:
        asked.add(prompt)
        return pick(prompt, ["1", "2", "3", "Score: 2", "3 of 3", "1 or 2?", "none"])

    numbers = proactive_scores(clone, items, said, reply)
    questions = set(asked)
    outcomes = [judged(item, Outcome(item.id, said=each), reply) for item, each in zip(items, said, strict=True)]
    mine = table(items, outcomes, "stream")
    same = len(questions) if asked == questions else len(asked & questions) - 1
    return compare(numbers, omegas_of(mine), len(questions), same, PRINTED) | {"strict": mine["strict"]["overall"]}


def omegas_of(mine: dict) -> dict:
    tables = [mine["official"], mine.get("with sound", {}).get("official", {"overall": None})]
    (half,) = [each["overall"] for each in tables if each["overall"] is not None]
    return {"omega 0": mine["omega_0"], "omega 0.5": half, "omega 1": mine["omega_1"]}


def proactive_scores(clone: Path, items: list[Item], said: list[list[dict]], reply: Callable[[str], str]) -> dict:
    """What `ProactiveVideoQA.evaluate` of the port finds, in per cent, with a judge that says `reply(prompt)`."""
    import pandas

    stand_in("vlmeval")
    stand_in("vlmeval.dataset", __path__=[str(clone / "vlmevalkit-videochat3" / "vlmeval" / "dataset")])
    stored: dict = {}
    logger = SimpleNamespace(info=lambda text: None, warning=lambda text: None)
    stand_in("vlmeval.smp", LMUDataRoot=None, load=stored.__getitem__, dump=None, get_logger=lambda name: logger)
    stand_in("vlmeval.smp.file", get_intermediate_file_path=lambda *given: "cache")

    def ask_all(ask, tasks, nproc, save, keys):
        stored[save] = {key: ask(*task) for key, task in zip(keys, tasks, strict=True)}

    class Judge:
        @staticmethod
        def working():
            return True

        @staticmethod
        def generate(message, dataset):
            return reply(message[0]["value"])

    stand_in("vlmeval.utils", track_progress_rich=ask_all)
    stand_in("vlmeval.dataset.video_base", VideoBaseDataset=object)
    stand_in("vlmeval.dataset.utils", build_judge=lambda **options: Judge, DEBUG_MESSAGE="")
    sys.modules.pop("vlmeval.dataset.proactive_videoqa", None)  # it has imported the judge of the row before
    port = importlib.import_module("vlmeval.dataset.proactive_videoqa")
    rows, records = [], []
    for item, each in zip(items, said, strict=True):
        answers = [
            {"content": one["content"], "reply_timespan": one["reply"], "related_timespan": one["related"]}
            for one in item.truth["answers"]
        ]
        conversation = json.dumps([{"content": item.truth["question"]}])
        rows.append({"question_id": item.id, "conversation_json": conversation, "answer_json": json.dumps(answers)})
        spoken = [{"answerable": "Yes", "model_response": one["text"], "video_span": [0, one["time"]]} for one in each]
        records.append(json.dumps({"question_id": item.id, "records": spoken}))
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "answers.json"))
        stored[file] = pandas.DataFrame({"prediction": records})
        dataset = object.__new__(port.ProactiveVideoQA)
        dataset.data, dataset.dataset_name = pandas.DataFrame(rows), "ProactiveVideoQA_WEB"
        found = dataset.evaluate(file)
    return {"omega 0": found["omega=0"], "omega 0.5": found["omega=0.5"], "omega 1": found["omega=1"]}


def proactive_said(item: Item) -> list[dict]:
    draw, last = random.Random(item.id), int(item.end)
    times = sorted(draw.sample(range(1, last + 1), min(last, draw.randint(0, 8))))
    texts = ["It is a dog.", "It runs.", "A red ball.", "Nothing new."]
    return [{"time": float(time), "text": draw.choice(texts), "kind": "answer"} for time in times]


RUNS = {
    "OmniPro, streams": ("OmniPro", omnipro_streams),
    "OmniMMI, proactive alerting": ("OmniMMI", omnimmi),
    "LiveSports-3K-CC": ("livecc", livesports),
    "ProactiveVideoQA, a port": ("VideoChat3", proactive),
}
