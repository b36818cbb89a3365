"""Scorers of benchmarks on hand-made answers: each quirk of the official code, and the strict reading beside it."""

import json
import re

import pytest
from fresh_process import ROOT

from videollm_mod.data.benchmark_items import Item, Poll
from videollm_mod.evaluation.benchmarks import BENCHMARKS, Outcome
from videollm_mod.evaluation.benchmarks import omnipro_answers as parse
from videollm_mod.evaluation.benchmarks.proactivevideoqa import pauc
from videollm_mod.evaluation.benchmarks.reading import strict_letter, strict_number, strict_yes


def item(benchmark: str, kind: str, truth: dict, times=(5.0,), asked=0.0, options=(), **fields) -> Item:
    polls = tuple(Poll(time, f"poll {number}") for number, time in enumerate(times))
    given = {"id": "1", "group": "g", "task": "t", "video": "v.mp4", "end": max((*times, asked))} | fields
    return Item(
        benchmark=benchmark,
        kind=kind,
        polls=polls,
        stream=Poll(asked, "question"),
        truth=truth,
        options=tuple(options),
        **given,
    )


def answered(*texts: str, times=None) -> Outcome:
    times = times or [float(number) for number in range(len(texts))]
    return Outcome("1", answers=[{"time": time, "text": text} for time, text in zip(times, texts, strict=True)])


def said(*pairs: tuple[float, str]) -> Outcome:
    return Outcome("1", said=[{"time": time, "text": text, "kind": "answer"} for time, text in pairs])


def both(one: Item, outcome: Outcome, protocol: str = "poll") -> tuple[float, float]:
    score = BENCHMARKS[one.benchmark].score(one, outcome, protocol)
    return score["official"], score["strict"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" (B) ", "B"),
        ("B.", "B"),
        ("B) red", "B"),
        ("B. Red.", "B"),
        ("B blue", None),
        ("Bluish", None),
        ("b", None),
        ("D", None),
        ("A or B", None),
        ("", None),
    ],
)
def test_strict_letters(text, letter):
    assert strict_letter(text, ("blue", "red", "green")) == letter


def test_strict_numbers_and_words():
    assert [strict_number(text) for text in ("3", "3 times", "-1", "1 or 2", "1.5", "1,000", "three", "")] == [
        3,
        3,
        -1,
        *[None] * 5,
    ]
    assert [strict_yes(text) for text in ("Yes", " no. ", "“Yes”", "Y", "yes, he does", "")] == [
        True,
        False,
        True,
        *[None] * 3,
    ]


class TestOvoBench:
    choice = item("ovo-bench", "choice", {"answer": "B"}, asked=5.0, options=("blue", "red"))
    count = item("ovo-bench", "count", {"counts": [1, 12]}, times=(4.0, 8.0), task="REC")
    step = item("ovo-bench", "yes-no", {"steps": ["fry", "stir"], "types": [1, 0]}, times=(4.0, 8.0), task="SSR")
    clue_truth = {"types": [0, 1, 1], "clue_time": 5.0, "answer": "x"}
    clue = item("ovo-bench", "yes-no", clue_truth, times=(3.0, 6.0, 9.0), asked=3.0, task="CRR")

    def test_a_letter_counts_anywhere_in_the_answer(self):
        for text, right in (("B", (1, 1)), ("It is Blue", (1, 0)), ("A, not B", (1, 0)), ("b", (0, 0)), ("", (0, 0))):
            assert both(self.choice, answered(text)) == right
        assert both(self.choice, Outcome("1")) == (0, 0)

    def test_the_digits_of_a_count_are_joined(self):
        assert both(self.count, answered("1", "1 or 2")) == (1, 0.5)
        assert both(self.count, answered("1 jump.", "012")) == (0.5, 1)  # 012 is 12 as a number, and not as text
        assert both(self.count, answered("none")) == (0, 0)

    def test_yes_and_no_count_as_spelt(self):
        assert both(self.step, answered("Yes", "No")) == (1, 1)
        assert both(self.step, answered("Y", "N")) == (1, 0)
        assert both(self.step, answered("yes", "no")) == (0, 1)
        assert both(self.step, answered("Yes. No?", "Nothing")) == (1, 0)
        assert both(self.step, answered("Y.", "")) == (0, 0)

    def test_streams(self):
        assert both(self.choice, said((2.0, "B"), (5.0, "A")), "stream") == (0, 0)  # what came before the question
        assert both(self.choice, said((5.5, "B"), (6.0, "A")), "stream") == (1, 1)
        assert both(self.count, said((1.0, "1"), (7.0, "12"), (8.5, "13")), "stream") == (1, 1)
        assert both(self.count, said((5.0, "12")), "stream") == (0.5, 0.5)
        assert both(self.step, said((3.0, "Fry."), (7.0, "Stir.")), "stream") == (0.5, 0.5)
        assert both(self.step, said((3.0, "Now they fry.")), "stream") == (1, 0.5)
        assert both(self.step, Outcome("1"), "stream") == (0.5, 0.5)  # silence is no
        assert both(self.clue, said((5.5, "He leaves.")), "stream") == (1, 1)
        assert both(self.clue, said((4.0, "He leaves.")), "stream") == (1, pytest.approx(1 / 3))  # before the clue
        assert both(self.clue, said((7.0, "He leaves.")), "stream") == (pytest.approx(2 / 3),) * 2
        assert both(self.clue, said((3.0, "He leaves.")), "stream")[0] == pytest.approx(2 / 3)

    def test_tasks_groups_and_the_total_are_means_of_means(self):
        one, other = (item("ovo-bench", "choice", {"answer": "A"}, options="ab", task=task) for task in ("OCR", "STU"))
        items = [one, one, one, other, self.count]
        items[-1] = item("ovo-bench", "count", {"counts": [1, 2, 3, 4]}, times=(1.0, 2, 3, 4), group="h", task="REC")
        outcomes = [answered("A"), answered("A"), answered("C"), answered("C"), answered("1", "0", "0", "0")]
        benchmark = BENCHMARKS["ovo-bench"]
        scores = [benchmark.score(*pair, "poll") for pair in zip(items, outcomes, strict=True)]
        table = benchmark.summarise(items, scores)["official"]
        assert table["g"] == {"OCR": pytest.approx(200 / 3), "STU": 0.0, "average": pytest.approx(100 / 3)}
        assert table["h"] == {"REC": 25.0, "average": 25.0}
        assert table["overall"] == pytest.approx((100 / 3 + 25) / 2)


class TestStreamingBench:
    choice = item("streamingbench", "choice", {"answer": "A"}, asked=5.0, options=("one", "two", "three", "four"))
    truth = {"time": 4.0, "output": "Goal", "then_ask": "what?"}
    alert = item("streamingbench", "alert", truth, times=(2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0), asked=1.0)

    def test_the_first_character_counts(self):
        for text, right in (("A", (1, 1)), ("As seen", (1, 0)), (" A", (0, 1)), ("(A)", (0, 1)), ("", (0, 0))):
            assert both(self.choice, answered(text)) == right

    def test_an_empty_answer_to_a_sequential_question_is_not_counted(self):
        one = item("streamingbench", "choice", {"answer": "A"}, options="abcd", task="Sequential Question Answering")
        assert both(one, answered("")) == (None, 0)
        benchmark = BENCHMARKS["streamingbench"]
        scores = [benchmark.score(one, answered(text), "poll") for text in ("", "A")]
        table = benchmark.summarise([one, one], scores)
        assert table["official"]["overall"] == 100.0 and table["strict"]["overall"] == 50.0

    def run(self, *texts: str) -> tuple[Outcome, list[Poll]]:
        outcome, polls, given = Outcome("1"), [], iter(texts)
        while poll := BENCHMARKS["streamingbench"].next_poll(self.alert, outcome.answers):
            polls.append(poll)
            outcome.answers.append({"time": poll.time, "text": next(given)})
        return outcome, polls

    def test_an_alert_is_polled_until_yes_and_then_asked_what_it_is(self):
        outcome, polls = self.run("no", "No.", " YES!", "Goal")
        assert [(poll.time, poll.text) for poll in polls][-2:] == [(4.0, "poll 2"), (4.0, "what?")]
        assert both(self.alert, outcome) == (1, 1)
        assert self.run(*["no"] * 7)[1][-1].time == 8.0  # four seconds after the truth, and no more

    @pytest.mark.parametrize(
        ("texts", "official", "strict", "in_time"),
        [
            (("yes", "Goal"), 1, 0, 1),  # two seconds before the truth
            (("no", "no", "no", "no", "yes", "It is a Goal."), 1, 0, 1),
            (("no", "no", "no", "no", "no", "yes", "Goal"), 0, 0, 0),
            (("no", "no", "yes", "goal"), 0, 1, 1),  # a part of the text, as spelt
            (("no", "no", "not yes", ""), 0, 0, 1),
            (("no",) * 7, 0, 0, 0),
        ],
    )
    def test_two_seconds_and_a_part_of_the_answer(self, texts, official, strict, in_time):
        score = BENCHMARKS["streamingbench"].score(self.alert, self.run(*texts)[0], "poll")
        assert (score["official"], score["strict"], score["in_time"]) == (official, strict, in_time)

    def test_a_stream_is_neither_shown_the_answer_nor_stopped(self):
        assert both(self.alert, said((4.5, "Goal")), "stream") == (1, 1)
        assert both(self.alert, said((4.5, "Goal"), (20.0, "Goal")), "stream") == (1, 0)
        assert both(self.alert, said((1.5, "Hm."), (4.5, "Goal")), "stream") == (0, 0)
        assert both(self.alert, said((0.5, "Goal"), (3.0, "A Goal!")), "stream") == (1, 0)
        assert both(self.alert, Outcome("1"), "stream") == (0, 0)

    def test_items_that_need_sound_are_apart_and_groups_are_means_of_questions(self):
        heard = item("streamingbench", "choice", {"answer": "A"}, options="abcd", group="omni", needs_sound=True)
        other = item("streamingbench", "choice", {"answer": "A"}, options="abcd", task="u")
        benchmark, items = (
            BENCHMARKS["streamingbench"],
            [self.choice, self.choice, self.choice, other, heard, self.alert],
        )
        outcomes = [*map(answered, "ABAAB"), self.run("no", "yes", "Goal")[0]]
        scores = [benchmark.score(*pair, "poll") for pair in zip(items, outcomes, strict=True)]
        table = benchmark.summarise(items, scores)
        assert table["items"] == 5 and table["with sound"]["items"] == 1
        assert table["official"]["overall"] == table["official"]["g"]["average"] == 80.0
        assert table["with sound"]["official"] == {"omni": {"t": 0.0, "average": 0.0}, "overall": 0.0}
        assert table["alerts in time"] == 100.0


class TestProactiveVideoQA:
    answers = [
        {"content": "A dog.", "reply": [2.0, 6.0], "related": [2.0, 5.0]},
        {"content": "A cat.", "reply": [10.0, 12.0], "related": [10.0, 11.0]},
    ]
    truth = {"question": "What?", "answers": answers, "then_ask": ["how 0", "how 1"]}
    question = item("proactivevideoqa", "open", truth, times=(3.0, 6.0))
    benchmark = BENCHMARKS["proactivevideoqa"]

    def test_pauc_is_the_area_under_the_steps(self):
        reply = [2.0, 6.0]
        assert pauc([], reply, 5.0, 0.5, 0.5) == 0.25 and pauc([], reply, 5.0, 0.0, 0.5) == 0.0  # silence
        # 0.5 until (4 - 2) / 2 s, then 2 until 4 s: (0.5 * 1 + 2 * 3) / (4 * 2)
        assert pauc([(4.0, 2.0)], reply, 5.0, 0.5, 0.5) == pytest.approx(6.5 / 8)
        assert pauc([(4.0, 2.0)], reply, 5.0, 0.5, 0.0) == pytest.approx(5 / 8)
        assert pauc([(4.0, 2.0)], reply, 5.0, 0.5, 1.0) == 1.0
        assert pauc([(2.0, 0.0)], reply, 5.0, 0.5, 0.5) == 0.0  # worse than silence
        assert pauc([(3.0, 1.0), (5.0, 2.0)], reply, 5.0, 0.5, 0.5) == pytest.approx((0.25 + 1 + 5) / 8)

    def test_a_late_verdict_that_is_lower_is_dropped(self):
        reply = [2.0, 6.0]
        assert pauc([(4.0, 2.0), (5.5, 1.0)], reply, 5.0, 0.5, 0.5) == pauc([(4.0, 2.0)], reply, 5.0, 0.5, 0.5)
        assert pauc([(4.0, 1.0), (5.5, 2.0)], reply, 5.0, 0.5, 0.5) > pauc([(4.0, 1.0)], reply, 5.0, 0.5, 0.5)
        early = pauc([(4.0, 2.0), (4.5, 1.0)], reply, 5.0, 0.5, 0.5)
        assert early == pytest.approx((0.5 * 1 + 2 * 0.25 + 1 * 2.75) / 8)  # one in time counts

    def test_what_is_judged(self):
        outcome = said((1.0, "Hm."), (3.0, "A dog."), (4.0, "A dog."), (5.0, "It runs."), (12.0, "A cat."))
        prompts = self.benchmark.judge_prompts(self.question, outcome)
        assert [(prompt["name"], prompt["said"]) for prompt in prompts] == [
            ("0=3.0", "A dog."),
            ("0=5.0", "A dog. It runs."),
            ("1=12.0", "A cat."),
        ]
        assert prompts[0]["prompt"] == "Question: What?\nGround Truth Answer: A dog.\nPredicted Answer: A dog."
        assert prompts[0]["system"].startswith("You are an evaluator")
        waiting = self.benchmark.score(self.question, outcome, "stream")
        assert waiting["official"] is None and waiting["said_in_vain"] == 1
        outcome.verdicts = [
            {"name": prompt["name"], "text": text, "value": value}
            for prompt, text, value in zip(prompts, ("3", "?", "2"), (2.0, None, 1.0), strict=True)
        ]
        score = self.benchmark.score(self.question, outcome, "stream")
        first, second = pauc([(3.0, 2.0)], [2, 6], 5, 0.5, 0.5), pauc([(12.0, 1.0)], [10, 12], 11, 0.5, 0.5)
        assert score["official_hits"] == [pytest.approx(first), pytest.approx(second)]
        assert score["strict"] == pytest.approx((pauc([(3.0, 2.0)], [2, 6], 5, 0, 0.5) + (0 * 1 + 1 * 1) / 4) / 2)

    def test_silence_needs_no_judge(self):
        score = self.benchmark.score(self.question, Outcome("1"), "stream")
        assert (score["official"], score["strict"]) == (0.25, 0.0)
        table = self.benchmark.summarise([self.question], [score])
        assert table["official"]["overall"] == 25.0 and table["omega_0"] == 25.0 and table["waiting for a judge"] == 0

    def test_verdicts(self):
        read = self.benchmark.read_verdict
        assert [read("0=1", text) for text in ("3", "Score: 1", "2 of 3")] == [2.0, 0.0, 2.0]
        for text in ("", "none", "13", "4"):
            with pytest.raises(ValueError, match="no score"):
                read("0=1", text)

    def test_pieces_are_asked_whether_they_answer_and_then_how(self):
        texts, asked, given = ["No", "Yes.", "yes, a dog"], [], []
        while poll := self.benchmark.next_poll(self.question, given):
            asked.append((poll.time, poll.text))
            given.append({"time": poll.time, "text": texts[len(given)]})
        assert asked == [(3.0, "poll 0"), (6.0, "poll 1"), (6.0, "how 1")]
        prompts = self.benchmark.judge_prompts(self.question, Outcome("1", answers=given))
        assert [prompt["said"] for prompt in prompts] == ["yes, a dog"]


class TestOmniMMI:
    one = item("omnimmi-pa", "alert", {"span": [4.0, 8.0]}, times=(1.0, 2.0, 3.0, 4.0))
    score = staticmethod(lambda one, outcome, protocol: BENCHMARKS["omnimmi-pa"].score(one, outcome, protocol))

    def test_the_first_alert_counts(self):
        assert self.score(self.one, said((4.0, "Now"), (9.0, "Now")), "stream") == {
            "official": 1.0,
            "strict": 0.0,
            "precision": 0.5,
            "iou": pytest.approx(4 / 5),
        }
        assert both(self.one, said((8.0, "Now")), "stream") == (1, 1)
        assert both(self.one, said((3.9, "Now"), (5.0, "Now")), "stream") == (0, 0)
        assert set(self.score(self.one, Outcome("1"), "stream").values()) == {0.0}

    def test_alerts_of_the_first_second_are_not_recorded(self):
        assert both(self.one, said((0.5, "Now"), (5.0, "Now")), "stream") == (1, 1)

    def test_each_yes_of_a_poll_is_an_alert(self):
        assert both(self.one, answered("no", "No.", "maybe", "Yes", times=[1.0, 2.0, 3.0, 4.0])) == (1, 1)
        assert both(self.one, answered("yes", "no", "no", "yes", times=[1.0, 2.0, 3.0, 4.0])) == (0, 0)


def probes(
    task: str, texts: list[str], events: list[dict], expected: list, options=(), **truth
) -> tuple[float, float]:
    pairs = task not in ("event_narration", "sequential_step_instruction")
    found = [
        {"event": index // 2 if pairs else index, "early": pairs and index % 2 == 0, "expected": value}
        for index, value in enumerate(expected)
    ]
    facts = {"question": "q", "events": events, "states": [], "probes": found} | truth
    times = tuple(float(number) for number in range(1, len(expected) + 1))
    return both(item("omnipro", "alert", facts, times=times, options=options, task=task), answered(*texts))


class TestOmniPro:
    event = {
        "time": 10.0,
        "response": "It rains.",
        "count": 2,
        "position": "center",
        "state_from": "off",
        "state_to": "on",
    }

    def test_an_event_is_right_if_both_polls_are(self):
        events, expected = [self.event, self.event], [False, True, False, True]
        assert probes("instant_event_alert", ["NO", "YES: rain", "YES: rain", "YES"], events, expected) == (0.5, 0.5)
        assert probes("instant_event_alert", ["The answer is NO", "It is YES", "", "no, yes"], events, expected) == (
            0.5,
            0,
        )

    def test_regions_counts_states_and_letters(self):
        one, yes_no = [self.event], [False, True]
        ground = "explicit_target_grounding"
        assert probes(ground, ["NO", "YES: seen. Position: center."], one, yes_no) == (1, 1)
        assert probes(ground, ["NO", "yes, it is in the center"], one, yes_no) == (1, 0)
        assert probes(ground, ["NO", "YES: a center. Position: center-left"], one, yes_no) == (0, 0)
        assert probes("snapshot_counting", ["NO", "YES: 2"], one, yes_no) == (1, 1)
        assert probes("snapshot_counting", ["NO", "YES: at 0:21, 2 of 5"], one, yes_no) == (1, 0)
        assert probes("snapshot_counting", ["NO", "YES: 5 and 2"], one, yes_no) == (0, 0)
        assert probes("dedup_counting", ["0", "1"], one, [0, 1]) == (1, 1)
        assert probes("dedup_counting", ["none so far, 0", "there were 3, now 1"], one, [0, 1]) == (1, 0)
        states = {"states": ["playing", "not playing"]}
        monitor = "realtime_state_monitor"
        assert probes(monitor, ["Playing.", "not playing"], one, ["playing", "not playing"], **states) == (1, 1)
        assert probes(monitor, ["is playing", "not playing"], one, ["playing", "not playing"], **states) == (1, 0)
        assert probes("event_narration", ["The answer is B."], one, [1], options="ab") == (1, 0)
        assert probes("event_narration", ["B"], one, [1], options="ab") == (1, 1)

    def test_how_answers_are_read(self):
        assert [parse.letter(text) for text in ("I think C", "A dog", "option A", "(A)", "none")] == [
            "C",
            None,
            "A",
            "A",
            None,
        ]
        assert [parse.total(text) for text in ("a total of 4, not 5", "3 times, or 2", "7.", "1:30")] == [
            4,
            3,
            7,
            None,
        ]
        assert parse.state("not playing now", ["playing", "not playing"]) == "not playing"
        assert parse.streamed_number("at 0:21 it is -3 or 4") == -3

    def stream(self, task: str, *pairs: tuple[float, str], events=None, kind="alert", verdicts=()) -> dict:
        truth = {"question": "q", "events": events or [self.event], "states": [], "probes": []}
        one, outcome = item("omnipro", kind, truth, times=(), task=task, end=60.0), said(*pairs)
        outcome.verdicts = list(verdicts)
        return BENCHMARKS["omnipro"].score(one, outcome, "stream")

    def test_utterances_and_events_are_matched_within_three_seconds(self):
        score = self.stream("instant_event_alert", (7.0, "Rain."))
        assert (score["official"], score["strict"]) == (1, 0)  # strictly, not before the event
        assert self.stream("instant_event_alert", (13.5, "Rain."))["official"] == 0
        score = self.stream("instant_event_alert", (2.0, "Rain."), (11.0, "Rain."), (20.0, " "))
        assert score["official_counts"] == {"in_time": 1, "right": 1, "false": 1, "missed": 0}
        assert score["official"] == pytest.approx(2 / 3)

    def test_pieces_in_quick_succession_are_one(self):
        score = self.stream("instant_event_alert", (10.0, "It"), (12.0, "rains"), (14.0, "now"))
        assert score["official"] == 1 and score["strict"] == pytest.approx(0.5)

    def test_the_closest_pair_comes_first(self):
        events = [self.event, self.event | {"time": 12.0}]
        score = self.stream("instant_event_alert", (11.5, "x"), (14.6, "y"), events=events)
        assert score["official_counts"] == {"in_time": 1, "right": 1, "false": 1, "missed": 1}

    def test_what_is_said_must_be_right(self):
        assert self.stream("snapshot_counting", (11.0, "I see 2 of 3"), kind="count")["official"] == 1
        assert self.stream("snapshot_counting", (11.0, "I see 2 of 3"), kind="count")["strict"] == 0
        assert self.stream("realtime_state_monitor", (11.0, "'ON'"), kind="open")["official"] == 1
        assert self.stream("explicit_target_grounding", (11.0, "In the center"))["strict"] == 0
        running = [self.event | {"count": 1}, self.event | {"time": 20.0, "count": 2}]
        score = self.stream("cumulative_counting", (10.0, "1"), (18.0, "2"), events=running, kind="count")
        assert score["official_counts"]["right"] == 1  # a count must be true when it is said

    def test_a_judge_reads_narrations(self):
        waiting = self.stream("event_narration", (11.0, "Wet."), kind="narration")
        assert waiting["official"] is None
        verdict = {"name": "0", "text": "x", "value": 3.0}
        score = self.stream("event_narration", (11.0, "Wet."), kind="narration", verdicts=[verdict])
        assert (score["official"], score["strict"]) == (1, 0)
        assert self.stream("event_narration", (30.0, "Wet."), kind="narration")["official"] == 0  # nothing to judge
        read = BENCHMARKS["omnipro"].read_verdict
        assert read("0", 'Sure: {"score": 9, "explanation": "x"}') == 5.0
        for text in ("4", "{x}", '{"score": "good"}', "[4]"):
            with pytest.raises(ValueError, match="no JSON object"):
                read("0", text)

    def test_the_total_is_the_mean_of_tasks(self):
        scores = [
            self.stream("instant_event_alert", (11.0, "x")),
            self.stream("instant_event_alert"),
            self.stream("event_narration", (11.0, "Wet."), kind="narration"),
            self.stream("snapshot_counting", (11.0, "3"), kind="count"),
        ]
        tasks = ["instant_event_alert", "instant_event_alert", "event_narration", "snapshot_counting"]
        items = [item("omnipro", "alert", {}, times=(), task=task) for task in tasks]
        table = BENCHMARKS["omnipro"].summarise(items, scores)["official"]
        assert table["g"]["instant_event_alert"] == pytest.approx(200 / 3)
        assert table["g"]["event_narration"] is None and table["overall"] == pytest.approx(100 / 3)


class TestLiveSports:
    one = item("livesports-3k", "narration", {"human": "He hits it.", "baseline": "Nice."})
    benchmark = BENCHMARKS["livesports-3k"]

    def test_what_is_compared(self):
        first, second = self.benchmark.judge_prompts(
            self.one, said((1.0, "He swings ..."), (2.0, ""), (3.0, "and hits"))
        )
        mine = "He swings and hits..."
        assert f"Commentary A---\n{mine}\n" in first["prompt"] and f"Commentary B---\n{mine}\n" in second["prompt"]
        assert "---Human Commentary---\nHe hits it.\n" in first["prompt"]
        assert "Commentary A---\nA goal\n" in self.benchmark.judge_prompts(self.one, answered("A goal"))[0]["prompt"]
        unknown = item("livesports-3k", "narration", {"human": "", "baseline": "Nice."})
        assert self.benchmark.judge_prompts(unknown, said((1.0, "x"))) == []
        assert both(unknown, said((1.0, "x")), "stream") == (None, None)

    def judged(self, first: str, second: str) -> tuple[float, float]:
        texts = {"ab": first, "ba": second}
        verdicts = [
            {"name": name, "text": text, "value": self.benchmark.read_verdict(name, text)}
            for name, text in texts.items()
        ]
        return both(self.one, Outcome("1", verdicts=verdicts), "stream")

    def test_verdicts_in_both_orders(self):
        assert self.judged("Commentary A is better", "Commentary B is better") == (1, 1)
        assert self.judged("Commentary A is better", "Commentary A is better") == (0.5, 0)
        assert self.judged("Commentary B beats Commentary A", "Neither") == (0.5, 0)  # A is looked for first
        assert self.judged("", "") == (0, 0)

    def test_the_result_is_the_part_of_comparisons_won(self):
        scores = [{"official": 0.5, "official_hits": [1.0, 0.0], "strict": 0.0, "strict_hits": [0.0]}]
        scores.append(self.benchmark.score(self.one, Outcome("1"), "stream"))
        table = self.benchmark.summarise([self.one, self.one], scores)
        assert table["official"]["overall"] == 50.0 and table["waiting for a judge"] == 1


def test_constant_answers_and_polls_in_order():
    choice = TestOvoBench.choice
    assert BENCHMARKS["ovo-bench"].answer_options(choice) == ("A", "B")
    assert BENCHMARKS["ovo-bench"].answer_options(TestOvoBench.step) == ("Yes", "No")
    assert BENCHMARKS["proactivevideoqa"].answer_options(TestProactiveVideoQA.question) == ()
    polls, benchmark = TestOvoBench.count.polls, BENCHMARKS["ovo-bench"]
    assert [benchmark.next_poll(TestOvoBench.count, [{}] * number) for number in range(3)] == [*polls, None]
    with pytest.raises(ValueError, match="no judge"):
        benchmark.read_verdict("x", "1")


def test_official_code_gave_the_same_numbers():
    """The table of the page is that of the committed run, in which all questions and numbers were equal."""
    result = json.loads((ROOT / "benchmarks" / "results" / "official_scorers.json").read_text())["runs"]
    page = (ROOT / "docs" / "benchmarks" / "field.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([\d,]+) \| ([\d,]+) \| (\d+) of (\d+) \|$", page, re.M)
    same = "questions asked in the same words and at the same times"
    assert rows == [
        (name, f"{run['questions']:,}", f"{run[same]:,}", str(len(run["numbers"])), str(len(run["numbers"])))
        for name, run in result.items()
    ]
    assert all(run["equal"] and run["questions"] == run[same] for run in result.values())
    (published,) = (
        run["numbers"]["published verdicts"] for run in result.values() if "published verdicts" in run["numbers"]
    )
    assert published["official"] == round(published["ours"], 2) == 47.24
