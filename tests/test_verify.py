"""The rule "verify": the model speaks when its last narration no longer holds."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from comparing import assert_near, assert_same_cache, assert_same_events
from safetensors.torch import save_file
from small_data import small_model, write_video
from stock_vlms import stock_vlm, vlm_tokenizer, with_small_pictures
from transformers import GenerationConfig

from videollm_mod import StreamingSession, StreamPool, VideoLLMMoDForConditionalGeneration
from videollm_mod import steps as steps_module
from videollm_mod.cache import MoDCache
from videollm_mod.memory import FIELDS
from videollm_mod.narration.narrate import narrate, open_session
from videollm_mod.narration.options import NarrateOptions
from videollm_mod.session_state import FORMAT, checksum, read_session
from videollm_mod.speaking import Reply, TokenSampler
from videollm_mod.static_graphs import StaticLanguageModel
from videollm_mod.static_step import PlainOps

LIMIT = 4
QUESTION = "What happened last?"


@pytest.fixture(scope="module")
def small():
    return small_model(2, initializer_range=0.1)  # so that some narrations hold


def images(seed: int, scenes: int = 5, repeats: int = 3) -> np.ndarray:
    """Random scenes that stay in view for a few frames each, with a little noise."""
    rng = np.random.default_rng(seed)
    still = rng.integers(20, 236, (scenes, 32, 32, 3)).repeat(repeats, axis=0)
    return (still + rng.integers(-3, 4, still.shape)).astype(np.uint8)


def verifying(small, margin: float = 0.0, **options) -> StreamingSession:
    options = {"max_new_tokens": LIMIT, "speak_threshold": math.exp(-margin), **options}
    return small[0].stream(small[1], speak_rule="verify", **options)


def middle_margin(small, frames: np.ndarray) -> float:
    """A margin below which the gaps of some frames are, and above which those of others."""
    session = verifying(small, margin=700.0)
    gaps = sorted(-math.log(frame.silence_probability) for frame in list(session.watch(frames))[1:])
    return (gaps[len(gaps) // 2] + gaps[len(gaps) // 2 - 1]) / 2


def say(model, processor, ids: list[int], features: torch.Tensor) -> tuple[list[int], bool]:
    """Greedy decoding by whole forward passes: the tokens, and whether the model ended them."""
    sampler, said = TokenSampler(model, processor), []
    while len(said) < LIMIT:
        logits = model(input_ids=torch.tensor([ids + said]), video_features=features).logits[0, -1]
        logits[sampler.suppressed] = -torch.inf
        token = int(logits.argmax())
        if token in sampler.ends:
            return said, True
        said.append(token)
    return said, False


@torch.no_grad()
def narrate_anew(model, processor, frames: np.ndarray) -> tuple[dict[int, list[int]], list[int], torch.Tensor]:
    """The reference: after each frame the model is asked anew, and speaks if that is not what it said last. Returns
    what it says after which frame, the ids of the whole conversation, and the features of its frames."""
    features = model.stream(processor, speak_rule="verify").encode(frames)
    ids, spoken, last, in_stream = processor.start_ids(None), {}, None, False
    for index in range(len(frames)):
        ids = ids + (processor.between_frames_ids if in_stream else processor.start_stream_ids)
        ids, in_stream = ids + processor.frame_ids_at(float(index)), True
        header = processor.reply_start_ids(True, processor.default_query)
        anew = say(model, processor, ids + header, features[: index + 1])
        if anew != last:
            spoken[index], last = anew[0], anew
            ids, in_stream = ids + header + anew[0] + processor.reply_end_ids, False
    return spoken, ids, features


@pytest.mark.parametrize("seed", range(3))
def test_margin_0_equals_asking_anew_after_each_frame(small, seed):
    frames = images(seed)
    assert 1 < check_margin_0(*small, frames) < len(frames)


@pytest.mark.parametrize("kind", ["llava", "llava_onevision", "smolvlm"])
def test_margin_0_equals_asking_anew_in_the_prompts_of_a_family(kind):
    model, processor = VideoLLMMoDForConditionalGeneration.from_vlm(
        stock_vlm(kind), tokenizer=vlm_tokenizer(kind), mod_layers=[1], mod_keep_ratio=0.4
    )
    assert check_margin_0(model.eval(), with_small_pictures(processor), images(60, scenes=3)) > 1


def check_margin_0(model, processor, frames: np.ndarray) -> int:
    """Compare a session with `narrate_anew`, and its cache with one forward pass; returns how often it spoke."""
    session = verifying((model, processor))
    spoken, ids, features = narrate_anew(model, processor, frames)
    watched = list(session.watch(frames, list(range(len(frames)))))
    assert [index for index, frame in enumerate(watched) if frame.event] == list(spoken)
    texts = [processor.decode(said, skip_special_tokens=True).strip() for said in spoken.values()]
    assert [frame.event.text for frame in watched if frame.event] == texts
    cache, read = MoDCache(model.config), len(ids) - len(session.state.pending)
    assert ids[read:] == session.state.pending
    with torch.no_grad():
        model(input_ids=torch.tensor([ids[:read]]), video_features=features, past_key_values=cache)
    assert_same_cache(session.cache, cache)
    return len(spoken)


BOUNDS = [
    {},
    {"max_cached_frames": 6, "cache_policy": "router"},
    {"max_cached_bytes": 350_000},
]


@pytest.mark.parametrize("bounds", BOUNDS, ids=lambda bounds: ", ".join(bounds))
def test_events_do_not_depend_on_how_frames_are_pushed(small, tmp_path, bounds):
    """In blocks, one by one, in a pool beside other streams, after a fork, a save, and an iterator that was closed."""
    frames = images(10, scenes=6, repeats=2)
    options = {"margin": middle_margin(small, frames), **bounds}
    one = verifying(small, **options)
    expected = [event for frame in frames for event in one.push(frame[None])]
    assert 1 < len(expected) < len(frames)
    many = verifying(small, **options)
    assert_same_events(many.push(frames), expected)
    assert_same_cache(many.cache, one.cache)
    assert many.max_kv_bytes is None or many.cache.num_bytes <= many.max_kv_bytes

    pool = StreamPool(*small)
    session, other, silent = verifying(small, **options), verifying(small), small[0].stream(small[1])
    stream, *others = pool.join(session), pool.join(other), pool.join(silent)
    stream.push(frames)
    for each in others:
        each.push(images(11)[:7])
    said = pool.run()
    assert_same_events([event for speaker, event in said if speaker is stream], expected)
    assert_same_cache(session.cache, one.cache)
    assert_same_events([e for s, e in said if s is others[0]], verifying(small).push(images(11)[:7]))

    cut = 7
    session = verifying(small, **options)
    events = session.push(frames[:cut])
    loaded = StreamingSession.load(session.save(tmp_path / "s"), *small)
    assert (loaded.speak_rule, loaded.speak_threshold) == ("verify", session.speak_threshold)
    fork = session.fork()
    fork.push(images(12)[:4])
    for count, watched in enumerate(session.watch(frames[cut:]), 1):
        events += [watched.event] * (watched.event is not None)
        if count == 3:
            break
    events += session.push(frames[cut + count :])
    assert_same_events(events, expected)
    rest = loaded.push(frames[cut:])
    assert_same_events(rest, expected[len(expected) - len(rest) :])
    assert_same_cache(loaded.cache, one.cache)
    assert loaded.stats.verified == one.stats.verified == len(frames) - 1


@pytest.mark.parametrize("bounds", BOUNDS, ids=lambda bounds: ", ".join(bounds))
def test_verifying_leaves_no_trace(small, bounds):
    """The cache and its memory are those of a session that speaks at the same frame, and does not verify."""
    frames = images(20)
    session = verifying(small, margin=700.0, **bounds)
    plain = small[0].stream(small[1], speak_threshold=1.0, max_new_tokens=LIMIT, **bounds)
    expected = plain.push(frames[:1])
    plain.speak_threshold = 0.0
    plain.push(frames[1:])
    events = session.push(frames)
    assert [(event.time, event.text) for event in events] == [(event.time, event.text) for event in expected]
    assert_same_cache(session.cache, plain.cache)
    assert session.state.mark() == plain.state.mark()
    if bounds:
        for name in FIELDS:
            assert_near(getattr(session.state.memory, name), getattr(plain.state.memory, name))
    stats = session.stats
    assert (stats.frames, stats.verified, stats.narrations) == (len(frames), len(frames) - 1, 1)
    assert stats.seconds["verify"] > 0 and "verify" not in plain.stats.seconds and plain.stats.verified == 0


@pytest.mark.parametrize("failing_layer", [0, 3])
def test_a_failed_verification_leaves_no_trace(small, failing_layer):
    frames = images(21)
    session, other = verifying(small), verifying(small)
    session.push(frames[:4])
    expected = other.push(frames[:4]) + other.push(frames[4:])

    def fail(*_):
        raise MemoryError("no memory")

    hook = small[0].model.language_model.layers[failing_layer].mlp.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        session.push(frames[4:])
    hook.remove()
    assert session.stats.frames == 4
    rest = session.push(frames[4:])
    assert_same_events(rest, expected[len(expected) - len(rest) :])
    assert_same_cache(session.cache, other.cache)


def test_static_steps_verify_the_same(small, monkeypatch):
    model, processor = small
    videos, options = [images(seed) for seed in (30, 31, 32)], [{}, {"max_cached_frames": 4}, {"max_new_tokens": 2}]
    expected = [verifying(small, **own).push(video) for own, video in zip(options, videos, strict=True)]
    fast = StaticLanguageModel(model, PlainOps)
    monkeypatch.setattr(steps_module, "static_language_model", lambda model: (fast, fast.why_not))
    alone = verifying(small, **options[0])
    assert_same_events(alone.push(videos[0]), expected[0])
    pool = StreamPool(model, processor)
    streams = [pool.join(verifying(small, **own)) for own in options]
    trained = pool.join(small[0].stream(processor, speak_threshold=0.0))
    for stream, video in zip([*streams, trained], [*videos, videos[0]], strict=True):
        stream.push(video)
    said = pool.run()
    for stream, events in zip(streams, expected, strict=True):
        assert_same_events([event for speaker, event in said if speaker is stream], events)
    assert {shape.every for shape in fast._steps} == {False, True}


def test_an_instruction_is_followed_at_the_next_frame(small):
    session = verifying(small, margin=700.0)
    session.push(images(40)[:3])
    session.ask(QUESTION)
    assert session.push(images(40)[3:5]) == []  # an answer is no narration
    session.instruct("Narrate what happens.")
    (event,) = session.push(images(40)[5:8])
    assert event.silence_probability == 0 and event.query == "Narrate what happens."
    assert event.time == session.time - 1.0


def test_the_rule_and_its_margin_come_from_the_configuration(small):
    model, processor = small
    config = model.config
    try:
        config.speak_rule, config.verify_margin = "verify", 0.5
        session = model.stream(processor)
        assert (session.speak_rule, session.speak_threshold) == ("verify", math.exp(-0.5))
        assert model.stream(processor, speak_rule="trained").speak_threshold == 0.725
    finally:
        config.speak_rule, config.verify_margin = "trained", 0.0
    with pytest.raises(ValueError, match="`speak_rule` must be one of 'trained', 'verify', got 'always'"):
        model.stream(processor, speak_rule="always")


def test_the_trained_rule_needs_a_separator(small, monkeypatch):
    for owner in (small[0].config, small[1]):
        monkeypatch.setitem(vars(owner), "frame_separator_token_id", None)
    with pytest.raises(ValueError, match="`speak_rule` must be 'verify' for this model: it has no frame separator"):
        small[0].stream(small[1])
    assert small[0].stream(small[1], speak_rule="verify").speak_rule == "verify"


def test_a_session_never_speaks_at_threshold_0(small):
    session = verifying(small, speak_threshold=0.0)
    assert session.push(images(41)) == [] and session.stats.verified == 0


@pytest.mark.parametrize("seed", range(3))
def test_gaps_are_differences_of_log_probabilities(small, seed):
    model, processor = small
    torch.manual_seed(seed)
    sampler, vocabulary = TokenSampler(model, processor), model.config.text_config.vocab_size
    ids = [token for token in torch.randint(10, vocabulary, (4,)).tolist() if token not in sampler.ends]
    logits = 3 * torch.randn(len(ids) + 1, vocabulary)
    logits[:, processor.video_token_id] = 50.0  # which the model never says
    allowed = logits.index_fill(1, sampler.suppressed, -torch.inf).log_softmax(-1)
    expected = [float(row.max() - row[token]) for row, token in zip(allowed, ids, strict=False)]
    end = float(allowed[-1].max() - max(allowed[-1, token] for token in sampler.ends))
    assert sampler.gaps(Reply(ids, ended=False), logits[:-1]).tolist() == pytest.approx(expected, abs=1e-5)
    assert sampler.gaps(Reply(ids, ended=True), logits).tolist() == pytest.approx([*expected, end], abs=1e-5)
    assert float(sampler.largest_gap(Reply(ids, True), logits)) == pytest.approx(max(*expected, end), abs=1e-5)
    before = sampler.gaps(Reply(ids, True), logits).tolist()
    assert float(sampler.largest_gap(Reply(ids, True, before), logits)) == 0  # as probable as when it was said
    assert math.isnan(sampler.largest_gap(Reply(ids, True), torch.full_like(logits, math.nan)))


def test_score_processors_count(small):
    """A repetition penalty decides which tokens greedy decoding says, and so whether a narration holds."""
    config = GenerationConfig(repetition_penalty=5.0)
    for seed in range(3):
        sampler = TokenSampler(*small, config)
        torch.manual_seed(seed)
        logits = torch.randn(6, small[0].config.text_config.vocab_size)
        logits[:, 50] += 9.0  # by itself the same word again and again
        said: list[int] = []
        for row in logits[:-1]:
            said.append(sampler(said, row.clone()))
        assert sampler.gaps(Reply(said), logits[:-1]).tolist() == [0.0] * 5
        assert TokenSampler(*small).gaps(Reply(said), logits[:-1]).max() > 0


def test_sampled_narrations_hold_while_they_are_as_probable(small, tmp_path):
    frames = images(42)[:1].repeat(6, axis=0)
    session = verifying(small, margin=3.0, generation_config=GenerationConfig(do_sample=True, temperature=3.0))
    session.push(frames[:2])
    reply = session.state.narration
    assert len(reply.gaps) == len(reply.ids) + reply.ended and max(reply.gaps) > 0
    assert StreamingSession.load(session.save(tmp_path / "s"), *small).state.narration == reply


def test_a_session_saved_in_version_3_is_read(small, tmp_path):
    session = small[0].stream(small[1], speak_threshold=0.0)
    session.push(images(43)[:4])
    tensors, content = read_session(session.save(tmp_path / "s"))
    del content["options"]["speak_rule"], content["state"]["narration"], content["state"]["counts"]["verified"]
    text = json.dumps(content)
    metadata = {"format": FORMAT, "version": "3", "content": text, "checksum": checksum(tensors, text)}
    save_file(tensors, tmp_path / "s", metadata)
    loaded = StreamingSession.load(tmp_path / "s", *small)
    assert (loaded.speak_rule, loaded.stats.verified, loaded.stats.frames) == ("trained", 0, 4)
    assert_same_cache(loaded.cache, session.cache)


def test_narrate_takes_the_rule_and_its_margin(small, tmp_path):
    """The margin of the command is that of the session; without one the checkpoint's configuration decides."""
    model, processor = small
    source = write_video(tmp_path / "a.mp4", 10)
    model.save_pretrained(tmp_path / "m")
    processor.save_pretrained(tmp_path / "m")
    options = {"model": str(tmp_path / "m"), "device": "cpu", "fps": 4.0}
    for given, expected in (
        ({}, ("trained", 0.725)),
        ({"speak_rule": "verify"}, ("verify", 1.0)),
        ({"speak_rule": "verify", "threshold": 0.5}, ("verify", 0.5)),
        ({"margin": 0.3}, ("verify", math.exp(-0.3))),
    ):
        session = open_session(NarrateOptions(str(source), **options, **given), model, processor)
        assert (session.speak_rule, session.speak_threshold) == expected
    output = tmp_path / "events.jsonl"
    stats = narrate(NarrateOptions(str(source), margin=700.0, output=output, overlay=tmp_path / "o.mp4", **options))
    assert (stats["narrations"], stats["verified"]) == (1, 9) and stats["seconds"]["verify"] > 0
    assert json.loads(output.read_text().splitlines()[0])["silence_probability"] == 0


@pytest.mark.parametrize(
    "given, message",
    [
        ({"margin": -1.0}, "`--margin` must be a number of nats from 0 on, got -1"),
        ({"margin": math.inf}, "`--margin` must be a number of nats from 0 on, got inf"),
        (
            {"margin": 1.0, "speak_rule": "trained"},
            "`--margin` is for `--speak-rule verify`, not for the",
        ),
        ({"margin": 1.0, "threshold": 0.5}, "`--margin` and `--threshold` say the same, give one of them"),
    ],
)
def test_wrong_margins_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        NarrateOptions("a.mp4", **given).check()


def test_evaluation_follows_the_rule(small):
    from videollm_mod.evaluation.evaluate import check_rule, threshold_of  # needs the extra `train`
    from videollm_mod.evaluation.options import EvaluateOptions

    config = small[0].config
    forced, free = (EvaluateOptions(task="narration", self_conditioned=free) for free in (False, True))
    assert threshold_of(forced, config) == threshold_of(free, config) == 0.725
    config = SimpleNamespace(speak_rule="verify", verify_margin=0.5, frame_separator_token_id=None)
    assert (threshold_of(forced, config), threshold_of(free, config)) == (0.725, math.exp(-0.5))
    check_rule(free, config)
    with pytest.raises(ValueError, match="the task 'narration' needs `--self-conditioned` for this model"):
        check_rule(forced, config)
