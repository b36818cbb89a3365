"""Validation during training: what is held out, when a run stops, and which checkpoint it ends with."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from small_data import said, small_model, write_lines, write_video
from training_configs import STAGE, write_config

from videollm_mod.data.world_data import WorldData
from videollm_mod.training.curves import draw_curves
from videollm_mod.training.examples import held_out_world, stream_datasets, world_splits
from videollm_mod.training.train import TrainingConfig, train
from videollm_mod.training.trainer import StreamTrainer


@pytest.fixture
def config(tmp_path, monkeypatch):
    """`config(**data)`: the configuration of a run on four lines with three videos."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    lines = []
    for index, video in enumerate((0, 1, 1, 2)):
        write_video(tmp_path / f"{video}.mp4", num_frames=16, seed=video)
        turns = [said(0.0, "Narrate.", "user"), said(1.0, f"A red square {index} appears.")]
        lines.append({"video": f"{video}.mp4", "fps": 2.0, "turns": turns})
    write_lines(tmp_path / "all.jsonl", lines)
    write_lines(tmp_path / "one.jsonl", lines[:1])

    def make(path: str = "all.jsonl", **data) -> TrainingConfig:
        return TrainingConfig(str(tmp_path / "run"), "x", data={"path": str(tmp_path / path), **data})

    return make


def test_share_holds_out_whole_videos(config):
    processor = small_model()[1]
    sides = stream_datasets(config(validation=0.3), processor, True)
    learned, held_out = ([*sides[name].with_format(None)["video"]] for name in ("train_dataset", "eval_dataset"))
    assert len(learned) + len(held_out) == 4 and not set(learned) & set(held_out)
    assert len(set(held_out)) == 1 and len({*learned, *held_out}) == 3
    assert "frames" in sides["eval_dataset"][0]
    again = stream_datasets(config(validation=0.3), processor, True)["eval_dataset"].with_format(None)
    assert [*again["video"]] == held_out
    with pytest.raises(ValueError, match="is 0.5, but the only video is"):
        stream_datasets(config("one.jsonl", validation=0.5), processor, True)


@pytest.mark.parametrize("streaming", [False, True])
def test_validation_file_is_used_as_it_is(config, tmp_path, streaming):
    sides = stream_datasets(
        config(validation=str(tmp_path / "one.jsonl"), streaming=streaming), small_model()[1], True
    )
    assert len(sides["eval_dataset"]) == 1
    assert next(iter(sides["train_dataset"]))["input_ids"] == sides["eval_dataset"][0]["input_ids"]


def test_world_is_validated_on_other_seeds():
    config = TrainingConfig("x", "y", world={"level": "hard", "validation": 7})
    data = world_splits(config, True)
    seeds = [set(range(d.first_seed, d.first_seed + d.num_streams)) for d in data.values()]
    assert data["eval_dataset"].num_streams == 7 and data["eval_dataset"].level == "hard" and not seeds[0] & seeds[1]
    assert world_splits(config, False) == {"train_dataset": config.world_data()}
    with pytest.raises(ValueError, match="which overlap with the validation seeds 100000000 to 100000006"):
        held_out_world(WorldData(first_seed=100_000_003, num_streams=10), 7)


def test_run_stops_early_and_ends_with_the_best_checkpoint(tmp_path, monkeypatch):
    """Even if it was killed before it wrote the checkpoint. The measured loss gets worse with every step."""
    step = StreamTrainer.prediction_step

    def prediction_step(self, *args, **kwargs):
        loss, *rest = step(self, *args, **kwargs)
        return loss + 100 * self.state.global_step, *rest

    monkeypatch.setattr(StreamTrainer, "prediction_step", prediction_step)
    stage = {**STAGE, "max_steps": 12, "eval_steps": 1, "early_stopping_patience": 2}
    del stage["save_steps"]
    world = {"level": "basic", "num_questions": 1, "validation": 2}
    path = write_config(tmp_path, "run", vision_stage=None, stream_stage=stage, world=world, dtype="float32")
    final = train(TrainingConfig.load(path))
    folder = tmp_path / "run" / "stream"
    state = json.loads((folder / "trainer_state.json").read_text())
    evaluated = {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    assert list(evaluated) == [1, 2, 3] and state["global_step"] == 3
    assert evaluated[1] < evaluated[2] < evaluated[3]
    expected = load_file(folder / "checkpoint-1" / "model.safetensors")
    for _ in range(2):
        weights = load_file(final / "model.safetensors")
        assert all(torch.equal(weights[name], value) for name, value in expected.items())
        shutil.rmtree(final)
        final = train(TrainingConfig.load(path))
    assert json.loads((folder / "trainer_state.json").read_text()) == state


def test_curves_show_validation(tmp_path):
    history = [{"step": step, "loss": 1.0, "learning_rate": 0.1} for step in (1, 2)]
    evaluated = [*history, {"step": 1, "eval_loss": 3.0}, {"step": 2, "eval_loss": 2.0}]
    alone, both = (draw_curves({"stream": h}, tmp_path / f"{len(h)}.png") for h in (history, evaluated))
    assert alone.read_bytes() != both.read_bytes()
