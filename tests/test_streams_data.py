"""JSONL streams as data sets: turns are placed at their times, streaming makes no difference, frames are right."""

import random

import numpy as np
import pytest
import torch
from fresh_process import ROOT
from safetensors.torch import load_file
from small_data import said, small_model, write_lines, write_video
from torch.utils.data import DataLoader

from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor
from videollm_mod.data import world
from videollm_mod.data.features import read_features, write_features
from videollm_mod.data.frames import frame_range, read_frames
from videollm_mod.data.streams import check_features, conversation, load_streams
from videollm_mod.data.world_clip import write_clip
from videollm_mod.decoding import decode_video

ABOUT = {"video": "a.mp4", "video_bytes": 1, "fps": 2.0, "hidden_size": 16, "num_frame_tokens": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    write_video(folder / "a.mp4", num_frames=24, fps=4, seed=1)
    write_video(folder / "b.mp4", num_frames=13, fps=4, size=(64, 48), seed=2)
    return folder


@pytest.fixture(scope="module")
def processor():
    return small_model()[1]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


@pytest.mark.parametrize("fps", [2.0, 3.0, 4.0, 7.3, 10.0])
def test_turns_are_placed_as_in_the_world(fps):
    """Even at rates without a frame at each change. Only questions at the first frame differ: here they open."""
    for seed in range(60):
        stream = world.world_stream(seed)
        times, turns = stream.frame_times(fps), [(time, 0, [said(time, text)]) for time, text in stream.narrations]
        for time, question, answer in stream.questions(fps, 3):
            if time > 0:
                turns.append((time, 1, [said(time, question, "user"), said(time, answer)]))
        turns = [turn for _, _, parts in sorted(turns, key=lambda item: item[:2]) for turn in parts]
        expected = world.conversation(stream, fps, num_questions=3, opening=False)
        if stream.questions(fps, 3)[0][0] > 0:
            assert conversation(turns, times) == expected


def test_turns_between_frames_and_at_the_ends():
    times = np.array([1.0, 1.5, 2.0, 2.5])

    def frames(count: int) -> dict:
        return {"role": "stream", "num_frames": count}

    def says(content: str, role: str = "assistant") -> dict:
        return {"role": role, "content": content}

    turns = [said(0.0, "s", "system"), said(0.5, "i", "user"), said(1.6, "q", "user"), said(1.6, "a"), said(1.7, "n")]
    parts = [says("s", "system"), says("i", "user"), frames(2), says("q", "user"), says("a")]
    assert conversation(turns, times) == [*parts, frames(1), says("n"), frames(1)]
    # between two frames: after the second for a reply, after the first for a question
    assert conversation([said(1.2, "n")], times) == [frames(2), says("n"), frames(2)]
    assert conversation([said(0.9, "n"), said(1.2, "q", "user")], times) == [
        frames(1),
        says("n"),
        says("q", "user"),
        frames(3),
    ]
    # an opening question is answered after one frame; later turns come at the end
    assert conversation([said(1.0, "q", "user"), said(1.0, "a"), said(9.0, "n")], times) == [
        says("q", "user"),
        frames(1),
        says("a"),
        frames(3),
        says("n"),
    ]
    assert conversation([said(1.1, "x"), said(1.4, "y"), said(1.5, "z")], times) == [
        frames(2),
        says("x y z"),
        frames(2),
    ]


@pytest.mark.parametrize("seed", range(6))
def test_map_and_streaming_data_sets_have_the_same_examples(folder, processor, seed):
    rng, lines = random.Random(seed), []
    for _ in range(rng.randint(1, 9)):
        start = rng.choice([None, 0.0, 0.75, 1.6])
        times = sorted(rng.uniform(start or 0.0, 3.0) for _ in range(rng.randint(1, 5)))
        turns = [said(t, rng.choice(["It leaves.", "A square."]), rng.choice(["user", "assistant"])) for t in times]
        line = {"video": rng.choice(["a.mp4", "b.mp4"]), "fps": rng.choice([1.0, 2.0, 3.0]), "turns": turns}
        if start is not None:
            line["start"] = start
        lines.append(line)
    file = write_lines(folder / f"{seed}.jsonl", lines)
    mapped, streamed = load_streams(file, processor), list(load_streams(file, processor, streaming=True))
    assert len(mapped) == len(streamed) == len(lines)
    assert all(same(mapped[index], example) for index, example in enumerate(streamed))
    assert all(map(same, mapped.__getitems__(list(range(len(lines)))), streamed))


def test_workers_split_a_streamed_file(folder, processor):
    file = write_lines(
        folder / "many.jsonl", [{"video": "a.mp4", "turns": [said(i / 4, "It leaves.")]} for i in range(5)]
    )
    examples = list(load_streams(file, processor, streaming=True))
    loader = DataLoader(load_streams(file, processor, streaming=True), batch_size=None, num_workers=2)
    loaded = sorted(loader, key=lambda example: example["input_ids"], reverse=True)
    assert len(loaded) == 5
    for one, other in zip(sorted(examples, key=lambda e: e["input_ids"], reverse=True), loaded, strict=True):
        assert same(one, other)


def test_part_of_a_video_has_the_same_frames(folder, processor):
    video_processor, video = processor.video_processor, str(folder / "a.mp4")
    whole = read_frames(video, 2.0, video_processor, batch_size=5)
    assert whole.shape == (12, 3, 32, 32) and whole.dtype == torch.uint8
    raw, times = decode_video(video, 2.0)
    exact = video_processor(torch.from_numpy(raw), return_tensors="pt")["pixel_values_videos"]
    rounded = video_processor(whole, return_tensors="pt")["pixel_values_videos"]
    assert (exact - rounded).abs().max() <= 0.5 / 255 / 0.5 + 1e-6  # half a level out of 255
    for start, end in [(0.0, 3.0), (0.4, 2.6), (1.5, 1.6), (1.6, 1.7), (2.0, None), (None, 0.1), (5.5, 9.0)]:
        first, stop = frame_range(2.0, start, end)
        wanted = (times >= (start or 0)) & (times < (end or np.inf))
        if not wanted.any():
            wanted[int((start or 0) * 2)] = True
        assert torch.equal(read_frames(video, 2.0, video_processor, first, stop), whole[torch.from_numpy(wanted)])
    with pytest.raises(ValueError, match="ends before"):
        read_frames(video, 2.0, video_processor, first=12)


def test_frame_range_handles_rounding():
    """0.1 * 3 is 0.30000000000000004, but must be frame 3 at 10 fps."""
    assert frame_range(10.0, 0.1 * 3, 0.1 * 6) == (3, 6)
    for fps in (0.5, 2.0, 3.0, 29.97):
        for index in range(200):
            assert frame_range(fps, index / fps, (index + 1) / fps) == (index, index + 1)


def test_features_replace_frames(folder, processor):
    features = torch.randn(12, 5, 16)
    write_features(folder / "a.safetensors", features, {**ABOUT, "num_frames": 12, "fingerprint": "0"})
    turns = [said(0.0, "Narrate.", "user"), said(2.6, "It leaves.")]
    videos = write_lines(folder / "v.jsonl", [{"video": "a.mp4", "fps": 2.0, "start": 0.0, "end": 4, "turns": turns}])
    lines = [{"features": "a.safetensors", "start": 0.0, "end": 4, "turns": turns}]
    (example,) = load_streams(write_lines(folder / "f.jsonl", lines), processor)
    (expected,) = load_streams(videos, processor)
    assert torch.equal(example.pop("video_features"), features[:8]) and len(expected.pop("frames")) == 8
    assert example == expected
    assert torch.equal(read_features(folder / "a.safetensors", 3, 99), features[3:])
    assert torch.equal(load_file(folder / "a.safetensors")["video_features"], features)

    other = small_model(seed=1)
    with pytest.raises(ValueError, match=r"f\.jsonl:1: the features .*a\.safetensors were made by another vision"):
        check_features(folder / "f.jsonl", other[0], other[1].video_processor)
    mixed = write_lines(folder / "mixed.jsonl", [*lines, {"video": "a.mp4", "turns": turns}])
    with pytest.raises(ValueError, match="lines with `video` and lines with `features`"):
        load_streams(mixed, processor)
    write_features(
        folder / "a.safetensors",
        features[:, :4],
        {**ABOUT, "num_frames": 12, "num_frame_tokens": 4, "fingerprint": ""},
    )
    with pytest.raises(ValueError, match=r"f\.jsonl:1: .*has 4 tokens per frame, but the processor has 5"):
        load_streams(folder / "f.jsonl", processor)[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_missing_videos_are_an_error_or_left_out(folder, processor, streaming):
    lines = [{"video": name, "turns": [said(1.0, name)]} for name in ("x.mp4", "a.mp4", "y.mp4", "b.mp4", "x.mp4")]
    file = write_lines(folder / "missing.jsonl", lines)
    with pytest.raises(FileNotFoundError, match=r"names 2 missing files, such as .*x\.mp4, .*y\.mp4"):
        load_streams(file, processor, streaming=streaming)
    kept = list(load_streams(file, processor, streaming=streaming, missing="skip"))
    there = write_lines(folder / "there.jsonl", [lines[1], lines[3]])
    assert all(map(same, kept, load_streams(there, processor, streaming=streaming)))
    assert len(kept) == 2
    gone = write_lines(folder / "gone.jsonl", lines[:1])
    with pytest.raises(FileNotFoundError, match="names 1 missing file"):
        load_streams(gone, processor, streaming=streaming, missing="skip")
    with pytest.raises(ValueError, match="`missing` must be one of 'stop', 'skip', got 'no'"):
        load_streams(there, processor, missing="no")


@pytest.mark.parametrize("streaming", [False, True])
def test_changed_file_is_read_again(folder, processor, streaming):
    file = write_lines(folder / "changed.jsonl", [{"video": "a.mp4", "turns": [said(1.0, "It leaves.")]}])
    before = list(load_streams(file, processor, streaming=streaming))
    write_lines(file, [{"video": "a.mp4", "turns": [said(2.0, "It leaves.")]}])
    after = list(load_streams(file, processor, streaming=streaming))
    assert before[0]["input_ids"] != after[0]["input_ids"]


def test_faults_are_named_before_examples_are_made(folder, processor):
    file = write_lines(folder / "bad.jsonl", [{"video": "a.mp4", "turns": [said(1.0, "x")]}, {"video": "a.mp4"}, []])
    with pytest.raises(ValueError, match=r"2 faults in .*bad\.jsonl, the first at line 2: turns: it is missing"):
        load_streams(file, processor)
    write_lines(file, [{"video": "a.mp4", "start": 50.0, "turns": [said(50.0, "x")]}])
    with pytest.raises(ValueError, match=r"bad\.jsonl:1: .*ends before 50\.0 seconds"):
        load_streams(file, processor)[0]


@pytest.mark.parametrize("seed, fps", [(7, 2), (53, 4)])  # training streams have 690 tokens at most
def test_bundled_checkpoint_narrates_a_clip_at_the_right_times(tmp_path, seed, fps):
    """A clip, its ground truth and the tokens made from both agree: labels to speak are where the session speaks."""
    processor = VideoLLMMoDProcessor.from_pretrained(ROOT)
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT).eval()
    _, truth = write_clip(tmp_path / "clip.mp4", seed=seed, fps=fps, height=128)
    (example,) = load_streams(truth, processor)
    session = model.stream(processor)
    times = [index / fps for index in range(len(example["frames"]))]
    events = session.push(example["frames"], times)
    assert [(event.time, event.text) for event in events] == world.world_stream(seed).narrations

    time, learned = -1 / fps, []
    for turn in example["turns"]:
        time += len(turn.frames) / fps
        if turn.role == "assistant":
            ids = example["labels"][turn.start : turn.stop]
            assert ids == example["input_ids"][turn.start : turn.stop]
            text = processor.decode(ids[len(processor.assistant_header_ids) : -1])
            learned.append((time, text.strip()))
    assert learned == world.world_stream(seed).narrations
