"""Metrics against cases computed by hand, and their properties."""

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videollm_mod.evaluation import metrics

NLL, RIGHT = np.log([2.0, 8.0]), [True, True]
COUNT = st.integers(1, 30)


def scores(wants, later=(), right=RIGHT, nll=NLL):
    turn = metrics.score_turn(nll, right, wants, later)
    return turn.ppl, turn.frame_diff, turn.fluency, turn.correctness


@pytest.mark.parametrize(
    "wants, later, right, expected",
    [
        ([False, False, True], (), [True, True], (0, 1.0, 1.0)),
        ([False, True, False], (), [True, True], (1, 2 / 5, 1.0)),  # one frame early
        ([True, False, True], (), [True, True], (2, 1 / 5, 1.0)),  # the first decision to speak counts
        ([False, False, False], [False, True], [True, True], (-2, 2 / 5, 1.0)),  # late
        ([False, False, False], [False, False], [True, True], (-2, 2 / 5, 1.0)),  # never: counted up to the limit
        ([False, False, False], (), [True, True], (0, 1.0, 1.0)),  # never, in the last turn
        ([False, False, True], (), [True, False], (0, 4 / 5, 1 / 2)),  # wrong word
        ([False, False, True], (), [False, True], (0, 3 / 5, 0.0)),  # nothing after a wrong word counts
        ([False, False], [True], [True, True], (-1, 1 / 4, 1.0)),  # interrupted by a question: silence counts as late
    ],
)
def test_scores_of_scripted_turns(wants, later, right, expected):
    ppl, *rest = scores(wants, later, right)
    assert ppl == pytest.approx(4.0)
    assert rest == pytest.approx(list(expected))


def test_turns_without_decisions_or_reply():
    assert scores([]) == (pytest.approx(4.0), None, None, 1.0)
    assert scores([False, True], right=[], nll=[]) == (None, 0, None, None)


@pytest.mark.parametrize("frames, following, expected", [(5, 9, 4), (5, 2, 2), (1, 9, 0), (0, 3, 0), (5, None, 0)])
def test_number_of_following_frames(frames, following, expected):
    assert metrics.num_following(frames, following) == expected


def test_wants_to_speak_by_threshold():
    silence, likeliest = np.array([0.8, 0.7, 0.3]), np.array([True, True, False])
    assert metrics.wants_to_speak(silence, likeliest, 0.725).tolist() == [False, True, True]
    assert metrics.wants_to_speak(silence, likeliest, 0.0).tolist() == [False, False, True]


@given(decisions=COUNT, reply=COUNT, fps=st.sampled_from((1.0, 2.0, 10.0)), shift=st.integers(-29, 29))
def test_perfect_model_and_shifted_decision(decisions, reply, fps, shift):
    shift = max(shift, 1 - decisions)
    wants, later = np.zeros(decisions, bool), np.zeros(max(shift, 0), bool)
    (wants if shift <= 0 else later)[decisions - 1 + shift if shift <= 0 else shift - 1] = True
    turn = metrics.score_turn(np.zeros(reply), np.ones(reply, bool), wants, later)
    result = metrics.summarise([[turn]], fps)
    assert result["time_diff"] == pytest.approx(abs(shift) / fps)
    assert (result["lm_ppl"], result["lm_correctness"]) == (1.0, 100.0)
    assert (result["fluency"] == 100.0) == (shift == 0)


def test_every_stream_has_the_same_weight():
    turns = [metrics.score_turn(NLL, RIGHT, [False] * n + [True] + [False] * d) for n, d in ((0, 0), (0, 2), (0, 4))]
    assert metrics.summarise([turns[:1], turns[1:], []], fps=2.0)["time_diff"] == pytest.approx((0 + 1.5) / 2)
    assert metrics.summarise([[]], fps=2.0)["lm_ppl"] is None


def test_segments_match_at_an_iou_of_one_half():
    true = metrics.segments([(0.0, "a"), (4.0, "b")], end=8.0)
    assert true == [(0.0, 4.0, "a"), (4.0, 8.0, "b")]
    assert metrics.temporal_iou((0, 4, ""), (2, 6, "")) == pytest.approx(1 / 3)
    assert metrics.best_pairs([(0, 2, "")], true) == [(0, 0)]  # exactly a half
    assert metrics.best_pairs([(0, 1.9, "")], true) == []
    assert metrics.best_pairs([(0, 3, ""), (0, 4, "")], true) == [(1, 0)]  # one to one, the better first
    assert metrics.precision_recall_f1(1, 4, 2) == pytest.approx({"precision": 25, "recall": 50, "f1": 100 / 3})


@given(st.lists(st.integers(0, 100), min_size=1, unique=True))
def test_true_segments_match_themselves(times):
    true = metrics.segments([(float(time), "x") for time in sorted(times)], end=101.0)
    matched = len(metrics.best_pairs(true, true))
    assert metrics.precision_recall_f1(matched, len(true), len(true))["f1"] == 100


def test_edit_distance_and_nearest_category():
    assert metrics.edit_distance("kitten", "sitting") == 3
    assert metrics.nearest("Cut the aple.", ["peel the apple", "cut the apple"]) == "cut the apple"


@given(st.text("abc ", max_size=8), st.lists(st.text("abc ", max_size=8), min_size=1))
def test_nearest_category_is_the_first_of_several(text, categories):
    distances = [metrics.edit_distance(text.strip(), category.strip()) for category in categories]
    assert metrics.nearest(text, categories) == categories[distances.index(min(distances))]


@given(st.text("abc", max_size=8), st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_edit_distance_is_a_metric(a, b, c):
    distance = metrics.edit_distance
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, b) == distance(b, a)
    assert distance(a, c) <= distance(a, b) + distance(b, c)


def test_lists_of_steps_are_parsed():
    assert metrics.listed("1. cut 2. add 10. cups 3. stir") == ["cut", "add 10. cups", "stir"]
    assert metrics.listed("cut") == ["cut"]
    assert metrics.listed(" ") == []
    assert metrics.right_steps(["cut", "stirr"], ["cut", "add", "stir"], ["cut", "add", "stir"]) == 1


def test_edit_distance_is_that_of_the_best_candidate():
    true = list(range(20))
    assert metrics.edit_distance_at([true[::-1], true[:10] + [-1] * 10], true) == pytest.approx(0.5)
    assert metrics.edit_distance_at([[*true, 5]], true) == 0  # actions after the 20th are ignored
    assert metrics.edit_distance_at([[]], true) == 1


def test_actions_are_split_into_verbs_and_nouns():
    taxonomy = metrics.Taxonomy(["put", "put down", "cut"], ["cutting board", "bat (tool)", "bat (sports)"])
    assert taxonomy.split("Put down cutting board.") == ("put down", "cutting board")
    assert taxonomy.split("cat bat (tol)") == ("cut", "bat (tool)")
    assert metrics.Taxonomy().split("put down cutting board") == ("put", "down cutting board")
    assert metrics.actions("1. take a cup 2. cut it") == ["take a cup", "cut it"]
    assert metrics.actions("Crown the cross, greet the circle.") == ["Crown the cross", "greet the circle."]


def test_anticipation_matches_values_by_hand():
    true = "1. take cup 2. cut apple 3. take knife 4. put apple"
    good, half = "1. take cup 2. cut pear 3. take knife 4. put apple", "1. take cup 2. put apple"
    assert metrics.anticipation([half, good], true, metrics.Taxonomy()) == (0, 0.25, 0.25)
    assert metrics.anticipation([half], true, metrics.Taxonomy()) == (0.5, 0.5, 0.5)
    assert metrics.anticipation([""], true, metrics.Taxonomy()) == (1, 1, 1)


def test_caption_scores_match_values_by_hand(monkeypatch):
    said, true = "The red circle leaves.", "the red circle moves"
    monkeypatch.setenv("PATH", "")  # no Java
    scores = metrics.caption_scores([(said, true), ("a dog", "A dog!")])
    assert scores["meteor"] is None
    # the longest common subsequence has three of the four words of each
    assert scores["rouge_l"] == pytest.approx(100 * (0.75 + 1) / 2)
    identical = metrics.caption_scores([(text, text) for text in ("one two three four five", "six seven eight nine")])
    assert identical["cider"] == pytest.approx(1000) and identical["rouge_l"] == pytest.approx(100)
    assert metrics.caption_scores([]) == {"cider": None, "meteor": None, "rouge_l": None}


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java")
def test_meteor_matches_stems():
    pairs = [("the red circle leaves", "The red circle leaves."), ("a circle leaving", "a circle leaves"), ("", "dog")]
    assert 40 < metrics.caption_scores(pairs)["meteor"] < 100


def test_calibration_matches_values_by_hand():
    result = metrics.calibration([0.95, 0.95, 0.25, 0.25], [False, False, True, False])
    assert result["expected_calibration_error"] == pytest.approx(0.5 * 0.05 + 0.5 * 0.25)
    assert [b["count"] for b in result["bins"]] == [2, 2]


def test_sweep_matches_values_by_hand_and_is_plotted(tmp_path):
    rows = metrics.sweep([0.1, 0.4, 0.9], [True, False, True], thresholds=(0.0, 0.2, 0.5, 1.0))
    assert [row["precision"] for row in rows] == pytest.approx([0, 100, 50, 200 / 3])
    assert [row["recall"] for row in rows] == pytest.approx([0, 50, 50, 100])
    calibrated = metrics.calibration([0.1, 0.4, 0.9], [True, False, True])
    metrics.plot_speaking(rows, calibrated, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.frame_difference([]),
        lambda: metrics.score_turn([0.0], [], [True]),
        lambda: metrics.precision_recall_f1(3, 2, 4),
        lambda: metrics.nearest("a", []),
        lambda: metrics.edit_distance_at([], [1]),
        lambda: metrics.calibration([1.5], [True]),
        lambda: metrics.sweep([0.5], [True, False]),
    ],
)
def test_wrong_arguments_give_a_clear_error(call):
    with pytest.raises(ValueError, match="`"):
        call()
