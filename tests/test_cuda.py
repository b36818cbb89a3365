"""On a GPU: the equalities of the CPU tests in float32, and bfloat16 close to float32."""

import copy
import random
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
import torch
from fresh_process import ROOT
from picture_source import Pictures
from test_static_step import (
    STATIC,
    calls_of,
    check_other_weights_are_read,
    check_streams_together,
    watch_in_a_pool,
    with_any_norm,
)
from tiny_models import EOS, PAD, ROUTINGS, frame_cuts, random_batch, run_in_pieces, tiny_config, tiny_model

from videollm_mod import (
    MoDCache,
    StreamPool,
    VideoLLMMoDForConditionalGeneration,
    VideoLLMMoDProcessor,
    static_graphs,
    static_step,
    steps,
)
from videollm_mod.bench import watching
from videollm_mod.commands import cli
from videollm_mod.data.world import world_stream
from videollm_mod.data.world_clip import write_clip
from videollm_mod.sources.live import WAITING, LiveWatch
from videollm_mod.static_graphs import static_language_model
from videollm_mod.static_vision import StaticVision, encode
from videollm_mod.video_processing_videollm_mod import VideoLLMMoDVideoProcessor

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def small_models_have_graphs_in_parts(monkeypatch):
    monkeypatch.setattr(static_step, "FIRST_LAYERS", 1)
    monkeypatch.setattr(static_graphs, "FIRST_LAYERS", 1)


def to_cuda(inputs: dict) -> dict:
    return {name: value.cuda() for name, value in inputs.items()}


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    value, expected = value.float().cpu(), expected.float().cpu()
    return float((value - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", ROUTINGS)
def test_float32_in_batches_and_pieces_equals_the_cpu(name):
    seed = list(ROUTINGS).index(name)
    model = tiny_model(seed, **ROUTINGS[name])
    batch, rows = random_batch(model, seed, [4, 0, 2])
    with torch.no_grad():
        expected = [model(**row).logits for row in rows]
        model.cuda()
        together = model(**to_cuda(batch)).logits
        for index, row in enumerate(rows):
            length = expected[index].shape[1]
            assert relative_error(together[index, -length:], expected[index][0]) < 1e-4
            cuts = frame_cuts(row["input_ids"][0].tolist(), model.config.num_frame_tokens, random.Random(seed))
            pieces = run_in_pieces(model, to_cuda(row), cuts, MoDCache(model.config))
            assert relative_error(pieces, expected[index]) < 1e-4


@pytest.mark.parametrize("name", ROUTINGS)
def test_bfloat16_is_near_float32(name):
    """With the same tokens kept: the controls have no near-ties, and routing by scores keeps all tokens."""
    options = ROUTINGS[name]
    if options.get("mod_selection", "learned") not in ("uniform", "random"):
        options = {**options, "mod_keep_ratio": 1.0}
    # heads of 64, so that the flash kernels take part
    model = tiny_model(1, **options, hidden_size=256, intermediate_size=256, initializer_range=0.05).cuda()
    _, (row,) = random_batch(model, 1, [6])
    row = to_cuda(row)
    with torch.no_grad():
        expected = model(**row).logits
        model.to(torch.bfloat16)
        row["video_features"] = row["video_features"].bfloat16()
        assert relative_error(model(**row).logits, expected) < 3e-2
        cuts = frame_cuts(row["input_ids"][0].tolist(), model.config.num_frame_tokens, random.Random(1))
        assert relative_error(run_in_pieces(model, row, cuts, MoDCache(model.config)), expected) < 3e-2


def test_generation_with_and_without_offloading_equals_the_cpu():
    model = tiny_model(2)
    batch, _ = random_batch(model, 2, [3, 1])
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": PAD, "eos_token_id": EOS}
    expected = model.generate(**batch, **options)
    model.cuda()
    for implementation in ("dynamic", "offloaded"):
        text = model.generate(**to_cuda(batch), **options, cache_implementation=implementation)
        assert torch.equal(text.cpu(), expected)


def test_gradients_equal_the_cpus():
    model = tiny_model(3).train()
    batch, _ = random_batch(model, 3, [3, 2])
    gradients = []
    for device in ("cpu", "cuda"):
        model.to(device).zero_grad()
        inputs = {name: value.to(device) for name, value in batch.items()}
        model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == PAD, -100)).loss.backward()
        gradients.append({n: p.grad.cpu().clone() for n, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_session_equals_the_cpus_and_moves_between_devices(tmp_path, dtype):
    """In blocks, frame by frame, forked, and saved on one device and restored on the other."""
    processor = VideoLLMMoDProcessor.from_pretrained(ROOT)
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT, dtype=torch.float32).eval()
    stream = world_stream(71)
    frames, times = stream.frames(height=96), stream.frame_times(2.0).tolist()
    session = model.stream(processor)
    expected = [(e.time, e.text) for e in session.push(frames, times) + session.ask("What happened last?")]
    model.to("cuda", dtype)
    together, single = model.stream(processor), model.stream(processor)
    events = together.push(frames[:9], times[:9])
    restored = type(together).load(together.save(tmp_path / "s"), model, processor)
    for session in (restored, together.fork(), together):
        rest = session.push(frames[9:], times[9:]) + session.ask("What happened last?")
        assert [(e.time, e.text) for e in events + rest] == expected
    alone = [e for frame, time in zip(frames, times, strict=True) for e in single.push(frame[None], [time])]
    alone += single.ask("What happened last?")
    assert [(e.time, e.text) for e in alone] == expected
    assert all(seconds > 0 for seconds in single.stats.seconds.values())
    if dtype == torch.float32:
        model.cpu()
        session = type(together).load(tmp_path / "s", model, processor)
        rest = session.push(frames[9:], times[9:]) + session.ask("What happened last?")
        assert [(e.time, e.text) for e in events + rest] == expected


def test_narrate_runs_on_the_gpu(tmp_path, capsys):
    path = write_clip(tmp_path / "clip.mp4", seed=72)[0]
    for arguments in ([], ["--dtype", "float32"], ["--device", "cuda:0"]):
        assert cli.main(["narrate", str(path), *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines == [f"{time:8.1f} s  {text}" for time, text in world_stream(72).narrations]


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
def test_a_pool_equals_its_sessions_alone(dtype, near):
    """Eight streams of the world that join one by one, with a question each."""
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT, dtype=dtype).cuda().eval()
    processor = VideoLLMMoDProcessor.from_pretrained(ROOT)
    question, expected = "What happened last?", []
    videos = [world_stream(seed).frames(2) for seed in range(900, 908)]
    for video in videos:
        session = model.stream(processor)
        expected.append([*session.push(video[:6]), *session.ask(question), *session.push(video[6:])])
    said = watch_in_a_pool(StreamPool(model, processor), videos, [{}] * len(videos), question, asked_after=6)
    for stream, events in zip(said, expected, strict=True):
        pairs = list(zip(said[stream], events, strict=True))
        assert [(e.time, e.kind, e.text) for e, _ in pairs] == [(e.time, e.kind, e.text) for _, e in pairs]
        narrated = [[x.silence_probability for x in pair] for pair in pairs if pair[1].kind == "narration"]
        assert narrated and all(abs(mine - alone) < near for mine, alone in narrated)
    assert all(stream.session.stats.why_not_static is None for stream in said)
    captured = static_language_model(model)[0]._graphs.keys
    assert any(x.streams > 1 and x.frames for x in captured) and any(x.streams == 8 for x in captured)


def wide_model(name: str, seed: int, dtype: torch.dtype):
    """A random model for the kernels, with the options `name` of `STATIC`."""
    options = STATIC[name]
    if dtype == torch.bfloat16 and options.get("mod_selection", "learned") not in ("uniform", "random"):
        options = {**options, "mod_keep_ratio": 1.0}  # near-ties may fall either way
    size = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32}
    model = tiny_model(seed, **options, **size, intermediate_size=200, initializer_range=0.05)
    model = with_any_norm(model).cuda().to(dtype)
    for layer in model.model.language_model.layers:
        if layer.layer_expert is not None:
            layer.layer_expert.float()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", STATIC)
@torch.no_grad()
def test_graphs_of_several_streams_equal_each_alone(name, dtype):
    """In float32 each number is the model's. In bfloat16 a graph and a call both round, each in its own way: of 60
    logits either is by chance three times as far from float32 as the other. What a graph must not do is round more, so
    the mean square of all tensors of a kind is compared. On an H200 it is 0.87 to 1.11 times that of calls, and 1.9
    times and more where noise of 0.5 % is added to what attention and MLP take in."""
    seed = 30 + list(ROUTINGS | STATIC).index(name)
    model = wide_model(name, seed, dtype)
    exact = copy.deepcopy(model).float()
    fast, why_not = static_language_model(model)
    assert why_not is None

    errors = defaultdict(list)

    def near(value: torch.Tensor, called: torch.Tensor, exact: torch.Tensor) -> None:
        assert value.shape == called.shape
        kind = value.dim()  # logits, scores, keys and values
        errors[kind].append((relative_error(value, exact), relative_error(called, exact)))
        assert dtype == torch.bfloat16 or errors[kind][-1][0] < 1e-4

    for turn in range(3):
        check_streams_together([model, exact], fast, seed + turn, near, mixed=dtype == torch.float32)
    for pairs in errors.values() if dtype == torch.bfloat16 else ():
        own, of_calls = np.array(pairs).T
        assert np.square(own).mean() < 1.4 * np.square(of_calls).mean()
        assert own.max() < 2.5 * of_calls.max()
    captured = fast._graphs.keys
    assert fast.why_not is None and any(x.streams > 1 and x.frames for x in captured)
    assert any(x.streams > 1 and not x.frames for x in captured)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("name", STATIC)
@torch.no_grad()
def test_graphs_of_static_steps_equal_the_model(name, dtype, tolerance):
    """On streams with rollbacks and forks and growing caches: each step first without, then with its graph."""
    seed = 10 + list(ROUTINGS | STATIC).index(name)
    model = wide_model(name, seed, dtype)
    fast, why_not = static_language_model(model)
    assert why_not is None
    cache, expected, rng = MoDCache(model.config), MoDCache(model.config), random.Random(seed)
    for turn in range(6):
        _, (row,) = random_batch(model, seed + turn, [7])
        for ids, features in calls_of(row, model.config.num_frame_tokens):
            features = None if features is None else features.to("cuda", dtype)
            inputs = {"input_ids": torch.tensor([ids], device="cuda"), "logits_to_keep": 1}
            if features is not None:
                inputs["video_features"] = features
            output = model(**inputs, past_key_values=expected)
            if rng.random() < 0.3:  # a fork goes on, and what it came from writes behind it
                fork = cache.copy()
                fast.feed(cache, ids[:1], None, None)
                cache = fork
            if rng.random() < 0.3:
                fast.feed(cache, [7, 8, 9], None, None)
                cache.rollback(cache.get_seq_length() - 3)
            logits, _, _ = fast.feed(cache, ids, features, None)
            assert relative_error(logits[-1], output.logits[0, -1]) < tolerance
    for layer, other in zip(cache.layers, expected.layers, strict=True):
        assert torch.equal(layer.positions, other.positions)
        assert relative_error(layer.keys, other.keys) < tolerance
        assert relative_error(layer.values, other.values) < tolerance
    graphs = [fast._graphs.get(key) for key in fast._graphs.keys]
    assert graphs and fast.why_not is None and all(len(graph._parts) == 2 for graph in graphs)


@pytest.mark.parametrize("bounds", [{}, {"max_cached_frames": 6}, {"max_cached_frames": 6, "cache_policy": "router"}])
def test_static_sessions_equal_others(bounds):
    """Frame by frame and in blocks, with questions, with and without bounds; also after the model was moved."""
    processor = VideoLLMMoDProcessor.from_pretrained(ROOT)
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT, dtype=torch.float32).eval().cuda()
    stream = world_stream(73)
    frames, times = stream.frames(height=96), stream.frame_times(2.0).tolist()

    def watch(block: int):
        session, events = model.stream(processor, **bounds), []
        for start in range(0, len(frames), block):
            events += session.push(frames[start : start + block], times[start : start + block])
            if start % 5 == 0:
                events += session.fork().ask("How many objects are there?")
        return session, [(event.time, event.text) for event in events + session.ask("What happened last?")]

    for block in (1, 5):
        with mock.patch.object(steps, "static_language_model", lambda model: (None, "switched off")):
            session, expected = watch(block)
            assert session.stats.why_not_static == "switched off"
        session, events = watch(block)
        assert session.stats.why_not_static is None and events == expected
        model.cpu().cuda()
        assert watch(block)[1] == expected
    with ThreadPoolExecutor(4) as pool:
        assert all(events == expected for _, events in pool.map(watch, [5] * 4))


@pytest.mark.parametrize("number", [0, -1])
def test_weights_that_took_the_place_of_others_are_read(number):
    """Those of the first layers are looked at before a graph is launched, others while it is at work."""
    check_other_weights_are_read("cuda", number)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("pooled", [(2, 2), None])
@torch.no_grad()
def test_the_static_tower_and_its_graphs_equal_the_tower(dtype, tolerance, pooled):
    """Each number of frames without a graph, captured, and replayed, with weights that change in between."""
    vision = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_hidden_layers": 3}
    vision |= {"model_type": "siglip_vision_model", "image_size": 64, "patch_size": 16}
    config = tiny_config(pooled=pooled)
    config.vision_config = type(config.vision_config)(**vision)
    model = tiny_model(4, config)
    for weight in model.model.vision_tower.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    for count in (1, 8, 30, 1):
        pixels = torch.randn(count, 3, 64, 64)
        expected = model.cpu().float().encode_frames(pixels).pooler_output
        model.cuda().to(dtype)
        for _ in range(3):
            assert relative_error(encode(model, pixels.cuda()), expected) < tolerance
        graphs = model._vision_graphs
        assert graphs._ops is not None and count in graphs._graphs.keys
        weights = dict(model.model.vision_tower.named_parameters())
        weight = next(weights[name] for name in weights if name.endswith("layers.1.self_attn.v_proj.weight"))
        weight.mul_(-1)
        changed = encode(model, pixels.cuda())
        assert model._vision_graphs is graphs and relative_error(changed, expected) > 2 * tolerance
        assert relative_error(changed, model.encode_frames(pixels.cuda()).pooler_output) < tolerance
        weight.mul_(-1)


def test_a_live_source_takes_the_graphs_of_the_tower():
    """All of its frames, with the features of the plain model, while the session watches on another thread."""
    processor = VideoLLMMoDProcessor.from_pretrained(ROOT)
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT, dtype=torch.float32).eval().cuda()
    frames = np.concatenate([world_stream(seed).frames(height=96) for seed in (74, 75)])[:48]
    by_graph, call = [], StaticVision.__call__

    def count(vision, pixels):
        features = call(vision, pixels)
        by_graph.append(len(pixels) if len(pixels) in vision._graphs.keys else 0)
        return features

    session, features = model.stream(processor, max_new_tokens=4), []
    with mock.patch.object(StaticVision, "__call__", count):
        with LiveWatch(session, Pictures(frames), "wait") as live:
            for frame, _ in live:
                features.append(frame.features)
        assert len(features) == len(frames)
        # each number of frames is captured when it comes for the second time
        assert WAITING * len(by_graph) >= len(frames) and by_graph.count(0) <= WAITING
        assert sum(by_graph) >= len(frames) / 2
        assert session.stats.why_not_static is None and model._vision_graphs.is_current
    with torch.no_grad():
        pixels = processor.video_processor.to_pixels(torch.from_numpy(frames).movedim(-1, 1).cuda())
        assert relative_error(torch.stack(features), model.encode_frames(pixels).pooler_output) < 1e-3


def test_bench_measures_a_device_only_where_graphs_are_replayed():
    """A row without static steps comes after one with graphs, whose caches are freed by then."""
    model, processor = watching.build("middle", torch.device("cuda"))
    assert watching.language(model, processor, 40, 3)["device_ms"] > 0
    torch.cuda.empty_cache()
    with watching.configured(model, static=False):
        found = watching.language(model, processor, 40, 3)
    assert found["why_not_static"] == "switched off" and "device_ms" not in found
    blocks = watching.language(model, processor, 40, 3, frames=4)
    assert blocks["why_not_static"] is None and blocks["device_ms"] > 0


@pytest.mark.parametrize("options", [{}, {"do_pad": False}, {"resample": 2}, {"size": {"height": 50, "width": 20}}])
def test_pixels_on_the_gpu_equal_the_cpus(options):
    processor = VideoLLMMoDVideoProcessor(**options)
    frames = torch.randint(0, 256, (20, 90, 160, 3), dtype=torch.uint8).movedim(-1, 1)
    torch.testing.assert_close(
        processor.to_pixels(frames.cuda()).cpu(), processor.to_pixels(frames), atol=1e-5, rtol=0
    )


def test_a_model_may_move_after_its_sessions_were_made():
    """Before the first frame. The session follows it, also in how many frames it takes at once, and back."""
    processor = VideoLLMMoDProcessor.from_pretrained(ROOT)
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT, dtype=torch.float32).eval()
    frames = world_stream(74).frames(height=96)[:40]
    expected, moved, returned = (model.stream(processor, max_new_tokens=8) for _ in range(3))
    expected = [(event.time, event.text) for event in expected.push(frames)]
    model.cuda()
    assert expected and [(event.time, event.text) for event in moved.push(frames)] == expected
    assert moved.stats.why_not_static is None and moved.cache.layers[0].keys.is_cuda
    model.cpu()
    assert [(event.time, event.text) for event in returned.push(frames)] == expected
