"""The static step is the model: in plain torch here, as Triton kernels and CUDA graphs in `test_cuda`."""

import copy
import gc
import random
import weakref

import pytest
import torch
from fresh import ROOT
from tiny import ROUTINGS, VIDEO, random_batch, tiny_model

from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor, steps_videollm_mod
from videollm_mod.cache_videollm_mod import MoDCache
from videollm_mod.data.world import world_stream
from videollm_mod.fast_ops_videollm_mod import PlainOps
from videollm_mod.fast_step_videollm_mod import FastLanguageModel, why_not

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
STATIC = [
    name
    for name, options in ROUTINGS.items()
    if options.get("vision_routing", "mod") in ("mod", "full") and options.get("mod_selection") != "random"
]


def calls_of(row: dict, per_frame: int) -> list[tuple[list[int], torch.Tensor | None]]:
    """A stream as sessions feed it: text, then blocks of frames with one token before each."""
    ids, calls, frame, start = row["input_ids"][0].tolist(), [], 0, 0
    index = 0
    while index < len(ids):
        if ids[index] != VIDEO:
            index += 1
            continue
        count = 0
        while ids[index : index + per_frame] == [VIDEO] * per_frame:
            index, count = index + per_frame, count + 1
            if ids[index + 1 : index + 2] == [VIDEO]:
                index += 1
        calls.append((ids[start:index], row["video_features"][frame : frame + count]))
        frame, start = frame + count, index
    return [*calls, (ids[start:], None)]


def assert_same_cache(cache: MoDCache, expected: MoDCache) -> None:
    assert torch.equal(cache.next_position, expected.next_position) and cache.seen_tokens == expected.seen_tokens
    assert torch.equal(cache.frame_ends, expected.frame_ends)
    for layer, other in zip(cache.layers, expected.layers, strict=True):
        assert torch.equal(layer.positions, other.positions)
        torch.testing.assert_close(layer.keys, other.keys, **TOLERANCE)
        torch.testing.assert_close(layer.values, other.values, **TOLERANCE)


@pytest.mark.parametrize("name", STATIC)
@torch.no_grad()
def test_static_steps_are_the_model(name):
    """Any stream, in steps, in the model's own calls, and in turns of both, with rollbacks and forks between."""
    seed = list(ROUTINGS).index(name)
    model, rng = tiny_model(seed, **ROUTINGS[name]), random.Random(seed)
    fast, per_frame = FastLanguageModel(model, PlainOps), model.config.num_frame_tokens
    _, (row,) = random_batch(model, seed, [9])
    cache, mixed, expected = (MoDCache(model.config) for _ in range(3))
    for ids, features in calls_of(row, per_frame):
        inputs = {"input_ids": torch.tensor([ids]), "output_router_scores": True}
        apart = per_frame + 1
        read_at = [len(ids) - 1]
        if features is not None:
            inputs["video_features"] = features
            read_at = [len(ids) - 1 - apart * i for i in reversed(range(len(features)))]
        output = model(**inputs, past_key_values=expected, logits_to_keep=torch.tensor(read_at))
        logits, kept, scores = fast.feed(cache, ids, features, None)
        torch.testing.assert_close(logits, output.logits[0], **TOLERANCE)
        if features is not None:
            wanted = [x for x in output.router_scores if x is not None]
            assert (scores is None) == (not wanted)
            if wanted:
                torch.testing.assert_close(scores, torch.stack(wanted), **TOLERANCE)
            for own, other in zip(kept, output.kept_indices, strict=True):
                assert own is other is None or torch.equal(own, other)
        other = mixed.copy()  # the original goes its own way, from where the fork began
        mixed.rollback(mixed.get_seq_length())
        fast.feed(mixed, [7, 8, 9], None, None)
        if rng.random() < 0.5:
            other = mixed
            other.rollback(other.get_seq_length() - 3)
        if rng.random() < 0.5:
            model(**inputs, past_key_values=other)
        else:
            fast.feed(other, ids, features, None)
        mixed = other
        assert_same_cache(cache, expected)
        assert_same_cache(mixed, expected)


@torch.no_grad()
def test_a_keep_ratio_of_the_call_counts():
    model = tiny_model(3)
    fast = FastLanguageModel(model, PlainOps)
    ids, features = [5, *[VIDEO] * 5], torch.randn(1, 5, 16)
    for ratio, kept in ((0.2, 1), (0.9, 5), (None, 2)):
        cache, expected = MoDCache(model.config), MoDCache(model.config)
        logits, chosen, _ = fast.feed(cache, ids, features, ratio)
        output = model(
            input_ids=torch.tensor([ids]), video_features=features, past_key_values=expected, keep_ratio=ratio
        )
        torch.testing.assert_close(logits, output.logits[0, -1:], **TOLERANCE)
        assert chosen[1].shape == (1, kept)
        assert_same_cache(cache, expected)


@torch.no_grad()
def test_features_that_are_no_numbers_are_named():
    model = tiny_model(4)
    features = torch.randn(2, 5, 16)
    features[1, 3, 2] = torch.nan
    with pytest.raises(ValueError, match="`video_features` must be finite"):
        FastLanguageModel(model, PlainOps).feed(MoDCache(model.config), [5, *[VIDEO] * 5] * 2, features, None)


def test_a_model_that_changed_is_noticed():
    model = tiny_model(5)
    fast = FastLanguageModel(model, PlainOps)
    assert fast.is_current
    layer = model.model.language_model.layers[2]
    weight = layer.mlp.up_proj.weight
    kept, weight.data = weight.data, weight.data.clone()
    assert not fast.is_current
    weight.data = kept
    assert fast.is_current
    hook = layer.mlp.register_forward_hook(lambda *_: None)
    assert not fast.is_current
    hook.remove()
    assert fast.is_current
    layer.self_attn.q_proj = torch.nn.Linear(32, 32)
    assert not fast.is_current
    assert why_not(model) == "the model is not on a CUDA device"


def test_a_model_is_copied_and_freed_with_its_steps():
    model = tiny_model(6)
    model._static_steps = FastLanguageModel(model, PlainOps)
    with torch.no_grad():
        model._static_steps.feed(MoDCache(model.config), [5, 6], None, None)
    assert copy.deepcopy(model)._static_steps is None
    reference = weakref.ref(model)
    gc.disable()
    del model
    gc.enable()
    assert reference() is None


def test_steps_that_do_not_run_leave_the_session_to_the_model(monkeypatch):
    """As where a kernel can not be compiled: what the text before the frame wrote is taken back."""
    processor = VideoLLMMoDProcessor.from_pretrained(ROOT)
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT, dtype=torch.float32).eval()
    frames = world_stream(41).frames(height=96)[:6]
    expected = model.stream(processor, system_prompt="Watch.").push(frames)

    class Failing(PlainOps):
        @staticmethod
        def route(*arguments):
            raise TypeError("no such kernel")

    for kernels, reason in ((PlainOps, None), (Failing, "a step can not be run: TypeError: no such kernel")):
        fast = FastLanguageModel(model, kernels)
        monkeypatch.setattr(
            steps_videollm_mod,
            "fast_language_model",
            lambda model, fast=fast: (None if fast.broken else fast, fast.why_not),
        )
        session = model.stream(processor, system_prompt="Watch.")
        assert [(e.time, e.text) for e in session.push(frames)] == [(e.time, e.text) for e in expected]
        assert fast.why_not == reason
