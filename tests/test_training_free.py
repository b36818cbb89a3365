"""Routing by scores that need no training: what they score, and that a session chooses the same however it is run."""

import numpy as np
import pytest
import torch
from small_data import small_model
from tiny_models import VIDEO, random_batch, tiny_model

from videollm_mod import MoDCache, StreamingSession, StreamPool
from videollm_mod.configuration_videollm_mod import TRAINING_FREE, VideoLLMMoDTextConfig
from videollm_mod.routing import change_scores, difference_scores


def test_change_is_relative_to_the_token():
    before = torch.tensor([[[3.0, 4.0], [30.0, 40.0], [1.0, 0.0], [0.0, 0.0]]])
    after = torch.tensor([[[3.0, 5.0], [30.0, 41.0], [1.0, 0.0], [0.0, 0.0]]])
    assert change_scores(before, after)[0].tolist() == pytest.approx([1 / 34**0.5, 1 / (900 + 1681) ** 0.5, 0, 0])


def test_a_difference_within_rounding_is_none():
    values = torch.randn(2, 3, 8)
    noisy = values * (1 + 1e-3)
    noisy[1, 2] = values[1, 2] + 1
    scores = difference_scores(noisy, values)
    assert scores[1, 2] == pytest.approx((noisy[1, 2] - values[1, 2]).norm().item())
    scores[1, 2] = 0
    assert not scores.any()


@pytest.mark.parametrize("selection", TRAINING_FREE)
@pytest.mark.parametrize("layers", ["all", [2, 0]])
def test_layer_0_has_no_score(selection, layers):
    with pytest.raises(ValueError, match=f"`mod_layers` must not hold layer 0 with mod_selection='{selection}'.*got"):
        VideoLLMMoDTextConfig(mod_selection=selection, mod_layers=layers)


@torch.no_grad()
def test_difference_keeps_what_is_new():
    """Of a frame in which two tokens are new, in one pass and in the next call; of a still frame the first tokens."""
    model = tiny_model(1, mod_selection="difference")
    first = torch.randn(1, 5, 16)
    second = first.clone()
    second[0, [1, 3]] = 9 * torch.randn(2, 16)
    inputs = {"input_ids": torch.tensor([[5, *[VIDEO] * 5, 4] * 3]), "output_router_scores": True}
    whole = model(**inputs, video_features=torch.cat([first, second, second]))
    assert whole.kept_indices[1][1:].tolist() == [[1, 3], [0, 1]] and whole.kept_indices[1].shape == (3, 2)
    cache = MoDCache(model.config)
    for index, features in enumerate((first, second, second)):
        piece = {**inputs, "input_ids": inputs["input_ids"][:, 7 * index : 7 * index + 7]}
        kept = model(**piece, video_features=features, past_key_values=cache).kept_indices
        for layer in (1, 3):
            assert torch.equal(kept[layer][0], whole.kept_indices[layer][index])


@torch.no_grad()
def test_a_frame_under_padding_is_not_the_frame_before():
    model = tiny_model(2, mod_selection="difference")
    _, (row,) = random_batch(model, 2, [2])
    ids, features = torch.tensor([[5, *[VIDEO] * 5] * 2]), row["video_features"]
    mask = torch.tensor([[0] * 6 + [1] * 6])
    hidden = model(input_ids=ids, attention_mask=mask, video_features=features, output_router_scores=True)
    alone = model(input_ids=ids[:, :6], video_features=features[1:], output_router_scores=True)
    assert torch.equal(hidden.kept_indices[1][1], alone.kept_indices[1][0])


def test_a_part_of_the_values_is_refused():
    model = tiny_model(3, mod_selection="difference")
    _, (row,) = random_batch(model, 3, [1])
    attention = model.model.language_model.layers[0].self_attn
    attention.v_proj = torch.nn.Linear(32, attention.head_dim, bias=False)
    with pytest.raises(ValueError, match="cannot be used with tensor parallelism: each process holds 8 of 16 values"):
        model(**row)


@pytest.mark.parametrize("selection", TRAINING_FREE)
def test_a_session_keeps_the_same_tokens_however_it_is_run(selection, tmp_path):
    """Frame by frame, in blocks, after a fork and after save and load, in a pool, and where frames are taken back."""
    model, processor = small_model(4, mod_selection=selection)
    rng = np.random.default_rng(4)
    frames = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    frames[5:8] = frames[4]  # still
    session = model.stream(processor, speak_threshold=0.0)
    silence = sorted(frame.silence_probability for frame in session.watch(frames))
    options = {"speak_threshold": (silence[3] + silence[4]) / 2, "max_new_tokens": 3}

    def kept(session, frames) -> list:
        return [[None if x is None else x.tolist() for x in frame.kept] for frame in session.watch(frames)]

    one = model.stream(processor, **options)
    expected = [kept(one, frame[None])[0] for frame in frames]
    assert one.stats.narrations and len({str(layers) for layers in expected}) > 3
    many = model.stream(processor, **options)
    assert kept(many, frames[:6]) == expected[:6]
    fork = many.fork()
    many.save(tmp_path / "session")
    restored = StreamingSession.load(tmp_path / "session", model, processor)
    for own in (many, fork, restored):
        assert kept(own, frames[6:]) == expected[6:]
    pool = StreamPool(model, processor)
    streams = [pool.join(**options) for _ in range(3)]
    for index, stream in enumerate(streams):
        stream.push(frames[: 12 - index])
    while any(stream.busy for stream in streams):
        pool.tick()
    for index, stream in enumerate(streams):
        lone = model.stream(processor, **options)
        lone.push(frames[: 12 - index])
        left = pool.leave(stream)
        for layer, other in zip(left.cache.layers, lone.cache.layers, strict=True):
            assert torch.equal(layer.positions, other.positions)
