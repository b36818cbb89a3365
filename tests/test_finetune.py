"""LoRA, QLoRA and merging; keep-ratio schedules; frozen parameters; and the Trainer with all of these."""

import json
import random
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from comparing import assert_near
from fork_server import run_forked
from fresh_process import ROOT
from peft import PeftModel
from safetensors.torch import load_file
from short_training import check_accumulation, fit, stream_labels
from small_data import said, small_model, write_lines, write_video
from tiny_models import ROUTINGS, random_batch, tiny_config, tiny_model
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor
from videollm_mod.commands import cli
from videollm_mod.configuration_videollm_mod import num_kept_tokens
from videollm_mod.data.collator import StreamCollator
from videollm_mod.loading.quantisation import four_bit
from videollm_mod.training.adapters import LoraOptions, add_lora, merge_adapter
from videollm_mod.training.examples import stream_datasets
from videollm_mod.training.freezing import freeze_unreached, frozen_modules
from videollm_mod.training.keep_ratio import KeepRatioSchedule
from videollm_mod.training.saving import save
from videollm_mod.training.train import TrainingConfig, train
from videollm_mod.training.trainer import StreamTrainer

LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture
def root_processor():
    return VideoLLMMoDProcessor.from_pretrained(ROOT)


def saved_base(folder, processor, dtype=torch.float32, **options):
    """A checkpoint with layers wide enough for blocks of 64 weights, and a batch of a few streams."""
    model = tiny_model(0, hidden_size=64, intermediate_size=64, **options)
    save(model, processor, folder, dtype)
    batch, _ = random_batch(model, 3, [12, 9])
    return str(folder), {**batch, "labels": stream_labels(batch, 3)}


def adapted(base: str, seed: int = 0, **options):
    """A model with adapters whose trained weights are far from their initial values."""
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(base)
    torch.manual_seed(seed)
    model = add_lora(model, LoraOptions(r=4, alpha=8), **options)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


@torch.no_grad()
def logits(model, batch: dict) -> torch.Tensor:
    return model.eval()(**{name: value for name, value in batch.items() if name != "labels"}).logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tower", [False, True])
def test_adapters_cover_every_linear_layer_and_reload_with_plain_peft(tmp_path, root_processor, tied, tower):
    base, batch = saved_base(tmp_path / "base", root_processor, tie_word_embeddings=tied)
    model = adapted(base, train_vision_tower=tower)
    text = model.config.text_config
    low_rank = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    prefix = "base_model.model.model.language_model.layers."
    assert low_rank == {"base_model.model.lm_head"} | {
        f"{prefix}{layer}.{'mlp' if name[0] in 'gud' else 'self_attn'}.{name}"
        for layer in range(text.num_hidden_layers)
        for name in LINEAR
    }
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    whole = {name for name in trained if "lora_" not in name}
    assert {name.split(".modules_to_save.")[0] for name in whole} == (
        {f"{prefix}{layer}.layer_expert" for layer in text.routed_layers}
        | {"base_model.model.model.connector"}
        | ({"base_model.model.model.vision_tower"} if tower else set())
    )
    assert all(model.get_parameter(name).dtype == torch.float32 for name in trained)

    model.save_pretrained(str(tmp_path / "adapter"))
    written = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(written) == len(trained)
    assert not [name for name in written if "base_layer" in name or "embed_tokens" in name]
    again = PeftModel.from_pretrained(VideoLLMMoDForConditionalGeneration.from_pretrained(base), tmp_path / "adapter")
    assert_near(logits(again, batch), logits(model, batch))  # by another layer, `LoraLinear`
    plain = VideoLLMMoDForConditionalGeneration.from_pretrained(base)
    assert (logits(plain, batch) - logits(model, batch)).abs().max() > 0.1


@pytest.mark.parametrize("text", [{}, {"tie_word_embeddings": True}, {"qk_norm": True, "no_rope_layers": [1]}])
def test_merged_checkpoint_equals_base_with_adapter(tmp_path, root_processor, text, capsys):
    base, batch = saved_base(tmp_path / "base", root_processor, **text)
    model = adapted(base)
    model.save_pretrained(str(tmp_path / "adapter"))
    assert cli.main(["merge", str(tmp_path / "adapter"), "--output", str(tmp_path / "merged")]) == 0
    reference = "modeling_videollm_mod.VideoLLMMoDForConditionalGeneration"  # the code in the folder
    merged = get_class_from_dynamic_module(reference, tmp_path / "merged").from_pretrained(tmp_path / "merged")
    assert type(merged).__module__.startswith("transformers_modules")
    torch.testing.assert_close(logits(merged, batch), logits(model, batch), atol=2e-4, rtol=1e-4)
    embeddings = VideoLLMMoDForConditionalGeneration.from_pretrained(base).get_input_embeddings().weight
    assert torch.equal(merged.get_input_embeddings().weight, embeddings)
    assert not merged.config.tie_word_embeddings
    VideoLLMMoDProcessor.from_pretrained(tmp_path / "merged")

    capsys.readouterr()
    for arguments, message in [
        ([str(tmp_path / "adapter"), "--output", str(tmp_path / "merged")], "new or empty folder"),
        ([str(tmp_path / "base"), "--output", str(tmp_path / "x")], "no adapter"),
    ]:
        assert cli.main(["merge", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_half_precision_keeps_routers_in_float32(tmp_path, root_processor):
    base, batch = saved_base(tmp_path / "base", root_processor, torch.bfloat16)
    model = adapted(base)
    assert model.get_base_model().lm_head.base_layer.weight.dtype == torch.bfloat16
    model.save_pretrained(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(VideoLLMMoDForConditionalGeneration.from_pretrained(base), tmp_path / "adapter")
    model.get_base_model().model.connector.bfloat16()  # in training it is float32, in the base bfloat16
    assert_near(logits(again, batch), logits(model, batch), 2e-2)  # in bfloat16, by another layer
    merged = load_file(merge_adapter(tmp_path / "adapter", tmp_path / "merged") / "model.safetensors")
    trained = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    routers = [name for name in merged if "layer_expert" in name]
    assert len(routers) == 2 * len(model.config.text_config.routed_layers)
    for name, value in merged.items():
        assert value.dtype == (torch.float32 if name in routers else torch.bfloat16), name
    for name in routers:
        assert torch.equal(merged[name], trained[f"base_model.model.{name}"]), name


def router_gradients(model, batch: dict) -> dict[str, torch.Tensor]:
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    model(**batch, use_cache=False).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    return {name: p.grad for name, p in trained.items() if "layer_expert" in name}


def test_routers_learn_with_lora(tmp_path, root_processor):
    base, batch = saved_base(tmp_path / "base", root_processor)
    model = adapted(base)
    gradients = router_gradients(model, batch)
    assert len(gradients) == 2 * len(model.config.text_config.routed_layers)
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())


def test_qlora_quantises_only_the_layers_and_routers_learn(tmp_path, root_processor):
    base, batch = saved_base(tmp_path / "base", root_processor, torch.bfloat16)
    load = lambda: VideoLLMMoDForConditionalGeneration.from_pretrained(  # noqa: E731
        base, dtype=torch.bfloat16, quantization_config=four_bit(), device_map={"": "cpu"}
    )
    model = load()
    quantised = {name for name, p in model.named_parameters() if p.dtype == torch.uint8}
    layers = range(model.config.text_config.num_hidden_layers)
    assert len(quantised) == len(layers) * len(LINEAR)
    assert {name.split(".")[-2] for name in quantised} == LINEAR
    assert all(name.startswith("model.language_model.layers.") for name in quantised)
    assert {p.dtype for n, p in model.named_parameters() if "layer_expert" in n} == {torch.float32}

    model = add_lora(model, LoraOptions(r=4, alpha=8))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    gradients = router_gradients(model, batch)
    assert len(gradients) == 2 * len(model.config.text_config.routed_layers)
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())
    model.save_pretrained(str(tmp_path / "adapter"))
    model.get_base_model().model.connector.bfloat16()
    again = PeftModel.from_pretrained(load(), tmp_path / "adapter")
    assert_near(logits(again, batch), logits(model, batch), 2e-2)  # in bfloat16, by another layer


FRAMES = [
    {"cls": False},
    {"vision": "clip_vision_model"},
    {"vision": "clip_vision_model", "cls": False},
    {"pooled": None},
    {"features": True},
]


@pytest.mark.parametrize(
    ("name", "frames"),
    # routing decides about parameters of the language model, frames about those of the tower
    [*((name, {}) for name in ROUTINGS), *(("learned", frames) for frames in FRAMES), ("full", {"features": True})],
)
def test_frozen_parameters_are_those_without_gradient(name, frames):
    """DDP and FSDP then need not search for unused parameters. A gradient may be 0, but must exist."""
    frames = dict(frames)
    features = frames.pop("features", False)
    model = tiny_model(0, tiny_config(**frames, **ROUTINGS[name])).train()
    batch, _ = random_batch(model, 0, [3, 1], pixels=not features)
    model(**batch, labels=stream_labels(batch, 0)).loss.backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    freeze_unreached(model, given_features=features)
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == without


def test_frozen_modules_are_those_that_train_nothing():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "a_b": torch.nn.Linear(2, 2), "none": torch.nn.ReLU()})
    assert frozen_modules(model) is None
    model["a"].weight.requires_grad_(False)
    assert frozen_modules(model) is None
    model["a"].bias.requires_grad_(False)
    matched = [name for name, _ in model.named_modules() if re.fullmatch(frozen_modules(model), name)]
    assert matched == ["a"]


def test_keep_ratio_warms_up_from_one_or_is_drawn_from_its_range():
    warm = KeepRatioSchedule(warmup_steps=4)
    assert [warm.ratio(step, 0.2) for step in range(6)] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0.2])
    elastic = KeepRatioSchedule(elastic=[0.1, 0.9], seed=5)
    drawn = [elastic.ratio(step, 0.2) for step in range(2000)]
    assert drawn == [KeepRatioSchedule(elastic=[0.1, 0.9], seed=5).ratio(step, 0.7) for step in range(2000)]
    assert drawn[7] != KeepRatioSchedule(elastic=[0.1, 0.9], seed=6).ratio(7, 0.2)
    assert 0.1 <= min(drawn) < 0.12 and 0.88 < max(drawn) <= 0.9
    assert sum(drawn) / 2000 == pytest.approx(0.5, abs=0.02)
    both = KeepRatioSchedule(warmup_steps=10, elastic=[0.1, 0.9], seed=5)
    assert both.ratio(0, 0.2) == 1
    assert both.ratio(5, 0.2) == pytest.approx((1 + drawn[5]) / 2)
    assert both.ratio(10, 0.2) == drawn[10]


def test_each_step_runs_at_its_keep_ratio(tmp_path):
    """Every layer keeps as many tokens of a frame as the schedule says, and afterwards the model's own number."""
    model = tiny_model(1, pooled=(3, 3), mod_keep_ratio=0.2)
    schedule = KeepRatioSchedule(warmup_steps=3, elastic=[0.1, 1.0], seed=2)
    kept = []
    forward = model.model.language_model.forward
    model.model.language_model.forward = lambda **inputs: (
        (out := forward(**{**inputs, "output_router_scores": True})),
        kept.append(out.kept_indices[1].shape[1]),
    )[0]
    trainer = fit(
        tmp_path,
        model,
        StreamTrainer,
        {"keep_ratio": schedule},
        max_steps=6,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
    )
    expected = [schedule.ratio(step, 0.2) for step in range(6)]
    assert kept == [num_kept_tokens(ratio, 10) for ratio in expected for _ in range(2)]
    assert len(set(kept)) > 2
    assert [log["keep_ratio"] for log in trainer.state.log_history if "loss" in log] == expected
    assert model.keep_ratio == 0.2


def test_accumulating_four_batches_equals_one_batch_of_four_with_lora(tmp_path, root_processor):
    base, _ = saved_base(tmp_path / "base", root_processor)
    check_accumulation(tmp_path, lambda: adapted(base), StreamTrainer, gradient_checkpointing=True)


def test_several_processes_refuse_a_batch_without_frames(tmp_path, monkeypatch):
    """Otherwise they would wait for each other's gradients forever."""
    model = tiny_model(2)
    trainer = fit(tmp_path, model, StreamTrainer, max_steps=1, per_device_train_batch_size=2)
    rng = random.Random(0)
    text = {"input_ids": torch.tensor([[7, 8, rng.randrange(9, 60)]]), "labels": torch.tensor([[-100, 8, 9]])}
    assert trainer.compute_loss(model, dict(text)) > 0
    monkeypatch.setattr(type(trainer.args), "world_size", 2)
    with pytest.raises(ValueError, match="a batch without frames"):
        trainer.compute_loss(model, dict(text))


@pytest.mark.parametrize("options", [{"r": 0}, {"alpha": 1.5}, {"dropout": 1}, {"r": True}])
def test_wrong_lora_options_give_a_clear_error(options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` of `lora`"):
        LoraOptions(**options)


@pytest.fixture
def own_streams(tmp_path, monkeypatch, without_curves):
    """A small checkpoint, and a JSONL file of three streams."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    model, processor = small_model()
    save(model, processor, tmp_path / "base", torch.float32)
    lines = []
    for index in range(3):
        write_video(tmp_path / f"{index}.mp4", num_frames=16, seed=index)
        turns = [said(0.0, "Narrate.", "user"), said(1.0, "A red square appears."), said(2.5, f"It leaves {index}.")]
        lines.append({"video": f"{index}.mp4", "fps": 2.0, "turns": turns})
    write_lines(tmp_path / "streams.jsonl", lines)
    return tmp_path


def train_lora(folder: Path, name: str, streaming: bool, stage: dict) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and adapter of a run in `folder/name` on the streams there."""
    config = TrainingConfig(
        output_dir=str(folder / name),
        model=str(folder / "base"),
        data={"path": str(folder / "streams.jsonl"), "streaming": streaming},
        lora={"r": 2, "alpha": 4},
        stream_stage=stage,
        dtype="float32",
    )
    final = train(config)
    state = json.loads((folder / name / "stream" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    return losses, load_file(final / "adapter_model.safetensors")


def test_validated_run_ends_with_the_best_adapter(own_streams):
    stage = {"max_steps": 4, "per_device_train_batch_size": 1, "use_cpu": True, "disable_tqdm": True, "eval_steps": 1}
    stage |= {"learning_rate": 0.5, "load_best_model_at_end": True, "save_total_limit": 9, "augmentation": 1.0}
    config = TrainingConfig(
        output_dir=str(own_streams / "run"),
        model=str(own_streams / "base"),
        data={"path": str(own_streams / "streams.jsonl"), "validation": 0.3},
        lora={"r": 2, "alpha": 4},
        stream_stage=stage,
        dtype="float32",
    )
    final = train(config)
    state = json.loads((own_streams / "run" / "stream" / "trainer_state.json").read_text())
    evaluated = {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    best = min(evaluated, key=evaluated.get)
    assert list(evaluated) == [1, 2, 3, 4] and len(set(evaluated.values())) == 4
    checkpoint = own_streams / "run" / "stream" / f"checkpoint-{best}"
    expected = load_file(checkpoint / "adapter_model.safetensors")
    weights = load_file(final / "adapter_model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in expected.items())

    base = VideoLLMMoDForConditionalGeneration.from_pretrained(own_streams / "base", dtype=torch.float32)
    best_model = PeftModel.from_pretrained(base, checkpoint).eval()
    processor = VideoLLMMoDProcessor.from_pretrained(own_streams / "base")
    batch = StreamCollator(processor.tokenizer.pad_token_id)(
        [stream_datasets(config, processor, True)["eval_dataset"][0]]
    )
    batch |= processor.video_processor(batch.pop("frames"), return_tensors="pt")
    with torch.no_grad():  # validation data is not augmented
        assert best_model(**batch).loss.item() == pytest.approx(evaluated[best], rel=1e-4)


def test_own_streams_train_alike_with_and_without_streaming(own_streams):
    stage = {"max_steps": 3, "per_device_train_batch_size": 1, "use_cpu": True, "disable_tqdm": True}
    stage |= {
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
    }
    losses = []
    for streaming in (False, True):
        losses.append(train_lora(own_streams, f"run{streaming}", streaming, stage)[0])
    assert_near(*losses)
    assert len(set(losses[0])) == 3


@pytest.mark.parametrize("streaming", [False, True])
def test_resumed_run_equals_an_uninterrupted_one(own_streams, streaming):
    """Even after the first epoch, with truncated, packed and augmented streams."""
    stage = {"max_steps": 5, "per_device_train_batch_size": 2, "use_cpu": True, "disable_tqdm": True}
    stage |= {"logging_steps": 1, "learning_rate": 1e-2, "save_steps": 3, "save_total_limit": 8}
    stage |= {"max_tokens": 90, "packing": True, "augmentation": 0.7}
    ends = []
    for name, resumed in (("whole", None), ("resumed", 3)):
        if resumed:
            at = f"stream/checkpoint-{resumed}"
            shutil.copytree(own_streams / "whole" / at, own_streams / name / at)
        ends.append(train_lora(own_streams, name, streaming, stage))
    assert len(set(ends[0][0])) == 5
    assert_near(*ends)


def test_missing_videos_are_an_error_or_skipped(own_streams):
    (own_streams / "1.mp4").unlink()
    options = {"model": str(own_streams / "base"), "output_dir": str(own_streams / "run"), "dtype": "float32"}
    stage = {"max_steps": 2, "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    data = {"path": str(own_streams / "streams.jsonl")}
    with pytest.raises((ValueError, OSError), match="1.mp4"):
        train(TrainingConfig(**options, data=data, stream_stage=stage))
    train(TrainingConfig(**options, data={**data, "missing": "skip"}, stream_stage=stage))


def test_finetuning_example_trains(own_streams):
    arguments = [str(own_streams / "streams.jsonl"), "--output", str(own_streams / "own"), "--steps", "2", "--lora"]
    command = [sys.executable, ROOT / "examples" / "finetune.py", *arguments, "--model", own_streams / "base"]
    process = run_forked(command, cwd=own_streams)
    assert process.returncode == 0, process.stderr
    assert (own_streams / "own" / "adapter_model.safetensors").exists()
    VideoLLMMoDProcessor.from_pretrained(own_streams / "own")
    assert len((ROOT / "examples" / "finetune.py").read_text().splitlines()) <= 60


def test_aborted_step_restores_the_keep_ratio(tmp_path):
    """As with `auto_find_batch_size`, which starts again when memory runs out."""
    model, schedule = tiny_model(1, mod_keep_ratio=0.2), KeepRatioSchedule(warmup_steps=4)
    state = type("State", (), {"global_step": 0})
    schedule.on_step_begin(None, state, None, model)
    for _ in range(2):
        schedule.on_step_begin(None, state, None, model)
        schedule.on_step_end(None, state, None, model)
        assert model.keep_ratio == 0.2
