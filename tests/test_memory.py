"""What a session forgets: which tokens leave, where the others move, and that nothing changes while all fits."""

import functools
import itertools
import random

import numpy as np
import pytest
import torch
from comparing import PROBABILITY, assert_near, assert_same_cache, assert_same_events
from small_data import small_model
from tiny_models import ROUTINGS, SEPARATOR, VIDEO, random_batch, tiny_model
from transformers import GenerationConfig
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from videollm_mod import (
    MoDCache,
    StreamingSession,
    StreamPool,
)
from videollm_mod.data.world import world_stream

from videollm_mod.memory import PROMPT, SEPARATOR as GAP, TEXT, VISION  # isort: skip
from videollm_mod.memory import KeyRotation, StreamMemory, frames_in_context


def world(seeds) -> tuple[np.ndarray, list[float]]:
    frames = np.concatenate([world_stream(seed).frames(2, 96) for seed in seeds])
    return frames, [index / 2 for index in range(len(frames))]


@pytest.mark.parametrize("seed", range(3))
def test_rotated_keys_equal_keys_of_the_earlier_position(seed):
    torch.manual_seed(seed)
    rotary = tiny_model(seed).model.language_model.rotary_emb
    keys = torch.randn(1, 2, 9, 8)
    positions = torch.randint(0, 5000, (9,)).sort().values
    distance = torch.randint(0, 2000, (9,)).minimum(positions)
    at = lambda p: apply_rotary_pos_emb(keys, keys, *rotary(keys, p[None]))[1]  # noqa: E731
    # angles of up to 5,000 radians are known to 2e-4 in float32
    assert_near(KeyRotation(rotary)(at(positions), distance), at(positions - distance), 1e-3)
    half = KeyRotation(rotary)(at(positions).bfloat16(), distance)
    assert half.dtype == torch.bfloat16
    still = KeyRotation(rotary)(keys, torch.zeros_like(distance))
    assert torch.equal(still, keys)


@pytest.mark.parametrize("name", ROUTINGS)
def test_forgotten_tokens_leave_every_layer(name):
    """Layer 0 sees the tokens alone: its keys are then those of the shorter sequence. Every layer holds what it held,
    less what left, at the new positions; and generation goes on with consecutive positions."""
    seed = list(ROUTINGS).index(name)
    model = tiny_model(seed, **ROUTINGS[name])
    _, (row,) = random_batch(model, seed, [6])
    cache, ids = MoDCache(model.config), row["input_ids"][0]
    with torch.no_grad():
        model(**row, past_key_values=cache)
        before = [layer.positions for layer in cache.layers]
        keys = [layer.keys for layer in cache.layers]
        rng, is_vision = random.Random(seed), ids == VIDEO
        frames = is_vision.nonzero().view(-1, model.config.num_frame_tokens)
        leaving = torch.zeros(len(ids), dtype=torch.bool)
        for frame in rng.sample(range(len(frames)), 3):
            leaving[frames[frame]] = True
        leaving[rng.sample(range(len(ids)), 4)] = True
        cache.forget(leaving, KeyRotation(model.model.language_model.rotary_emb))
        new = (~leaving).long().cumsum(0) - 1
        for layer, old, old_keys in zip(cache.layers, before, keys, strict=True):
            if old is None:
                continue
            stay = ~leaving[old[0]]
            assert torch.equal(layer.positions[0], new[old[0, stay]])
            assert layer.keys.shape[2] == layer.values.shape[2] == int(stay.sum())
            norms = old_keys[:, :, stay].norm(dim=-1)  # turning keeps lengths
            assert_near(layer.keys.norm(dim=-1), norms)
        assert cache.get_seq_length() == int((~leaving).sum()) == int(cache.next_position)
        assert cache.num_frames.tolist() == [len(frames)]
        out = model(input_ids=torch.tensor([[9, 10]]), past_key_values=cache)
        assert out.logits.isfinite().all()
        assert cache.layers[0].positions[0, -2:].tolist() == [int((~leaving).sum()), int((~leaving).sum()) + 1]


def test_layer_0_keys_are_those_of_the_shorter_stream(checkpoint):
    model, processor = checkpoint
    frames, times = world([80])
    session = model.stream(processor, speak_threshold=0, max_cached_frames=8)
    session.push(frames[:9], times[:9])
    held = session.cache.layers[0]
    stay = [2, 3, 4, 5, 6, 7, 8]  # 8 were cached when the ninth came: two left
    shorter = model.stream(processor, speak_threshold=0)
    shorter.push(frames[stay])
    assert_near(held.keys, shorter.cache.layers[0].keys)
    assert_near(held.values, shorter.cache.layers[0].values)
    assert torch.equal(held.positions, shorter.cache.layers[0].positions)
    assert session.stats.tokens == shorter.stats.tokens + 2 * 11


def test_layers_without_rotary_embeddings_keep_their_keys():
    """A layer without positions has nothing to renumber, as in SmolLM3; the others have."""
    model, processor = small_model(0, no_rope_layers=[0])
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    bounded = model.stream(processor, speak_threshold=0.0, max_cached_frames=8)
    bounded.push(frames)
    shorter = model.stream(processor, speak_threshold=0.0)
    shorter.push(frames[2:])
    assert_near(bounded.cache.layers[0].keys, shorter.cache.layers[0].keys)
    rotation = KeyRotation(model.model.language_model.rotary_emb)
    keys, distance = torch.randn(1, 2, 3, 8), torch.tensor([0, 2, 5])
    assert rotation.of_layer(0)(keys, distance) is keys
    assert torch.equal(rotation.of_layer(1)(keys, distance), rotation(keys, distance))
    rows = rotation(keys.expand(2, -1, -1, -1), torch.stack([distance, distance.flip(0)]))
    assert_near(rows[1:], rotation(keys, distance.flip(0)))


def test_a_prompt_or_question_may_be_longer_than_the_text_that_is_remembered(small, frames):
    """It is pending before the first frame, when there is nothing to forget."""
    model, processor = small
    text = "What happened? " * 20
    session = model.stream(processor, system_prompt=text, speak_threshold=0.0, max_cached_frames=4)
    assert len(session.state.pending) > session.state.memory.text_budget
    session.push(frames[:12])
    assert session.cache.num_bytes <= session.max_kv_bytes and session.stats.frames == 12
    asked = model.stream(processor, speak_threshold=0.0, max_cached_frames=4, max_new_tokens=4)
    assert asked.ask(text)[0].kind == "answer"


def test_tokens_are_recorded_by_kind():
    memory = StreamMemory(8, 3)
    prompt, frame = [0, 9, SEPARATOR], [VIDEO] * 3
    first = [*prompt, 5, *frame, SEPARATOR, *frame]
    for ids, scores in ((first, torch.rand(2, 3)), ([6, SEPARATOR, 9], None), ([5, *frame], torch.rand(1, 3)),
                        ([SEPARATOR, *frame], torch.rand(1, 3))):  # fmt: skip
        memory.record(ids, VIDEO, SEPARATOR, scores)
    kinds = [PROMPT] * 4 + [VISION] * 3 + [GAP] + [VISION] * 3 + [TEXT] * 4 + [VISION] * 3 + [GAP] + [VISION] * 3
    assert memory.kinds.tolist() == kinds
    assert memory.frames.tolist() == [-1] * 4 + [0] * 4 + [1] * 7 + [2] * 4 + [3] * 3
    assert memory.free_frames() == 4
    memory.rollback(11)
    assert memory.kinds.tolist() == kinds[:11] and memory.free_frames() == 6


def filled(policy: str, frames: int, seed: int = 0) -> StreamMemory:
    torch.manual_seed(seed)
    memory = StreamMemory(8, 3, policy)
    memory.record([0, 9, 5], VIDEO, SEPARATOR, None)
    for index in range(frames):
        ids = [*([SEPARATOR] if index else []), *[VIDEO] * 3]
        memory.record(ids, VIDEO, SEPARATOR, torch.rand(1, 3))
    return memory


def test_window_policy_drops_the_oldest_frames():
    memory = filled("window", 8)
    assert memory.free_frames() == 0
    leaving = memory.leaving()
    assert leaving.nonzero().flatten().tolist() == list(range(3, 11))  # two frames and the separators after them


@pytest.mark.parametrize("seed", range(3))
def test_router_policy_drops_the_lowest_scores_of_old_frames(seed):
    memory = filled("router", 8, seed)
    leaving = memory.leaving()
    vision = leaving & (memory.kinds == VISION)
    old = (memory.kinds == VISION) & (memory.frames < 4)
    assert int(vision.sum()) == 6 and not (vision & ~old).any()
    assert memory.scores[vision].max() <= memory.scores[old & ~vision].min()
    for frame in range(8):
        gone = vision[(memory.frames == frame) & (memory.kinds == VISION)].all()
        assert (leaving[(memory.frames == frame) & (memory.kinds == GAP)] == gone).all()


def test_text_beyond_its_budget_is_dropped_but_never_the_prompt():
    memory = filled("window", 2)
    memory.record([9] * 25, VIDEO, SEPARATOR, None)
    assert memory.text_budget == 24 and memory.free_frames() == 0
    leaving = memory.leaving()
    assert (memory.kinds[leaving] == TEXT).all() and int(leaving.sum()) == 25 - 18
    assert leaving.nonzero()[0] == (memory.kinds == TEXT).nonzero()[0]


def test_text_outlives_the_frames_that_it_was_said_about(small, frames, tmp_path):
    """Within a budget of its own, which is part of the bound in bytes: the newest stays, and the oldest leaves."""
    model, processor = small
    options = {"max_cached_frames": 4, "max_new_tokens": 4, "speak_threshold": 0.0}
    session, shorter = model.stream(processor, max_cached_text=200, **options), model.stream(processor, **options)
    last, most, oldest = [], 0, []
    for index in range(12):
        session.push(frames[2 * index : 2 * index + 2])
        last.append(int(session.state.memory.frames.max()))
        session.ask("What happened?")
        most = max(most, session.cache.num_bytes)
        memory = session.state.memory
        oldest.append(int(memory.frames[memory.kinds == VISION].min()))
    said = memory.frames[memory.kinds == TEXT]
    assert oldest[-1] >= 20 and 0 < said.min() < 14 and said.max() == last[-1]
    assert memory.text_budget == 200 and shorter.state.memory.text_budget == 20
    assert most <= session.max_kv_bytes > shorter.max_kv_bytes
    restored = StreamingSession.load(session.save(tmp_path / "s"), model, processor)
    assert restored.max_cached_text == restored.state.memory.text_budget == 200
    in_bytes = model.stream(processor, max_cached_bytes=512 * 400, max_cached_text=50)
    assert in_bytes.state.memory.text_budget == 50 and in_bytes.max_kv_bytes == 512 * 400


@pytest.fixture(scope="module")
def small():
    return small_model(0)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (28, 32, 32, 3), dtype=np.uint8)


def opener(small, frames, fewest: int, most: int, **bounds):
    """Opens sessions of the small model that say between `fewest` and `most` things about these frames. Its weights,
    and so what it says, differ between processors: a threshold midway between two probabilities of silence and a
    number of words are searched that do."""
    model, processor = small
    silence = sorted(frame.silence_probability for frame in model.stream(processor, speak_threshold=0.0).watch(frames))
    for words, (lower, upper) in itertools.product((6, 5, 4, 3), itertools.pairwise(silence)):
        options = {"speak_threshold": (lower + upper) / 2, "max_new_tokens": words, **bounds}
        if fewest <= len(model.stream(processor, **options).push(frames)) <= most:
            return functools.partial(model.stream, processor, **options)
    raise AssertionError(f"the model never says {fewest} to {most} things")


def watched(small, frames, **bounds):
    """`(silence probabilities, answer, session)` of twelve frames with a question after six. It says nothing else, so
    that its text fits into the budget of twelve frames: 60 tokens."""
    session = small[0].stream(small[1], speak_threshold=0.0, max_new_tokens=6, **bounds)
    silence = [frame.silence_probability for frame in session.watch(frames[:6])]
    answer = session.ask("What?")
    silence += [frame.silence_probability for frame in session.watch(frames[6:12])]
    return silence, answer, session


@pytest.fixture(scope="module")
def unbounded(small, frames):
    return watched(small, frames)


@pytest.mark.parametrize("bound", ["frames", "bytes", "both"])
@pytest.mark.parametrize("policy", ["window", "router"])
def test_nothing_changes_while_everything_fits(small, frames, unbounded, policy, bound):
    bounds = {"frames": {"max_cached_frames": 12}, "bytes": {"max_cached_bytes": 8 << 20}}
    bounds["both"] = bounds["frames"] | bounds["bytes"]
    silence, answer, session = watched(small, frames, cache_policy=policy, **bounds[bound])
    assert_near(silence, unbounded[0], PROBABILITY, "silence_probability")
    assert_same_events(answer, unbounded[1])
    assert session.stats.kv_bytes == unbounded[2].stats.kv_bytes
    assert session.stats.tokens == unbounded[2].stats.tokens == session.cache.get_seq_length()


@pytest.mark.parametrize("seed", [0, 1])  # both policies
def test_bytes_are_never_exceeded(seed, tmp_path):
    """After each frame, token and answer, with prompts and questions of any length that is let in; and it forgets at
    the same frames in blocks as one by one."""
    model, processor = small_model(seed)
    rng, images = random.Random(seed), np.random.default_rng(seed)
    limit, policy = 512 * rng.randint(330, 500), rng.choice(("window", "router"))
    options = {"max_cached_bytes": limit, "cache_policy": policy, "max_new_tokens": 4}
    probe = model.stream(processor, speak_threshold=0.0)
    frames = images.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    silence = sorted(frame.silence_probability for frame in probe.watch(frames[:20]))
    threshold = (silence[3] + silence[4]) / 2  # no frame is at it, where the last bit would decide
    sessions = [model.stream(processor, speak_threshold=threshold, **options) for _ in range(2)]
    said, most, asked, start = ([], []), 0, 0, 0
    while start < len(frames):
        count, asks = rng.randint(1, 20), [rng.choice((None, "Where?", "What happened " * 3)) for _ in range(3)]
        said[0].extend(sessions[0].push(frames[start : start + count]))
        for frame in frames[start : start + count]:
            said[1].extend(sessions[1].push(frame[None]))
            most = max(most, sessions[1].stats.kv_bytes)
        for question in asks if asks[0] else ():
            for index, session in enumerate(sessions):
                said[index].extend(session.ask(question) if question else ())
            asked += question is not None
            most = max(most, sessions[0].stats.kv_bytes)
        start += count
    assert limit / 2 < most <= limit == sessions[0].max_kv_bytes and asked
    assert_same_events(*said)
    assert torch.equal(sessions[0].state.memory.kinds, sessions[1].state.memory.kinds)
    sizes = sessions[0].cache.token_bytes()
    assert int(sizes.sum()) == sessions[0].stats.kv_bytes and len(sizes) == sessions[0].cache.get_seq_length()
    restored = StreamingSession.load(sessions[0].save(tmp_path / "s"), model, processor)
    assert restored.max_cached_bytes == limit
    rest = frames[:15]
    assert_same_events(restored.push(rest), sessions[0].push(rest))


def test_budgets_that_are_too_small_are_refused():
    model, processor = small_model(0)
    with pytest.raises(ValueError, match="`max_cached_bytes` must be a whole number of at least [0-9]+ for"):
        model.stream(processor, max_cached_bytes=1000)
    with pytest.raises(ValueError, match="`max_cached_bytes`.*got True"):
        model.stream(processor, max_cached_bytes=True)
    session = model.stream(processor, max_cached_bytes=512 * 400)
    with pytest.raises(ValueError, match="`question` is too long for a bounded session"):
        session.ask("What happened? " * 50)
    assert session.query is None
    with pytest.raises(ValueError, match="`system_prompt` is too long for a bounded session"):
        model.stream(processor, max_cached_bytes=512 * 400, system_prompt="What happened? " * 50)


@pytest.mark.parametrize("policy", ["window", "router"])
def test_a_bounded_session_is_the_same_however_it_is_fed(small, frames, policy, tmp_path):
    """In blocks, one by one, forked, and saved and restored: it forgets at the same frames."""
    stream = opener(small, frames, 3, len(frames), max_cached_frames=8, cache_policy=policy)
    sessions = [stream() for _ in range(2)]
    events = sessions[0].push(frames)
    one_by_one = []
    for index, frame in enumerate(frames):
        if index == 15:
            session = StreamingSession.load(sessions[1].save(tmp_path / "s"), *small).fork()
            sessions[1] = session
        one_by_one += sessions[1].push(frame[None])
    assert len(events) > 2
    assert_same_events(events, one_by_one)
    assert sessions[0].stats.tokens == sessions[1].stats.tokens > sessions[0].cache.get_seq_length()
    # which of several plain patches a layer keeps may hang on the last bit; what is remembered does not
    for name in ("kinds", "frames"):
        assert torch.equal(getattr(sessions[0].state.memory, name), getattr(sessions[1].state.memory, name))
    assert torch.equal(sessions[0].cache.layers[0].positions, sessions[1].cache.layers[0].positions)


@pytest.mark.parametrize(("count", "policy"), [(1, "window"), (1, "router"), (2, "router"), (3, "window")])
def test_few_frames_can_be_remembered(count, policy):
    """The newest frame is always whole, its features are those of a session without bounds, and instructions stay."""
    model, processor = small_model(count)
    rng = np.random.default_rng(count)
    frames = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    options = {"max_cached_frames": count, "cache_policy": policy, "max_new_tokens": 3, "speak_threshold": 0.6}
    session, other = (model.stream(processor, system_prompt="Watch.", **options) for _ in range(2))
    prompt, tokens, events = len(session.state.pending), model.config.num_frame_tokens, []
    for frame in frames:
        events += session.push(frame[None])
        memory = session.state.memory
        vision = memory.kinds == VISION
        assert tokens <= int(vision.sum()) <= count * tokens
        assert int((memory.frames[vision] == memory.frames.max()).sum()) == tokens
        assert (memory.kinds[:prompt] == PROMPT).all()
        assert session.cache.num_bytes <= session.max_kv_bytes
    assert_same_events(other.push(frames), events)
    assert_same_cache(session.cache, other.cache)
    assert session.cache.frames_forgotten > 0
    session.ask("What is there?")  # about the newest frame, which is still there
    memory = session.state.memory
    assert int((memory.frames[memory.kinds == VISION] == memory.frames.max()).sum()) == tokens
    assert session.cache.num_bytes <= session.max_kv_bytes


@pytest.fixture(scope="module")
def long_stream(checkpoint):
    """`(features, times, narrations)` of each of six clips that follow each other."""
    clips, start, session = [], 0.0, checkpoint[0].stream(checkpoint[1])
    for seed in range(5000, 5006):
        stream = world_stream(seed)
        features, times = session.encode(stream.frames(2, 96)), (stream.frame_times(2.0) + start).tolist()
        clips.append((features, times, [(time + start, text) for time, text in stream.narrations]))
        start += len(times) / 2
    return clips


@pytest.mark.parametrize("policy", ["window", "router"])
def test_a_bounded_session_stays_accurate_and_small(checkpoint, long_stream, policy):
    """Four times as long as any stream in training, where an unbounded one has lost itself (tests/test_narrate.py)."""
    session = checkpoint[0].stream(checkpoint[1], max_cached_frames=16, cache_policy=policy)
    session.instruct("Narrate what happens.")
    exact, total, held = 0, 0, []
    for features, times, narrations in long_stream:
        watched = session.watch_encoded(features, times)
        said = {(frame.event.time, frame.event.text) for frame in watched if frame.event}
        exact += len(said & set(narrations))
        total += len(narrations)
        held.append(session.cache.get_seq_length())
    assert exact / total > 0.95
    assert max(held) <= 16 * 10 * 2 + 16 + 40  # frames, as much text, separators, the prompt and one turn


def test_too_long_a_stream_warns_once(caplog):
    model, processor = small_model(max_position_embeddings=100)
    frames = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)  # of 5 tokens and a separator: 120 and more

    def warnings() -> int:
        said = [record.getMessage() for record in caplog.records if "max_position_embeddings" in record.getMessage()]
        assert all(f"`max_cached_frames={frames_in_context(model.config)}`" in warning for warning in said)
        caplog.clear()
        return len(said)

    session = model.stream(processor, speak_threshold=0.0)
    session.push(frames[:16])
    assert warnings() == 0 and session.stats.tokens <= 100
    session.push(frames)
    fork = session.fork()
    assert warnings() == 1 and session.stats.tokens > 100
    for same in (session, fork):
        same.push(frames)
    assert warnings() == 0
    session.reset()
    session.push(frames)
    assert warnings() == 1
    talking = GenerationConfig(min_new_tokens=120, max_new_tokens=120)
    model.stream(processor, max_new_tokens=120, generation_config=talking).ask("What happens?")
    assert warnings() == 1

    model.stream(processor, speak_threshold=0.0, max_cached_frames=40).push(torch.cat([frames] * 2))
    assert warnings() == 1
    model.stream(processor, speak_threshold=0.0, max_cached_frames=frames_in_context(model.config)).push(frames)
    assert warnings() == 0
    pool = StreamPool(model, processor)
    members = [pool.join(speak_threshold=0.0) for _ in range(2)]
    for member in members:
        member.push(frames)
    pool.run()
    assert warnings() == 2


def test_bounds_are_checked(checkpoint):
    model, processor = checkpoint
    for options, message in [
        ({"max_cached_frames": 0}, "`max_cached_frames` must be a whole number of at least 1, got 0"),
        ({"max_cached_frames": 8.0}, "`max_cached_frames`.*got 8.0"),
        ({"max_cached_frames": 8, "cache_policy": "lru"}, "`cache_policy` must be one of 'window', 'router'"),
        ({"cache_policy": "lru"}, "`cache_policy` must be one of 'window', 'router'"),
        ({"max_cached_text": 100}, "`max_cached_text` needs `max_cached_frames` or `max_cached_bytes`"),
        ({"max_cached_text": 47, "max_cached_frames": 8}, "`max_cached_text` must be .* at least 48, got 47"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.stream(processor, **options)
    dynamic, own = small_model(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    with pytest.raises(ValueError, match="do not depend on the length, got the rope_type 'dynamic'"):
        dynamic.stream(own, max_cached_frames=8)
    assert frames_in_context(model.config) == 704 // 21
    cache = MoDCache(model.config)
    with pytest.raises(ValueError, match="`leaving` must hold each token"):
        cache.forget(torch.zeros(3, dtype=torch.bool), None)
