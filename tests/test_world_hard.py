"""The hard level: a seed always gives the same stream, narrations match the pixels, and they need the past."""

import hashlib
import json
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from videollm_mod.data.world import conversation, world_stream
from videollm_mod.data.world_basic import KINDS, LIT_UP, NUM_STATES, THERE, TURNED
from videollm_mod.data.world_data import WorldCells, WorldData
from videollm_mod.data.world_hard import SPLITS, sprites
from videollm_mod.data.world_tasks import ORDINALS, PROCEDURES, TASKS

LEVELS = ("hard", "hard_small", "hard_lessons", "hard_small_lessons")
CROWD_LEVELS = ("crowd", "crowd_small", "crowd_lessons", "crowd_small_lessons")
TASK_LEVELS = ("hard_tasks", "hard_small_tasks")


def test_seed_gives_the_same_stream_on_any_machine():
    """The hash was made once."""
    digest = hashlib.sha256()
    for level in LEVELS + TASK_LEVELS:
        for seed in (0, 1, *SPLITS.values()):
            stream = world_stream(seed, level)
            digest.update(stream.frames(height=8 * stream.GRID).tobytes())
            digest.update(json.dumps([conversation(stream, num_questions=3), stream.depths]).encode())
    digest.update(json.dumps(PROCEDURES).encode())
    assert digest.hexdigest() == "9f277800eff4e1efc9865c642a5b956d9162d75c47f995b167cbf634f051d03a"


def test_seed_gives_the_same_crowd_on_any_machine():
    digest = hashlib.sha256()
    for level in CROWD_LEVELS:
        for seed in (0, 1, *SPLITS.values()):
            stream = world_stream(seed, level)
            digest.update(stream.codes().tobytes())
            digest.update(json.dumps([conversation(stream, num_questions=3), stream.depths]).encode())
    assert digest.hexdigest() == "45de8e7259293b70d25963bd463b9b7200a59f98831d5d7e800ab938207679b9"


def cells_of(frame: np.ndarray, grid: int) -> list[tuple[int, int, int, bool]]:
    """`(row, column, kind, lit)` of each object in a frame, read from its pixels by the nearest sprite."""
    side = frame.shape[0] // grid
    bank = sprites(side).astype(int)
    found = []
    for row in range(grid):
        for column in range(grid):
            cell = frame[row * side : (row + 1) * side, column * side : (column + 1) * side].astype(int)
            code = int(((bank - cell) ** 2).sum((1, 2, 3)).argmin())
            if code:
                found.append((row, column, (code - 1) // 2, bool((code - 1) % 2)))
    return found


def watched(stream, side: int = 16) -> list[tuple[int, int, int]]:
    """Read from the pixels alone: `(frame, first look, changes since)` of each object that is lit."""
    first, depth, unmasked = {}, {}, []
    for index, frame in enumerate(stream.frames(height=side * stream.GRID)):
        there = {(row, column): (kind, lit) for row, column, kind, lit in cells_of(frame, stream.GRID)}
        for (row, column), (kind, lit) in there.items():
            left, right = there.get((row, column - 1)), there.get((row, column + 1))
            if lit:
                assert left is None and right is None and len(there) == 1
                unmasked.append((index, first[kind], depth[kind]))
            elif left is not None:  # the object that the left one turned into
                assert right is None
                before = left[0]
                first.setdefault(before, before), depth.setdefault(before, 0)
                first[kind], depth[kind] = first[before], depth[before] + 1
            else:
                assert right is not None
    return unmasked


@pytest.mark.parametrize("level", LEVELS + CROWD_LEVELS)
@pytest.mark.parametrize("seed", range(6))
def test_narrations_follow_from_the_pixels(level, seed):
    stream = world_stream(seed, level)
    times = stream.frame_times(2.0)
    seen = watched(stream)
    assert [(times[frame], f"The {KINDS[kind]} is unmasked.") for frame, kind, _ in seen] == stream.narrations
    assert [depth for _, _, depth in seen] == stream.depths
    assert len(stream.narrations) == stream.UNMASKED


def test_most_narrations_need_two_or_more_changes():
    """These separate deep from shallow models; in lessons every depth has the same probability."""
    for level, low, high in (("hard", 0.65, 0.8), ("hard_small", 0.65, 0.8), ("hard_lessons", 0.35, 0.55)):
        depths = [depth for seed in range(100) for depth in world_stream(seed, level).depths]
        assert set(depths) == {0, 1, 2, 3}
        assert low < np.mean(np.array(depths) >= 2) < high


def test_all_things_are_in_the_crowd():
    for seed in range(20):
        stream = world_stream(seed, "crowd")
        assert sorted(kind for chain in stream.chains for kind in chain) == list(range(len(KINDS)))
        assert sorted(Counter(time for time, *_ in stream.changes).values()) == [4, 5, 5, 5]
    assert {depth for seed in range(20) for depth in world_stream(seed, "crowd_lessons").depths} == set(range(5))


@pytest.mark.parametrize("level", ["hard", "crowd"])
def test_narrations_never_name_a_disguise(level):
    for seed in range(30):
        stream = world_stream(seed, level)
        hidden = {KINDS[kind] for chain in stream.chains for kind in chain[1:]}
        assert not any(name in text for _, text in stream.narrations for name in hidden)


def test_splits_do_not_overlap():
    starts = sorted(SPLITS.values())
    assert len(SPLITS) == 3 and all(b - a >= 100_000_000 for a, b in pairwise(starts))


@pytest.mark.parametrize("side", [8, 13])
def test_frame_is_composed_of_its_sprites(side):
    stream = world_stream(5, "hard_small")
    cells = sprites(side)[stream.codes()]  # [E, h, w, side, side, 3]
    joined = cells.transpose(0, 1, 3, 2, 4, 5).reshape(len(cells), 3 * side, 3 * side, 3)
    assert np.array_equal(joined, stream.drawn(3 * side))


def test_answers_are_true_for_the_watched_frames():
    for seed in range(20):
        stream = world_stream(seed, "hard_small")
        for time, question, answer in stream.questions(count=4):
            if not question.startswith("Who is the "):
                continue
            name = question.removeprefix("Who is the ").rstrip("?")
            origin = {KINDS[kind]: chain for chain in stream.chains for kind in chain}.get(name)
            shown = {KINDS[kind] for t, *pair in stream.changes if t <= time for kind in pair}
            assert answer == (f"The {KINDS[origin[0]]}." if name in shown else "Nobody yet.")


def test_two_consecutive_steps_identify_the_procedure():
    pairs = [(steps[i][1], steps[(i + 1) % len(steps)][1]) for steps in PROCEDURES.values() for i in range(len(steps))]
    assert len(set(pairs)) == len(pairs) == len(PROCEDURES) * len(ORDINALS)


@pytest.mark.parametrize("level", TASK_LEVELS)
@pytest.mark.parametrize("seed", range(5))
def test_task_answers_follow_from_pixels_and_procedures(level, seed):
    stream = world_stream(seed, level)
    assert stream.narrations == []  # the order would reveal who is next
    times, seen = stream.frame_times(2.0), watched(stream)
    examples = stream.examples()
    assert tuple(examples) == TASKS
    for task, (time, question, answer) in examples.items():
        order = [kind for frame, kind, _ in seen if times[frame] <= time]
        (name,) = (
            name
            for name, steps in PROCEDURES.items()
            if any([steps[(at + i) % 10][1] for i in range(len(order))] == order for at in range(10))
        )
        steps = PROCEDURES[name]
        index = [kind for _, kind in steps].index(order[-1])
        said = [f"{steps[(index + i) % 10][0]} the {KINDS[steps[(index + i) % 10][1]]}" for i in range(21)]
        expected = {
            "step": f"{said[0].capitalize()}.",
            "task": f"The {name}.",
            "next": f"{said[1].capitalize()}.",
            "procedure": " ".join(f"{n}. {said[n].capitalize()}." for n in range(1, 6)),
            "procedure+": " ".join(f"{n}. {said[n].capitalize()}." for n in range(1, 6)),
            "lta": f"{', '.join(said[1:]).capitalize()}.",
            "keystep": f"Step {ORDINALS[index]} of the {name}.",
        }
        assert answer == expected[task]
        assert (name in question) == (task == "procedure+")
        assert task != "lta" or len(order) == 8
    rng = random.Random(seed)
    with pytest.raises(ValueError, match="`name` must be one of"):
        stream.task("lta", stream.steps[rng.randrange(7)][0])


@pytest.mark.parametrize("level", (*LEVELS, *TASK_LEVELS, "crowd", "crowd_small"))
def test_levels_can_be_training_data(level):
    """As for `videollm-mod train`: the shortest stream has room for its questions, and states encode the changes."""
    data = WorldData(level=level, first_seed=SPLITS["train"], num_streams=30, num_questions=3)
    grid = data.stream(0).GRID
    fine, pooled = (WorldCells(data, 8 * grid, (side, side)) for side in (grid, 2))
    for index in range(5):
        stream, example = data.stream(index), fine[index]
        assert len(stream.frame_times(data.fps)) >= stream.SECONDS[0] * data.fps
        assert len(stream.questions(data.fps, data.num_questions)) == 3
        for frame, labels in zip(example["frames"].numpy(), example["labels"].numpy(), strict=True):
            there = {(row, column): (kind, lit) for row, column, kind, lit in cells_of(frame.transpose(1, 2, 0), grid)}
            expected = np.zeros((grid * grid, len(KINDS)))
            for (row, column), (kind, lit) in there.items():
                left = there.get((row, column - 1))
                expected[row * grid + column, kind] = LIT_UP if lit else THERE if left is None else TURNED + left[0]
            assert np.array_equal(labels, expected)
            assert labels.max() < NUM_STATES
        # a coarser grid has the same objects, several in one cell
        assert torch.equal(pooled[index]["labels"].amax(1), example["labels"].amax(1))
        assert pooled[index]["labels"].shape[1:] == (4, len(KINDS))


@pytest.mark.parametrize("level", ["hard_tasks", "hard_small_tasks"])
def test_lessons_ask_for_every_task(level):
    asked = Counter()
    for seed in range(150):
        stream = world_stream(seed, f"{level}_lessons")
        questions = stream.questions(count=3)
        assert questions == sorted(questions) and len({time for time, *_ in questions}) == 3
        for time, question, answer in questions:
            (name,) = (name for name in stream.tasks(time) if stream.task(name, time) == (question, answer))
            asked[name] += 1
        assert len(stream.questions(count=8)) == 8  # more than a short stream has moments for tasks
    assert asked.keys() == set(TASKS)
    assert min(asked.values()) > 0.07 * 450  # the last frame, where anticipation waits, is one question's


def test_mixture_draws_the_level_of_each_stream_from_its_seed():
    shares = {"basic": 3, "hard_small": 1, "hard_tasks_lessons": 2.0}
    data = WorldData(level=shares, first_seed=SPLITS["train"], num_streams=1200, num_questions=2)
    classes = {type(world_stream(0, level)): level for level in shares}
    drawn = Counter()
    for index in range(1200):
        stream = data.stream(index)
        level = classes[type(stream)]
        drawn[level] += 1
        assert conversation(stream) == conversation(world_stream(SPLITS["train"] + index, level))
    for level, share in shares.items():
        assert abs(drawn[level] / 1200 - share / 6) < 0.05
    later = WorldData(level=shares, first_seed=SPLITS["train"] + 7, num_questions=2)
    assert [type(later.stream(i)) for i in range(50)] == [type(data.stream(i + 7)) for i in range(50)]
    words = " ".join(data.texts())
    assert all(word in words for word in ("appears", "unmasked", "Which twenty actions"))
    alone = WorldData(level={"hard": 0.5}, first_seed=5)
    assert alone.texts() == WorldData(level="hard", first_seed=5).texts()


@pytest.mark.parametrize("level", [{}, {"basic": 0}, {"basic": -1}, {"basic": True}, {"basic": "1"}, ["basic"], None])
def test_wrong_shares_give_a_clear_error(level):
    with pytest.raises(ValueError, match="`level` must be a level, or levels with shares above 0, got"):
        WorldData(level=level)


def test_unknown_level_of_a_mixture_gives_a_clear_error():
    with pytest.raises(ValueError, match="`level` must be one of 'basic', .*got 'none'"):
        WorldData(level={"basic": 1, "none": 1})
    with pytest.raises(ValueError, match=r"`num_questions` must be in \[0, 8\], the frames of the shortest stream"):
        WorldData(level={"basic": 1, "hard": 1}, num_questions=9)
