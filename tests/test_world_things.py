"""The world's levels of things: what is said is what the frames show, and test styles are not shown in training."""

import hashlib
import json
from itertools import pairwise, product

import numpy as np
import pytest
from fresh_process import ROOT, run_fresh

from videollm_mod.commands import cli
from videollm_mod.data import things
from videollm_mod.data.things import BUNDLED, PHOTOGRAPHS, TRAINED, UNSEEN, VARIABLE, Pictures
from videollm_mod.data.world import conversation, world_stream
from videollm_mod.data.world_basic import PLACES, SHAPES, STEP
from videollm_mod.data.world_things import NOTHING
from videollm_mod.data.world_things_script import HIDDEN, SETTLE, enumerated, with_article

LEVELS = ("things", "things_camera")


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    monkeypatch.setenv(VARIABLE, str(BUNDLED))


def digest() -> dict:
    found = {}
    for level in LEVELS:
        summed = hashlib.sha256()
        for seed in range(4):
            stream = world_stream(seed, level)
            summed.update(stream.frames(2.0, 48, 64).tobytes())
            summed.update(json.dumps([conversation(stream, num_questions=3), stream.narrations]).encode())
        found[level] = summed.hexdigest()
    return found


def test_seed_gives_the_same_stream_in_another_process(tmp_path):
    assert run_fresh(digest, tmp_path / "process", **{VARIABLE: str(BUNDLED)}) == digest()


def without(stream, visits):
    """The same stream in which `visits` are all that comes into view."""
    other = type(stream)(stream.seed)
    kept = [other.visits[stream.visits.index(visit)] for visit in visits]
    other.visits = kept
    if hasattr(other, "codec"):
        other.codec = "none"  # compression changes pixels beside what is drawn
    return other


def shown(stream, visits, side: int = 64) -> np.ndarray:
    """bool `[F, H, W]`: where the frames at each multiple of `STEP` show one of `visits`, if only they are there."""
    bare, seen = (without(stream, each).frames(1 / STEP, side).astype(int) for each in ([], visits))
    return np.abs(seen - bare).max(-1) > 12


@pytest.mark.parametrize("level", LEVELS)
def test_things_are_in_the_frames_when_they_are_said_to_be(level):
    """From "appears" to "leaves" at least a third of a thing is seen beside what is in front of it, at the place that
    answers name; it is there when it is named and gone when it is said to be."""
    named = gone = 0
    for seed in range(14):
        stream = world_stream(seed, level)
        everything = without(stream, stream.visits).frames(1 / STEP, 64).astype(int)
        for visit in [visit for visit in stream.visits if visit.name]:
            alone = shown(stream, [visit])
            others = without(stream, [each for each in stream.visits if each is not visit]).frames(1 / STEP, 64)
            matters = np.abs(everything - others).max(-1) > 12
            for index, time in enumerate(stream.frame_times(1 / STEP).tolist()):
                there = [each for each in stream.things(time) if each.name == visit.name]
                owner = [each for each in stream.visits if each.name == visit.name and each.at(time) is not None]
                if not there:
                    continue
                if owner == [visit] and stream.is_settled(time):
                    assert alone[index].any()
                    if level == "things":
                        assert matters[index].sum() > 0.33 * alone[index].sum()
                        rows, columns = np.nonzero(alone[index])
                        middle = (rows.min() + rows.max()) / 128, (columns.min() + columns.max()) / 128
                        assert abs(middle[0] - there[0].y) < 0.08 and abs(middle[1] - there[0].x) < 0.08
                    named += 1
            if visit.until < stream.seconds:
                after = stream.frame_times(1 / STEP) >= visit.until
                assert not alone[after].any()
                gone += 1
    assert named > 100 and gone > 8


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_said_to_be_there_is_in_view_and_not_hidden_once_nothing_moves(level):
    """Frame by frame at 8 a second, at all moments at which questions are asked, from where everything is drawn."""
    moved = exchanged = 0
    for seed in range(300):
        stream = world_stream(seed, level)
        moved += sum(len(visit.raised) > 1 for visit in stream.visits)
        exchanged += sum(" replaces " in text for _, text in stream.narrations)
        for time in filter(stream.is_settled, stream.frame_times(8.0).tolist()):
            drawn = stream.in_view(time)
            said = [thing.name for thing in stream.things(time)]
            assert sorted(said) == sorted(visit.name for visit, _ in drawn if visit.name), (seed, time)
            for i, (visit, key) in enumerate(drawn):
                half = [visit.size * side / 2 for side in visit.box]
                inside = [(x - each, x + each) for x, each in zip((key.x, key.y), half, strict=True)]
                assert all(-0.03 < low < high < 1.03 for low, high in inside), (seed, time)
                covered = 0.0
                for other, its in drawn[i + 1 :]:
                    reach = [other.size * side / 2 for side in other.cover]
                    spans = zip((key.x, key.y), half, (its.x, its.y), reach, strict=True)
                    shared = [min(a + b, c + d) - max(a - b, c - d) for a, b, c, d in spans]
                    covered += max(0.0, shared[0]) * max(0.0, shared[1]) / (4 * half[0] * half[1])
                assert covered < HIDDEN + 0.01, (seed, time)
    assert moved > 30 and exchanged > 30


def first_rest(visit, seconds: float) -> float | None:
    """The first multiple of `STEP` from which on a thing does not move."""
    for time in np.arange(0, seconds, STEP).tolist():
        now, soon = visit.at(time), visit.at(time + STEP / 4)
        if now and soon and (now.x, now.y, now.scale, now.alpha) == (soon.x, soon.y, soon.scale, soon.alpha):
            return time
    return None


@pytest.mark.parametrize("level", LEVELS)
def test_what_rests_is_named_once_and_what_passes_is_not(level):
    passed = 0
    for seed in range(30):
        stream = world_stream(seed, level)
        coming = [(time, text) for time, text in stream.narrations if "leaves" not in text]
        expected = []
        for visit in [visit for visit in stream.visits if visit.name]:
            rest = first_rest(visit, stream.seconds)
            passed += rest is None
            expected += [] if rest is None else [(rest + SETTLE, with_article(visit.name))]
        for time, text in coming:
            there = [name for at, name in expected if at == time]
            assert there and all(name.lower() in text.lower() for name in there)
        assert {time for time, _ in expected} == {time for time, _ in coming}
        leaving = [text for _, text in stream.narrations if "leaves" in text or "replaces" in text]
        ended = [visit for visit in stream.visits if visit.name and visit.until < stream.seconds]
        assert len(leaving) == sum(first_rest(visit, stream.seconds) is not None for visit in ended)
        assert all(time % STEP == 0 for time, _ in stream.narrations)
        assert all(a < b for (a, _), (b, _) in pairwise(stream.narrations))
    assert passed > 3


def test_answers_are_true_for_what_is_there():
    kinds = set()
    for level in (*LEVELS, "things_unknown"):
        for seed in range(25):
            stream = world_stream(seed, level)
            for time, question, answer in stream.questions(count=6):
                seen = sorted(stream.things(time), key=lambda thing: thing.x)
                words = question.rstrip("?").split(" the ")
                if question.startswith("How many"):
                    expected = ["None.", "One.", "Two.", "Three.", "Four."][len(seen)] if seen else NOTHING
                elif question.startswith(("Where", "At which")):
                    places = [thing.place for thing in seen if thing.name == words[-1]]
                    expected = f"At the {places[0]}." if places else "It is not there."
                elif " at the " in question:
                    names = [with_article(thing.name) for thing in seen if thing.place == words[-1]]
                    expected = f"{enumerated(names)}." if names else "Nothing that I know."
                elif "last" in question:
                    past = [event.text for event in stream.events[1:] if event.time <= time]  # "" for a move
                    expected = past[-1] if past else "Nothing yet."
                else:
                    expected = f"{enumerated([with_article(thing.name) for thing in seen])}." if seen else NOTHING
                assert answer == expected[0].upper() + expected[1:]
                kinds.add(question.split(" the ")[0])
    assert len(kinds) > 8


def test_levels_do_not_contradict_each_other():
    """One model learns all levels: the same question has the same answer where nothing is, and what another level
    names is not shown as nothing that has a name."""
    empty: dict[str, set[str]] = {}
    for level, seed in product(("basic", "hard", "things"), range(150)):
        for _, question, answer in world_stream(seed, level).questions(count=6):
            if answer.startswith(("Nothing", "I see nothing", "It is not", "None", "Nobody")):
                empty.setdefault(question.split(" the ")[0], set()).add(answer)
    assert len(empty) > 6 and all(len(answers) == 1 for answers in empty.values())
    shapes = {*SHAPES, "plus"}
    unknown = json.loads((ROOT / "benchmarks" / "things.json").read_text(encoding="utf-8"))["unknown"]
    assert not [name for name in unknown if shapes & {*name.split("-")}]
    patches = [
        visit.box
        for seed in range(60)
        for visit in world_stream(seed, "things_unknown").visits
        if visit.picture is None
    ]
    assert len(patches) > 30 and all(height <= 0.8 for _, height in patches)


def test_nothing_is_said_where_nothing_has_a_name():
    for seed in range(15):
        stream = world_stream(seed, "things_unknown")
        assert stream.narrations == [] and not any(event.things for event in stream.events)
        asked = stream.questions(count=5)
        answers = {answer for _, question, answer in asked if question.startswith(("What do", "How"))}
        assert answers <= {NOTHING, "Nothing that I know."}
    assert any(world_stream(seed, "things_unknown").visits for seed in range(3))


def test_training_levels_never_show_a_test_style():
    assert not {UNSEEN, PHOTOGRAPHS} & {*TRAINED}
    for level, styles in (
        ("things", TRAINED),
        ("things_camera", TRAINED),
        ("things_unseen", (UNSEEN,)),
        ("things_camera_unseen", (UNSEEN,)),
    ):
        drawn = {
            stream.pictures.styles[visit.picture]
            for stream in (world_stream(seed, level) for seed in range(60))
            for visit in stream.visits
            if visit.picture is not None
        }
        assert drawn and drawn <= {*styles}
    with pytest.raises(ValueError, match="has none of the styles photographs"):
        world_stream(0, "things_photos")


def test_frames_are_those_of_the_events_and_of_any_shape():
    stream = world_stream(3, "things")
    assert len(stream.drawn(40, 60)) == len(stream.events) > 2
    times = stream.frame_times(1 / STEP)
    at = [int(np.searchsorted(times, event.time)) for event in stream.events]
    assert np.array_equal(stream.drawn(40, 60), stream.frames(1 / STEP, 40, 60)[at])
    assert stream.frames(7.0, 33, 50).shape == (int(7 * stream.seconds), 33, 50, 3)
    assert world_stream(4, "things_camera").frames(1.0, 33, 51).shape[1:] == (33, 51, 3)
    states = stream.states((3, 3))
    for of_event, event in zip(states, stream.events, strict=True):
        there = {(PLACES[r][c], stream.kinds[n]) for r, c, n in zip(*of_event.nonzero(), strict=True)}
        assert there == {(thing.place, thing.name) for thing in event.things}


def test_levels_are_training_data(checkpoint):
    from videollm_mod.data.world_data import WorldCells, WorldData, WorldStreams  # not for the other process

    _, processor = checkpoint
    data = WorldStreams(WorldData(level={"things": 1, "things_camera": 1}, num_streams=4, num_questions=2), processor)
    for example in data:
        frames, index = example["frames"], example["frame_index"]
        assert frames.shape[1] == 3 and len(index) == len(frames)  # everything may move
        assert len(example["input_ids"]) == len(example["labels"])
    with pytest.raises(ValueError, match=r"by the 24 coloured shapes, which \['things'\] lack"):
        WorldCells(WorldData(level={"basic": 1, "things": 1}), 96, (3, 3))


def test_missing_or_wrong_files_say_what_to_do(monkeypatch, tmp_path, capsys):
    clip = ["--output", str(tmp_path / "clip.mp4"), "--height", "64", "--seed", "1"]
    assert cli.main(["world", "--level", "things_camera", *clip]) == 0
    other = tmp_path / "other.npz"
    np.savez(other, x=np.zeros(3))
    wrong = dict.fromkeys((other, tmp_path / "array.npz", tmp_path / "mixed.npz"), "is not a whole file of pictures")
    with open(tmp_path / "array.npz", "wb") as opened:
        np.save(opened, np.zeros(3))
    stored = dict(np.load(BUNDLED))
    np.savez(tmp_path / "mixed.npz", **stored | {"names": stored["names"][1:]})
    whole = BUNDLED.read_bytes()
    for length in (0, 1, 1000, len(whole) // 2, len(whole) - 1):  # as a copy that broke off
        cut = tmp_path / f"{length}.npz"
        cut.write_bytes(whole[:length])
        wrong[cut] = "is not a whole file of pictures"
    for path, message in {"": "need a file of pictures", tmp_path / "no.npz": "no file", **wrong}.items():
        monkeypatch.setenv(VARIABLE, str(path))
        capsys.readouterr()
        assert cli.main(["world", "--level", "things", *clip]) != 0
        error = capsys.readouterr().err
        assert message in error and "videollm_mod.benchmarks.things_pictures" in error and VARIABLE in error


def test_bundled_pictures_name_their_licences(tmp_path):
    """What is stored here is small, drawn by sets whose licences are named, and read back as it was written."""
    found = Pictures.load(BUNDLED)
    assert BUNDLED.stat().st_size < 300_000
    listed = {style: found.licences[style].split(",")[0] for style in {*found.styles}}
    assert listed == {"noto": "Apache-2.0", "twemoji": "CC-BY-4.0", "openmoji": "CC-BY-SA-4.0"}
    notes = [(ROOT / name).read_text(encoding="utf-8") for name in ("LICENSE", "media/README.md")]
    for author in ("Noto Emoji", "Twemoji", "OpenMoji"):
        assert all(author in note for note in notes)
    found.save(tmp_path / "again.npz")
    again = Pictures.load(tmp_path / "again.npz")
    assert (again.files, again.names, again.styles, again.licences) == (
        found.files, found.names, found.styles, found.licences,
    )  # fmt: skip
    assert max(found.picture(0).size) == things.SIDE and found.picture(0).mode == "RGBA"
