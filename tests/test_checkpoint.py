"""The checkpoint in the repository's root: what it says about streams that it was not trained on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from comparing import assert_near, assert_same_events

from videollm_mod import VideoLLMMoDForConditionalGeneration
from videollm_mod.data.world import world_stream
from videollm_mod.evaluation.free_running import Counts, match, watch_world

ROOT = Path(__file__).resolve().parent.parent


def test_checkpoint_narrates_and_answers(checkpoint):
    counts = Counts()
    for seed in range(900_000, 900_006):
        counts += watch_world(*checkpoint, seed, num_questions=3).counts(2.0)
    summary = counts.summary()
    assert counts.narrations > 30
    assert summary["exact"] >= 95
    assert summary["false"] <= 5
    assert summary["time_diff"] <= 0.1
    assert summary["right"] >= 75  # out of 18 questions


def test_routers_are_trained_and_in_float32(checkpoint):
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT)
    assert model.dtype == torch.bfloat16
    assert (ROOT / "model.safetensors").stat().st_size <= 25_000_000
    assert model.config.text_config.mod_keep_ratio == 0.2
    routers = [p for name, p in model.named_parameters() if "layer_expert" in name]
    assert len(routers) == 2 * len(model.config.text_config.routed_layers) == 8
    assert all(router.dtype == torch.float32 and router.abs().max() > 0 for router in routers)
    biases = [p for name, p in model.named_parameters() if name.endswith("layer_expert.bias")]
    assert all(bias.abs().item() > 1e-4 for bias in biases)  # zero before training


def test_session_equals_one_pass_over_the_conversation(checkpoint):
    """Silence, narrations and answers of a session equal the predictions of one pass over its conversation."""
    model, processor = checkpoint

    stream = world_stream(17)
    frames = stream.frames(height=96)
    session = model.stream(processor)
    events = session.push(frames[:9])
    events += session.ask("How many objects are there?")
    events += session.push(frames[9:])
    assert {event.kind for event in events} == {"narration", "answer"}

    messages, shown = [], 0
    for event in events:
        index = round(event.time * 2) + 1
        if index > shown:
            messages.append({"role": "stream", "num_frames": index - shown})
            shown = index
        if event.kind == "answer":
            messages.append({"role": "user", "content": event.query})
        messages.append({"role": "assistant", "content": event.text})
    messages.append({"role": "stream", "num_frames": len(frames) - shown})
    ids, labels, *_ = processor.encode_conversation(messages)
    pixels = processor.video_processor(torch.from_numpy(frames), return_tensors="pt")["pixel_values_videos"]
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), pixel_values_videos=pixels)
    predicted = out.logits[0, :-1].argmax(-1)
    target = torch.tensor(labels)[1:]
    header = torch.tensor(processor.assistant_header_ids)
    learned = (target != -100) & ~torch.isin(target, header)
    assert torch.equal(predicted[learned], target[learned])
    held, whole = session.cache, out.past_key_values
    for layer, expected in zip(held.layers, whole.layers, strict=True):
        assert torch.equal(layer.positions, expected.positions[:, : layer.positions.shape[1]])
        length = layer.keys.shape[2]
        assert_near(layer.keys, expected.keys[:, :, :length])


@pytest.fixture(scope="module")
def watched(checkpoint):
    """`(frames, times, events)` of a stream that was pushed at once."""
    model, processor = checkpoint
    frames, times = world_stream(21).frames(height=96), world_stream(21).frame_times(2.0).tolist()
    return frames, times, model.stream(processor).push(frames, times)


@pytest.mark.parametrize("sizes", [[1], [3, 1, 7]])
def test_pushing_frames_together_equals_one_by_one(checkpoint, watched, sizes):
    model, processor = checkpoint
    frames, times, expected = watched
    session, events, start = model.stream(processor), [], 0
    while start < len(frames):
        for size in sizes:
            events += session.push(frames[start : start + size], times[start : start + size])
            start += size
            if start >= len(frames):
                break
    assert_same_events(events, expected)


def test_real_video_gives_well_formed_events(checkpoint):
    """Moving noise is not part of the world, so the text is meaningless, but every turn must end."""
    model, processor = checkpoint
    frames = np.random.default_rng(0).integers(0, 256, (12, 60, 90, 3), dtype=np.uint8)
    session = model.stream(processor, system_prompt="Watch.", max_new_tokens=20)
    session.instruct("Narrate what happens.")
    events = session.push(frames) + session.ask("What is at the left?")
    assert events[-1].kind == "answer" and events[-1].text
    assert [event.time for event in events] == sorted(event.time for event in events)
    assert all("<v>" not in event.text and "\n" not in event.text for event in events)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"speak_threshold": 2}, r"`speak_threshold` must be in \[0, 1\], got 2"),
        ({"speak_threshold": "a"}, r"`speak_threshold` must be in \[0, 1\], got 'a'"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be a whole number of at least 1, got 0"),
        ({"max_new_tokens": 1.5}, "`max_new_tokens`.*got 1.5"),
        ({"system_prompt": 5}, "`system_prompt` must be a string that is not empty, got 5"),
    ],
)
def test_wrong_options_give_a_clear_error(checkpoint, options, message):
    model, processor = checkpoint
    with pytest.raises(ValueError, match=message):
        model.stream(processor, **options)


def test_wrong_input_gives_a_clear_error_and_changes_nothing(checkpoint):
    model, processor = checkpoint
    frames, session = np.zeros((2, 8, 8, 3), dtype=np.uint8), model.stream(processor)
    session.push(frames[:1], times=[3.0])
    seen = session.cache.get_seq_length()
    for times, message in [
        ([4.0], "one time a frame, got 1 for 2 frames"),
        ([4.0, float("nan")], "got nan at index 1"),
        ([5.0, 4.0], "got 4.0 at index 1 after 5.0"),
        ([2.0, 4.0], "got 2.0 at index 0 after 3.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            session.push(frames, times=times)
    for wrong in (np.zeros((2, 8, 8)), np.zeros((0, 8, 8, 3), dtype=np.uint8)):
        with pytest.raises(ValueError):
            session.push(wrong)
    for question in ("", " \n ", None):
        with pytest.raises(ValueError, match="`question` must be a string that is not empty"):
            session.ask(question)
    assert session.cache.get_seq_length() == seen
    assert session.time == 3.0


def test_times_start_at_zero_even_after_a_question(checkpoint):
    model, processor = checkpoint
    frames = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    for before in (lambda s: None, lambda s: s.ask("What is at the left?"), lambda s: s.instruct("Narrate.")):
        session = model.stream(processor)
        before(session)
        session.push(frames[:1])
        assert session.time == 0.0
        session.push(frames[::-1])
        assert session.time == 1.0


def test_matching_is_one_to_one_nearest_first():
    true = [(1.0, "a"), (2.0, "b"), (5.0, "a")]
    assert match(true, true, 0.25) == (3, 3, 0.0)
    assert match(true, [], 0.25) == (0, 0, 0.0)
    assert match(true, [(1.0, "a"), (1.5, "a"), (2.5, "b")], 0.25) == (1, 3, 4.0)
    assert match(true, [(1.0, "a"), (1.0, "a"), (1.0, "a")], 0.25) == (1, 2, 4.0)
    assert match([(1.0, "a")], [(1.2, "a")], 0.25) == (1, 1, pytest.approx(0.2))
    counts = Counts(narrations=4, exact=3, said=5, matched=4, seconds_off=1.0, questions=2, right=1)
    summary = (counts + counts).summary()
    assert (summary["exact"], summary["false"], summary["time_diff"], summary["right"]) == (75, 50, 0.25, 50)
