"""OmniPro, `benchmark.json` or `metadata.jsonl`: alerts, counts, states and narrations that a stream calls for.

Fields: what `evaluators/`, `metrics/` and `utils/` of github.com/RuixiangZhao/OmniPro at 13aa8e5 read. The polls are
the official probe mode (`ProbeEvaluator._evaluate_gt_probe`): two for each event, at random times before and after it.
The official draw depends on Python's hash of the id, which differs from run to run; ours depends on the id alone. The
stream is the official online mode.
"""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import omnipro_prompts as prompts
from .annotations import need, seconds
from .benchmark_items import Item, Poll
from .benchmark_sources import Entry, Source, clock, objects, one_of, parsed, texts, video_names

BENCHMARK = "omnipro"
SEED = 42
GROUPS = {
    "instant_event_alert": "Perception",
    "realtime_state_monitor": "Perception",
    "snapshot_counting": "Perception",
    "explicit_target_grounding": "Perception",
    "event_narration": "Comprehension",
    "cumulative_counting": "Comprehension",
    "semantic_condition_alert": "Comprehension",
    "dedup_counting": "Reasoning",
    "sequential_step_instruction": "Reasoning",
}
KINDS = {
    "snapshot_counting": "count",
    "cumulative_counting": "count",
    "dedup_counting": "count",
    "realtime_state_monitor": "open",
    "event_narration": "narration",
    "sequential_step_instruction": "narration",
}
CHOSEN = ("event_narration", "sequential_step_instruction")  # polled with options, and only after the event
BEFORE = {"semantic_condition_alert": (-5,)}  # seconds from the event to a poll, one of these
AFTER = {"explicit_target_grounding": (0,), "snapshot_counting": (1,), "sequential_step_instruction": (2,)}
FACTS = ("count", "position", "state_from", "state_to", "response")
REQUIRED = {
    "explicit_target_grounding": ("position",),
    "snapshot_counting": ("count",),
    "cumulative_counting": ("count",),
    "dedup_counting": ("count",),
    "realtime_state_monitor": ("state_from", "state_to"),
    "event_narration": ("response",),
    "sequential_step_instruction": ("response",),
}
DEPENDENCE = ("required", "helpful", "none")


def sources(entries: Iterable[Entry], path: Path) -> Iterator[Source]:
    for where, entry in entries:
        yield source(entry, where)


def source(entry: dict, where: str) -> Source:
    task, question = one_of(entry, "task", GROUPS, where), need(entry, "question", str, where)
    name = str(need(entry, "id", (str, int), where))
    fields = [field for field in ("video_path", "video_id") if field in entry] or ["video_path"]
    videos = [one for field in fields for one in video_names(entry, field, where)]
    if isinstance(entry.get("ground_truth"), str):  # as the data set's viewer holds it
        entry = {**entry, "ground_truth": parsed(entry["ground_truth"], f"'ground_truth' of {where}")}
    events = [event_of(task, event, place) for place, event in objects(entry, "ground_truth", where)]
    sample = {**entry, "question": question, "ground_truth": events}
    if task == "realtime_state_monitor":
        named = {event[name] for event in events for name in ("state_from", "state_to")}
        sample["states"] = texts(entry, "states", where) if entry.get("states") else sorted(named)
    asked = clock(entry, "question_time", where) if isinstance(entry.get("question_time"), str) else 0.0
    sound = "audio_dependency" in entry and one_of(entry, "audio_dependency", DEPENDENCE, where) == "required"

    def make(video: str, duration: float) -> Item:
        polls, truth = probes(task, sample, duration, name)
        stream = Poll(float(min(asked, duration)), prompts.online(task, sample))
        kind = KINDS.get(task, "alert")
        return Item(
            BENCHMARK,
            name,
            GROUPS[task],
            task,
            video,
            kind,
            polls,
            stream,
            duration,
            {"question": question, "events": events, "states": sample.get("states", []), **truth},
            tuple(truth.get("options", ())),
            sound,
        )

    return Source(tuple(videos), max(event["time"] for event in events), make)


def event_of(task: str, event: dict, where: str) -> dict:
    found = {"time": seconds(event, "trigger_time_sec", where)}
    for name in REQUIRED.get(task, ()):
        need(event, name, int if name == "count" else str, where)
    return found | {name: event[name] for name in FACTS if event.get(name) is not None}


def probes(task: str, sample: dict, duration: float, name: str) -> tuple[tuple[Poll, ...], dict]:
    """The polls, and for each which event it is about, whether it comes before it, and what is expected."""
    draw, events = random.Random(f"{SEED} {name}"), sample["ground_truth"]
    truth: dict = {"probes": []}
    if task in CHOSEN:
        order = list(range(len(events)))
        draw.shuffle(order)
        truth["options"] = [events[index]["response"] for index in order]
    polls = []
    for index, event in enumerate(events):
        for early in (True, False):
            if early and task in CHOSEN:
                continue
            offsets = BEFORE.get(task, (-5, -4, -3, -2)) if early else AFTER.get(task, (0, 1, 2, 3))
            time = min(max(1.0, event["time"] + draw.choice(offsets)), duration)
            polls.append(Poll(float(int(time)), text_of(task, sample, time, index, truth.get("options", []))))
            expected = order.index(index) if task in CHOSEN else expectation(task, event, index, early)
            truth["probes"].append({"event": index, "early": early, "expected": expected})
    return tuple(polls), truth


def expectation(task: str, event: dict, index: int, early: bool):
    if task in ("cumulative_counting", "dedup_counting"):
        return index if early else index + 1
    if task == "realtime_state_monitor":
        return event["state_from"] if early else event["state_to"]
    return not early


def text_of(task: str, sample: dict, time: float, before: int, options: list[str]) -> str:
    if task == "event_narration":
        return prompts.narration(sample, time, options)
    if task == "sequential_step_instruction":
        return prompts.next_step(sample, time, options)
    if task == "realtime_state_monitor":
        return prompts.state(sample, time)
    if task == "cumulative_counting":
        return prompts.cumulative(sample, time)
    if task == "dedup_counting":
        return prompts.distinct(sample, time)
    if task == "snapshot_counting":
        return prompts.snapshot(sample, time, before)
    if task == "explicit_target_grounding":
        return prompts.grounding(sample, time, before)
    return prompts.alert(sample, time, before, "condition" if task == "semantic_condition_alert" else "event")
