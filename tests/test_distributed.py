"""Two processes train like one: DDP and FSDP2, the full model and LoRA, with the same configurations, over gloo."""

import json
from unittest import mock

import pytest
import torch
import yaml
from comparing import assert_near_weights
from fresh_process import HELPERS
from safetensors.torch import load_file
from torchrun import torchrun
from training_configs import STAGE, write_config
from waiting import PATIENCE

from videollm_mod import VideoLLMMoDForConditionalGeneration
from videollm_mod.data.world_data import WorldData
from videollm_mod.training import train as training
from videollm_mod.training.initialise import initialise
from videollm_mod.training.saving import save
from videollm_mod.training.train import TrainingConfig, train

SHARDED = {"fsdp": True, "fsdp_config": {"version": 2}}
KEPT_WHOLE = {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": False}}
WHOLE = {"freeze_vision_tower": False, "eval_strategy": "steps", "eval_steps": 2}
VALIDATED = {"world": {"validation": 4}}
LORA = {"lora": {"r": 4, "alpha": 8}}
CARRIED = {"max_cached_frames": 8, "backprop_windows": 3}
PAIRS, ATTENTION = (
    {"gradient_checkpointing_kwargs": {"use_reentrant": False, "recompute": recompute}}
    for recompute in ("pairs", {"attention": 1, "mlp": 2})
)
# name -> options of the config, options of its stream stage
RUNS = {
    "ddp": (VALIDATED, WHOLE),
    "ddp_lora": (LORA, PAIRS),
    "ddp_lora_carried": (LORA, ATTENTION | CARRIED),  # each process with its own number of windows
    "fsdp": (VALIDATED, SHARDED | WHOLE | PAIRS),
    "fsdp_lora": (LORA, SHARDED | ATTENTION),
    "fsdp_lora_whole": (LORA, KEPT_WHOLE),
    "fsdp_lora_bf16": (LORA | {"dtype": "bfloat16"}, SHARDED | {"bf16": True}),
}
if torch.__version__ < "2.10":  # FSDP is refused there, see tests/test_training_compat.py
    RUNS = {name: run for name, run in RUNS.items() if not name.startswith("fsdp")}
sharded = pytest.mark.skipif("fsdp" not in RUNS, reason="FSDP needs torch 2.10 or newer to clip by the right norm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of two processes in `NAME/`, and those of DDP with one process in `alone/`, `alone_lora/`, ..."""
    folder = tmp_path_factory.mktemp("distributed")
    options = yaml.safe_load(write_config(folder, "model").read_text())["model"]
    options["text_config"] |= {"num_hidden_layers": 3, "mod_layers": [0, 2], "mod_keep_ratio": 0.5}
    model, processor = initialise(options, WorldData().texts(), 400, seed=3)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "layer_expert" in name:
            torch.nn.init.normal_(parameter, std=0.3)  # so that gates and the routers' gradients are not close to 0
    save(model, processor, folder / "base", torch.float32)
    for name, (own, stage) in RUNS.items():
        stage = STAGE | {"max_steps": 2, "save_steps": 2, "gradient_checkpointing": True} | stage
        stage |= {"keep_ratio_warmup_steps": 1, "elastic_keep_ratio": [0.2, 0.6]}
        config = {"model": str(folder / "base"), "dtype": "float32", "seed": 7, **own}
        together = config | {"output_dir": str(folder / name), "stream_stage": stage}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(together))
        if name.startswith("ddp"):
            alone = stage | {"per_device_train_batch_size": 4}
            output = folder / name.replace("ddp", "alone")
            with mock.patch.object(training, "draw_curves"):  # which takes as long as the steps
                train(TrainingConfig(**config | {"output_dir": str(output), "stream_stage": alone}))
    configs = [folder / f"{name}.yaml" for name in RUNS]
    process = torchrun(HELPERS / "two_processes.py", *configs, cwd=folder, timeout=PATIENCE)
    assert process.returncode == 0, process.stdout + process.stderr
    return folder


def history(folder) -> list[dict]:
    state = json.loads((folder / "stream" / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "loss" in entry]


def seen(folder, name: str, rank: int) -> dict:
    return json.loads((folder / name / f"seen.{name}.{rank}.json").read_text())


@pytest.mark.parametrize("name", [name for name in RUNS if not name.endswith("bf16")])
def test_two_processes_train_like_one(folder, name):
    alike = "alone_lora" if "lora" in name else "alone"
    reference = folder / (name.replace("ddp", "alone") if name.startswith("ddp") else alike)
    together, alone = history(folder / name), history(reference)
    for key in ("loss", "grad_norm"):
        assert [entry[key] for entry in together] == pytest.approx([entry[key] for entry in alone], rel=1e-4)
    assert [entry["keep_ratio"] for entry in together] == [entry["keep_ratio"] for entry in alone]
    file = "adapter_model.safetensors" if "lora" in name else "model.safetensors"
    for part in ("final", "stream/checkpoint-2"):
        weights, expected = load_file(folder / name / part / file), load_file(reference / part / file)
        assert_near_weights(weights, expected)


@pytest.mark.parametrize("name", ["ddp", pytest.param("fsdp", marks=sharded)])
def test_two_processes_validate_like_one(folder, name):
    """Two batches of two equal one of four: the loss is averaged over the labels of all processes."""
    losses = []
    for run in (name, "alone"):
        state = json.loads((folder / run / "stream" / "trainer_state.json").read_text())
        losses.append([entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry])
    assert len(losses[0]) == 1 and losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("name", RUNS)
def test_every_router_learns_in_every_process(folder, name):
    for rank in range(2):
        gradients = seen(folder, name, rank)["routers"]
        assert len(gradients) == 4  # two routed layers, weight and bias
        assert all(value > 0 for value in gradients.values()), gradients


@pytest.mark.parametrize("name", RUNS)
def test_fsdp_shards_trained_parameters_and_ddp_does_not(folder, name):
    for rank in range(2):
        assert seen(folder, name, rank)["sharded"] == ["fsdp" in name]
        assert seen(folder, name, rank)["dtypes"] == ["torch.float32"]


@pytest.mark.parametrize("name", [name for name in RUNS if "lora" in name])
def test_frozen_weights_lie_whole_on_each_device_where_weights_stay_whole(folder, name):
    """Under `reshard_after_forward: false` they are never sharded, so nothing waits for them."""
    for rank in range(2):
        frozen = [name in ("fsdp_lora", "fsdp_lora_bf16")]
        assert seen(folder, name, rank)["frozen_sharded"] == frozen


@sharded
def test_half_precision_under_fsdp_is_close_to_full_precision(folder):
    half, full = history(folder / "fsdp_lora_bf16"), history(folder / "fsdp_lora")
    assert [entry["loss"] for entry in half] == pytest.approx([entry["loss"] for entry in full], rel=2e-2)
    assert [entry["loss"] for entry in half] != [entry["loss"] for entry in full]


@sharded
def test_sharded_run_ends_with_a_plain_checkpoint(folder):
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(folder / "fsdp" / "final")
    assert type(model) is VideoLLMMoDForConditionalGeneration
    config = json.loads((folder / "fsdp" / "final" / "config.json").read_text())
    assert config["architectures"] == ["VideoLLMMoDForConditionalGeneration"]
    assert (folder / "fsdp" / "final" / "modeling_videollm_mod.py").exists()
