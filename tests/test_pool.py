"""Sessions in a pool give the same events as alone, whatever other sessions do beside them."""

import random

import numpy as np
import pytest
import torch
from comparing import PROBABILITY, assert_near, assert_same_cache, assert_same_events
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_data import small_model
from tiny_models import ROUTINGS, random_batch, tiny_model

from videollm_mod import StreamingSession, StreamPool
from videollm_mod.cache import MoDCache, PackedCache
from videollm_mod.configuration_videollm_mod import TRAINING_FREE

QUESTIONS = ("How many objects are there?", "What happened last?", "Where is the red circle?")


@pytest.fixture(scope="module")
def checkpoint():
    return small_model(0)


def images(seed: int, count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def threshold(checkpoint) -> float:
    """A threshold below which a random model speaks now and then, midway between the values of two frames."""
    session = checkpoint[0].stream(checkpoint[1], speak_threshold=0.0)
    silence = sorted(frame.silence_probability for frame in session.watch(images(99, 24)))
    return (silence[6] + silence[7]) / 2


def alone(checkpoint, work, options, session=None) -> list:
    """The reference: one session, one frame at a time."""
    session = session or checkpoint[0].stream(checkpoint[1], **options)
    events = []
    for kind, value in work:
        if kind == "push":
            for frame in value:
                events += session.push(frame[None])
        elif kind == "ask":
            events += session.ask(value)
        else:
            session.instruct(value)
    return events


def random_work(rng: random.Random) -> list[tuple]:
    work = []
    for _ in range(rng.randint(1, 5)):
        kind = rng.choice(("push", "push", "ask", "instruct"))
        if kind != "push":
            work.append((kind, rng.choice(QUESTIONS)))
        work.append(("push", images(rng.randrange(10**6), rng.randint(1, 9), rng.choice((24, 32, 41)))))
    return work


def random_options(rng: random.Random, speaks_below: float) -> dict:
    options = {"speak_threshold": rng.choice((0.0, speaks_below, speaks_below)), "max_new_tokens": rng.randint(1, 6)}
    bound = rng.choice(("none", "frames", "bytes", "both"))
    if bound in ("frames", "both"):
        options["max_cached_frames"] = rng.randint(4, 8)
    if bound in ("bytes", "both"):
        options["max_cached_bytes"] = 512 * rng.randint(600, 800)  # of a token in all layers
    ratio = rng.choice((None, 0.1, 0.2, 0.5, 1.0))
    return {**options, "cache_policy": rng.choice(("window", "router")), "keep_ratio": ratio}


def play(checkpoint, rng: random.Random, count: int, speaks_below: float) -> None:
    """Streams join, get work, save, leave and go on alone, all at random. Their events are those of a lone session."""
    model, processor = checkpoint
    pool, waiting = StreamPool(model, processor), []
    works, options, said, sessions = {}, {}, {}, {}

    def take(events) -> None:
        for stream, event in events:
            said[stream].append(event)

    for _ in range(count):
        waiting.append((random_options(rng, speaks_below), random_work(rng)))
    todo = {}
    while waiting or todo or any(stream.busy for stream in pool.streams):
        if waiting and rng.random() < 0.5:
            own, work = waiting.pop()
            stream = pool.join(**own)
            works[stream], options[stream], said[stream], todo[stream] = work, own, [], list(work)
        for stream in list(todo):
            if rng.random() < 0.4:
                kind, value = todo[stream].pop(0)
                getattr(stream, kind)(value)
            if not todo[stream]:
                del todo[stream]
        for stream in pool.streams[:]:
            if not stream.busy and stream not in todo and rng.random() < 0.5:
                sessions[stream] = pool.leave(stream)
            elif rng.random() < 0.1:
                stream.fork()  # brings what is at hand to its end, and changes nothing
        take(pool.tick())
    for stream in works:
        assert_same_events(said[stream], alone(checkpoint, works[stream], options[stream]))


@pytest.mark.parametrize("seed", range(2))
def test_events_in_a_pool_equal_events_alone(checkpoint, threshold, seed):
    play(checkpoint, random.Random(seed), 8, threshold)


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**9), count=st.integers(1, 5))
def test_events_in_a_pool_equal_events_alone_in_any_order(checkpoint, threshold, seed, count):
    play(checkpoint, random.Random(seed), count, threshold)


@pytest.mark.parametrize("options", [{}, *({"mod_selection": name} for name in ("uniform", "random", *TRAINING_FREE))])
def test_streams_of_a_pool_keep_their_own_share(options):
    """Each stream watches and keeps what it would alone, whatever the others keep."""
    model, processor = small_model(0, mod_layers=[1, 3], **options)
    probe = model.stream(processor, speak_threshold=0.0)
    silence = sorted(frame.silence_probability for frame in probe.watch(images(9, 12)))
    usual = {"speak_threshold": (silence[3] + silence[4]) / 2, "max_new_tokens": 3}
    pool = StreamPool(model, processor)
    streams, watched, expected = [], [], []
    for number, ratio in enumerate((0.1, None, 0.5, 1.0)):
        frames = images(number, 5 + number)
        streams.append(pool.join(**usual, keep_ratio=ratio, max_cached_frames=4 if ratio == 0.5 else None))
        streams[-1].push(frames)
        watched.append([])
        streams[-1].on_output = watched[-1].append
        alone = model.stream(processor, **usual, keep_ratio=ratio, max_cached_frames=4 if ratio == 0.5 else None)
        expected.append([own for frame in frames for own in alone.watch(frame[None])])
    pool.run()
    said = 0
    for own, others, count in zip(watched, expected, (1, 2, 3, 5), strict=True):
        own = [frame for frame in own if not isinstance(frame, str)]
        for frame, other in zip(own, others, strict=True):
            assert_near(frame.silence_probability, other.silence_probability, PROBABILITY)
            for kept, kept_alone in zip(frame.kept, other.kept, strict=True):
                assert kept is kept_alone is None or torch.equal(kept, kept_alone)
            assert [kept is None or len(kept) == count for kept in frame.kept] == [True] * 4
        events = [[frame.event for frame in some if frame.event is not None] for some in (own, others)]
        assert_same_events(*events)
        said += len(events[0])
    assert said


@pytest.mark.parametrize("name", ROUTINGS)
def test_packed_streams_equal_separate_streams(name):
    """Compares caches, logits and kept tokens for every kind of routing, at different points of the streams. In each
    layer, the streams hold different numbers of tokens; after the first call, they keep different shares."""
    seed = list(ROUTINGS).index(name)
    model = tiny_model(seed, **ROUTINGS[name])
    counts = [[2, 0, 3], [1, 2, 2], [3, 1, 0]]  # frames of each call, stream by stream
    caches, expected = ([MoDCache(model.config) for _ in counts[0]] for _ in range(2))
    for call, frames in enumerate(counts):
        _, rows = random_batch(model, 10 * seed + call, frames)
        lengths = [row["input_ids"].shape[1] for row in rows]
        packed = PackedCache(caches, lengths)
        positions = [torch.arange(n) + cache.seen_tokens for n, cache in zip(lengths, caches, strict=True)]
        ratios = (0.2, 0.5, 1.0) if call else (model.keep_ratio,) * 3
        with torch.no_grad():
            alone = [
                model(**row, past_key_values=c, output_router_scores=True, keep_ratio=ratio)
                for row, c, ratio in zip(rows, expected, ratios, strict=True)
            ]
            together = model(
                input_ids=torch.cat([row["input_ids"] for row in rows], dim=1),
                video_features=torch.cat([row["video_features"] for row in rows if "video_features" in row]),
                position_ids=torch.cat(positions)[None],
                past_key_values=packed,
                output_router_scores=True,
                keep_ratio=[ratio for ratio, count in zip(ratios, frames, strict=True) for _ in range(count)],
            )
        assert_near(together.logits, torch.cat([out.logits for out in alone], dim=1))
        for layer, kept in enumerate(together.kept_indices):
            own = [out.kept_indices[layer] for out in alone if out.kept_indices[layer] is not None]
            assert (kept is None) == (not own)
            if own:
                most = max(tokens.shape[1] for tokens in own)
                filled = [torch.nn.functional.pad(tokens, (0, most - tokens.shape[1]), value=-1) for tokens in own]
                assert torch.equal(kept, torch.cat(filled))
        for cache, other in zip(caches, expected, strict=True):
            assert_same_cache(cache, other)


def test_tick_runs_one_forward_for_all_streams(checkpoint):
    model, processor = checkpoint
    pool = StreamPool(model, processor)
    streams = [pool.join(speak_threshold=0.0) for _ in range(8)]
    streams[0].push(images(0, 100))  # much to do for one keeps no other waiting
    for index, stream in enumerate(streams[1:], start=1):
        stream.push(images(index, 1))
    calls = []
    hook = model.model.language_model.register_forward_pre_hook(lambda *_: calls.append(1))
    pool.tick()
    assert len(calls) == 1
    assert [stream.waiting for stream in streams[1:]] == [0] * 7 and streams[0].waiting == 100 - 16
    streams[0].ask(QUESTIONS[0])
    for _ in range(6):
        pool.tick()
    hook.remove()
    assert streams[0].waiting == 0


def test_memory_of_all_streams_is_capped(checkpoint, threshold):
    model, processor = checkpoint
    pool = StreamPool(model, processor, max_cached_bytes=1_000_000)
    with pytest.raises(ValueError, match="must be given for a stream of a pool with a cap"):
        pool.join()
    first = pool.join(max_cached_bytes=600_000)
    with pytest.raises(
        RuntimeError, match="it may hold 600000 bytes, and 400000 of 1000000 are free beside 1 streams"
    ):
        pool.join(max_cached_bytes=600_000)
    second = pool.join(max_cached_frames=4, max_new_tokens=4, cache_policy="router", speak_threshold=threshold)
    assert pool.free_bytes == 400_000 - second.session.max_kv_bytes
    most = 0
    for step in range(20):
        second.push(images(step, 3))
        if step % 5 == 0:
            second.ask(QUESTIONS[step % 3])
        while second.busy:
            pool.tick()
            most = max(most, second.session.stats.kv_bytes)
    assert 0 < most <= second.session.max_kv_bytes
    pool.leave(first)
    assert pool.join(max_cached_bytes=600_000).session.max_kv_bytes == 600_000
    with pytest.raises(ValueError, match="this stream has left its pool"):
        first.push(images(0, 1))


def test_invalid_members_are_refused(checkpoint):
    model, processor = checkpoint
    pool = StreamPool(model, processor, max_waiting_frames=10)
    stream = pool.join()
    stream.push(images(0, 8))
    with pytest.raises(RuntimeError, match="3 frames do not fit: 2 of 10 frames may still wait"):
        stream.push(images(0, 3))
    with pytest.raises(ValueError, match="do not go back, got 1.0 at index 0 after 3.5"):
        stream.push(images(0, 1), [1.0])
    with pytest.raises(ValueError, match="is in the pool already"):
        pool.join(stream.session)
    with pytest.raises(ValueError, match="`session` must be of the pool's model"):
        pool.join(small_model(1)[0].stream(processor))
    with pytest.raises(ValueError, match="`max_cached_bytes` must be a whole number of at least 1, got 0"):
        StreamPool(model, processor, max_cached_bytes=0)
    assert stream.waiting == 8


@pytest.mark.parametrize("seed", range(2))
def test_saved_stream_continues_outside_its_pool(checkpoint, threshold, seed, tmp_path):
    """A stream may be saved at any tick, even during a reply. All its events together are those of a lone session."""
    model, processor = checkpoint
    rng = random.Random(seed)
    options = {"speak_threshold": threshold, "max_new_tokens": 6, "max_cached_frames": 6}
    frames = images(seed, 20)
    pool = StreamPool(model, processor)
    stream, other = pool.join(**options), pool.join(speak_threshold=threshold)
    stream.push(frames)
    other.push(images(seed + 1, 20))
    events = []
    for _ in range(rng.randint(1, 15)):
        events += [event for who, event in pool.tick() if who is stream]
    path = stream.save(tmp_path / "s")
    events += stream._events
    seen = stream.session.stats.frames
    restored = StreamingSession.load(path, model, processor)
    assert restored.stats.frames == seen
    elsewhere = StreamPool(model, processor)
    again = elsewhere.join(restored)
    again.push(frames[seen:])
    events += [event for _, event in elsewhere.run()]
    expected = alone(checkpoint, [("push", frames)], options)
    assert expected
    assert_same_events(events, expected)


def test_failed_tick_loses_nothing(checkpoint, threshold):
    """For example when memory runs out: watched frames stay, and the others wait."""
    model, processor = checkpoint
    options = {"speak_threshold": threshold, "max_new_tokens": 5}
    pool = StreamPool(model, processor)
    streams = [pool.join(**options) for _ in range(3)]
    for index, stream in enumerate(streams):
        stream.push(images(index, 12))
    calls, events, failures = [], {stream: [] for stream in streams}, 0

    def fail(*_):
        calls.append(1)
        if len(calls) % 13 == 0:  # a reply that fails is begun anew with its frame, which takes up to seven calls
            raise MemoryError("no memory")

    hook = model.model.language_model.layers[2].mlp.register_forward_pre_hook(fail)
    while any(stream.busy for stream in streams):
        try:
            for stream, event in pool.tick():
                events[stream].append(event)
        except MemoryError:
            failures += 1
    hook.remove()
    for stream, event in pool.tick():
        events[stream].append(event)
    assert failures
    for index, stream in enumerate(streams):
        assert_same_events(events[stream], alone(checkpoint, [("push", images(index, 12))], options))


def test_the_keep_ratio_of_the_model_is_that_of_streams_without_their_own():
    """Also if it changes while they are in a pool."""
    model, processor = small_model(0)
    pool = StreamPool(model, processor)
    own, models = pool.join(keep_ratio=model.keep_ratio, speak_threshold=0.0), pool.join(speak_threshold=0.0)
    kept = {own: [], models: []}
    for stream in kept:
        stream.on_output = lambda frame, stream=stream: kept[stream].append(len(frame.kept[1]))
    for ratio in (0.4, 1.0):
        model.keep_ratio = ratio
        for stream in kept:
            stream.push(images(1, 2))
        pool.run()
    assert kept == {own: [2, 2, 2, 2], models: [2, 2, 5, 5]}
