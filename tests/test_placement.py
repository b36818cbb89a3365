"""Placement and execution: weights offloaded to disk, split over two processes, and with each attention implementation
of transformers. The results stay the same."""

import numpy as np
import pytest
import torch
from comparing import assert_near, assert_same_events
from fresh_process import HELPERS
from safetensors.torch import load_file, save_file
from small_data import small_model
from torchrun import torchrun

from videollm_mod import VideoLLMMoDForConditionalGeneration

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 40, 56, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """`(model, processor, folder, inputs)`."""
    folder = tmp_path_factory.mktemp("placement") / "small"
    model, processor = small_model()
    model.save_pretrained(folder)
    messages = [
        {"role": "user", "content": "A red circle"},
        {"role": "stream", "content": [{"type": "video", "video": FRAMES}]},
    ]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    return model.eval(), processor, folder, inputs


def watched(model, processor) -> list:
    session = model.stream(processor, max_new_tokens=6)
    return [*session.push(FRAMES[:3]), *session.push(FRAMES[3:]), *session.ask("What is there?")]


@torch.no_grad()
def assert_same(model, small) -> None:
    stock, processor, _, inputs = small
    assert_near(model(**inputs).logits, stock(**inputs).logits)
    assert_same_events(watched(model, processor), watched(stock, processor))


@pytest.mark.parametrize("share", [None, 0.6], ids=["all in memory", "layers on disk"])
def test_device_map_auto(small, tmp_path, share):
    stock, _, folder, _ = small
    size = sum(p.numel() * p.element_size() for p in stock.parameters())
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(
        folder,
        device_map="auto",
        max_memory=None if share is None else {"cpu": int(share * size)},
        offload_folder=tmp_path,
        dtype=torch.float32,
    )
    places = {str(place) for place in getattr(model, "hf_device_map", {"": "cpu"}).values()}
    assert places == ({"cpu"} if share is None else {"cpu", "disk"})
    on_disk = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert any("layer_expert" in name for name in on_disk) == (share is not None)
    assert_same(model.eval(), small)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_attention_implementations_agree(small, implementation):
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(
        small[2], attn_implementation=implementation, dtype=torch.float32
    )
    assert model.model.language_model.config._attn_implementation == implementation
    with torch.compiler.set_stance("force_eager"):  # compiling flex attention for a CPU takes minutes
        assert_same(model.eval(), small)


def test_model_split_over_two_processes_agrees(small, tmp_path):
    """`tp_plan="auto"` over gloo: each process holds half of each layer, and the results equal those of one."""
    model, _, folder, inputs = small
    save_file({name: value.contiguous() for name, value in inputs.items()}, tmp_path / "inputs")
    process = torchrun(HELPERS / "two_halves.py", folder, tmp_path / "inputs", tmp_path)
    assert process.returncode == 0, process.stderr
    with torch.no_grad():
        expected = model(**inputs, output_router_scores=True)
        said = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    layers = sum(p.numel() for name, p in model.named_parameters() if "language_model.layers" in name)
    for rank in range(2):
        result = load_file(tmp_path / f"{rank}.safetensors")
        assert_near(result["logits"], expected.logits)
        kept = torch.stack([layer for layer in expected.kept_indices if layer is not None])
        assert torch.equal(result["kept"], kept) and torch.equal(result["said"], said)
        assert result["held"] < 0.52 * layers
