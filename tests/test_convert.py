"""Conversion of a PEFT folder in VideoLLM-online's exact layout, compared with LoRA applied by hand."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from stock_models import save_language_model, save_tower
from transformers import AutoModelForCausalLM, AutoTokenizer

from videollm_mod import VideoLLMMoDForConditionalGeneration
from videollm_mod.commands import cli

# as in its training arguments
TARGETS = "model.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)|lm_head$"


def live_checkpoint(tmp_path, **options):
    """`(base folder, adapter folder, the PEFT model itself)`."""
    base = save_language_model(tmp_path / "base", **options)
    llm = AutoModelForCausalLM.from_pretrained(base)
    llm.connector = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 32))
    lora = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=TARGETS,
        modules_to_save=["connector"],
        lora_dropout=0.05,
        task_type="CAUSAL_LM",
    )
    live = get_peft_model(llm, lora).eval()
    for name, parameter in live.named_parameters():
        if "lora_B" in name or "connector" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    live.save_pretrained(tmp_path / "live")
    words = AutoTokenizer.from_pretrained(base)
    words.add_special_tokens({"additional_special_tokens": ["<v>"]})
    words.save_pretrained(tmp_path / "live")
    return base, tmp_path / "live", live


@torch.no_grad()
@pytest.mark.parametrize("mod", [False, True], ids=["dense", "mod"])
def test_converted_model_has_the_logits_of_the_adapter(tmp_path, mod):
    base, adapter, live = live_checkpoint(tmp_path)
    vision = save_tower(tmp_path / "vision")
    output = tmp_path / "converted"
    command = ["convert", "videollm-online", str(adapter), "--base", str(base), "--vision", str(vision)]
    command += ["--output", str(output), *(["--mod", "--keep-ratio", "1.0"] if mod else [])]
    assert cli.main(command) == 0
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(output)
    assert model.config.text_config.vision_routing == ("mod" if mod else "full")

    known = live.get_base_model().config.vocab_size
    torch.manual_seed(3)
    features = torch.randn(2, 10, 16)
    placeholder = model.config.video_token_id
    assert placeholder == known
    ids = torch.tensor(
        [[0, 40, *[placeholder] * 10, model.config.frame_separator_token_id, *[placeholder] * 10, 50, 61]]
    )
    embeds = live.get_input_embeddings()(ids.clamp(max=known - 1))  # as VideoLLM-online reads them
    embeds[ids == placeholder] = live.get_base_model().connector(features).flatten(0, 1)
    expected = live(inputs_embeds=embeds).logits
    actual = model(input_ids=ids, video_features=features).logits[..., :known]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(base)(inputs_embeds=embeds).logits
    assert (plain - expected).abs().max() > 0.1  # the adapter matters


@torch.no_grad()
def test_embeddings_tied_to_an_adapted_head_do_not_change(tmp_path):
    base, adapter, live = live_checkpoint(tmp_path, tie_word_embeddings=True)
    output = tmp_path / "converted"
    command = ["convert", "videollm-online", str(adapter), "--base", str(base), "--output", str(output)]
    assert cli.main([*command, "--vision", str(save_tower(tmp_path / "vision"))]) == 0
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(output)
    ids = torch.randint(5, 200, (2, 11))
    expected = live(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids).logits[..., : expected.shape[-1]], expected, rtol=1e-4, atol=1e-4)


def test_other_adapter_layouts_are_refused(tmp_path, capsys):
    base, adapter, _ = live_checkpoint(tmp_path)
    vision = save_tower(tmp_path / "vision")

    def error(*arguments: str) -> str:
        command = ["convert", "videollm-online", str(adapter), "--base", str(base), "--vision", str(vision)]
        capsys.readouterr()
        assert cli.main([*command, "--output", str(tmp_path / "out"), *arguments]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert error("--keep-ratio", "0.5") == "error: `mod_keep_ratio` needs `mod`: a dense model has no routed layers"
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    assert "is not a plain LoRA" in error()
    (adapter / "adapter_config.json").unlink()
    assert "no adapter_config.json" in error()
