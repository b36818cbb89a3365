"""The levels of minutes: answers are true of the frames, however long ago, and what is hushed is not said."""

import hashlib
import random
from itertools import pairwise

import pytest

from videollm_mod.data.world import conversation, world_stream
from videollm_mod.data.world_data import WorldData
from videollm_mod.data.world_minutes import COUNTS, LENGTHS, QUESTIONS

SEEDS = range(40)


def test_seed_gives_the_same_stream_on_any_machine():
    digest = hashlib.sha256()
    for seed in (0, 1, 12345):
        for level in ("minute", "minutes"):
            stream = world_stream(seed, level)
            digest.update(repr([conversation(stream, 1.0, 9), stream.narrations, stream.seconds]).encode())
    assert digest.hexdigest() == "8949f18e2ed706e04a7bf646554321fff2dd4d984039cb8a4579890b8fbe8d9d"


def seen(stream, time: float) -> list[dict[str, str]]:
    """Name -> place after each half second up to a time."""
    return [{x.name: x.place for x in stream.things(step / 2)} for step in range(int(time * 2) + 1)]


def told(stream, time: float) -> list[tuple[float, str, str, str]]:
    """`(time, what happened in the past tense, narration, name)` of all changes, from what is there alone."""
    found, scenes = [], seen(stream, time)
    for step, (before, after) in enumerate(pairwise(scenes), 1):
        for name in after.keys() - before.keys():
            found.append((step / 2, f"the {name} appeared", f"A {name} appears at the {after[name]}.", name))
        for name in before.keys() - after.keys():
            found.append((step / 2, f"the {name} left", f"The {name} leaves.", name))
        for name in before.keys() & after.keys():
            if before[name] != after[name]:
                place = after[name]
                found.append((step / 2, f"the {name} moved to the {place}", f"The {name} moves to the {place}.", name))
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_are_true_of_what_was_shown(seed):
    stream = world_stream(seed, "minute")
    rng, kinds = random.Random(seed), set()
    for time in rng.sample(stream.frame_times(2.0).tolist(), 5):
        scenes, events = seen(stream, time), told(stream, time)
        for asked in stream.askable(time):
            kinds.add(asked.kind)
            subject = asked.subject[0] if asked.subject else None
            if asked.kind in ("before", "after"):
                (index,) = (i for i, event in enumerate(events) if event[1] == subject)
                assert asked.answer == events[index + (1 if asked.kind == "after" else -1)][2]
            elif asked.kind in ("first", "last"):
                assert asked.answer == events[0 if asked.kind == "first" else -1][2]
                assert asked.age == time - events[0 if asked.kind == "first" else -1][0]
            elif asked.kind == "start":
                assert asked.answer == f"At the {scenes[0][subject]}." and asked.age == time and not asked.said
            elif asked.kind == "appeared":
                came = next(i for i, scene in enumerate(scenes) if subject in scene)
                assert asked.answer == f"At the {scenes[came][subject]}." and asked.age == time - came / 2
            elif asked.kind == "shapes":
                names = {name for scene in scenes for name in scene if name.split()[1][:5] == subject[:5]}
                assert asked.answer == COUNTS[len(names)].capitalize() + "."
            elif asked.kind == "times":
                count = sum(event[1].split()[3] == subject for event in events)
                assert asked.answer == COUNTS[count].capitalize() + "."
            elif asked.kind == "order":
                first = min(asked.subject, key=lambda name: next(i for i, x in enumerate(scenes) if name in x))
                assert asked.answer == f"The {first}."
            else:
                there = [i for i, scene in enumerate(scenes) if subject in scene]
                length = (there[-1] + 1 - there[0]) / 2
                assert asked.answer == next(text for most, text in LENGTHS.items() if length <= most)
    assert {"first", "last"} <= kinds


def test_questions_of_all_kinds_and_wordings_are_asked_about_all_of_the_past():
    """Ages are spread, whether it was said or not, and each wording occurs."""
    asked = []
    for seed in range(150):
        stream, rng = world_stream(seed, "minutes"), random.Random(seed)
        asked += [stream.asked(rng, time) for time in rng.sample(stream.frame_times(2.0).tolist(), 12)]
    assert {(x.kind, x.wording) for x in asked} == {
        (k, i) for k, texts in QUESTIONS.items() for i in range(len(texts))
    }
    for said in (True, False):
        ages = [x.age for x in asked if x.said == said]
        for low, high in ((0, 20), (20, 45), (45, 90), (90, 200), (200, 600)):
            assert sum(low <= age < high for age in ages) > 20, (said, low)
    assert all(x.answer.endswith(".") and "{" not in x.text and "crosss" not in x.text for x in asked)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_hushed_is_not_said_and_all_else_is(seed):
    stream = world_stream(seed, "minutes")
    silent = [x.text for x in stream.happenings if not x.said]
    assert [x.text for x in stream.happenings] == [event.text for event in stream.events[1:]]
    assert [(x.time, x.text) for x in stream.happenings if x.said] == stream.narrations
    _, instruction = stream.opening()
    if stream.hush is None:
        assert not silent
        return
    kind, what = stream.hush
    assert instruction is not None and (kind == "all" or what in instruction)
    of_it = [x for x in stream.happenings if kind == "all" or what in (x.verb, *x.name.split())]
    assert [x.text for x in of_it] == silent


def test_streams_last_minutes_at_any_rate():
    seconds = [world_stream(seed, "minutes").seconds for seed in range(200)]
    assert 60 <= min(seconds) < 120 and 480 < max(seconds) <= 600
    data = WorldData(level="minutes", num_streams=40, fps=[1.0, 2.0, 8.0])
    rates = [data.fps_of(data.stream(index)) for index in range(40)]
    assert set(rates) == {1.0, 2.0, 8.0} and rates == [data.fps_of(data.stream(index)) for index in range(40)]
    with pytest.raises(ValueError, match="`fps` must be a number, or a list of some, got \\[\\]"):
        WorldData(fps=[])
    with pytest.raises(ValueError, match="`fps` must give at least one frame"):
        WorldData(fps=[2.0, 0.0])
    gaps = [b.time - a.time for seed in SEEDS for a, b in pairwise(world_stream(seed, "minutes").events)]
    assert min(gaps) <= 1 and max(gaps) >= 50
