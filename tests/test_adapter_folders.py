"""Every command that takes a checkpoint also takes an adapter's folder, and merges it into its base model."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_data import small_model, write_video

from videollm_mod import VideoLLMMoDForConditionalGeneration
from videollm_mod.commands import cli
from videollm_mod.loading.checkpoint import load_checkpoint
from videollm_mod.loading.find import find_checkpoint
from videollm_mod.space.models import Models
from videollm_mod.training.adapters import LoraOptions, add_lora, merge_adapter


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`(base, adapter, merged)`, with adapter weights far from their initial values."""
    folder = tmp_path_factory.mktemp("adapters")
    base, adapter = folder / "base", folder / "adapter"
    model, processor = small_model()
    model.config.domain = "the domain of the base"
    model.save_pretrained(base)
    processor.save_pretrained(base)
    model = add_lora(VideoLLMMoDForConditionalGeneration.from_pretrained(base), LoraOptions(r=4, alpha=8))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(str(adapter))
    return base, adapter, merge_adapter(adapter, folder / "merged")


def test_narrate_and_evaluate_accept_an_adapter(folders, tmp_path, capsys, caplog):
    base, adapter, merged = folders
    video = write_video(tmp_path / "clip.mp4", 6)
    said, scores = {}, {}
    for folder in folders:
        caplog.clear()
        assert cli.main(["narrate", str(video), "--model", str(folder), "--threshold", "1", "--device", "cpu"]) == 0
        said[folder] = capsys.readouterr().out
        assert (f"{adapter} is an adapter, its base model is {base}" in caplog.text) == (folder == adapter)
        arguments = ["--task", "narration", "--streams", "1", "--model", str(folder), "--device", "cpu"]
        file = tmp_path / f"{folder.name}.json"
        assert cli.main(["evaluate", *arguments, "--json", str(file)]) == 0
        result = json.loads(file.read_text())
        scores[folder] = result["summary"]["lm_ppl"], result["model"]
        capsys.readouterr()
    assert said[adapter] == said[merged] != said[base]
    assert scores[adapter][0] == pytest.approx(scores[merged][0], rel=1e-4)
    assert scores[adapter][0] != pytest.approx(scores[base][0], rel=1e-3)
    assert len({model for _, model in scores.values()}) == 3
    assert scores[adapter][1].endswith(f" on {scores[base][1]}")


def test_space_accepts_an_adapter(folders):
    base, adapter, merged = folders
    models = [Models.load(str(folder)) for folder in (adapter, merged, base)]
    # what the adapter has learned to see is not known
    assert [model.config.domain for model in models] == [None, None, "the domain of the base"]
    found, expected = (model.lanes["mod"].state_dict() for model in models[:2])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].to(value.dtype), value, msg=name)


def test_bad_adapter_gives_one_error_line(folders, tmp_path, capsys):
    base, adapter, _ = folders
    video = write_video(tmp_path / "clip.mp4", 2)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    weights = load_file(adapter / "adapter_model.safetensors")

    def changed(name: str, lack: int = 0, cut: bool = False, **options):
        folder = tmp_path / name
        shutil.copytree(adapter, folder)
        (folder / "adapter_config.json").write_text(json.dumps(settings | options))
        save_file(dict(list(weights.items())[lack:]), folder / "adapter_model.safetensors")
        if cut:
            (folder / "adapter_model.safetensors").write_bytes(b"\0" * 100)
        return folder

    for folder, sentence in {
        changed("gone", base_model_name_or_path=f"{base}-gone"): f"is not a folder: {base}-gone",
        changed(
            "empty", base_model_name_or_path=str(tmp_path)
        ): f"holds no checkpoint: there is no config.json in {tmp_path}",
        changed("nameless", base_model_name_or_path=None): "names no base model",
        changed("other", r=8): "does not fit its base model, or is damaged",
        changed("half", lack=3): "does not fit its base model, or is damaged",
        changed("damaged", cut=True): "does not fit its base model, or is damaged",
    }.items():
        command = random.Random(sentence).choice((["narrate", str(video)], ["evaluate", "--task", "narration"]))
        assert cli.main([*command, "--model", str(folder), "--device", "cpu"]) == 2, (folder, command)
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(error) == 1 and sentence in error[0], (folder, command, error)


def test_adapter_is_found_without_loading_a_model(folders):
    base, adapter, _ = folders
    assert find_checkpoint(adapter) == (str(base), adapter)
    assert find_checkpoint(str(base)) == (str(base), None)
    model, _ = load_checkpoint(str(base), device="cpu")
    assert model.device.type == "cpu"


def test_adapter_is_not_merged_into_4bit_weights(tmp_path):
    pytest.importorskip("bitsandbytes", reason="--load-in-4bit needs bitsandbytes")
    model, processor = small_model(hidden_size=64, intermediate_size=64)  # NF4 on a CPU needs blocks of 64
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    model = add_lora(VideoLLMMoDForConditionalGeneration.from_pretrained(tmp_path / "base"), LoraOptions(r=4, alpha=8))
    model.save_pretrained(str(tmp_path / "adapter"))
    loaded, processor = load_checkpoint(tmp_path / "adapter", device="cpu", load_in_4bit=True)
    weights = {name: weight.dtype for name, weight in loaded.named_parameters()}
    assert any("lora_A" in name for name in weights) and torch.uint8 in weights.values()
    assert type(loaded) is VideoLLMMoDForConditionalGeneration
    seen = loaded.stream(processor, speak_threshold=0.0).watch(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert len(list(seen)) == 2
