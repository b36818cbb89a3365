"""The record of a run: the same configuration resumes, another one is refused, and no output is lost."""

import json
import shutil

import pytest
import yaml
from training_configs import STAGE, write_config

from videollm_mod.commands import cli
from videollm_mod.training.record import RECORD, RunRecord
from videollm_mod.training.train import TrainingConfig


def run(path, capsys) -> tuple[int, str]:
    capsys.readouterr()
    code = cli.main(["train", str(path)])
    return code, capsys.readouterr().err


def changed(path, **options):
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | options))
    return path


def made_of(path) -> dict:
    return {file.name: file.read_bytes() for file in path.with_suffix("").joinpath("final").iterdir()}


def test_finished_run_is_not_repeated_and_another_one_is_refused(tmp_path, capsys, monkeypatch):
    """This includes a run that was interrupted after its last step."""
    said = []
    monkeypatch.setattr("videollm_mod.training.train.logger.warning", said.append)
    stage = {**STAGE, "max_steps": 2}
    path = write_config(tmp_path, "run", vision_stage=None, stream_stage=stage)
    assert run(path, capsys)[0] == 0
    made = made_of(path)
    assert run(path, capsys)[0] == 0
    assert made_of(path) == made
    assert said == [f"the run in {tmp_path / 'run'} is finished: there is nothing to train"]

    other = {**stage, "learning_rate": 0.5, "logging_steps": 7}
    code, error = run(changed(path, stream_stage=other, seed=3), capsys)
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert "`seed` (was 0, is 3), `stream_stage.learning_rate` (was 0.001, is 0.5)" in error
    assert "logging_steps" not in error
    assert made_of(path) == made

    shutil.rmtree(tmp_path / "run" / "final")
    assert run(path, capsys)[0] == 2
    changed(path, seed=0, stream_stage={**stage, "learning_rate": "1e-3"})  # the same value, written differently
    assert run(path, capsys)[0] == 0
    assert made_of(path)["model.safetensors"] == made["model.safetensors"]


def test_finished_run_without_a_record_is_refused(tmp_path, capsys):
    path = write_config(tmp_path, "old", vision_stage=None, stream_stage=None)
    assert run(path, capsys)[0] == 0
    made = made_of(path)
    (tmp_path / "old" / RECORD).unlink(missing_ok=True)
    code, error = run(changed(path, vocab_size=900), capsys)
    assert code == 2 and "finished run without a record of its configuration" in error and error.count("\n") == 1
    assert made_of(path) == made
    (tmp_path / "old" / RECORD).write_text("[]")
    code, error = run(path, capsys)
    assert code == 2 and "is not a valid record of a run" in error

    shutil.rmtree(tmp_path / "old")
    (tmp_path / "old" / "stream" / "checkpoint-2").mkdir(parents=True)  # interrupted, so it resumes
    assert run(path, capsys)[0] == 0
    assert json.loads((tmp_path / "old" / RECORD).read_text())["finished"]


@pytest.fixture
def recorded(tmp_path):
    """An interrupted LoRA run on a checkpoint and two files; `recorded(**options)` reads it with other options."""
    for name in ("base", "moved"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(name)
    data = {"path": str(tmp_path / "a.jsonl"), "validation": str(tmp_path / "b.jsonl")}
    options = {"output_dir": str(tmp_path / "run"), "model": str(tmp_path / "base"), "lora": {}, "data": data}
    options["stream_stage"] = {"max_steps": 4, "learning_rate": "1e-3", "hub_token": "secret"}

    def read(**changes) -> RunRecord:
        return RunRecord(TrainingConfig(**options | changes))

    read().write()
    (tmp_path / "run" / "stream" / "checkpoint-2").mkdir(parents=True)
    return read


def test_equivalent_configurations_are_equal(recorded, tmp_path):
    assert "secret" not in (tmp_path / "run" / RECORD).read_text()
    stage = {"max_steps": 4, "learning_rate": 0.001, "logging_steps": 5, "dataloader_num_workers": 3}
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "c.jsonl")
    data = {"path": str(tmp_path / "c.jsonl"), "validation": str(tmp_path / "b.jsonl"), "missing": "stop"}
    model = str(tmp_path / "moved")
    assert not recorded(stream_stage=stage, data=data, model=model, lora={"r": 128, "alpha": 256}).finished


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": {"r": 4}}, r"`lora.r` \(was 128, is 4\)"),
        ({"lora": None, "dtype": "float16"}, r"`dtype` \(was 'bfloat16', is 'float16'\), `lora` "),
        ({"stream_stage": {"learning_rate": 0.001}}, r"`stream_stage.max_steps` \(was 4, is not set\)"),
        (
            {"data": "b.jsonl"},
            r"`data.path` \(was a.jsonl with sha256 ca978112ca1b, is b.jsonl with sha256 3e23e8160039\)",
        ),
        ({"model": "some/id"}, r"`model` \(was base with sha256 \w{12}, is 'some/id'\)"),
    ],
)
def test_differences_are_named(recorded, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        recorded(**options)


@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl", "base/model.safetensors"])
def test_file_with_other_content_is_a_difference(recorded, tmp_path, name):
    recorded()
    (tmp_path / name).write_text("another")
    with pytest.raises(
        ValueError, match=rf"{name.split('/')[0]} with sha256 \w+, is {name.split('/')[0]} with sha256"
    ):
        recorded()


def test_configuration_may_change_before_there_is_any_output(recorded, tmp_path):
    shutil.rmtree(tmp_path / "run" / "stream")
    recorded(lora={"r": 4}).write()
