"""Narrating unseen streams with an image model that was never trained on streams: the scores, and the reference."""

import json
import random

import numpy as np
import pytest
import torch

from videollm_mod.benchmarks import sight, sight_routing, stock_vlm
from videollm_mod.benchmarks.sight_routing import Scores
from videollm_mod.benchmarks.sight_scores import Counts, changes, score, spoken_anew
from videollm_mod.benchmarks.stock_vlm_data import SEE, Scene, Writer, collate, describe, of_image
from videollm_mod.benchmarks.stock_vlm_families import FAMILIES
from videollm_mod.calibration.clips import run_abreast
from videollm_mod.calibration.following import Changes
from videollm_mod.data.world import world_stream
from videollm_mod.data.world_basic import BasicStream, Event, Thing

TRUTH = [(0.0, "Nothing."), (3.0, "A red cross."), (5.0, "Nothing.")]


def scored(*said: tuple[float, str]) -> dict:
    return score(TRUTH, [*said], seconds=10.0).summary()


def test_right_narrations_name_what_is_in_view_within_a_second():
    perfect = scored((0.0, "Nothing."), (3.0, "A red cross."), (6.0, "Nothing."))
    assert perfect == {
        "f1": 100.0, "false_per_minute": 0.0, "changes": 3, "narrations": 3, "right": 3, "false": 0, "seconds": 10.0,
    }  # fmt: skip
    assert scored((0.0, "Nothing."), (3.5, "A red cross."), (6.5, "Nothing."))["right"] == 2  # one is late
    assert scored((0.0, "A red cross."), (3.0, "A red cross."), (5.0, "A red cross."))["right"] == 1
    assert scored()["f1"] == 0.0


def test_false_narrations_are_said_without_a_change():
    repeated = scored((0.0, "Nothing."), (1.0, "Nothing."), (3.0, "A red cross."), (5.0, "Nothing."))
    assert (repeated["right"], repeated["false"], repeated["false_per_minute"]) == (3, 1, 6.0)
    assert repeated["f1"] == round(100 * 6 / 7, 2)
    corrected = scored((0.0, "A red cross."), (0.5, "Nothing."))  # the second one was said without a change too
    assert (corrected["right"], corrected["false"]) == (0, 1)
    # the first narration after a change is not false, even if it comes late or is wrong
    assert scored((2.0, "Nothing."), (4.5, "A red cross."), (5.0, "Two."))["false"] == 0


def test_counts_add_up():
    total = score(TRUTH, [(0.0, "Nothing.")], 10.0) + score(TRUTH, [(0.0, "Nothing."), (0.5, "Nothing.")], 20.0)
    assert total == Counts(changes=6, narrations=3, right=2, false=1, seconds=30.0)
    assert Counts().summary()["f1"] == 100.0  # nothing happens, and nothing is said


def test_changes_are_those_of_what_is_in_view():
    red, blue = Thing("red", "cross", 0.2, 0.2, 0.1), Thing("blue", "circle", 0.8, 0.8, 0.1)
    moved = Thing("red", "cross", 0.5, 0.2, 0.1)
    stream = object.__new__(BasicStream)
    happened = [(red,), (moved,), (moved, blue), (blue,), ()]
    stream.events = [Event(float(i), "", things) for i, things in enumerate(happened)]
    expected = [(0.0, "A red cross."), (2.0, "A red cross and a blue circle."), (3.0, "A blue circle.")]
    assert changes(stream) == [*expected, (4.0, "Nothing.")]


def test_a_model_asked_anew_speaks_when_its_answer_changes():
    said = spoken_anew(["a", "a", "b", "b", "a"], [0.0, 0.5, 1.0, 1.5, 2.0])
    assert said == [(0.0, "a"), (1.0, "b"), (2.0, "a")]


def test_the_truth_at_every_frame_scores_100():
    for seed in range(20):
        stream = world_stream(seed)
        times = stream.frame_times(sight.FPS).tolist()
        said = spoken_anew([describe(stream.things(time)) for time in times], times)
        assert score(changes(stream), said, stream.seconds).summary()["f1"] == 100.0


def test_questions_are_about_what_is_in_view():
    for seed in range(10):
        stream = world_stream(seed)
        plain, told = (sight.questions_of(stream, query) for query in (SEE, of_image(SEE)))
        times = stream.frame_times(sight.FPS)
        for time, (question, answer), (other, _) in zip(times, plain, told, strict=True):
            assert other == of_image(question)
            if question == SEE:
                assert answer == describe(stream.things(time))


def test_what_is_lost_has_the_error_of_its_streams():
    dense = Scores(Counts(), [[True, True], [True, True], [True, False], [False, False]])
    other = Scores(Counts(), [[True, False], [False, True], [True, True], [False, False]])
    points, error = sight_routing.lost(dense, other)
    lost = np.array([1, 1, -1, 0])
    assert points == 100 * lost.sum() / 8
    # the mean over 4 streams of 2 questions each
    assert error == pytest.approx(100 * lost.std(ddof=1) / np.sqrt(4) / 2, abs=1e-3)
    assert sight_routing.lost(dense, dense) == (0.0, 0.0)
    assert dense.summary()["answers"] == 62.5 and "answers" not in Scores(Counts(), [[], []]).summary()


def test_rank_correlation():
    assert sight_routing.ranks([3.0, 1.0, 3.0, 9.0]).tolist() == [1.5, 0.0, 1.5, 3.0]
    rows = [
        {"divergence": d, "f1": 100 - lost, "answers_lost": 0.0, "decisions": Changes(4, i, 9, 9 - i, 5, i).as_dict()}
        for i, (d, lost) in enumerate([(0.1, 1.0), (0.3, 2.0), (0.2, 5.0)])
    ]
    found = sight_routing.rank_correlations(rows, {"f1": 100.0})
    assert found["divergence"] == {"f1_lost": 0.5, "answers_lost": None}  # the latter is constant
    assert found["changed replies"]["f1_lost"] == 1.0 and found["other words"]["f1_lost"] == -1.0


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    family = FAMILIES[request.param]()
    family.learn_words(stock_vlm.example_texts(family, 60))
    return family


def test_the_reference_sees_one_picture_in_its_own_prompt(family):
    """Batched and one by one it says the same, and that is the greedy reply to the training prompt."""
    model, rng = family.new_model(width=64, layers=2).eval(), random.Random(1)
    stream = world_stream(3)
    pictures = stream.drawn()[:3]
    said = sight.say(model, family, pictures, SEE)
    assert said == [sight.say(model, family, picture[None], SEE)[0] for picture in pictures]
    rng.random = lambda: 0.0  # SmolVLM writes an image, not a frame of a video
    row = Writer(family)
    row.turn(rng, [Scene.of(stream.events[0].things, stream.background)], "see", SEE, "")
    batch = collate([row], family.pad_token_id)
    prompt = row.ids[: int(batch.replies[0, 1])]
    assert prompt == family.prompt_ids(SEE)
    with torch.no_grad():
        batch.input_ids = torch.tensor([prompt])
        first = int(stock_vlm.answer(model, family, batch).logits[0, -1].argmax())
    assert said[0].startswith(family.tokenizer.decode([first]).strip())


def test_choices():
    grid = [{"f1": 90.0, "false_per_minute": 2.0}, {"f1": 95.0, "false_per_minute": 3.0}]
    grid.append({"f1": 95.0, "false_per_minute": 1.0})
    assert sight.best_of(grid) is grid[2]
    grid += [dict(grid[2]), dict(grid[2])]
    assert sight.best_of(grid) is grid[3]  # of equal ones the middle one


def test_questions_in_forks_leave_no_trace(family, tmp_path):
    """And they are answered as a session would that was asked after the same frames."""
    folder = tmp_path / "tiny"
    family.save(family.new_model(width=64, layers=2), folder)
    built = sight.VideoLLMMoDForConditionalGeneration.from_vlm(str(folder), dtype=torch.float32)
    own, other = sight_routing.encode(built, [Short(world_stream(seed)) for seed in (5, 6)])
    options = {"max_cached_frames": 2}

    def run(*streams, asks=True) -> list[list[tuple]]:
        sessions = [built[0].stream(built[1], max_new_tokens=3, **options) for _ in streams]
        works = [sight_routing.watching(*pair, asks) for pair in zip(sessions, streams, strict=True)]
        return [[(e.kind, e.time, e.text) for e in events] for events in run_abreast(works)]

    (alone,), both = run(own), run(own, other)
    assert both[0] == alone and sum(kind == "answer" for kind, *_ in alone) == 4
    (quiet,) = run(own, asks=False)
    assert [event for event in alone if event[0] == "narration"] == quiet
    session = built[0].stream(built[1], max_new_tokens=3, **options)
    for index in range(3):
        list(session.watch_encoded(own.features[index : index + 1]))
    (expected,) = session.ask(own.questions[2][0])
    assert [text for kind, _, text in alone if kind == "answer"][2] == expected.text


class Short:
    """The first frames of a stream."""

    def __init__(self, stream: BasicStream, count: int = 4):
        self.stream, self.count = stream, count

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def frame_times(self, fps: float) -> np.ndarray:
        return self.stream.frame_times(fps)[: self.count]

    def frames(self, fps: float) -> np.ndarray:
        return self.stream.frames(fps)[: self.count]

    def shown(self, fps: float) -> np.ndarray:
        return self.stream.shown(fps)[: self.count]


def test_measure_calibrate_and_report(family, tmp_path, monkeypatch, capsys):
    """On random weights, on which nothing depends: all parts are there, and the plot and the figures are made."""
    folder, model = tmp_path / f"{family.name}_tiny", family.new_model(width=64, layers=2)
    with torch.no_grad():
        model.get_input_embeddings().weight[: len(family.special) + 256] = 0  # so that it says words, not bytes
    family.save(model, folder)
    monkeypatch.setattr(sight, "REMEMBERED", (None, 8))
    for module in (sight, sight_routing):
        monkeypatch.setattr(module, "REPLY", 4)
    monkeypatch.setattr(sight, "CLIPS", 1)
    monkeypatch.setattr(sight_routing, "KEEP_RATIOS", [0.1])
    streams_of = sight.streams_of
    monkeypatch.setattr(sight, "streams_of", lambda *args: [Short(own, 6) for own in streams_of(*args)])
    monkeypatch.setattr(sight, "costs", lambda *_, **__: {"verify": 3.0, "asked_anew": 9.0})
    path = tmp_path / "sight.json"
    common = [str(folder), "--margins", "1", "100", "--json", str(path), "--device", "cpu"]
    sight.main(["measure", *common, "--streams", "1"])
    result = json.loads(path.read_text())
    assert len(result["validation"]) == 2 + 2 * 2 - 1
    for row in result["validation"]:
        assert 1 <= row["narrations"] <= 6
        assert row["margin"] != 100 or row["narrations"] == 1  # what was said always holds
    assert set(result["reference"]["test"]) >= {"f1", "false_per_minute", "answers", "exact_frames"}
    assert set(sight.figures(result)) == {"verify_f1", "verify_false_per_minute"}
    sight.main(["report", str(path), "--plot", str(tmp_path / "plot.png")])
    monkeypatch.setattr(sight_routing, "LOST", 100.0)  # so that one is chosen
    sight.main(["calibrate", *common])
    result = json.loads(path.read_text())
    found, chosen = result["calibration"], result["test"]["routed"]
    assert found["questions"] == 6 and found["routed"]
    assert [row["margin"] for row in found["margins"]] == [1, 100]
    assert chosen["operations"] == min(row["operations"] for row in found["routed"]) < 1
    assert sight.figures(result) == {
        "verify_f1": result["test"]["dense"]["f1"],
        "verify_false_per_minute": result["test"]["dense"]["false_per_minute"],
        "calibrated_operations_ratio": chosen["operations"],
    }
    sight.main(["report", str(path), "--plot", str(tmp_path / "plot.png")])
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert "reference" in capsys.readouterr().out


def test_costs_are_measured_for_both_ways_and_both_rules(family, tmp_path, monkeypatch):
    folder = tmp_path / "tiny"
    family.save(family.new_model(width=64, layers=2), folder)
    monkeypatch.setattr(sight, "REPLY", 2)
    stock = sight.load(folder, dtype=torch.float32)
    built = sight.VideoLLMMoDForConditionalGeneration.from_vlm(str(folder), dtype=torch.float32)
    stream = world_stream(4)
    monkeypatch.setattr(stream, "frames", lambda fps: np.zeros((9, 96, 96, 3), dtype=np.uint8))
    spent = sight.costs(built, stock, [stream], "cpu")
    assert set(spent) == {"verify", "asked_anew"}
    assert min(spent.values()) > 0
