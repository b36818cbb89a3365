"""A tiny model with another family's prompts learns from streams when to speak: by the plain Trainer, and by
`videollm-mod train` with and without LoRA."""

import json

import numpy as np
import pytest
import torch
from small_data import said, write_lines
from stock_vlms import save_vlm
from transformers import Trainer, TrainingArguments

from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor
from videollm_mod.commands import cli
from videollm_mod.data.collator import StreamCollator
from videollm_mod.data.turns import encode_example
from videollm_mod.loading.checkpoint import load_checkpoint
from videollm_mod.speaking import learn_silence
from videollm_mod.training.train import TrainingConfig, train

KINDS = {"smolvlm": ({"scale_factor": 2}, {}), "llava": ({}, {"frame_separator": ","})}


def built(folder, kind: str):
    options, pieces = KINDS[kind]
    model, processor = VideoLLMMoDForConditionalGeneration.from_vlm(
        save_vlm(folder / "vlm", kind, **options), **pieces
    )
    for name, weight in model.named_parameters():  # as before any training
        if weight.dim() > 1 and "embed" not in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model, processor


def stream(bright: list[int], processor) -> tuple[list[dict], np.ndarray]:
    """Four dark frames, but for those whose numbers are given: they are bright, and the model says `A` after each."""
    count, messages, done = 4, [], 0
    frames = np.zeros((count, 24, 24, 3), np.uint8)
    frames[bright] = 255
    for index in bright:
        messages += [{"role": "stream", "num_frames": index + 1 - done}, {"role": "assistant", "content": "A"}]
        done = index + 1
    if done < count:
        messages.append({"role": "stream", "num_frames": count - done})
    return messages, frames


STREAMS = [[1], [2], [3], [0, 2], [], [1, 3], [0]]


def example_of(bright: list[int], processor) -> dict:
    messages, frames = stream(bright, processor)
    pixels = processor.video_processor(frames, return_tensors="pt")["pixel_values_videos"]
    return {**encode_example(messages, processor), "pixel_values_videos": pixels}


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_trainer_teaches_silence_and_speech(tmp_path, kind):
    torch.manual_seed(0)
    model, processor = built(tmp_path, kind)
    learn_silence(model, processor)
    examples = [example_of(bright, processor) for bright in STREAMS]
    collator = StreamCollator(processor.tokenizer.pad_token_id)
    arguments = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=40,
        per_device_train_batch_size=len(examples),
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
        logging_steps=20,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        remove_unused_columns=False,
    )
    trainer = Trainer(model.train(), arguments, collator, examples, processing_class=processor)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.2 < losses[0]
    trainer.save_model(tmp_path / "trained")
    model, processor = load_checkpoint(str(tmp_path / "trained"), device="cpu")
    for bright in STREAMS:
        session = model.stream(processor)
        assert session.speak_rule == "trained"
        _, frames = stream(bright, processor)
        events = session.push(frames)
        assert [(event.time * processor.video_processor.fps, event.text) for event in events] == [
            (index, "A") for index in bright
        ]


@pytest.fixture
def folder(tmp_path, monkeypatch, without_curves):
    """A SmolVLM that has not learned silence, and a JSONL file of streams for it."""
    from small_data import write_video

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    model, processor = built(tmp_path, "smolvlm")
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    for index in range(2):
        write_video(tmp_path / f"{index}.mp4", num_frames=16, seed=index)
    turns = [said(0.0, "Narrate.", "user"), said(1.0, "A cat."), said(2.5, "It leaves."), said(3.0, "A dog.")]
    write_lines(
        tmp_path / "streams.jsonl", [{"video": f"{index}.mp4", "fps": 2.0, "turns": turns} for index in range(2)]
    )
    return tmp_path


@pytest.mark.parametrize("lora", [None, {"r": 2, "alpha": 4}])
def test_the_command_trains_a_family_and_saves_its_rule(folder, lora, capsys):
    stage = {"max_steps": 3, "per_device_train_batch_size": 1, "use_cpu": True, "disable_tqdm": True}
    stage |= {"logging_steps": 1, "learning_rate": 1e-3, "augmentation": 1.0, "max_tokens": 300, "packing": True}
    config = TrainingConfig(
        output_dir=str(folder / "run"),
        model=str(folder / "base"),
        data=str(folder / "streams.jsonl"),
        lora=lora,
        stream_stage=stage,
        dtype="float32",
    )
    final = train(config)
    assert json.loads((folder / "base" / "config.json").read_text())["speak_rule"] == "verify"
    if lora is not None:
        assert cli.main(["merge", str(final), "--output", str(folder / "merged")]) == 0
        assert json.loads((folder / "merged" / "config.json").read_text())["speak_rule"] == "trained"
    model, processor = load_checkpoint(str(final), device="cpu")
    assert isinstance(processor, VideoLLMMoDProcessor)
    assert model.stream(processor).speak_rule == "trained"
    assert model.config.frame_separator_token_id == processor.frame_separator_token_id
    capsys.readouterr()
    if lora is not None:
        (final / "speaking.json").write_text('{"speak_rule": "trained"}')
        assert cli.main(["merge", str(final), "--output", str(folder / "again")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and "speaking.json is damaged" in error and error.count("\n") == 1


def test_the_command_refuses_a_family_that_cannot_learn_silence(folder, capsys):
    model, processor = VideoLLMMoDForConditionalGeneration.from_vlm(save_vlm(folder / "bare", "llava"))
    model.save_pretrained(folder / "llava")
    processor.save_pretrained(folder / "llava")
    (folder / "run.yaml").write_text(
        f"{{output_dir: {folder}/run, model: {folder}/llava, data: {folder}/streams.jsonl, "
        "stream_stage: {max_steps: 1, use_cpu: true}}"
    )
    assert cli.main(["train", str(folder / "run.yaml")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: no token can mean silence") and "build --frame-separator ," in error
