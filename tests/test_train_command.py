"""`videollm-mod train`: what it writes, what it refuses, and how it resumes."""

import json
import shutil
import signal

import pytest
import torch
import yaml
from comparing import assert_near, assert_near_weights
from fork_server import STDOUT, ForkedProcess, command
from fresh_process import ROOT
from peft import PeftModel
from safetensors.torch import load_file, save_file
from small_data import small_model
from training_configs import STAGE, write_config
from waiting import PATIENCE, until

from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor
from videollm_mod.commands import cli
from videollm_mod.data.augmentation import ReplyAugmentation
from videollm_mod.loading.checkpoint import load_checkpoint
from videollm_mod.training.saving import load_weights
from videollm_mod.training.train import TrainingConfig, last_checkpoint, load, stage_arguments, train
from videollm_mod.training.trainer import StreamTrainer


def start(config) -> ForkedProcess:
    return ForkedProcess(command("train", config), cwd=config.parent, stderr=STDOUT)


def finish(process: ForkedProcess) -> None:
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output


def kill_when(process: ForkedProcess, exists) -> None:
    """Send SIGKILL as soon as a file exists."""
    until(lambda: exists.exists() or process.poll() is not None, str(exists))
    assert exists.exists(), process.communicate()[0]
    process.send_signal(signal.SIGKILL)
    process.wait()


def losses(folder) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def assert_finished(config, weights: str) -> None:
    """A run that was killed before it wrote its final folder takes no further step when it is resumed."""
    folder = config.with_suffix("")
    before, logged = load_file(folder / "final" / weights), losses(folder / "stream")
    shutil.rmtree(folder / "final")
    train(TrainingConfig.load(config))
    after = load_file(folder / "final" / weights)
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert losses(folder / "stream") == logged
    assert json.loads((folder / "stream" / "trainer_state.json").read_text())["global_step"] == 8
    assert max(int(path.name.split("-")[1]) for path in (folder / "stream").glob("checkpoint-*")) == 8


def test_killed_run_resumes_to_the_same_result(tmp_path):
    stage = {**STAGE, "elastic_keep_ratio": [0.1, 0.9]}
    whole, cut = (write_config(tmp_path, name, stream_stage=stage) for name in ("whole", "cut"))
    uninterrupted = start(whole)
    interrupted = start(cut)
    kill_when(interrupted, tmp_path / "cut" / "vision" / "checkpoint-4" / "trainer_state.json")
    finish(uninterrupted)
    interrupted = start(cut)
    kill_when(interrupted, tmp_path / "cut" / "stream" / "checkpoint-2" / "model.safetensors")
    finish(start(cut))

    for stage in ("vision", "stream"):
        assert_near(losses(tmp_path / "cut" / stage), losses(tmp_path / "whole" / stage))
        assert len(losses(tmp_path / "cut" / stage)) == 8
        assert (tmp_path / "cut" / stage / "curves.png").stat().st_size > 5_000
    expected = load_file(tmp_path / "whole" / "final" / "model.safetensors")
    weights = load_file(tmp_path / "cut" / "final" / "model.safetensors")
    assert_near_weights(weights, expected)  # processes may run with other numbers of threads

    model = VideoLLMMoDForConditionalGeneration.from_pretrained(tmp_path / "cut" / "final")
    processor = VideoLLMMoDProcessor.from_pretrained(tmp_path / "cut" / "final")
    assert model.config.frame_separator_token_id == processor.frame_separator_token_id
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    assert model.config.text_config.mod_keep_ratio_range == [0.1, 0.9]
    assert_finished(whole, "model.safetensors")


@pytest.mark.parametrize(("data", "domain"), [("own.jsonl", None), (None, "procedural world")])
def test_a_model_trained_on_own_data_is_of_no_domain(data, domain):
    model, _ = load(TrainingConfig(output_dir="unused", model=str(ROOT), data=data))
    assert model.config.domain == domain


def test_killed_lora_run_resumes_to_the_same_result(tmp_path):
    """With dropout and random keep ratios: both continue where they were interrupted."""
    new = TrainingConfig.load(write_config(tmp_path, "new", vision_stage=None, stream_stage=None))
    base = train(new)
    stage = {**STAGE, "keep_ratio_warmup_steps": 3, "elastic_keep_ratio": [0.1, 0.9], "warmup_steps": 2}
    options = {"model": str(base), "vision_stage": None, "stream_stage": stage}
    options |= {"lora": {"r": 4, "alpha": 8, "dropout": 0.2}, "dtype": "float32"}
    whole, cut = (write_config(tmp_path, name, **options) for name in ("whole", "cut"))
    interrupted = start(cut)
    train(TrainingConfig.load(whole))
    kill_when(interrupted, tmp_path / "cut" / "stream" / "checkpoint-4" / "adapter_model.safetensors")
    final = train(TrainingConfig.load(cut))
    assert_near(losses(tmp_path / "cut" / "stream"), losses(tmp_path / "whole" / "stream"))
    assert len(losses(tmp_path / "cut" / "stream")) == 8
    weights, expected = (load_file(tmp_path / n / "final" / "adapter_model.safetensors") for n in ("cut", "whole"))
    assert_near_weights(weights, expected)  # processes may run with other numbers of threads
    VideoLLMMoDProcessor.from_pretrained(final)
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(base)
    assert PeftModel.from_pretrained(model, final).peft_config["default"].base_model_name_or_path == str(base)
    assert load_checkpoint(final)[0].config.text_config.mod_keep_ratio_range == [0.1, 0.9]
    assert_finished(whole, "adapter_model.safetensors")


def test_learning_rate_in_scientific_notation_is_a_number(tmp_path):
    config = TrainingConfig(output_dir=str(tmp_path), model="x")
    options = yaml.safe_load("{learning_rate: 1e-3, lr_scheduler_type: cosine, use_cpu: true}")
    assert stage_arguments(config, "stream", options).learning_rate == 0.001


def test_incomplete_checkpoint_is_ignored(tmp_path):
    for step, content in [(2, "{}"), (4, '{"epoch": 1'), (10, None)]:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if content is not None:
            (folder / "trainer_state.json").write_text(content)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert last_checkpoint(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "must be a mapping"),
        ("output_dir: x\nmodel: 5", "`model` of .* must be of type dict or str, got 5"),
        ("output_dir: x\nmodel: y\nseed: abc", "`seed` of .* must be of type int, got 'abc'"),
        ("output_dir: x\nmodel: y\nworld: [1, 2]", "`world` of .* must be of type dict"),
        ("output_dir: x\nmodel: y\nstream_stage: yes please", "`stream_stage` of .*dict or NoneType"),
        ("output_dir: x\nmodel: y\ndtype: float17", "`dtype` of .* floating-point dtype of torch, got 'float17'"),
        ("output_dir: x\nmodel: {}", "must have the mappings `text_config`"),
        ("output_dir: x\nmodel: {text_config: {hidden_sise: 3}}", "'hidden_sise'; did you mean hidden_size"),
        ("output_dir: x\nmodel: {text_config: {}, frame_tokens: 3}", "'frame_tokens'; did you mean frame_token"),
        ("output_dir: x\nmodel: {text_config: {mod_keep_ratio: a}}", "mod_keep_ratio"),
        ("output_dir: x\nmodel: {text_config: {hidden_size: 33}}", "hidden size"),
        ("a: b: c", "is not valid YAML"),
        ("output_dir: x", "lacks model"),
        ("output_dir: x\nmodel: y\nvision_stages: {}", "'vision_stages'; did you mean vision_stage"),
        ("output_dir: x\nmodel: y\nworld: {levels: basic}", "`world` of .* 'levels'; did you mean level"),
        ("output_dir: x\nmodel: y\nstream_stage: {max_step: 3}", "`stream_stage` of .*; did you mean max_steps"),
        ("output_dir: x\nmodel: y\nlora: {rank: 3}", "`lora` of .* 'rank'; did you mean"),
        ("output_dir: x\nmodel: y\nlora: {r: 0}", "`r` of `lora` must be a whole number of at least 1, got 0"),
        ("output_dir: x\nmodel: y\nlora: {}\nvision_stage: {}", "cannot be used with `lora`"),
        ("output_dir: x\nmodel: {text_config: {}}\nlora: {}", "`lora` needs a checkpoint as `model`"),
        ("output_dir: x\nmodel: y\nquantize: 4bit", "`quantize` needs `lora`"),
        ("output_dir: x\nmodel: y\nlora: {}\nquantize: 8bit", "`quantize` must be '4bit', got '8bit'"),
        ("output_dir: x\nmodel: y\ndata: a.jsonl\nworld: {fps: 1}", "only one of `data` and `world`"),
        ("output_dir: x\nmodel: y\ndata: {file: a.jsonl}", "`data` has the unknown field 'file'"),
        ("output_dir: x\nmodel: y\ndata: {path: a, streaming: 1}", "`streaming` of `data` must be of type bool"),
        ("output_dir: x\nmodel: {text_config: {}}\ndata: a.jsonl", "`data` needs a checkpoint as `model`"),
        (
            "output_dir: x\nmodel: y\nstream_stage: {keep_ratio_warmup_steps: -1}",
            "a whole number of at least 0, got -1",
        ),
        ("output_dir: x\nmodel: y\nstream_stage: {max_tokens: 0}", "`max_tokens` must be a whole number"),
        ("output_dir: x\nmodel: y\nstream_stage: {packing: 3}", "`packing` must be true or false, got 3"),
        ("output_dir: x\nmodel: y\nstream_stage: {augmentation: 2}", "`augmentation` must be in \\[0, 1\\], got 2"),
        ("output_dir: x\nmodel: y\nstream_stage: {elastic_keep_ratio: 0.2}", "must be \\[low, high\\], got 0.2"),
        ("output_dir: x\nmodel: y\nstream_stage: {elastic_keep_ratio: [0.4, 0.2]}", "low <= high"),
        (
            "output_dir: x\nmodel: y\nstream_stage: {elastic_keep_ratio: [0, 0.2]}",
            "`elastic_keep_ratio` must be a number",
        ),
    ],
)
def test_wrong_configs_give_a_clear_error(tmp_path, capsys, content, message):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        TrainingConfig.load(path)
    assert cli.main(["train", str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert cli.main(["train", str(tmp_path / "none.yaml")]) == 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"world": {"fps": 0}}, "`fps` must give at least one frame"),
        ({"world": {"num_questions": 17}}, "`num_questions` must be in [0, 16]"),
        ({"stream_stage": {"learning_rate": "abc"}}, "`learning_rate` of `stream_stage` must be a number, got 'abc'"),
        ({"stream_stage": {"save_strategy": "now"}}, "now"),
        ({"stream_stage": {"freeze_vision_tower": "maybe"}}, "`freeze_vision_tower` must be true or false"),
        ({"world": {"level": "x"}}, "`level` must be one of"),
        ({"model": "./nowhere"}, "`model` is not a folder: ./nowhere"),
    ],
)
def test_wrong_values_give_a_clear_error_before_training(tmp_path, capsys, options, message):
    assert cli.main(["train", str(write_config(tmp_path, "bad", **options))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("name", ["nano", "qlora_24gb", "paper_8gpu"])
def test_bundled_configs_are_valid(name):
    TrainingConfig.load(ROOT / "training" / "configs" / f"{name}.yaml")


@pytest.mark.parametrize("arguments", [["nosuch"], ["train"], ["world", "--seed", "abc", "--output", "x.mp4"]])
def test_wrong_arguments_give_one_error_line(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    "options, batch",
    [({"packing": True, "max_tokens": 500}, {"position_ids"}), ({"max_tokens": 120}, {"attention_mask"})],
)
def test_collator_options_are_passed_on(tmp_path, monkeypatch, options, batch):
    """Rows are limited and packed according to the stage, and narrations are altered at random."""
    shapes, drawn = [], []
    forward, alter = StreamTrainer.compute_loss, ReplyAugmentation.alter

    def compute_loss(self, model, inputs, *args, **kwargs):
        assert batch <= inputs.keys()
        shapes.append(inputs["input_ids"].shape)
        return forward(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(StreamTrainer, "compute_loss", compute_loss)
    monkeypatch.setattr(ReplyAugmentation, "alter", lambda self, *a: drawn.append(1) or alter(self, *a))
    stage = {**STAGE, "max_steps": 2, "augmentation": 1.0, **options}
    path = write_config(tmp_path, "own", vision_stage=None, stream_stage=stage)
    train(TrainingConfig.load(path))
    assert len(shapes) == 2 and len(drawn) >= 2
    assert all(length <= options["max_tokens"] for _, length in shapes)


def test_weights_of_another_model_are_refused(tmp_path):
    """A tied head is not saved, and not missing."""
    model, _ = small_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    load_weights(small_model(tie_word_embeddings=True)[0], tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {f"other.{name}": weight for name, weight in load_file(file).items()}
    save_file(weights, file)
    with pytest.raises(ValueError, match="lacks weights of this model: "):
        load_weights(model, tmp_path)
