"""A stream in pieces is the stream in one pass; what the cache forgets, it never saw."""

import random

import pytest
import torch
from comparing import assert_near, assert_same_cache
from tiny_models import (
    FIRST_WORD,
    ROUTINGS,
    SEPARATOR,
    VIDEO,
    frame_cuts,
    random_batch,
    run_in_pieces,
    tiny_model,
)

from videollm_mod.cache import MoDCache


@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_any_cuts_at_frame_boundaries_give_one_pass(name, implementation):
    seed = list(ROUTINGS).index(name)
    model = tiny_model(seed, **ROUTINGS[name])
    model.set_attn_implementation(implementation)
    _, (row,) = random_batch(model, seed, [5])
    whole = model(**row)
    rng = random.Random(f"{seed} {implementation}")
    per_frame, ids = model.config.num_frame_tokens, row["input_ids"][0].tolist()
    cache = MoDCache(model.config)
    pieces = run_in_pieces(model, row, frame_cuts(ids, per_frame, rng), cache)
    assert_near(pieces, whole.logits)
    assert_same_cache(cache, whole.past_key_values)
    assert cache.get_seq_length() == len(ids)
    assert cache.num_frames.tolist() == [5]


def test_a_call_of_vision_tokens_only_skips_an_early_exit_layer():
    model = tiny_model(1, vision_routing="early_exit", early_exit_layer=1)
    cache = MoDCache(model.config)
    frame = {"input_ids": torch.full((1, 5), VIDEO), "video_features": torch.randn(1, 5, 16)}
    model(**frame, past_key_values=cache)
    assert [layer.get_seq_length() for layer in cache.layers] == [5, 0, 0, 0, 0]
    # a separator may open the next piece, and is known as one; the same id anywhere else is text
    model(input_ids=torch.tensor([[SEPARATOR]]), past_key_values=cache)
    assert [layer.get_seq_length() for layer in cache.layers] == [6, 0, 0, 0, 0]
    model(input_ids=torch.tensor([[SEPARATOR, FIRST_WORD]]), past_key_values=cache)
    assert [layer.get_seq_length() for layer in cache.layers] == [8, 2, 2, 2, 2]


@pytest.mark.parametrize("ratio, kept", [(0.2, 1), (0.4, 2), (1.0, 5)])
def test_routed_layers_hold_only_what_they_kept(ratio, kept):
    model = tiny_model(2, mod_keep_ratio=ratio)
    _, (row,) = random_batch(model, 2, [4])
    cache = model(**row).past_key_values
    length = row["input_ids"].shape[1]
    routed = length - 4 * (5 - kept)
    assert [layer.keys.shape[2] for layer in cache.layers] == [length, routed, length, routed, length]
    assert cache.num_bytes == (3 * length + 2 * routed) * 2 * 2 * 8 * 4  # keys and values, heads, head size, float32


@pytest.mark.parametrize("name", ROUTINGS)
def test_rollback_equals_never_having_continued(name):
    seed = 20 + list(ROUTINGS).index(name)
    model = tiny_model(seed, **ROUTINGS[name])
    _, (row,) = random_batch(model, seed, [4])
    ids, per_frame = row["input_ids"][0].tolist(), model.config.num_frame_tokens
    rng = random.Random(seed)
    cuts = frame_cuts(ids, per_frame, rng)[:-1]
    for cut in rng.sample(cuts, min(8, len(cuts))):
        frames = ids[:cut].count(VIDEO) // per_frame
        whole = model(**row)
        cache = whole.past_key_values
        cache.rollback(cut)
        short = {"input_ids": row["input_ids"][:, :cut]}
        if frames:
            short["video_features"] = row["video_features"][:frames]
        assert_same_cache(cache, model(**short).past_key_values)
        assert cache.get_seq_length() == cut
        rest = {"input_ids": row["input_ids"][:, cut:]}
        if frames < 4:
            rest["video_features"] = row["video_features"][frames:]
        assert_near(model(**rest, past_key_values=cache).logits, whole.logits[:, cut:])


def test_each_row_rolls_back_to_its_own_position():
    model = tiny_model(3)
    batch, rows = random_batch(model, 3, [3, 0, 2])
    ends = batch["attention_mask"].sum(1)
    cache = model(**batch).past_key_values
    assert torch.equal(cache.next_position, ends)
    cache.rollback(ends - torch.tensor([1, 2, 0]))
    word = torch.full((3, 1), FIRST_WORD)
    logits = model(input_ids=word, past_key_values=cache).logits
    for index, row in enumerate(rows):
        ids = row["input_ids"][:, : int(ends[index]) - [1, 2, 0][index]]
        row = {**row, "input_ids": torch.cat([ids, word[:1]], dim=1)}
        assert_near(logits[index], model(**row).logits[0, -1:])


@pytest.mark.parametrize("name", ["learned", "random", "early exit", "layer skip", "change", "difference"])
def test_a_padded_batch_continues_as_each_row_alone(name):
    """Rows with different numbers of frames in every call, some with none."""
    model = tiny_model(4, **ROUTINGS[name])
    calls = [random_batch(model, 40 + i, counts) for i, counts in enumerate([[2, 0, 1], [0, 3, 1], [1, 0, 0]])]
    cache, alone = MoDCache(model.config), [MoDCache(model.config) for _ in range(3)]
    for batch, rows in calls:
        logits = model(**batch, past_key_values=cache).logits
        for index, row in enumerate(rows):
            expected = model(**row, past_key_values=alone[index]).logits[0]
            assert_near(logits[index, -len(expected) :], expected)
    assert cache.num_frames.tolist() == [3, 3, 2]
    assert cache.next_position.tolist() == [int(c.next_position) for c in alone]


def test_a_mask_over_all_tokens_equals_one_over_the_new_tokens():
    model = tiny_model(5)
    first, _ = random_batch(model, 50, [1, 2])
    second, _ = random_batch(model, 51, [2, 0])
    logits = []
    for whole in (False, True):
        cache = model(**first).past_key_values
        mask = [first["attention_mask"], second["attention_mask"]][0 if whole else 1 :]
        logits.append(model(**{**second, "attention_mask": torch.cat(mask, dim=1)}, past_key_values=cache).logits)
    assert_near(*logits)


def test_rows_are_reordered_repeated_and_selected():
    model = tiny_model(6)
    batch, rows = random_batch(model, 6, [2, 0, 3])
    step = torch.full((6, 1), FIRST_WORD)
    expected = [model(**{**r, "input_ids": torch.cat([r["input_ids"], step[:1]], 1)}).logits[0, -1:] for r in rows]
    for change, order in [
        (lambda c: c.reorder_cache(torch.tensor([2, 2, 0])), [2, 2, 0]),
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda c: c.batch_select_indices(torch.tensor([1])), [1]),
    ]:
        cache = model(**batch).past_key_values
        change(cache)
        logits = model(input_ids=step[: len(order)], past_key_values=cache).logits
        for index, row in enumerate(order):
            assert_near(logits[index], expected[row])


def test_crop_removes_the_last_tokens_and_reset_all():
    model = tiny_model(7)
    batch, _ = random_batch(model, 7, [2, 3])
    cache = model(**batch).past_key_values
    seen, ends = cache.get_seq_length(), cache.next_position.clone()
    cache.crop(0)
    assert cache.get_seq_length() == seen
    cache.crop(-1)
    assert cache.get_seq_length() == seen - 1
    assert torch.equal(cache.next_position, ends - 1)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.num_bytes == 0
    assert_near(model(**batch, past_key_values=cache).logits, model(**batch).logits)


def test_wrong_positions_are_refused():
    model = tiny_model(8)
    _, (row,) = random_batch(model, 8, [2])
    cache = model(**row).past_key_values
    end = cache.get_seq_length()
    for position in (-1, end + 1, torch.tensor([end + 5])):
        with pytest.raises(ValueError, match="`position` must be between 0 and the row's end"):
            cache.rollback(position)
    with pytest.raises(ValueError, match="`tokens_to_remove` must be negative or 0, got 3"):
        cache.crop(3)
    with pytest.raises(ValueError, match="`position` must be 0 in an empty cache, got 4"):
        MoDCache(model.config).rollback(4)
    assert cache.get_seq_length() == end


def test_the_random_control_does_not_depend_on_the_batch():
    model = tiny_model(9, mod_selection="random", mod_layers="all")
    batch, rows = random_batch(model, 9, [3, 1, 2])
    together = model(**batch, output_router_scores=True).kept_indices
    alone = [model(**row, output_router_scores=True).kept_indices for row in rows]
    for layer, kept in enumerate(together):
        assert torch.equal(kept, torch.cat([indices[layer] for indices in alone]))
    assert not torch.equal(together[0], together[1])
