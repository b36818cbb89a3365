"""The undocumented interfaces that `training/compat.py` uses still exist, and nothing else uses undocumented ones."""

import re

import pytest
import torch
from fresh_process import ROOT
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from transformers import TrainingArguments

from videollm_mod.data.processes import process_state
from videollm_mod.training.compat import change_class, check_sharded_norms, is_plain, train_on_one_gpu

GONE = "{} took away what training/compat.py leans on: {}; mend that module, and name the version there"


def adapted(**options) -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    return get_peft_model(model, LoraConfig(target_modules=["0"], init_lora_weights=False, **options))


def layer_of(model) -> Linear:
    return next(module for module in model.modules() if isinstance(module, Linear))


def test_transformers_still_has_what_compat_uses(tmp_path, monkeypatch):
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    before = arguments.n_gpu
    monkeypatch.setattr(arguments, "_n_gpu", before + 3)
    assert arguments.n_gpu == before + 3, GONE.format("transformers", "TrainingArguments._n_gpu")
    train_on_one_gpu(arguments)
    assert arguments.n_gpu == 1 and arguments.train_batch_size == arguments.per_device_train_batch_size


@pytest.mark.parametrize(("options", "plain"), [({}, True), ({"use_dora": True}, False), ({"lora_bias": True}, False)])
def test_peft_still_has_what_compat_uses(options, plain):
    model = adapted(**options)
    layer = layer_of(model)
    for name in ("lora_variant", "lora_bias"):
        assert hasattr(layer, name), GONE.format("peft", f"Linear.{name}")
    assert type(layer) is Linear, GONE.format("peft", "layers of the class Linear")
    assert is_plain(layer, "default") == plain, GONE.format("peft", "how a layer tells a variant or a bias")
    assert not is_plain(layer, "another")
    x = torch.randn(2, 4)
    expected = model(x)

    class Twice(Linear):
        def forward(self, x, *args, **kwargs):
            return 2 * super().forward(x, *args, **kwargs)

    change_class(model, Linear, Twice)
    torch.testing.assert_close(model(x), 2 * expected)


@pytest.mark.parametrize(
    ("version", "max_grad_norm", "refused"),
    [("2.9.1", 1.0, True), ("2.8.0", 0.5, True), ("2.8.0", 0.0, False), ("2.10.0", 1.0, False)],
)
def test_sharded_gradients_are_not_clipped_by_a_wrong_norm(version, max_grad_norm, refused, monkeypatch):
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)(version))
    if not refused:
        return check_sharded_norms(max_grad_norm)
    with pytest.raises(ValueError, match=f"torch 2.10 or newer.*{version}.*DDP"):
        check_sharded_norms(max_grad_norm)


# Of a Trainer, its arguments, accelerate or peft: anything private, and what is public only in a helper's module.
PRIVATE = re.compile(
    r"super\(\)\._(?!_)|\b(trainer|args|arguments|self\.args|accelerator|plugin|state)\._(?!_)"
    r"|parse_flag_from_env|lora_variant|lora_bias|__class__ ="
)


def test_training_uses_private_api_only_in_compat():
    files = [*(ROOT / "training").glob("*.py"), ROOT / "evaluation" / "evaluate.py", ROOT / "data" / "extract.py"]
    found = [
        f"{file.name}:{number}: {line.strip()}"
        for file in files
        if file.name != "compat.py"
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if PRIVATE.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(("said", "on_cpu"), [("true", True), ("1", True), ("0", False), ("", False)])
def test_accelerate_cpu_flag_is_respected(monkeypatch, said, on_cpu):
    made = []
    monkeypatch.setattr("videollm_mod.data.processes.PartialState", lambda **options: made.append(options))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", said)
    process_state(timeout=3)
    process_state(on_cpu=True)
    assert made == [{"cpu": on_cpu, "timeout": 3}, {"cpu": True}]
