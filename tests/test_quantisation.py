"""Weights in 8 and 4 bit with bitsandbytes: only some layers are quantised, and the checkpoint still narrates."""

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
from fresh_process import ROOT
from small_data import small_model
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDModel, VideoLLMMoDProcessor
from videollm_mod.data.world import world_stream

CONFIGS = {
    "8 bit": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}
LAYER = {"8 bit": bnb.nn.Linear8bitLt, "nf4": bnb.nn.Linear4bit}


def load(cls, path, name: str, dtype=torch.bfloat16, **options):
    """Load without naming modules to skip."""
    config = BitsAndBytesConfig(**CONFIGS[name])
    return cls.from_pretrained(path, quantization_config=config, device_map={"": "cpu"}, dtype=dtype, **options).eval()


@pytest.mark.parametrize("cls", [VideoLLMMoDForConditionalGeneration, VideoLLMMoDModel])
@pytest.mark.parametrize("name", CONFIGS)
def test_only_language_model_layers_are_quantised(tmp_path, name, cls):
    small_model()[0].save_pretrained(tmp_path)
    quantised, plain = load(cls, tmp_path, name), cls.from_pretrained(tmp_path, dtype=torch.bfloat16)
    weights, kinds = dict(plain.named_parameters()), set()
    for path, module in quantised.named_modules():
        if isinstance(module, LAYER[name]):
            assert "language_model.layers." in path and path.endswith("_proj")
            kinds.add(path.split(".")[-1])
        elif isinstance(module, nn.Linear):
            assert module.weight.dtype == (torch.float32 if "layer_expert" in path else torch.bfloat16), path
            assert torch.equal(module.weight, weights[f"{path}.weight"])
    assert kinds == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert sum("layer_expert" in path for path, _ in quantised.named_modules()) == 2
    assert quantised.get_memory_footprint() < plain.get_memory_footprint()


@pytest.mark.parametrize("name", CONFIGS)
def test_users_own_skip_list_is_kept(tmp_path, name):
    small_model()[0].save_pretrained(tmp_path)
    cls = VideoLLMMoDForConditionalGeneration
    config = CONFIGS[name] | {"llm_int8_skip_modules": ["model.language_model", "lm_head"]}
    model = cls.from_pretrained(tmp_path, quantization_config=config, device_map={"": "cpu"})  # a dict works too
    assert isinstance(model.model.connector.linear_1, LAYER[name])
    assert type(model.model.language_model.layers[0].mlp.up_proj) is nn.Linear
    assert config["llm_int8_skip_modules"] == ["model.language_model", "lm_head"]


@pytest.mark.parametrize("name", CONFIGS)
def test_quantised_checkpoint_narrates_the_same(name):
    """With the Auto class and the repository's code, and frames pushed together or one by one."""
    model = load(AutoModelForImageTextToText, ROOT, name, trust_remote_code=True)
    processor, stream = VideoLLMMoDProcessor.from_pretrained(ROOT), world_stream(7)
    third = stream.narrations[2][0]
    times = [time for time in stream.frame_times(fps=2.0).tolist() if time <= third]
    frames = stream.frames(fps=2.0)[: len(times)]
    together, single = model.stream(processor), model.stream(processor)
    said = together.push(frames, times)
    assert [(event.time, event.text) for event in said] == stream.narrations[:3]
    few = sum(time <= said[1].time for time in times)  # few enough to be quick
    alone = [e for i in range(few) for e in single.push(frames[i : i + 1], times[i : i + 1])]
    assert [(e.time, e.text) for e in alone] == [(e.time, e.text) for e in said[:2]]


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_quantised_model_is_saved_and_loaded(tmp_path, name, qk_norm):
    model, processor = small_model(hidden_size=64, intermediate_size=64, qk_norm=qk_norm)  # NF4 needs blocks of 64
    model.save_pretrained(tmp_path / "plain")
    quantised = load(VideoLLMMoDForConditionalGeneration, tmp_path / "plain", name)
    quantised.save_pretrained(tmp_path / "few")
    again = VideoLLMMoDForConditionalGeneration.from_pretrained(tmp_path / "few", device_map={"": "cpu"}).eval()
    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), dtype=np.uint8)
    messages = [{"role": "stream", "content": [{"type": "video", "video": frames}]}]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, quantised(**inputs).logits)
        assert not torch.equal(quantised(**inputs).logits, model.bfloat16()(**inputs).logits)
