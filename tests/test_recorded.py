"""Answers to recorded conversations: parts of videos, how many frames fit, and equality with `generate`."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import small_model
from small_data import write_video as write_noise
from video_files import write_video

from videollm_mod.data.world import world_stream
from videollm_mod.evaluation.recorded import Clip, Recorded

LEVEL, SEEDS = "hard_small_tasks", (200_000_000, 200_000_001)


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> list[tuple]:
    """`(video, time, question, answer)`, of lossless videos."""
    folder, documents = tmp_path_factory.mktemp("recorded"), []
    for seed in SEEDS:
        stream = world_stream(seed, LEVEL)
        frames = np.stack(list(stream.frames(2.0, 96)))
        video = write_video(folder / f"{seed}.mp4", frames, "libx264", fps=2)
        documents.append((video, *stream.examples()["step"]))
    return documents


def asked(video: Clip | list | np.ndarray, question: str) -> list[dict]:
    blocks = [{"type": "video", "video": video}, {"type": "text", "text": question}]
    return [{"role": "user", "content": blocks}]


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("noise") / "noise.mp4", num_frames=40)  # ten seconds


@pytest.mark.parametrize(
    "start, end, fps, most, indices",
    [
        (0.0, None, 2.0, 99, range(0, 40, 2)),
        (0.0, 2.0, 2.0, 99, range(0, 9, 2)),  # the frame at the end belongs to it
        (2.0, 3.0, 2.0, 99, (8, 10, 12)),
        (2.1, 3.4, 2.0, 99, (10, 12)),
        (9.0, 99.0, 2.0, 99, (36, 38)),
        (0.0, None, 2.0, 5, (0, 8, 16, 24, 32)),
        (2.0, 6.0, 2.0, 2, (8, 16)),
    ],
)
def test_frames_of_a_part(noise, start, end, fps, most, indices):
    every, _ = Clip(noise).frames(4.0, 99)
    frames, rate = Clip(noise, start, end).frames(fps, most)
    assert len(frames) == len(indices) and rate <= fps
    assert all((frame == every[index]).all() for frame, index in zip(frames, indices, strict=True))


def test_parts_that_are_none(noise):
    with pytest.raises(ValueError, match=r"no frame of .*noise.mp4 is between 20 and 30 s"):
        Clip(noise, 20.0, 30.0).frames(2.0, 99)
    with pytest.raises(ValueError, match="must end after its start, got 3 to 2 s"):
        Clip(noise, 3, 2)
    for wrong in (-1.0, float("nan"), "1"):
        with pytest.raises(ValueError, match="must be seconds from 0 on"):
            Clip(noise, wrong)


def test_answers_are_those_of_generate(checkpoint, documents):
    """A batch is what each conversation gets alone, and what the processor and `generate` give for the frames."""
    model, processor = checkpoint
    recorded = Recorded(model, processor)
    conversations = [asked(Clip(video, 0.0, time), question) for video, time, question, _ in documents]
    together = recorded.answer(conversations, 16)
    assert [answered.text for answered in together] == [answer for *_, answer in documents]
    for own, answered in zip(conversations, together, strict=True):
        assert recorded.answer([own], 16) == [answered]
        clip = own[0]["content"][0]["video"]
        plain = asked(Clip(clip.source, 0.0, clip.end).frames(2.0, 99)[0], own[0]["content"][1]["text"])
        inputs = processor.apply_chat_template(
            plain, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        with torch.no_grad():
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=16)[0, inputs["input_ids"].shape[1] :]
        assert answered.prompt_tokens == inputs["input_ids"].shape[1] and answered.tokens == len(ids)
        assert answered.text == processor.decode(ids, skip_special_tokens=True).strip()


def test_answers_end_where_they_are_told_to(checkpoint, documents):
    recorded = Recorded(*checkpoint)
    video, time, question, answer = documents[0]
    verb, rest = answer.split(" ", 1)
    conversation = [asked(Clip(video, 0.0, time), question)]
    assert recorded.answer(conversation, 16, (rest,))[0].text == verb
    (short,) = recorded.answer(conversation, 2)
    assert short.tokens == 2 and answer.startswith(short.text)
    torch.manual_seed(0)
    hot = recorded.answer(conversation * 4, 16, do_sample=True, temperature=50.0)
    assert len({answered.text for answered in hot}) > 1


def test_long_videos_leave_room_for_the_answer(noise):
    """Frames are as many as fit into the context, in all videos together."""
    model, processor = small_model(max_position_embeddings=128)
    for videos in (1, 2):
        blocks = [{"type": "video", "video": Clip(noise)}] * videos
        (answered,) = Recorded(model, processor, fps=8.0).answer(
            [[{"role": "user", "content": [*blocks, {"type": "text", "text": "What happens?"}]}]], 500
        )
        assert 60 < answered.prompt_tokens <= 128 - 128 // 8
        assert answered.prompt_tokens + answered.tokens <= 128
    conversation = [asked(Clip(noise), "What happens? " * 99)]
    with pytest.raises(ValueError, match=r"a prompt has \d+ tokens, and the model's context is 128: set a smaller"):
        Recorded(model, processor).answer(conversation, 5)


def test_frames_may_stand_for_a_video(checkpoint, documents):
    """A list of images is a video that was sampled already, also beside others."""
    recorded = Recorded(*checkpoint)
    (video, time, question, _), (other, *_) = documents
    images = [Image.fromarray(frame) for frame in Clip(video, 0.0, time).frames(2.0, 99)[0]]
    assert recorded.answer([asked(images, question)], 16) == recorded.answer(
        [asked(Clip(video, 0.0, time), question)], 16
    )
    both = [{"type": "video", "video": images[:3]}, {"type": "video", "video": Clip(other)}]
    mixed = [{"role": "user", "content": [*both, {"type": "text", "text": question}]}]
    assert recorded.answer([mixed], 16)[0].prompt_tokens > 10 * (3 + 14)


def test_options_out_of_range(checkpoint):
    with pytest.raises(ValueError, match="`fps` must be a finite number > 0, got -1"):
        Recorded(*checkpoint, fps=-1)
    with pytest.raises(ValueError, match="`max_num_frames` must be a whole number of at least 1, got 0"):
        Recorded(*checkpoint, max_frames=0)
