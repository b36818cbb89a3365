"""OmniPro: pairs of polls before and after an event, and alerts of a stream.

The official definition of polls is `_evaluate_gt_probe` in `evaluators/probe_evaluator.py` and
`_compute_gt_probe_metrics` in `metrics/probe/aggregator.py` of github.com/RuixiangZhao/OmniPro at 13aa8e5: an event is
right if the answers before and after it are (`paired_accuracy`); narrations and steps, which have options, are polled
after it alone. A task is the mean of its events, the total the mean of the tasks (`avg_f1`).

That of streams is `score_sample` and `_aggregate_samples` in `scripts/compute_online_metrics.py`, and `metrics/online/
scorer.py`:

- what is said at most two seconds after the last words is a part of them, at their first time
  (`_merge_continuation_fragments` in `evaluators/online_evaluator.py`);
- utterances and events at most three seconds apart are matched, the closest first, each once (`match_emits_to_gt`);
- what a matched utterance says must be right (`_score_content`): a region, a number, for running counts the number
  that is true when it is said, or a state; a judge reads narrations and steps, and 3 of 5 passes; alerts need only be
  in time;
- a task is the F1 of utterances that are in time and right over all its events (`joint_f1`), the total the mean of the
  tasks that need no judge, or have one (`macro_joint_f1`).

Strictly, an answer must have the form that the prompt asks for, each utterance stands alone and must come at most
three seconds after its event and not before it, and a judge must give 4 of 5.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from ...data.benchmark_items import Item
from . import omnipro_answers as answers
from .asked_in_order import AskedInOrder, of_hits, texts_of
from .outcome import Outcome, PollOrStream
from .reading import Scores, apart, by, hits, mean, per_cent, plain, since, strict_letter, strict_number

TOLERANCE = 3.0  # seconds
GAP = 2.0
PASS = {"official": 3, "strict": 4}
RUNNING = ("cumulative_counting", "dedup_counting")
JUDGED = ("event_narration", "sequential_step_instruction")
JUDGE = (
    "You are evaluating the quality of a streaming video assistant's response.\n\nTask context: The user is watching "
    "a video stream and asked the assistant to monitor for specific events/conditions. When triggered, the assistant "
    "should provide an accurate and relevant response.\n\nUser's original question: {question}\n\n"
    "Ground truth (what actually happened): {truth}\n\nModel's prediction: {said}\n\n"
    "Rate the model's response on a scale of 1-5:\n"
    "- 5: Perfect match — captures the same event/information accurately\n"
    "- 4: Good — mostly correct, minor differences in detail\n"
    "- 3: Acceptable — captures the right event but with notable inaccuracies\n"
    "- 2: Poor — partially relevant but significantly wrong or vague\n"
    "- 1: Wrong — completely irrelevant or describes wrong event\n\n"
    'Respond with ONLY a JSON object: {{"score": <int>, "explanation": "<brief reason>"}}'
)
COUNTS = ("in_time", "right", "false", "missed")


class OmniPro(AskedInOrder):
    max_new_tokens = 256

    def judge_prompts(self, item: Item, outcome: Outcome) -> list[dict]:
        """For the narrations and steps of a stream that were said in time; `name` is the number of the event."""
        if item.task not in JUDGED or outcome.answers:
            return []
        said, events = merged(outcome.said, item), item.truth["events"]
        prompts = []
        for index, event in sorted(matched(said, events, early=TOLERANCE), key=lambda pair: pair[1]):
            facts = {"truth": events[event]["response"], "said": said[index]["text"].strip()}
            text = JUDGE.format(question=item.truth["question"], **facts)
            prompts.append({"name": str(event), "prompt": text} | facts)
        return prompts

    def read_verdict(self, name: str, text: str) -> float:
        """The `score` of the JSON object in a reply, 0 to 5."""
        match = re.search(r"\{.*\}", text, re.DOTALL)
        try:
            return float(max(0, min(5, int(json.loads(match[0] if match else "").get("score", 0)))))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"no JSON object with a score in {text!r}") from error

    def score(self, item: Item, outcome: Outcome, protocol: PollOrStream) -> dict:
        return polled(item, outcome) if protocol == "poll" else self.streamed(item, outcome)

    def streamed(self, item: Item, outcome: Outcome) -> dict:
        needed = {prompt["name"] for prompt in self.judge_prompts(item, outcome)}
        verdicts = {verdict["name"]: verdict["value"] or 0.0 for verdict in outcome.verdicts}
        waiting = not needed <= set(verdicts)
        result: dict[str, Any] = {}
        for reading in PASS:
            strict = reading == "strict"
            said = since(outcome.said, item.stream.time) if strict else merged(outcome.said, item)
            said, events = [one for one in said if one["text"].strip()], item.truth["events"]
            pairs = matched(said, events, early=0.0 if strict else TOLERANCE)
            right = sum(
                verdicts.get(str(event), 0.0) >= PASS[reading]
                if item.task in JUDGED
                else says(item, said[index], events[event], strict)
                for index, event in pairs
            )
            counts = {"in_time": len(pairs), "right": None if waiting else right}
            counts |= {"false": len(said) - len(pairs), "missed": len(events) - len(pairs)}
            result |= {reading: f1(counts), f"{reading}_counts": counts}
        return result

    def summarise(self, items: list[Item], scores: list[dict]) -> dict:
        streams = any("official_counts" in score for score in scores)
        return apart(items, scores, table_of(joint if streams else events_right))


def polled(item: Item, outcome: Outcome) -> dict:
    texts = texts_of(outcome, len(item.polls))
    found: dict[int, list[tuple[bool, bool]]] = {}
    for text, probe in zip(texts, item.truth["probes"], strict=True):
        found.setdefault(probe["event"], []).append(
            (right(item, text or "", probe), strictly(item, text or "", probe))
        )
    return of_hits(*([float(all(each[reading] for each in found[event])) for event in found] for reading in (0, 1)))


def right(item: Item, text: str, probe: dict) -> bool:
    """Whether the answer to a poll is right, as the official code reads it."""
    expected, event = probe["expected"], item.truth["events"][probe["event"]]
    if item.task in JUDGED:
        return answers.letter(text) == chr(65 + expected)
    if item.task in RUNNING:
        return answers.total(text) == expected
    if item.task == "realtime_state_monitor":
        found = answers.state(text, item.truth["states"])
        return found is not None and found.lower() == expected.lower()
    if not answers.says_yes(text) or probe["early"]:
        return answers.says_yes(text) == expected
    if item.task == "explicit_target_grounding":
        return answers.region(text) == event["position"].lower()
    return item.task != "snapshot_counting" or answers.snapshot(text) == event["count"]


def strictly(item: Item, text: str, probe: dict) -> bool:
    """Whether the answer to a poll is right and has the form that was asked for."""
    expected, event = probe["expected"], item.truth["events"][probe["event"]]
    if item.task in JUDGED:
        return strict_letter(text, item.options) == chr(65 + expected)
    if item.task in RUNNING:
        return strict_number(text) == expected
    if item.task == "realtime_state_monitor":
        return plain(text) == plain(expected)
    if probe["early"]:
        return plain(text) == "no"
    match = re.fullmatch(r"yes\b[:,.]?\s*(.*)", text.strip(), re.IGNORECASE | re.DOTALL)
    if match is None or item.task not in ("explicit_target_grounding", "snapshot_counting"):
        return match is not None
    if item.task == "snapshot_counting":
        return strict_number(match[1]) == event["count"]
    place = re.fullmatch(r"(?:.*\W)?position:\s*([a-z-]+)\.?", match[1].strip().lower(), re.DOTALL)
    return place is not None and place[1] == event["position"].lower()


def merged(said: list[dict], item: Item) -> list[dict]:
    """What was said since the question, pieces in quick succession as one."""
    whole: list[dict] = []
    last = 0.0
    for one in since(said, item.stream.time):
        if not one["text"].strip():
            continue
        if whole and one["time"] - last <= GAP:
            whole[-1] = whole[-1] | {"text": f"{whole[-1]['text']} {one['text']}"}
        else:
            whole.append(one)
        last = one["time"]
    return whole


def matched(said: list[dict], events: list[dict], early: float) -> list[tuple[int, int]]:
    """Pairs of an utterance and an event, the closest first, each in one pair at most.

    Args:
        early (`float`): seconds by which an utterance may come before its event.
    """
    close = sorted(
        (abs(one["time"] - event["time"]), index, number)
        for index, one in enumerate(said)
        for number, event in enumerate(events)
        if -early <= one["time"] - event["time"] <= TOLERANCE
    )
    pairs: list[tuple[int, int]] = []
    for _, index, number in close:
        if all(index != one and number != other for one, other in pairs):
            pairs.append((index, number))
    return pairs


def says(item: Item, one: dict, event: dict, strict: bool) -> bool:
    """Whether an utterance in time is right."""
    if item.kind == "alert" and item.task != "explicit_target_grounding":
        return True
    text = one["text"]
    if item.task == "explicit_target_grounding":
        found = answers.streamed_region(text)
        if strict:
            match = re.search(r"position:\s*([a-z-]+)\.?$", text.strip().lower())
            found = match[1] if match else None
        return found == event["position"].lower().strip()
    if item.task == "realtime_state_monitor":
        return (plain if strict else answers.streamed_state)(text) == event["state_to"].lower().strip()
    number = strict_number(text) if strict else answers.streamed_number(text)
    if item.task in RUNNING:
        events = sorted(item.truth["events"], key=lambda each: each["time"])
        true = [each["count"] for each in events if each["time"] <= one["time"] + 1e-6]
        return bool(true) and number == true[-1]
    return number == event["count"]


def f1(counts: dict) -> float | None:
    """Of utterances that are in time and right."""
    if counts["right"] is None:
        return None
    precision = counts["right"] / max(counts["in_time"] + counts["false"], 1)
    recall = counts["right"] / max(counts["in_time"] + counts["missed"], 1)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def joint(pairs: Scores, reading: str) -> float | None:
    counts = [score[f"{reading}_counts"] for _, score in pairs]
    if any(each["right"] is None for each in counts):
        return None
    return per_cent(f1({name: sum(each[name] for each in counts) for name in COUNTS}))


def events_right(pairs: Scores, reading: str) -> float | None:
    return per_cent(mean(hits(pairs, reading)))


def table_of(value: Callable[[Scores, str], float | None]) -> Callable[[Scores, str], dict[str, Any]]:
    """A table in which a group, and all, is the mean of its tasks; tasks that wait for a judge are left out of it."""

    def table(pairs: Scores, reading: str) -> dict[str, Any]:
        result: dict[str, Any] = {}
        values: list[float | None] = []
        for group, of_group in by(pairs, "group").items():
            tasks = {task: value(of_task, reading) for task, of_task in by(of_group, "task").items()}
            values += tasks.values()
            result[group] = tasks | {"average": mean(one for one in tasks.values() if one is not None)}
        return result | {"overall": mean(one for one in values if one is not None)}

    return table
