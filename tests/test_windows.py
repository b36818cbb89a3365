"""Long streams cut into windows: each reply is learned once, with the frames and words of the full stream."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import said, small_model, write_lines, write_video

from videollm_mod.data.features import write_features
from videollm_mod.data.streams import StreamExamples, load_streams
from videollm_mod.training.config import TrainingConfig
from videollm_mod.training.examples import stream_datasets

FRAMES, STEP = 90, 6
WORDS = ["It leaves.", "A red square appears.", "What is there?", "The blue cross moves to the top left."]


@pytest.fixture(scope="module")
def processor():
    return small_model()[1]


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    path = tmp_path_factory.mktemp("windows") / "a.safetensors"
    about = {"video": "a.mp4", "video_bytes": 1, "fps": 2.0, "num_frames": FRAMES, "hidden_size": 3}
    write_features(path, torch.randn(FRAMES, 5, 3), {**about, "num_frame_tokens": 5, "fingerprint": ""})
    return str(path)


@pytest.fixture(scope="module")
def setting(processor, features):
    return {"processor": processor, "features": features}  # hypothesis prints its arguments


@st.composite
def lines(draw) -> dict:
    """Turns at and between frames, several at a time, up to a second beyond the end."""
    start = draw(st.sampled_from([None, 0.0, 3.25, 10.0]))
    end = draw(st.sampled_from([None, 30.1, 45.0]))
    last = (end or FRAMES / 2) + 1.0
    times = draw(st.lists(st.integers(0, int(4 * (last - (start or 0)))), min_size=1, max_size=25))
    turns = []
    for time in sorted((start or 0) + time / 4 for time in times):
        role = draw(st.sampled_from(["assistant", "assistant", "assistant", "user"]))
        turns.append(said(time, f"{draw(st.sampled_from(WORDS))} {len(turns)}", role))
    if draw(st.booleans()):
        turns.insert(0, said(turns[0]["time"], "Be brief.", "system"))
    return {"line": 1, "fps": 2.0, "start": start, "end": end, "turns": turns}


@settings(max_examples=60, deadline=None)
@given(line=lines(), max_tokens=st.integers(80, 700))
def test_every_reply_and_decision_is_learned_exactly_once(setting, line, max_tokens):
    processor, features = setting["processor"], setting["features"]
    line = {**line, "features": features}
    whole = StreamExamples("x", processor).example(line)
    ids, labels = whole["input_ids"], whole["labels"]
    frame_at = [i for i, token in enumerate(ids) if token == processor.video_token_id][::5]
    cutter, learned, seen = StreamExamples("x", processor, max_tokens), [], 0
    first = math.ceil((line["start"] or 0) * 2)
    try:
        cut = cutter.lines(line)
    except ValueError as error:
        assert "`max_tokens` is" in str(error) and max_tokens < 250
        return
    for window in cut:
        example = cutter.example(window)
        assert len(example["input_ids"]) <= max_tokens
        begin = round(window["start"] * 2) - first
        assert torch.equal(
            example["video_features"], whole["video_features"][begin : begin + len(example["video_features"])]
        )
        own = [i for i, token in enumerate(example["input_ids"]) if token == processor.video_token_id][::5]
        frame = round(window["learned_from"] * 2) - first
        assert frame - begin <= max_tokens / 4 / STEP
        # from there on it equals the full stream, token by token and label by label
        place, own_place = frame_at[frame], own[frame - begin]
        length = len(example["input_ids"]) - own_place
        assert example["input_ids"][own_place:] == ids[place : place + length]
        assert example["labels"][own_place:] == labels[place : place + length]
        assert set(example["labels"][:own_place]) == {-100}
        # what came before are its frames, turns and opening
        opening = whole["turns"][0].stop if whole["turns"][0].role == "system" else 1
        assert ids[:opening] == example["input_ids"][:opening]
        assert frame == seen
        learned += [label for label in example["labels"] if label != -100]
        seen = begin + len(own)
    all_learned = [label for label in labels if label != -100]
    assert learned == all_learned[: len(learned)]
    assert set(all_learned[len(learned) :]) <= {processor.frame_separator_token_id}
    if (end := cut[-1]["end"]) is not None and round(end * 2) - first >= len(frame_at):
        assert learned == all_learned


def test_instructions_are_repeated_and_questions_are_not(processor, features):
    turns = [said(0.0, "Narrate.", "user"), said(5.0, "Say less.", "user"), said(6.0, "How many?", "user")]
    turns += [said(6.0, "Two."), said(30.0, "It leaves.")]
    line = {"line": 1, "features": features, "fps": 2.0, "turns": turns}
    opening = [
        [turn["content"] for turn in window["turns"][: window["opening"]]]
        for window in StreamExamples("x", processor, 200).lines(line)
    ]
    assert opening[0] == ["Narrate."] and opening[-1] == ["Narrate.", "Say less."] and len(opening) == 3


def test_content_that_does_not_fit_gives_a_clear_error(processor, features, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    turns = [said(2.0, "word " * 100)]
    file = write_lines(tmp_path / "a.jsonl", [{"features": features, "turns": turns}])
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"a\.jsonl:1: the frame at 2 seconds .* tokens, `max_tokens` is 90"):
            list(load_streams(file, processor, max_tokens=90, streaming=streaming))
    with pytest.raises(ValueError, match="`max_tokens` must be a whole number of at least 1, got 0"):
        load_streams(file, processor, max_tokens=0)


def test_training_gets_windows_with_and_without_streaming(processor, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_video(tmp_path / "a.mp4", num_frames=200, fps=4)
    lines = [{"video": "a.mp4", "turns": [said(time, f"It leaves {time}.") for time in range(0, 50, 5)]}] * 2
    file = str(write_lines(tmp_path / "a.jsonl", lines))
    loaded = []
    for streaming in (False, True):
        data = {"path": file, "streaming": streaming}
        config = TrainingConfig(output_dir="x", model="x", data=data, stream_stage={"max_tokens": 180})
        examples = stream_datasets(config, processor, False)["train_dataset"]  # infinite if they are streamed
        loaded.append(list(examples if not streaming else examples.take(len(loaded[0]))))
    assert len(loaded[0]) == len(loaded[1]) > 4
    for one, other in zip(*loaded, strict=True):
        assert one["input_ids"] == other["input_ids"] and one["labels"] == other["labels"]
        assert torch.equal(one["frames"], other["frames"])
        assert len(one["input_ids"]) <= 180
    learned = [processor.decode([label for label in example["labels"] if label != -100]) for example in loaded[0]]
    for time in range(0, 50, 5):
        assert sum(text.count(f"It leaves {time}.") for text in learned) == 2
