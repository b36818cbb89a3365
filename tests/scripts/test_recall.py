"""The measurement of recall: ages and intervals, and real sessions with every memory."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
from small_data import small_model

from videollm_mod.benchmarks import recall
from videollm_mod.data.world import world_stream
from videollm_mod.data.world_minutes import QUESTIONS


@pytest.mark.parametrize("seed", range(12))
def test_questions_are_planned_for_each_age_said_and_not(seed):
    stream = world_stream(seed, "minutes")
    plan = recall.plan(stream, tuple(QUESTIONS))
    assert plan == recall.plan(stream, tuple(QUESTIONS))
    assert [x.time for _, x in plan] == sorted(x.time for _, x in plan)
    counts = Counter((age, x.said) for age, x in plan)
    assert len(counts) > 2 and max(counts.values()) == recall.EACH
    for age, asked in plan:
        assert abs(asked.age - age) <= recall.NEAR * age and asked.age <= asked.time < stream.seconds
        assert replace(asked, wording=0) in stream.askable(asked.time)


def self_worded(stream, asked):
    """What can be asked then, in the wording of this question."""
    return [
        type(x)(**{**vars(x), "wording": asked.wording}) for x in stream.askable(asked.time) if x.kind == asked.kind
    ]


def test_intervals_are_wilsons():
    """Against the values of R: `prop.test(8, 10, correct = FALSE)`, and of nothing and of all."""
    assert recall.interval(8, 10) == pytest.approx((49.0, 94.3), abs=0.05)
    assert recall.interval(0, 10) == pytest.approx((0.0, 27.8), abs=0.05)
    assert recall.interval(10, 10) == pytest.approx((72.2, 100.0), abs=0.05)


class Knowing:
    """A session that has seen the answers."""

    def __init__(self, stream):
        self.stream, self.stats, self.time = stream, SimpleNamespace(kv_bytes=5), None

    def instruct(self, text: str) -> None:
        self.instruction = text

    def push(self, frames, times):
        self.time = times[-1]
        assert len(frames) == len(times)
        return []

    def fork(self):
        return self

    def ask(self, text: str):
        known = {
            replace(x, wording=wording).text: x.answer
            for x in self.stream.askable(self.time)
            for wording in range(len(QUESTIONS[x.kind]))
        }
        return [SimpleNamespace(text=known[text])]


def test_who_knows_the_answers_is_right():
    """So each question comes after its frame, and its answer is that of the stream."""
    for seed in range(5):
        stream = world_stream(seed, "minutes")
        model = SimpleNamespace(stream=lambda processor, stream=stream, **options: Knowing(stream))
        questions = [question for _, question in recall.plan(stream, tuple(QUESTIONS))]
        watched = recall.watch(model, None, stream, questions, {})
        assert all(watched["right"]) and watched["kv_bytes"] == 5
        assert watched["exact"][0] == 0 < watched["exact"][1]


def test_every_memory_is_measured_on_the_same_questions(tmp_path):
    model, processor = small_model(0)
    quick = {"speak_threshold": 0.0, "max_new_tokens": 3}
    bounded = {**quick, "max_cached_frames": 8, "max_cached_text": 60}
    bounds = {"everything": quick, "window": bounded, "router": {**bounded, "cache_policy": "router"}}
    seeds = [0, next(seed for seed in range(100) if world_stream(seed, "minute").hush)]
    rows = recall.measure(model, processor, "minute", seeds, bounds, tuple(QUESTIONS))
    counts = [
        [{age: x["count"] for age, x in row[way].items()} for way in ("said", "unsaid")] for row in rows.values()
    ]
    assert counts[0] == counts[1] == counts[2] and all(counts[0])
    assert rows["everything"]["max_kv_bytes"] is None
    for policy in ("window", "router"):
        assert rows[policy]["most_kv_bytes"] <= rows[policy]["max_kv_bytes"] < rows["everything"]["most_kv_bytes"]
    recall.plot(rows, tmp_path / "recall.png")
    assert (tmp_path / "recall.png").stat().st_size > 5000
