"""Which tokens are kept, in all small cases, and where frames and separators are found."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naive_forward import mix

from videollm_mod.configuration_videollm_mod import VideoLLMMoDTextConfig, num_kept_tokens
from videollm_mod.routing import (
    LayerExpert,
    StreamLayout,
    previous_token,
    random_priority,
    select_tokens,
    uniform_priority,
)


@given(st.floats(0.001, 1), st.integers(1, 200))
def test_kept_tokens_are_the_ratio_rounded_up_and_at_least_one(ratio, n):
    k = num_kept_tokens(ratio, n)
    assert 1 <= k <= n
    assert k >= ratio * n - 1e-5
    assert k == 1 or k - 1 < ratio * n


def test_rounding_does_not_keep_one_token_too_many():
    assert [num_kept_tokens(0.2, n) for n in (1, 5, 10, 50, 101)] == [1, 1, 2, 10, 21]
    assert num_kept_tokens(0.1 * 3, 10) == 3  # 0.30000000000000004 * 10
    assert num_kept_tokens(1, 7) == 7


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=7), st.data(), st.booleans())
def test_selection_is_a_stable_sort(scores, data, force_last):
    k, n = data.draw(st.integers(1, len(scores))), len(scores)
    ranked = sorted(range(n), key=lambda i: (-scores[i], i))
    if force_last:
        ranked = [n - 1] + [i for i in ranked if i != n - 1]
    kept = select_tokens(torch.tensor([scores, scores[::-1]]).float(), k, force_last)
    assert kept[0].tolist() == sorted(ranked[:k])
    assert kept.shape == (2, k)


def test_uniform_is_evenly_spread():
    for n, k in itertools.combinations_with_replacement(range(1, 30), 2):
        k, n = min(k, n), max(k, n)
        kept = select_tokens(uniform_priority(torch.zeros(2, n), k), k)
        assert kept[1].tolist() == [math.floor((j + 0.5) * n / k) for j in range(k)]


def test_random_is_the_documented_hash_and_spreads_evenly():
    frames = torch.zeros(3000, 10)
    numbers = torch.arange(3000)
    priority = random_priority(frames, numbers, layer_idx=5, seed=7)
    base = mix(mix(mix(7) + 5) + 2999)
    assert priority[2999].tolist() == [mix(base + token) for token in range(10)]
    counts = select_tokens(priority, 2).flatten().bincount(minlength=10)
    assert (counts - 600).abs().max() < 100  # standard deviation 22
    other_layer = select_tokens(random_priority(frames, numbers, layer_idx=6, seed=7), 2)
    assert (other_layer == select_tokens(priority, 2)).all(1).float().mean() < 0.1  # 1 pair of 45 by chance


def test_layer_expert_is_a_linear_map_in_float32():
    expert = LayerExpert(16)
    assert isinstance(expert, torch.nn.Linear)
    assert (expert.in_features, expert.out_features, expert.weight.dtype) == (16, 1, torch.float32)
    x = torch.randn(2, 3, 16, dtype=torch.bfloat16)
    torch.testing.assert_close(expert(x), (x.float() @ expert.weight[0]) + expert.bias)


VISION, COMMA, WORD, PADDING = "v", ",", "w", "."


def layout_of(rows: list[str], n: int, **options) -> StreamLayout:
    is_vision = torch.tensor([[c == VISION for c in row] for row in rows])
    is_separator = torch.tensor([[c == COMMA for c in row] for row in rows])
    valid = torch.tensor([[c != PADDING for c in row] for row in rows])
    return StreamLayout.of(is_vision, is_separator, n, valid=None if valid.all() else valid, **options)


def test_only_a_separator_id_after_a_frame_is_a_separator():
    layout = layout_of([",,vv,vv,,wvvvv,"], 2)
    assert layout.num_frames == 4
    assert layout.is_separator[0].nonzero().flatten().tolist() == [4, 7, 14]
    assert layout.ends_frame[0].nonzero().flatten().tolist() == [3, 6, 11, 13]
    assert layout.frame_numbers.tolist() == [0, 1, 2, 3]


def test_the_layout_continues_that_of_earlier_calls():
    after, seen = torch.tensor([True, False, True]), torch.tensor([5, 0, 7])
    layout = layout_of([",vv,vv", "..,wvv", "...,vv"], 2, frames_seen=seen, after_frame=after)
    assert layout.is_separator.nonzero().tolist() == [[0, 0], [0, 3], [2, 3]]
    assert layout.frame_numbers.tolist() == [5, 6, 0, 7]
    assert layout.is_text.sum(1).tolist() == [2, 2, 1]


@given(st.lists(st.sampled_from(["a", "b", "."]), min_size=1, max_size=8), st.booleans())
def test_previous_token_skips_padding(row, before):
    flags = torch.tensor([[c == "a" for c in row]])
    valid = torch.tensor([[c != "." for c in row]])
    expected, last = [], before
    for c in row:
        expected.append(last)
        last = last if c == "." else c == "a"
    assert previous_token(flags, valid, torch.tensor([before]))[0].tolist() == expected
    if valid.all():
        assert previous_token(flags, None, torch.tensor([before]))[0].tolist() == expected


@pytest.mark.parametrize("rows", [["v"], ["vwv"], ["wvvv"], ["wv", "vw"], ["vvw", "wwv"]])
def test_incomplete_frames_are_refused(rows):
    with pytest.raises(ValueError, match="break inside a frame: a frame is 2 consecutive"):
        layout_of(rows, 2)


@pytest.mark.parametrize(
    "layers, routed",
    [
        ("interleaved", (1, 3, 5)),
        ("all", (0, 1, 2, 3, 4, 5)),
        ("all_deep", (2, 3, 4, 5)),
        ("interleaved_deep", (3, 5)),
        ([4, 0], (0, 4)),
        ((), ()),
    ],
)
def test_routed_layers(layers, routed):
    config = VideoLLMMoDTextConfig(num_hidden_layers=6, mod_layers=layers)
    assert config.routed_layers == routed
