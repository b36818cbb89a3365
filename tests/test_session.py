"""A streaming session: the same events however it is fed, forked, saved, restored, broken off or failed."""

import functools
import json
import sys

import numpy as np
import pytest
import torch
from comparing import assert_same_cache, assert_same_events
from fork_server import ForkedProcess, run_forked
from fresh_process import HELPERS, ROOT, TINY_WORLD
from safetensors.torch import save_file
from small_data import small_model
from transformers import GenerationConfig
from video_files import write_video

from videollm_mod import (
    StreamEvent,
    StreamingSession,
    StreamPool,
    VideoLLMMoDForConditionalGeneration,
    VideoLLMMoDProcessor,
)
from videollm_mod.data.world import world_stream
from videollm_mod.decoding import decode_video
from videollm_mod.session_state import FORMAT, VERSION, checksum, read_session
from videollm_mod.steps import run_steps

QUESTION = "How many objects are there?"


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


def load():
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(TINY_WORLD, dtype=torch.float32).eval()
    return model, VideoLLMMoDProcessor.from_pretrained(TINY_WORLD)


def clip(seed: int, count: int | None = None) -> tuple[np.ndarray, list[float]]:
    stream = world_stream(seed)
    return stream.frames(height=96)[:count], stream.frame_times(2.0).tolist()[:count]


def images(seed: int, count: int = 10) -> tuple[np.ndarray, list[float]]:
    """Frames and times for the small model."""
    frames = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return frames, [index / 2 for index in range(count)]


@pytest.fixture(scope="module")
def small():
    """`(model, processor)` with random weights, for all that does not depend on what is said."""
    return small_model(0)


@pytest.fixture(scope="module")
def stream(small):
    """Opens a session of the small model that speaks now and then: its threshold is midway between two frames."""
    model, processor = small
    session = model.stream(processor, speak_threshold=0.0)
    silence = sorted(frame.silence_probability for frame in session.watch(images(99, 24)[0]))
    threshold = (silence[6] + silence[7]) / 2
    return functools.partial(model.stream, processor, speak_threshold=threshold, max_new_tokens=6)


def holds_the_same(session, other) -> None:
    assert_same_cache(session.cache, other.cache)
    assert session.state.pending == other.state.pending


@pytest.fixture(scope="module")
def watched(stream):
    """`(frames, times, events, session)` of a session that watched ten frames at once, and spoke once in the first
    three, then, and late. What a random model says differs between releases, which draw other weights."""
    for seed in range(38, 200):
        frames, times = images(seed)
        session = stream()
        events = session.push(frames, times)
        early, then, late = (
            [event for event in events if begin <= event.time < end] for begin, end in ((0, 1.5), (1.5, 4), (4, 5))
        )
        if len(early) == 1 and then and late:
            return frames, times, events, session
    raise AssertionError("the model speaks nowhere as these tests need it")


def goes_on_like(watched, session, before: list[StreamEvent], cut: int) -> None:
    """A session that said `before` in the first `cut` frames of the clip goes on like the one that `watched` it."""
    frames, times, events, whole = watched
    assert_same_events(before + session.push(frames[cut:], times[cut:]), events)
    holds_the_same(session, whole)


@pytest.fixture(scope="module")
def saved(checkpoint, tmp_path_factory):
    """The path of a saved session of three frames, which no test changes."""
    session = checkpoint[0].stream(checkpoint[1])
    session.push(clip(39)[0][:3])
    return session.save(tmp_path_factory.mktemp("saved") / "s")


@pytest.fixture(scope="module")
def watched_video(small, stream, tmp_path_factory):
    """`(path, frames, times, events)` of a video, after which its first frames are watched again."""
    for seed in range(60, 200):  # until it speaks now and then
        path = write_video(tmp_path_factory.mktemp("video") / "a.mkv", images(seed, 20)[0], "mjpeg", fps=2)
        frames, times = decode_video(path, small[1].video_processor.fps)
        assert len(frames) == 20  # more than are decoded at once
        session = stream()
        events = session.push(frames, times) + session.push(frames[:4], times[:4] + times[-1] + 0.5)
        if len(events) >= 6 and len(session.push(path)) >= 5:
            return path, frames, times, events
    raise AssertionError("the model speaks in no video")


@pytest.mark.parametrize("kind", ["path", "file", "pool"])
def test_a_video_is_sampled_at_the_sessions_rate(small, stream, watched_video, kind):
    path, frames, times, said = watched_video
    session = stream()
    if kind == "path":
        start = session.watch(path)  # decoded while it is watched
        assert next(start).time == 0 and session.stats.frames == 1
        start.close()
        session.reset()
    with open(path, "rb") as file:
        source = file if kind == "file" else path
        if kind == "pool":
            pool = StreamPool(*small)
            member = pool.join(session)
            member.push(source)
            member.push(frames[:4])
            events = [event for _, event in pool.run()]
            pool.leave(member)
        else:
            events = session.push(source) + session.push(frames[:4])
    assert_same_events(events, said)
    assert len(said) >= 6 and session.time == times[-1] + 2.0
    if kind == "path":
        assert len(session.push(str(path))) >= 5 and session.time == 2 * times[-1] + 2.5  # goes on after what was


def test_invalid_videos_are_refused(checkpoint, tmp_path):
    session = checkpoint[0].stream(checkpoint[1])
    with pytest.raises(FileNotFoundError, match="there is no video"):
        session.watch(str(tmp_path / "a.mp4"))
    with pytest.raises(ValueError, match="`times` are for frames; a video has its own"):
        session.push(str(ROOT / "media" / "world.mp4"), [0.0])
    assert session.stats.frames == 0


@pytest.mark.parametrize("seed", [31, 38])
def test_blocks_equal_single_frames(stream, seed):
    """The model speaks after many frames, so that blocks are cut and then grow again. `test_checkpoint` does so with
    the trained one."""
    frames, times = images(seed, 24)
    one, many = stream(), stream()
    expected, watched = [], []
    for frame, time in zip(frames, times, strict=True):
        expected += one.push(frame[None], [time])
    for frame in many.watch(frames, times):
        watched.append(frame)
    assert len(expected) > 3
    assert_same_events([frame.event for frame in watched if frame.event], expected)
    assert [frame.time for frame in watched] == times
    holds_the_same(many, one)
    assert many.stats.frames == one.stats.frames == len(frames)
    assert (many.stats.tokens, many.stats.kv_bytes) == (one.stats.tokens, one.stats.kv_bytes)


def test_watched_frames_tell_what_each_layer_kept(checkpoint):
    model, processor = checkpoint
    frames, times = clip(34)
    pixels = processor.video_processor(torch.from_numpy(frames[:3]), return_tensors="pt")["pixel_values_videos"]
    ids = processor.encode_conversation([{"role": "stream", "num_frames": 3}]).input_ids
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), pixel_values_videos=pixels, output_router_scores=True)
    session = model.stream(processor, speak_threshold=0.0)
    for index, frame in enumerate(session.watch(frames[:3], times[:3])):
        assert 0 <= frame.silence_probability <= 1 and frame.event is None
        for layer, kept in enumerate(frame.kept):
            assert (kept is None) == (layer not in model.config.text_config.routed_layers)
            if kept is not None:
                assert torch.equal(kept, out.kept_indices[layer][index])


@pytest.mark.parametrize("cut", [3, 8])
def test_fork_and_original_are_independent(stream, watched, cut):
    frames, times, *_ = watched
    session = stream()
    before = session.push(frames[:cut], times[:cut])
    fork, asked = session.fork(), session.fork()
    held = session.cache.num_bytes
    asked.ask(QUESTION)
    asked.push(frames[:3][::-1])
    assert session.cache.num_bytes == held and session.query is None
    goes_on_like(watched, fork, before, cut)
    goes_on_like(watched, session, before, cut)


def restore_and_go_on(path: str, seed: int, cut: int) -> None:
    session = StreamingSession.load(path, *load())
    frames, times = clip(seed, 11)
    events = session.push(frames[cut:], times[cut:]) + session.ask(QUESTION)
    sys.stdout.write(json.dumps([[vars(event) for event in events], {**session.stats, "seconds": None}]))


def test_session_restored_in_another_process_continues_unchanged(checkpoint, tmp_path):
    seed, cut = 37, 7
    frames, times = clip(seed, 11)
    session = checkpoint[0].stream(checkpoint[1], system_prompt="You watch a stream and say what happens.")
    session.instruct("Narrate what happens.")
    session.push(frames[:cut], times[:cut])
    path = session.save(tmp_path / "session.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    expected = session.push(frames[cut:], times[cut:]) + session.ask(QUESTION)
    done = run_forked(in_this_file(f"restore_and_go_on({str(path)!r}, {seed}, {cut})"))
    assert done.returncode == 0, done.stderr
    events, stats = json.loads(done.stdout)
    assert len(events) > 1
    assert_same_events([StreamEvent(**event) for event in events], expected)
    assert stats == {**session.stats, "seconds": None}


@pytest.mark.parametrize("when", ["new", "instructed", "after an answer"])
def test_a_session_can_be_saved_at_any_point(small, stream, tmp_path, when):
    frames, times = images(38)
    session = stream(keep_ratio=0.5, max_new_tokens=9)
    if when != "new":
        session.instruct("Narrate what happens.")
    if when == "after an answer":
        session.push(frames[:3], times[:3])
        session.ask(QUESTION)
    restored = StreamingSession.load(session.save(tmp_path / "s"), *small)
    for name in ("keep_ratio", "speak_threshold", "max_new_tokens"):
        assert getattr(restored, name) == getattr(session, name)
    assert (restored.keep_ratio, restored.max_new_tokens) == (0.5, 9)
    events = session.push(frames[3:], times[3:])
    assert events
    assert_same_events(restored.push(frames[3:], times[3:]), events)
    holds_the_same(restored, session)


def as_version_2(path) -> None:
    """Rewrite a session file as version 2 wrote it, with names of attributes that were private then."""
    tensors, content = read_session(path)
    state = content["state"]
    content["state"] = {name: state[name] for name in ("query", "time")}
    content["state"] |= {f"_{name}": state[name] for name in ("in_stream", "ahead", "pending", "counts", "seconds")}
    content = json.dumps(content)
    save_file(
        tensors,
        path,
        {"format": FORMAT, "version": "2", "content": content, "checksum": checksum(tensors, content)},
    )


@pytest.mark.parametrize("bounds", [{}, {"max_cached_frames": 4}])
def test_a_session_saved_in_version_2_is_read(small, stream, tmp_path, bounds):
    frames, times = images(38)
    session = stream(**bounds)
    session.instruct("Narrate what happens.")
    session.push(frames[:6], times[:6])
    path = session.save(tmp_path / "s")
    as_version_2(path)
    restored = StreamingSession.load(path, *small)
    assert {**restored.stats} == {**session.stats} and restored.query == session.query
    assert_same_events(restored.push(frames[6:9], times[6:9]), session.push(frames[6:9], times[6:9]))
    holds_the_same(restored, session)


def damaged(data: bytes, how: str) -> bytes:
    if how == "half written":
        return data[: len(data) // 2]
    if how == "a bit flipped":
        return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]
    if how == "a word changed":
        return data.replace(b'frames\\": 3', b'frames\\": 4')
    if how == "a later version":
        return data.replace(f'"version":"{VERSION}"'.encode(), b'"version":"9"')
    return {"empty": b"", "text": b"hello", "a model": (ROOT / "model.safetensors").read_bytes()}[how]


@pytest.mark.parametrize(
    "how, message",
    [
        ("half written", "damaged"),
        ("a bit flipped", "checksum"),
        ("a word changed", "checksum"),
        ("a later version", "version '9'"),
        ("empty", "no saved session"),
        ("text", "no saved session"),
        ("a model", "no saved session"),
    ],
)
def test_damaged_states_are_refused(checkpoint, saved, tmp_path, how, message):
    path, whole = tmp_path / "s", saved.read_bytes()
    changed = damaged(whole, how)
    assert changed != whole
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=message):
        StreamingSession.load(path, *checkpoint)


def test_states_of_other_models_and_wrong_paths_are_refused(checkpoint, saved, tmp_path):
    model, processor = checkpoint
    session, path = model.stream(processor), saved
    other = VideoLLMMoDForConditionalGeneration.from_pretrained(TINY_WORLD, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="another dtype"):
        StreamingSession.load(path, other, processor)
    other = VideoLLMMoDForConditionalGeneration.from_pretrained(TINY_WORLD, dtype=torch.float32)
    other.model.language_model.layers[3].self_attn.q_proj.weight.data *= 1.01
    with pytest.raises(ValueError, match="another model"):
        StreamingSession.load(path, other, processor)
    with pytest.raises(FileNotFoundError, match="there is no saved session"):
        StreamingSession.load(tmp_path / "none", model, processor)
    with pytest.raises(FileNotFoundError, match="folder of `path`"):
        session.save(tmp_path / "no" / "s")
    with pytest.raises(IsADirectoryError, match="must be a file"):
        session.save(tmp_path)


def save_forever(path: str, threshold: float, seed: int) -> None:
    model, processor = small_model(0)
    frames, times = images(seed, 3)
    session = model.stream(processor, speak_threshold=threshold, max_new_tokens=6)
    session.push(frames, times)
    while True:
        session.save(path)
        sys.stdout.write("saved\n")
        sys.stdout.flush()


def in_this_file(call: str) -> list[str]:
    """A command that calls a function of this file."""
    paths = [str(HELPERS.parent), str(HELPERS)]
    return [sys.executable, "-c", f"import sys; sys.path += {paths}; import test_session; test_session.{call}"]


def test_a_process_killed_while_saving_leaves_a_whole_state(small, watched, tmp_path):
    path, (frames, _, events, session) = tmp_path / "s", watched
    seed = next(seed for seed in range(38, 200) if np.array_equal(images(seed)[0], frames))
    for saves in (1, 3, 2):  # while it saves for the time after that
        process = ForkedProcess(in_this_file(f"save_forever({str(path)!r}, {session.speak_threshold}, {seed})"))
        assert [process.stdout.readline() for _ in range(saves)] == ["saved\n"] * saves
        process.kill()
        process.wait()
        restored = StreamingSession.load(path, *small)
        assert restored.stats.frames == 3 and restored.stats.narrations == 1
        goes_on_like(watched, restored, events[:1], 3)


def test_answers_come_token_by_token(checkpoint):
    session = checkpoint[0].stream(checkpoint[1])
    session.push(clip(41)[0][:6])
    fork = session.fork()
    pieces = list(session.ask_tokens(QUESTION))
    (event,) = fork.ask(QUESTION)
    assert "".join(pieces) == event.text and all(pieces)
    session.ask("What happened last?")
    fork.ask("What happened last?")
    holds_the_same(session, fork)
    longer = [list(session.fork().ask_tokens(q)) for q in ("What happened last?", "What is at the top left?")]
    assert max(map(len, longer)) > 1


@pytest.mark.parametrize("how", ["close", "push", "fork", "never begun"])
def test_a_cancelled_answer_ends_with_its_last_piece(checkpoint, how):
    """The stream then holds the words so far, as if the answer had ended there."""
    model, processor = checkpoint
    frames, times = clip(42)
    session = model.stream(processor)
    session.push(frames[:6], times[:6])
    narrated = session.fork()
    answer = session.ask_tokens("What happened last?")
    heard = "" if how == "never begun" else next(answer)
    if how == "close":
        answer.close()
    elif how == "fork":
        session = session.fork()
    events = session.push(frames[6:8], times[6:8])
    assert list(answer) == []
    narrated.instruct("What happened last?")
    if how != "never begun":
        narrated.state.pending += processor.assistant_header_ids + processor.encode_text(heard)
        narrated.state.pending += [processor.tokenizer.eos_token_id]
    assert_same_events(events, narrated.push(frames[6:8], times[6:8]))
    holds_the_same(session, narrated)


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_closing_watch_early_keeps_the_watched_frames(stream, watched, stop):
    frames, times, *_ = watched
    session, before = stream(), []
    for count, frame in enumerate(session.watch(frames, times), start=1):
        before += [frame.event] if frame.event else []
        if count == stop:
            break
    assert session.stats.frames == stop
    goes_on_like(watched, session, before, stop)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_failed_call_leaves_no_trace(stream, watched, after):
    """For example when memory runs out in the middle of the model."""
    frames, times, *_ = watched
    session = stream()
    before = session.push(frames[:after], times[:after]) if after else []

    def fail(*_):
        raise MemoryError("no memory")

    for failing_layer in (0, 3):
        hook = session.model.model.language_model.layers[failing_layer].mlp.register_forward_pre_hook(fail)
        with pytest.raises(MemoryError):
            session.push(frames[after:], times[after:])
        hook.remove()
        assert session.stats.frames == after
    goes_on_like(watched, session, before, after)


@pytest.mark.parametrize("failing_call", [2, 3, 5])
def test_a_failure_while_speaking_rolls_the_frame_back(stream, watched, failing_call):
    frames, times, *_ = watched
    session, calls = stream(), []

    def fail(*_):
        calls.append(1)
        if len(calls) == failing_call:
            raise MemoryError("no memory")

    hook = session.model.model.language_model.layers[2].mlp.register_forward_pre_hook(fail)
    seen = []
    with pytest.raises(MemoryError):
        for frame in session.watch(frames, times):
            seen.append(frame)
    hook.remove()
    done, before = len(seen), [frame.event for frame in seen if frame.event]
    assert done > 0 and session.stats.frames == done and session.time == times[done - 1]
    assert session.stats.narrations == len(before)
    goes_on_like(watched, session, before, done)


def leave_a_loop() -> None:
    model, processor = small_model(0)
    session = model.stream(processor, speak_threshold=0.0)
    for index, _ in enumerate(session.watch(images(40, 6)[0])):
        if index == 2:
            break


def test_leaving_a_watch_loop_closes_it_at_once(stream):
    done = run_forked(in_this_file("leave_a_loop()"))
    assert done.returncode == 0 and done.stderr.count("Error") == 0, done.stderr
    session = stream(speak_threshold=0.0)
    for frame in session.watch(images(40, 6)[0]):
        if frame.time == 1.0:
            break
    assert session.cache.num_frames.tolist() == [3]  # not only at the next call


def test_times_are_bitwise_equal(small):
    model, processor = small
    frames = np.zeros((9, 8, 8, 3), np.uint8)
    processor.video_processor.fps = 3.0
    try:
        together, one = (model.stream(processor, speak_threshold=0.0) for _ in range(2))
        times = [frame.time for frame in together.watch(frames)]
        assert times == [frame.time for image in frames for frame in one.watch(image[None])]
    finally:
        processor.video_processor.fps = 2.0


def test_weights_that_are_not_finite_are_named(stream, watched):
    frames, times, *_ = watched
    session = stream()
    before = session.push(frames[:2], times[:2])
    weight = session.model.model.language_model.layers[1].mlp.up_proj.weight
    kept = weight[0, 0].clone()
    weight.data[0, 0] = torch.nan
    try:
        with pytest.raises(ValueError, match="its weights hold nan or infinity"):
            session.push(frames[2:], times[2:])
    finally:
        weight.data[0, 0] = kept
    goes_on_like(watched, session, before, 2)


def test_reset_is_a_new_session(stream):
    frames, times = images(45)
    session = stream(system_prompt="A stream follows.")
    expected = session.push(frames, times)
    session.ask(QUESTION)
    session.reset()
    assert session.stats.frames == session.stats.tokens == session.stats.kv_bytes == 0
    assert sum(session.stats.seconds.values()) == 0
    assert session.time is None and session.query is None
    assert expected
    assert_same_events(session.push(frames, times), expected)


@pytest.mark.parametrize("keep_ratio", [0.1, 0.6, 1.0])
def test_sessions_have_their_own_keep_ratio(small, keep_ratio):
    model, processor = small
    frames, times = images(46)
    session, plain = (model.stream(processor, keep_ratio=own, speak_threshold=0) for own in (keep_ratio, None))
    session.push(frames[:4], times[:4])
    plain.push(frames[:4], times[:4])
    assert model.keep_ratio == 0.4
    kept = max(1, round(5 * keep_ratio))
    held = [layer.get_seq_length() for layer in session.cache.layers]
    tokens = session.stats.tokens
    assert held == [tokens - 4 * (5 - kept) * (i in model.config.text_config.routed_layers) for i in range(4)]
    model.keep_ratio = keep_ratio
    other = model.stream(processor, speak_threshold=0)
    other.push(frames[:4], times[:4])
    model.keep_ratio = 0.4
    holds_the_same(session, other)


def test_stats_count_bytes_exactly(watched):
    *_, events, session = watched
    stats = session.stats
    held = sum(layer.get_seq_length() for layer in session.cache.layers)
    per_token = 2 * 2 * 8 * 4  # keys and values, heads, head size, float32
    assert stats.kv_bytes == held * per_token
    assert stats.kv_bytes_if_dense == 4 * stats.tokens * per_token
    assert stats.narrations == len(events)
    assert stats["kv_bytes"] == stats.kv_bytes and json.dumps(stats)
    assert set(stats.seconds) == {"preprocess", "vision", "language", "generation"}
    assert all(seconds > 0 for seconds in stats.seconds.values())


def test_greedy_generation_config_is_the_default(stream, watched):
    frames, times, expected, _ = watched
    for config in (GenerationConfig(do_sample=False), GenerationConfig(do_sample=True, top_k=1)):
        assert_same_events(stream(generation_config=config).push(frames, times), expected)


def test_sampling_is_reproducible_and_continues_after_fork_and_load(small, stream, tmp_path):
    config = GenerationConfig(do_sample=True, temperature=3.0, max_new_tokens=6)
    frames, times = images(49)
    texts = set()
    for _ in range(2):
        torch.manual_seed(5)
        session = stream(generation_config=config)
        session.push(frames[:5], times[:5])
        texts.add(session.ask(QUESTION)[0].text)
    assert len(texts) == 1
    restored = StreamingSession.load(session.save(tmp_path / "s"), *small)
    assert restored.generation_config.temperature == 3.0
    answers = [[s.ask(QUESTION)[0].text for _ in range(2)] for s in (session.fork(), restored, session)]
    assert answers[0] == answers[1] == answers[2]
    assert len(set(answers[0])) > 1
    torch.manual_seed(6)
    other = stream(generation_config=config)
    other.push(frames[:5], times[:5])
    assert [other.ask(QUESTION)[0].text for _ in range(2)] != answers[0]


def test_score_processors_see_the_reply(checkpoint):
    frames, _ = clip(50)
    session = checkpoint[0].stream(checkpoint[1], generation_config=GenerationConfig(min_new_tokens=12))
    session.push(frames[:2])
    assert len(list(run_steps(session.fork().replying()))) >= 12
    short = checkpoint[0].stream(checkpoint[1], generation_config=GenerationConfig(max_new_tokens=2))
    short.push(frames[:2])
    assert len(list(run_steps(short.replying()))) == 2


def test_a_restored_session_keeps_the_ratio_it_ran_at(checkpoint, tmp_path):
    model, processor = checkpoint
    session = model.stream(processor)
    path, usual = session.save(tmp_path / "s"), model.keep_ratio
    model.keep_ratio = 0.7
    try:
        assert StreamingSession.load(path, model, processor).keep_ratio == usual != 0.7
    finally:
        model.keep_ratio = usual


@pytest.mark.parametrize("change", ["state", "options", "tensors", "positions", "frame ends", "pending"])
def test_forged_states_are_refused(checkpoint, saved, tmp_path, change):
    """The checksums fit, but nothing forged may reach the session."""
    path = tmp_path / "s"
    tensors, content = read_session(saved)
    if change == "state":
        content["state"] = {"push": "x"}
    elif change == "options":
        content["options"] = []
    elif change == "positions":
        tensors["layers.1.positions"] += 10**6
    elif change == "frame ends":
        tensors["frame_ends"][0, -1] = -2
    elif change == "pending":
        content["state"]["pending"] = [10**6]
    else:
        del tensors["layers.3.values"]
    metadata = {"format": FORMAT, "version": str(VERSION), "content": json.dumps(content)}
    metadata["checksum"] = checksum(tensors, metadata["content"])
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match="is no saved session of this package"):
        StreamingSession.load(path, *checkpoint)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"keep_ratio": 0}, r"`keep_ratio` must be a number in \(0, 1\], got 0"),
        ({"keep_ratio": 1.5}, r"`keep_ratio`.*got 1.5"),
        ({"generation_config": {"do_sample": True}}, "`generation_config` must be a GenerationConfig"),
        ({"generation_config": GenerationConfig(num_beams=2)}, "one beam"),
        ({"generation_config": GenerationConfig(guidance_scale=1.5)}, "`generation_config.guidance_scale` is not"),
        ({"generation_config": GenerationConfig(stop_strings=["."])}, "`generation_config.stop_strings` is not"),
    ],
)
def test_wrong_options_are_named(checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        checkpoint[0].stream(checkpoint[1], **options)
