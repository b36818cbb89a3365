"""Static steps equal the model: in plain torch here, as Triton kernels and CUDA graphs in `test_cuda`."""

import copy
import gc
import os
import random
import weakref
from itertools import product
from unittest import mock

import numpy as np
import pytest
import torch
from comparing import assert_near, assert_same_cache, assert_same_events
from fresh_process import ROOT
from small_data import small_model
from tiny_models import FIRST_WORD, ROUTINGS, SEPARATOR, START, VIDEO, random_batch, tiny_model

from videollm_mod import (
    StreamPool,
    VideoLLMMoDForConditionalGeneration,
    VideoLLMMoDProcessor,
    static_graphs,
    static_step,
)
from videollm_mod import steps as steps_module
from videollm_mod import weights as stored
from videollm_mod.cache import MoDCache
from videollm_mod.data.world import world_stream
from videollm_mod.routing import LayerExpert
from videollm_mod.static_graphs import StaticLanguageModel, why_not
from videollm_mod.static_step import PlainOps, StaticStep

needs_triton = pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs a GPU, or Triton's interpreter, TRITON_INTERPRET=1",
)
QUESTION = "What happened last?"
STATIC = {
    name: options
    for name, options in ROUTINGS.items()
    if options.get("vision_routing", "mod") in ("mod", "full") and options.get("mod_selection") != "random"
} | {"normalised": {"qk_norm": True}, "unrotated": {"no_rope_layers": [0, 3]}}


def with_any_norm(model):
    """With norms of queries and keys that do more than scale to 1."""
    for name, weight in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            torch.nn.init.uniform_(weight, 0.3, 2.0)
    return model


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


@pytest.mark.parametrize("name", STATIC)
@torch.no_grad()
def test_static_steps_equal_the_model(name):
    """A stream in steps, in calls of the model, and in both by turns, with rollbacks and forks in between."""
    seed = list(STATIC).index(name)
    model, rng = with_any_norm(tiny_model(seed, **STATIC[name])), random.Random(seed)
    fast, per_frame = StaticLanguageModel(model, PlainOps), model.config.num_frame_tokens
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
        assert_near(logits, output.logits[0])
        if features is not None:
            wanted = [x for x in output.router_scores if x is not None]
            assert (scores is None) == (not wanted)
            if wanted:
                assert_near(scores, torch.stack(wanted))
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


def check_streams_together(models, fast, seed: int, near=assert_near, mixed: bool = True) -> None:
    """Compare streams that share steps with calls of each stream alone, of this model and of others, which `near` gets
    too. Streams come and go, hold different numbers of tokens, are forked, and add texts of different lengths and
    different numbers of frames. mixed: in half of the calls they keep different shares of their vision tokens."""
    model = models[0]
    rng, per_frame, vision = random.Random(seed), model.config.num_frame_tokens, model.config.vision_config.hidden_size
    torch.manual_seed(seed)
    streams, used = [], set()  # the cache of each, and those of the models' calls
    for _ in range(8):
        for _ in range(rng.randint(1, 3)):
            streams.append(tuple(MoDCache(model.config) for _ in (fast, *models)))
        rng.shuffle(streams)
        del streams[6:]
        if rng.random() < 0.5:
            streams.append(tuple(cache.copy() for cache in streams[0]))
        fed, frames = [], rng.randint(1, 2)
        for cache, *_ in streams:
            kind, text = rng.choice(("frames", "frames", "both", "text")), [START]
            if kind != "frames":
                text = [rng.randrange(FIRST_WORD, 60) for _ in range(rng.choice((1, 1, 2, 15, 17, 300)))] + text
            own = 0 if kind == "text" else rng.choice((frames, frames, 3))
            ids = text[: None if own else -1] + ([VIDEO] * per_frame + [SEPARATOR]) * own
            features = torch.randn(own, per_frame, vision).to(model.device, model.dtype) if own else None
            fed.append((cache, ids[: len(ids) - bool(own)], features))
        ratios = [rng.choice((None, 0.2, 0.5, 1.0)) if mixed and rng.random() < 0.5 else None for _ in streams]
        results = fast.feed_together(fed, ratios)
        used |= {step.shape.streams for step in fast._steps.values()}
        for (cache, *others), (_, ids, features), ratio, result in zip(streams, fed, ratios, results, strict=True):
            inputs = {"input_ids": torch.tensor([ids], device=model.device), "output_router_scores": True}
            read_at = [len(ids) - 1]
            if features is not None:
                read_at = [len(ids) - 1 - (per_frame + 1) * i for i in reversed(range(len(features)))]
            read_at = torch.tensor(read_at, device=model.device)
            outputs = []
            for each, other in zip(models, others, strict=True):
                seen = {} if features is None else {"video_features": features.to(each.dtype)}
                outputs.append(each(**inputs, **seen, past_key_values=other, logits_to_keep=read_at, keep_ratio=ratio))
            near(result.logits, *(output.logits[0] for output in outputs))
            if features is not None:
                assert bool(result.finite)
                scores = [[x for x in output.router_scores if x is not None] for output in outputs]
                assert (result.scores is None) == (not scores[0])
                if scores[0]:
                    near(result.scores, *map(torch.stack, scores))
                for own, other in zip(result.kept, outputs[0].kept_indices, strict=True):
                    assert own is other is None or torch.equal(own, other)
            assert_same_cache(cache, *others, near=near)
    assert {1, 2, 4} <= used
    is_routed = model.config.text_config.vision_routing == "mod"
    assert any(step.shape.mixed for step in fast._steps.values()) == (mixed and is_routed)


@pytest.mark.parametrize("name", ["learned", "output gate", "uniform", "full", "normalised"])
@torch.no_grad()
def test_frames_without_text_between_them_equal_the_model(name):
    """One or several in a call, with text before and after them, or none; of several streams together."""
    model, rng = with_any_norm(tiny_model(9, **STATIC[name])), random.Random(9)
    fast, per_frame = StaticLanguageModel(model, PlainOps), model.config.num_frame_tokens
    caches, expected = ([MoDCache(model.config) for _ in range(2)] for _ in range(2))
    for call in range(8):
        frames, after = rng.randint(1, 3), rng.choice((0, 2))
        words = [rng.randrange(FIRST_WORD, 60) for _ in range(rng.choice((0, 0, 1, 5)) if call else 3)]
        streams, outputs = [], []
        for cache, other in zip(caches, expected, strict=True):
            frame = [VIDEO] * per_frame * frames
            ids = words + frame + [7] * after
            features = torch.randn(frames, per_frame, 16)
            read_at = (
                range(len(ids) - after, len(ids))
                if after
                else [len(ids) - 1 - per_frame * i for i in range(frames)][::-1]
            )
            outputs.append(
                model(
                    input_ids=torch.tensor([ids]),
                    video_features=features,
                    past_key_values=other,
                    logits_to_keep=torch.tensor(list(read_at)),
                ).logits[0]
            )
            streams.append((cache, ids, features))
        results = fast.feed_together(streams, None, [after] * 2)
        for result, logits in zip(results, outputs, strict=True):
            assert_near(result.logits, logits)
        for cache, other in zip(caches, expected, strict=True):
            assert_same_cache(cache, other)
    assert any(step.text_before == 0 for step in fast._steps.values())


# every gate, selection and kind of layer; other sets of routed layers say nothing new of several streams
ALIKE = ("all layers", "interleaved deep", "listed", "change", "difference")


@pytest.mark.parametrize("name", [name for name in STATIC if name not in ALIKE])
@torch.no_grad()
def test_static_steps_of_several_streams_equal_each_alone(name):
    seed = 50 + list(STATIC).index(name)
    model = with_any_norm(tiny_model(seed, **STATIC[name]))
    check_streams_together([model], StaticLanguageModel(model, PlainOps), seed)


@torch.no_grad()
def test_streams_that_keep_different_shares_share_a_step(monkeypatch):
    """Up to the size of captured steps. One step serves any mix of ratios."""
    model = tiny_model(11, mod_layers="all")
    fast, caches = StaticLanguageModel(model, PlainOps), [MoDCache(model.config) for _ in range(4)]
    ids = [START, *[VIDEO] * 5, SEPARATOR, *[VIDEO] * 5]

    def kept(*ratios) -> list[int]:
        fed = [(cache, ids, torch.randn(2, 5, 16)) for cache in caches]
        return [result.kept[1].shape[1] for result in fast.feed_together(fed, list(ratios))]

    assert kept(1.0, 0.2, None, 0.2) == [5, 1, 2, 1]
    assert kept(0.2, 0.2, 0.5, 1.0) == [1, 1, 3, 5]
    (shape,) = fast._steps
    assert shape.mixed and (shape.streams, shape.num_kept) == (4, 5)
    assert kept(0.5, 0.2, 0.2, 0.2) == [3, 1, 1, 1]
    assert kept(0.2, 0.2, 0.2, 0.2) == [1, 1, 1, 1]
    assert [(own.mixed, own.num_kept) for own in fast._steps] == [(True, 5), (True, 3), (False, 1)]
    monkeypatch.setattr(static_step, "MAX_CAPTURED", 4 * 12 - 1)
    assert kept(0.2, 0.2, 0.5, 1.0) == [1, 1, 3, 5]
    assert [(own.streams, own.num_kept) for own in list(fast._steps)[-3:]] == [(2, 1), (1, 3), (1, 5)]


@pytest.mark.parametrize("ratios", [None, [0.2, 1.0, 0.2]])
@torch.no_grad()
def test_infinite_features_of_one_stream_do_not_affect_the_others(ratios):
    model = tiny_model(7)
    good, bad = torch.randn(1, 5, 16), torch.full((1, 5, 16), torch.inf)
    ids = [5, *[VIDEO] * 5]
    fed = [(MoDCache(model.config), ids, features) for features in (good, bad, good)]
    first, middle, last = StaticLanguageModel(model, PlainOps).feed_together(fed, ratios)
    assert bool(first.finite) and not bool(middle.finite) and bool(last.finite)
    assert_near(first.logits, last.logits)  # rows of one product, of which the last may be rounded by another kernel
    assert first.logits.isfinite().all()


@torch.no_grad()
def test_a_step_is_cut_once_after_its_first_layers(monkeypatch):
    model, ran = tiny_model(3), []
    monkeypatch.setattr(static_step, "FIRST_LAYERS", 2)
    fast = StaticLanguageModel(model, PlainOps)
    whole = mock.patch.object(fast, "_forward", lambda step: step.forward(lambda: ran.append("cut")))
    layer = mock.patch.object(PlainOps, "attend", lambda *arguments: ran.append("layer"))
    with whole, layer:
        fast.feed(MoDCache(model.config), [5], None, None)
    layers = model.config.text_config.num_hidden_layers
    assert ran == ["layer"] * 2 + ["cut"] + ["layer"] * (layers - 2)


@torch.no_grad()
def test_the_inputs_of_the_next_frame_are_made_behind_the_last(monkeypatch):
    """Unless the stream, its keep ratio or its cache has changed: then they are made anew."""
    model, made = tiny_model(3), []
    fast, inputs_of, finish = StaticLanguageModel(model), StaticStep._inputs_of, StaticStep.finish
    monkeypatch.setattr(StaticStep, "_inputs_of", lambda *given: made.append("inputs") or inputs_of(*given))
    monkeypatch.setattr(StaticStep, "finish", lambda step: made.append("finish") or finish(step))
    caches, expected = ([MoDCache(model.config) for _ in range(2)] for _ in range(2))
    ids, features = [6, *[VIDEO] * 5], torch.randn(12, 1, 5, 16)

    def feed(number: int, turn: int, ratio: float | None = None) -> list[str]:
        made.clear()
        logits, *_ = fast.feed(caches[number], ids, features[turn], ratio)
        inputs = {"input_ids": torch.tensor([ids]), "video_features": features[turn], "keep_ratio": ratio}
        output = model(**inputs, past_key_values=expected[number])
        assert_near(logits, output.logits[0, -1:])
        assert_same_cache(caches[number], expected[number])
        return list(made)

    behind, anew = ["finish", "inputs"], ["inputs", "finish", "inputs"]
    assert feed(0, 0) == anew and feed(0, 1) == feed(0, 2) == behind
    assert feed(1, 3) == anew and feed(1, 4) == behind and feed(0, 5) == anew
    for cache in (caches[0], expected[0]):
        cache.rollback(12)
    assert feed(0, 6) == anew and feed(0, 7) == behind
    fork = caches[0].copy()
    assert feed(0, 8) == behind
    caches[1], expected[1] = fork, expected[0].copy()
    expected[1].rollback(expected[1].get_seq_length() - len(ids))
    assert feed(1, 9) == anew
    assert feed(1, 10, 1.0) == anew


@torch.no_grad()
def test_the_keep_ratio_of_a_call_is_used():
    model = tiny_model(3)
    fast = StaticLanguageModel(model, PlainOps)
    ids, features = [5, *[VIDEO] * 5], torch.randn(1, 5, 16)
    for ratio, kept in ((0.2, 1), (0.9, 5), (None, 2)):
        cache, expected = MoDCache(model.config), MoDCache(model.config)
        logits, chosen, _ = fast.feed(cache, ids, features, ratio)
        output = model(
            input_ids=torch.tensor([ids]), video_features=features, past_key_values=expected, keep_ratio=ratio
        )
        assert_near(logits, output.logits[0, -1:])
        assert chosen[1].shape == (1, kept)
        assert_same_cache(cache, expected)


@torch.no_grad()
def test_changed_options_apply_to_the_next_step():
    """Also if they change in place. Options that are out of range are named each time."""
    model = tiny_model(8, mod_layers=[1, 3])
    fast, text = StaticLanguageModel(model, PlainOps), model.config.text_config
    ids, features = [5, *[VIDEO] * 5], torch.randn(1, 5, 16)

    def check(kept: int, routed: list[int]) -> None:
        cache, expected = MoDCache(model.config), MoDCache(model.config)
        logits, chosen, _ = fast.feed(cache, ids, features, None)
        output = model(input_ids=torch.tensor([ids]), video_features=features, past_key_values=expected)
        assert_near(logits, output.logits[0, -1:])
        assert [index for index, tokens in enumerate(chosen) if tokens is not None] == routed
        assert all(chosen[index].shape == (1, kept) for index in routed)
        assert_same_cache(cache, expected)

    check(2, [1, 3])
    text.mod_keep_ratio = 0.8
    check(4, [1, 3])
    text.mod_layers.remove(3)
    check(4, [1])
    text.mod_selection = "uniform"
    check(4, [1])
    text.mod_layers.append(77)
    for _ in range(2):
        with pytest.raises(ValueError, match="`mod_layers` must hold layer indices"):
            fast.feed(MoDCache(model.config), ids, features, None)
    text.mod_layers.remove(77)
    check(4, [1])
    text.vision_routing = "full"
    check(4, [])


@torch.no_grad()
def test_nan_features_are_refused():
    model = tiny_model(4)
    features = torch.randn(2, 5, 16)
    features[1, 3, 2] = torch.nan
    with pytest.raises(ValueError, match="`video_features` must be finite"):
        StaticLanguageModel(model, PlainOps).feed(MoDCache(model.config), [5, *[VIDEO] * 5] * 2, features, None)


def test_a_changed_model_is_noticed():
    model = tiny_model(5)
    fast = StaticLanguageModel(model, PlainOps)
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
    assert why_not(model) is None
    assert why_not(model.to("meta")) == "the model is on meta"


def check_other_weights_are_read(device: str, number: int) -> None:
    """A session continues with weights of a layer that took the place of others, whose memory is free."""
    processor = VideoLLMMoDProcessor.from_pretrained(ROOT)
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT, dtype=torch.float32).eval().to(device)
    frames = world_stream(76).frames(height=96)[:8]

    def watch():
        session = model.stream(processor)
        found = [watched.silence_probability for frame in frames for watched in session.watch(frame[None])]
        return np.array(found), session.stats.why_not_static

    before = watch()[0]
    weight = model.model.language_model.layers[number].mlp.down_proj.weight
    torch.manual_seed(0)
    weight.data = 4 * weight.data.std() * torch.randn_like(weight.data)
    if device == "cuda":
        torch.cuda.empty_cache()  # now the old ones cannot be read
    changed = watch()[0]
    with mock.patch.object(steps_module, "static_language_model", lambda model: (None, "switched off")):
        expected = watch()[0]
    assert np.allclose(changed, expected, atol=1e-4) and np.abs(changed - before).max() > 0.1
    again, why_not_static = watch()
    assert why_not_static is None and np.allclose(again, expected, atol=1e-4)


@pytest.mark.parametrize("number", [0, -1])
def test_weights_that_took_the_place_of_others_are_read(number):
    check_other_weights_are_read("cpu", number)


def test_a_model_is_copied_and_freed_with_its_steps():
    model = tiny_model(6)
    model._static_steps = StaticLanguageModel(model, PlainOps)
    with torch.no_grad():
        model._static_steps.feed(MoDCache(model.config), [5, 6], None, None)
    assert copy.deepcopy(model)._static_steps is None
    reference = weakref.ref(model)
    gc.disable()
    del model
    gc.enable()
    assert reference() is None


def test_a_hook_sees_each_call_once(checkpoint):
    """Also one that comes between two calls. Modules are looked at when the step of all streams of a pool is launched:
    then each of them is rolled back, and goes through the model itself."""
    model, processor = checkpoint
    frames = world_stream(41).frames(height=96)[:8]
    model._static_steps = fast = StaticLanguageModel(model, PlainOps)
    expected = model.stream(processor).push(frames)
    pool, calls, steps = StreamPool(model, processor), [], []
    streams = [pool.join(model.stream(processor)) for _ in range(2)]
    said = []

    def push(some) -> None:
        for stream in streams:
            stream.push(some)
        said.extend(pool.run())

    with mock.patch.object(fast, "_forward", lambda step: steps.append(step) or step.forward()):
        # as if the step were replayed: nobody looks at modules before
        push(frames[:3])
        assert steps and fast.may_run
        hook = model.model.language_model.layers[1].mlp.register_forward_hook(lambda *_: calls.append(len(steps)))
        launched = len(steps)
        push(frames[3:4])
        assert len(steps) == launched + 1 and not fast.may_run
        assert {stream.session.stats.why_not_static for stream in streams} <= {None, "the model has changed"}
        calls.clear()
        push(frames[4:5])
        assert len(steps) == launched + 1 and calls
        hook.remove()
        push(frames[5:])
        assert len(steps) > launched + 1 and vars(model)["_static_steps"] is fast
    del model._static_steps
    for stream in streams:
        assert_same_events([event for own, event in said if own is stream], expected)


def test_a_cpu_takes_static_steps_for_single_frames(checkpoint, monkeypatch):
    """Frames one by one and the prompt before them are static steps; a block of frames and words go to the model. All
    say the same."""
    model, processor = checkpoint
    frames, steps, run = world_stream(41).frames(height=96)[:8], [], StaticStep.forward
    monkeypatch.setattr(StaticStep, "forward", lambda step: steps.append(step.shape) or run(step))
    monkeypatch.setattr(static_graphs, "why_not", lambda model: "switched off")
    expected = model.stream(processor).push(frames)
    assert expected and not steps
    monkeypatch.undo()
    monkeypatch.setattr(StaticStep, "forward", lambda step: steps.append(step.shape) or run(step))
    block, single = (model.stream(processor) for _ in range(2))
    assert_same_events(block.push(frames), expected)
    assert all(not shape.frames or shape.tokens <= stored.FEW_ROWS for shape in steps)
    assert sum(not shape.frames for shape in steps) == 1
    steps.clear()
    assert_same_events([event for frame in frames for event in single.push(frame[None])], expected)
    assert sum(shape.frames for shape in steps) == len(frames)
    assert_same_cache(single.cache, block.cache)
    assert single.stats.why_not_static is None
    del model._static_steps


@pytest.mark.parametrize(("count", "length"), [(1, 1), (1, 9), (5, 5), (5, 40), (32, 70)])
def test_few_rows_and_queries_equal_torchs_operations(count, length):
    torch.manual_seed(count)
    heads, groups, size = 6, 3, 8
    queries = torch.randn(heads, count, size)
    keys, values = torch.randn(2, groups, length, size)
    mask = torch.ones(count, length, dtype=torch.bool).tril(length - count)
    repeated = (own.repeat_interleave(heads // groups, 0) for own in (keys, values))
    expected = torch.nn.functional.scaled_dot_product_attention(queries, *repeated, attn_mask=mask, scale=0.3)
    assert_near(static_step.attend_few(queries, keys, values, 0.3), expected)
    x, plain, biased = torch.randn(count, 8), torch.nn.Linear(8, 5, bias=False), torch.nn.Linear(8, 5)
    for linear in (plain, biased):
        assert_near(stored.linear_of_few(linear, x), linear(x))


def test_sessions_call_the_model_if_steps_fail(monkeypatch, checkpoint):
    """For example if a kernel does not compile. The cache is rolled back to before the text of the frame."""
    model, processor = checkpoint
    frames = world_stream(41).frames(height=96)[:6]
    expected = model.stream(processor, system_prompt="Watch.").push(frames)

    class Failing(PlainOps):
        @staticmethod
        def route(*arguments):
            raise TypeError("no such kernel")

    for kernels, reason in ((PlainOps, None), (Failing, "a step cannot be run: TypeError: no such kernel")):
        fast = StaticLanguageModel(model, kernels)
        monkeypatch.setattr(
            steps_module,
            "static_language_model",
            lambda model, fast=fast: (None if fast.broken else fast, fast.why_not),
        )
        session = model.stream(processor, system_prompt="Watch.")
        assert_same_events(session.push(frames), expected)
        assert fast.why_not == reason


def watch_in_a_pool(pool, videos, options: list[dict], question: str, asked_after: int) -> dict:
    """The events of each stream. Streams join one by one, and each is asked after `asked_after` frames."""
    said = {}
    for own, video in zip(options, videos, strict=True):
        stream = pool.join(**own)
        said[stream] = []
        stream.push(video[:asked_after])
        stream.ask(question)
        stream.push(video[asked_after:])
        for speaker, event in pool.tick():
            said[speaker].append(event)
    while any(stream.busy for stream in said):
        for speaker, event in pool.tick():
            said[speaker].append(event)
    return said


@pytest.fixture(scope="module")
def small():
    return small_model(0)


def images(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def speaks(small) -> dict:
    """Options with which the small model speaks now and then: the threshold is midway between two frames."""
    session = small[0].stream(small[1], speak_threshold=0.0)
    silence = sorted(frame.silence_probability for frame in session.watch(images(99, 24)))
    return {"speak_threshold": (silence[6] + silence[7]) / 2, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def watched_alone(small, speaks):
    """`(options, videos, events)` of five sessions that are asked after four frames."""
    model, processor = small
    options = [{}, {"max_cached_frames": 6}, {"max_cached_frames": 5, "cache_policy": "router", "keep_ratio": 0.1}]
    options = [own | speaks for own in [*options, {"keep_ratio": 1.0}, {}]]
    videos, events = [images(seed, 10) for seed in range(910, 915)], []
    for own, video in zip(options, videos, strict=True):
        session = model.stream(processor, **own)
        events.append([*session.push(video[:4]), *session.ask(QUESTION), *session.push(video[4:])])
    return options, videos, events


@pytest.mark.parametrize("kind", ["static", "failing"])
def test_a_pool_in_static_steps_equals_its_sessions_alone(monkeypatch, small, watched_alone, kind):
    """Streams that join one by one and leave, are asked in between, and are bounded or not. If a step fails, every
    stream is rolled back."""
    model, processor = small
    options, videos, expected = watched_alone
    calls = []

    class Failing(PlainOps):
        @staticmethod
        def lm_head(x, rows, model, logits):
            calls.append(len(rows))
            if kind == "failing" and len(calls) > 9:
                raise TypeError("no such kernel")
            PlainOps.lm_head(x, rows, model, logits)

    fast = StaticLanguageModel(model, Failing)
    monkeypatch.setattr(
        steps_module, "static_language_model", lambda model: (None if fast.broken else fast, fast.why_not)
    )
    said = watch_in_a_pool(StreamPool(model, processor), videos, options, QUESTION, asked_after=4)
    for stream, events in zip(said, expected, strict=True):
        assert_same_events(said[stream], events)
    assert fast.broken == (kind == "failing") and max(calls) >= 4


@pytest.mark.parametrize("static", [False, True])
def test_steps_built_in_inference_mode_work_outside_of_it(monkeypatch, small, speaks, static):
    model, processor = small
    fast = StaticLanguageModel(model, PlainOps)
    if static:
        monkeypatch.setattr(steps_module, "static_language_model", lambda model: (fast, fast.why_not))
    frames = images(3, 8)
    expected = model.stream(processor, **speaks).push(frames)
    fast._steps.clear()
    session = model.stream(processor, **speaks)
    with torch.inference_mode():
        events = session.push(frames[:4])
    events += session.push(frames[4:])
    assert_same_events(events, expected)
    assert_same_events(model.stream(processor, **speaks).push(frames), expected)
    assert not fast.broken and bool(fast._steps) == static


@needs_triton
@pytest.mark.parametrize("seed", range(24))
@torch.no_grad()
def test_the_routing_kernel_equals_plain_torch(monkeypatch, seed):
    """For one frame and several, short and long, with ties and NaN, and loops over columns of any size."""
    kernels = pytest.importorskip("videollm_mod.static_kernels")
    rng, device = random.Random(seed), "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    monkeypatch.setattr(kernels, "ROUTE", rng.choice([(64, 4), (256, 8), (4096, 16), kernels.ROUTE]))
    frames, per_frame, width = rng.choice((1, 1, 3)), rng.choice((1, 2, 10, 16, 17, 101)), rng.choice((32, 200, 512))
    num_kept, gate, force_last = rng.randint(1, per_frame), ("none", "residual", "output")[seed % 3], seed % 2 == 0
    dtype = torch.float32 if seed % 4 < 2 else torch.bfloat16
    layer = torch.nn.Module()
    layer.layer_expert = LayerExpert(width).to(device)
    before = rng.choice((0, 1))  # tokens of text before each frame
    tokens = torch.randn(frames * (before + per_frame), width, device=device)
    if rng.random() < 0.5:  # whole numbers: sums are the same in any order, and tie
        layer.layer_expert.weight.copy_(torch.randint(-1, 2, (1, width)))
        tokens = torch.randint(-1, 2, tokens.shape, device=device)
        tokens[:, 3:] = 0
    tokens, slots = tokens.to(dtype), frames * (before + num_kept)
    counts = None
    if seed >= 12:  # of a stream each, beside other columns of a table
        table = torch.zeros(rng.choice((1, frames)), 8, dtype=torch.long, device=device)
        table[:, 7] = torch.tensor([rng.randint(0, num_kept) for _ in table])
        counts = table[:, 7]
    made = []
    for kind in (PlainOps, kernels.Kernels):
        index = torch.arange(frames, device=device).repeat_interleave(before + num_kept) * (before + per_frame)
        scale = torch.tensor([[1.0], [0.0]], device=device).repeat(1, slots)
        scores = torch.zeros(frames, per_frame, device=device)
        kept = torch.zeros(frames, num_kept, dtype=torch.long, device=device)
        results, shape = (index, scale, scores, kept), (frames, per_frame, num_kept)
        for own in (counts, None if counts is None else counts.flip(0)):  # slots change their roles from step to step
            kind.route(tokens, layer, shape, *results, gate, force_last, own if own is None else own.contiguous())
        kind.route(tokens, layer, shape, *results, gate, force_last, counts)
        made.append(results)
    for name, value, expected in zip(("index", "scale", "scores", "kept"), *made[::-1], strict=True):
        torch.testing.assert_close(value, expected, msg=lambda text, name=name: f"{name}: {text}")
    index, scale, scores, kept = made[1]
    kernels.Kernels.route(tokens * float("nan"), layer, shape, index, scale, scores, kept, gate, force_last, counts)
    assert counts is None or len(set(index.tolist())) == slots  # else tokens would be written by two slots at once
    assert scores.isnan().all() and int(index.min()) >= 0 and int(index.max()) < len(tokens)
    assert int(kept.min()) >= 0 and int(kept.max()) < per_frame


@needs_triton
@pytest.mark.parametrize("capability, kilobytes", [(75, 64), (86, 99), (80, 163), (90, 227)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_have_stages_in_any_shared_memory(monkeypatch, capability, kilobytes, dtype):
    monkeypatch.setattr(stored, "chip", lambda device: stored.Chip(capability, kilobytes * 1024))
    one, byte = torch.ones(1), torch.ones(1, dtype=torch.int8)
    kinds = (one.to(dtype),), (byte, one), (byte, one, 1, 64, one)
    for name, (bits, weight), slots in product(stored.TILES, zip((16, 8, 4), kinds, strict=True), (1, 16, 17, 64)):
        most = (stored.IN_FLOAT32 if dtype == torch.float32 else stored.TILES[name][bits])[-1]
        stages = stored._tiles(name, torch.empty(0, dtype=dtype), slots, stored.StoredWeight(*weight))[-1]
        assert 2 <= stages <= most and (kilobytes < 163 or stages == most)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [60, 5000])
@torch.no_grad()
def test_the_probability_kernel_equals_plain_torch(monkeypatch, size, dtype):
    kernels = pytest.importorskip("videollm_mod.static_kernels")
    monkeypatch.setattr(kernels, "PROBABILITY", (1024, 4))
    torch.manual_seed(size)
    logits = (10 * torch.randn(3, size)).to("cuda" if torch.cuda.is_available() else "cpu", dtype)
    logits[0, 9:] = float("-inf")
    for value in (0.0, float("nan")):
        logits[2, 5] = value
        made = [torch.zeros(3, device=logits.device) for _ in range(2)]
        kernels.Kernels.token_probability(logits, 7, made[0])
        PlainOps.token_probability(logits, 7, made[1])
        torch.testing.assert_close(*made, equal_nan=True)


@needs_triton
@pytest.mark.parametrize("text", ["learned", "normalised", "unrotated"])
@pytest.mark.parametrize("name", ["Kernels", "CublasKernels"])
@torch.no_grad()
def test_steps_by_kernels_equal_plain_torch(name, text):
    """Without graphs: text, a frame, frames of two streams that keep equally many tokens or not, and text after a
    frame."""
    kernels = pytest.importorskip("videollm_mod.static_kernels")
    size = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    model = with_any_norm(tiny_model(3, **size, num_hidden_layers=4, **STATIC[text]))
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    features = torch.randn(2, 1, 5, 16).to(model.device)
    frame, made = [START, *[VIDEO] * 5], []
    for ops in (PlainOps, getattr(kernels, name)):
        static, caches = StaticLanguageModel(model, ops), [MoDCache(model.config) for _ in range(2)]
        results = static.feed_together([(caches[0], [7, 8, 9, *frame], features[0])], None)
        results += static.feed_together(
            [(cache, frame, own) for cache, own in zip(caches, features, strict=True)], None
        )
        fed = [
            (cache, [*frame, SEPARATOR, *frame[1:]], own.repeat(2, 1, 1))
            for cache, own in zip(caches, features, strict=True)
        ]
        results += static.feed_together(fed, [1.0, 0.2])
        # text after the frame of one stream, of which all logits are needed
        fed = [
            (cache, [*frame, *[8, 9][:more]], own) for cache, own, more in zip(caches, features, (2, 0), strict=True)
        ]
        results += static.feed_together(fed, None, after=[2, 0])
        made.append((results, caches))
    (results, caches), (expected, expected_caches) = made
    assert [len(result.logits) for result in results] == [1, 1, 1, 2, 2, 2, 1]
    for result, other in zip(results, expected, strict=True):
        assert_near(result.logits, other.logits)
        assert_near(result.silence, other.silence)
    for cache, other in zip(caches, expected_caches, strict=True):
        assert_same_cache(cache, other)
