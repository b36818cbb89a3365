"""Options of a stage for the Trainer of transformers work, or are refused by name before a model is loaded."""

import json

import pytest
import torch
import torch._dynamo
from short_training import Streams, collate, fit
from tiny_models import tiny_model
from transformers import Trainer, TrainingArguments

from videollm_mod.commands import cli
from videollm_mod.training.arguments import check_hub_access
from videollm_mod.training.config import TrainingConfig
from videollm_mod.training.trainer import StreamTrainer

LABELS_TAKEN = {"label_smoothing_factor": 0.1, "compute_loss_func": lambda *args, **kwargs: None}


def arguments_of(tmp_path, options: dict, **config) -> TrainingArguments:
    config = TrainingConfig(output_dir=str(tmp_path), model="x", stream_stage={"use_cpu": True, **options}, **config)
    config.check()
    return config.arguments("stream")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` must be 0.0, got 0.1: it would compute the loss"),
        ({"label_names": ["answers"]}, r"`label_names` must be None, got \['answers'\]"),
        ({"remove_unused_columns": True}, "`remove_unused_columns` must be False, got True"),
        ({"use_liger_kernel": True}, "`use_liger_kernel` must be False, got True"),
        ({"bf16_full_eval": True}, "`bf16_full_eval` must be False, got True: it would round the routers"),
        ({"parallelism_config": {"cp_size": 2}}, "`parallelism_config`"),
        (
            {"accelerator_config": {"dispatch_batches": True}},
            "`dispatch_batches` of `accelerator_config` must be False",
        ),
        ({"accelerator_config": {"dispatch": True}}, "`stream_stage`: .*dispatch"),
        ({"accelerator_config": 3}, "`accelerator_config` of `stream_stage` must be a mapping or text or null, got 3"),
        ({"resume_from_checkpoint": "nowhere"}, "`stream_stage` must not set `resume_from_checkpoint`, got 'nowhere'"),
        (
            {"save_only_model": True},
            "`stream_stage` must not set `save_only_model`, got True: an interrupted run",
        ),
        ({"output_dir": "elsewhere"}, "`stream_stage` must not set `output_dir`"),
        ({"max_steps": "many"}, "`max_steps` of `stream_stage` must be a whole number, got 'many'"),
        ({"max_steps": 2.5}, "`max_steps` of `stream_stage` must be a whole number, got 2.5"),
        ({"max_steps": 0}, "`max_steps` of `stream_stage` must be at least 1, got 0"),
        ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size` of `stream_stage` must be at least 1"),
        ({"learning_rate": float("nan")}, "`learning_rate` of `stream_stage` must be a finite number, got nan"),
        ({"learning_rate": [1e-3]}, "`learning_rate` of `stream_stage` must be a number, got"),
        ({"bf16": "yes please"}, "`bf16` of `stream_stage` must be true or false, got 'yes please'"),
        ({"lr_scheduler_kwargs": 3}, "`lr_scheduler_kwargs` of `stream_stage` must be a mapping or text or null"),
        ({"lr_scheduler_kwargs": "cosine"}, "`lr_scheduler_kwargs` of `stream_stage` must be a mapping, got 'cosine'"),
        ({"gradient_checkpointing_kwargs": {"recompute": "mpl"}}, "`recompute` must be one of pairs, .*, got 'mpl'"),
        ({"gradient_checkpointing_kwargs": "pairs"}, "`gradient_checkpointing_kwargs` of .* a mapping, got 'pairs'"),
        ({"optim": "sgdd"}, "`stream_stage`: .*sgdd"),
        ({"report_to": "nosuch"}, "`report_to` of `stream_stage` names 'nosuch', which is not installed"),
        ({"report_to": ["wandb"]}, "`report_to` of `stream_stage` names 'wandb'"),
        ({"load_best_model_at_end": True}, "need an `eval_strategy`"),
        ({"eval_strategy": "steps", "metric_for_best_model": "accuracy"}, "must be 'loss', got 'accuracy'"),
        ({"early_stopping_patience": 0}, "`early_stopping_patience` must be a whole number of at least 1, got 0"),
        ({"early_stopping_threshold": -1}, "`early_stopping_threshold` must be a number of at least 0, got -1"),
        ({"early_stopping_patience": 2}, "need an `eval_strategy`"),
    ],
)
def test_wrong_arguments_of_a_stage_are_named(tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(
        "videollm_mod.training.arguments.get_available_reporting_integrations", lambda: ["tensorboard"]
    )
    with pytest.raises(ValueError, match=message) as error:
        arguments_of(tmp_path, options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: y\nstream_stage: {label_smoothing_factor: 0.1}", "`label_smoothing_factor` must be 0.0"),
        ("model: y\ndata: a.yaml\nstream_stage: {eval_strategy: steps}", "`eval_strategy` of `stream_stage` needs"),
        ("model: y\ndata: {path: a.jsonl, validation: 1.5}", "must be a file or a share in (0, 1), got 1.5"),
        ("model: y\ndata: {path: a, validation: 0.5, streaming: true}", "must be a file if `streaming`"),
        ("model: y\nworld: {validation: 0}", "`validation` of `world` must be a whole number"),
        ("model: y\nstream_stage: {num_epochs: 3}", "unknown field 'num_epochs'; did you mean num_train_epochs"),
        ("model: y\nstream_stage: {batch_size: 3}", "did you mean"),
        ("model: y\nstream_stage: {xyzzy: 3}", "`stream_stage` of {path} has the unknown field 'xyzzy'\n"),
        ("model: y\ndata: no.jsonl", "`path` of `data` is not a file: no.jsonl"),
        ("model: y\ndata: {path: a.yaml, validation: no.jsonl}", "`validation` of `data` is not a file: no.jsonl"),
        ("model: y\nlora: {rank: 3}", "did you mean alpha, dropout, r?"),
    ],
)
def test_the_command_reports_them_in_one_line(tmp_path, capsys, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.yaml"
    path.write_text(f"output_dir: {tmp_path / 'run'}\n{content}")
    assert cli.main(["train", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message.replace("{path}", str(path)) in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_options_of_a_stage_are_merged_and_converted(tmp_path):
    file = tmp_path / "accelerate.json"
    file.write_text(json.dumps({"even_batches": False}))
    for given in ({"even_batches": False}, str(file)):
        made = arguments_of(tmp_path, {"accelerator_config": given, "save_strategy": False, "learning_rate": "1e-3"})
        assert (made.accelerator_config.even_batches, made.accelerator_config.dispatch_batches) == (False, False)
        assert (made.save_strategy, made.learning_rate, made.eval_strategy) == ("no", 0.001, "no")


def test_validation_saves_where_it_evaluates(tmp_path):
    own = {"data": {"path": "a.jsonl", "validation": 0.1}}
    made = arguments_of(tmp_path, {"per_device_train_batch_size": 3}, **own)
    assert (made.eval_strategy, made.eval_steps, made.save_steps) == ("steps", 0.25, 0.25)
    assert made.per_device_eval_batch_size == 3 and not made.load_best_model_at_end
    made = arguments_of(tmp_path, {"eval_strategy": "epoch", "load_best_model_at_end": True}, **own)
    assert made.save_strategy == "epoch" and made.metric_for_best_model == "loss"
    made = arguments_of(tmp_path, {"eval_steps": 10, "early_stopping_patience": 2}, **own)
    assert made.load_best_model_at_end and made.save_steps == made.eval_steps == 10


def test_a_push_that_cannot_succeed_is_refused_first(tmp_path):
    """The tests are offline."""
    made = arguments_of(tmp_path, {"push_to_hub": True})
    with pytest.raises(ValueError, match="`push_to_hub` needs access to the Hub and a token") as error:
        check_hub_access(made)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [Trainer, StreamTrainer])
@pytest.mark.parametrize("name", LABELS_TAKEN)
def test_options_that_take_the_labels_from_the_model_are_refused(tmp_path, kind, name):
    """The Trainer would compute another loss, with unshifted labels and without `stream_loss_weight`."""
    value = LABELS_TAKEN[name]
    given, options = ({name: value}, {}) if callable(value) else ({}, {name: value})
    with pytest.raises(ValueError, match=name):
        fit(tmp_path, tiny_model(0), kind, given, max_steps=1, per_device_train_batch_size=2, **options)


def test_columns_made_on_the_fly_are_kept(tmp_path):
    with pytest.raises(ValueError, match="`remove_unused_columns` must be False"):
        StreamTrainer(tiny_model(0), TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]))


@pytest.mark.parametrize(
    "options",
    [
        {"neftune_noise_alpha": 50.0},
        {"include_num_input_tokens_seen": "non_padding"},
        {"include_for_metrics": ["loss"]},
        {"prediction_loss_only": False},
        {"eval_accumulation_steps": 1, "eval_do_concat_batches": False},
        {"average_tokens_across_devices": False},
        {"auto_find_batch_size": True},
        {"use_cache": True},
        {"dataloader_drop_last": True, "dataloader_num_workers": 1, "dataloader_persistent_workers": True},
        {"torch_compile_backend": "eager"},  # which runs the traced graphs without changes
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_that_are_not_refused_keep_the_loss(tmp_path, options):
    """Without learning, the loss in training and in evaluation is the loss of the model. A compiled model is given
    pixels, so that its vision tower is compiled too."""
    compiled = "torch_compile_backend" in options
    steps = {"max_steps": 1, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "learning_rate": 0.0}
    steps |= {"train_sampling_strategy": "sequential", **options}
    model = tiny_model(3, num_hidden_layers=2 if compiled else 5)
    if compiled:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
    trainer = fit(tmp_path, model, StreamTrainer, pixels=compiled, **steps)
    assert not compiled or torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    model.eval()
    with torch.no_grad():
        expected = model(**collate(Streams(model, pixels=compiled).rows[:4])).loss.item()
    (logged,) = (entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    if "neftune_noise_alpha" in options:  # it changes the loss in training, on purpose
        assert logged != pytest.approx(expected, rel=1e-4)
    else:
        assert logged == pytest.approx(expected, rel=1e-5)
    four = torch.utils.data.Subset(trainer.train_dataset, range(4))
    assert trainer.evaluate(four)["eval_loss"] == pytest.approx(expected, rel=1e-5)
