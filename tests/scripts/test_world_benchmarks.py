"""Stand-ins of the field's benchmarks: their files are read by `prepare`, and an exact judge reads each prompt."""

import pytest

from videollm_mod.benchmarks.world_benchmarks import prepare, verdict
from videollm_mod.benchmarks.world_items import MAKERS, World
from videollm_mod.data.benchmark_items import read_items
from videollm_mod.evaluation.benchmarks import BENCHMARKS, Outcome


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"), count=1)


@pytest.mark.parametrize("benchmark", MAKERS)
def test_a_stand_in_is_read_and_asked_in_the_world_s_words(world, benchmark):
    items = read_items(prepare(world, benchmark))
    assert {item.benchmark for item in items} == {benchmark} and all(item.polls for item in items)
    for item in items:
        if benchmark in ("ovo-bench", "streamingbench", "omnipro"):
            asked = [poll.text for poll in (*item.polls, item.stream)]
            assert all(text and "\n" not in text and "{" not in text for text in asked)
        if benchmark == "omnipro":
            assert item.truth["question"] == item.stream.text
        if item.task == "SSR":
            assert [poll.text for poll in item.polls] == [f"{step} Yes or no?" for step in item.truth["steps"]]
        if item.kind == "choice":
            assert len(item.options) == 4 and "\n" not in item.polls[0].text
            right = item.options["ABCD".index(item.truth["answer"])]
            outcome = Outcome(item.id, [{"time": item.polls[0].time, "text": right}])
            assert BENCHMARKS[benchmark].score(item, outcome, "poll")["strict"] == 1


def test_the_exact_judge_compares_texts(world):
    scores = {"proactivevideoqa": (2.0, 0.0), "omnipro": (5.0, 1.0), "livesports-3k": (1.0, 0.0)}
    for benchmark, (best, worst) in scores.items():
        scorer = BENCHMARKS[benchmark]
        item = next(item for item in read_items(prepare(world, benchmark)) if item.kind in ("open", "narration"))
        told = world.clips["basic"][0].events[: 1 if benchmark == "omnipro" else None]  # which joins what is close
        for texts, value in (([text for _, text in told], best), (["Something\nelse."] * len(told), worst)):
            said = [
                {"time": time, "text": text, "kind": "narration"} for (time, _), text in zip(told, texts, strict=True)
            ]
            prompts = scorer.judge_prompts(item, Outcome(item.id, said=said))
            assert prompts
            assert {scorer.read_verdict(each["name"], verdict(each["prompt"])) for each in prompts} == {value}
