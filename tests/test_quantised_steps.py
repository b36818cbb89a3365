"""Static steps read quantised weights as they lie in memory, and equal the model with dense copies of them."""

import copy
import os

import bitsandbytes as bnb
import pytest
import torch
from comparing import assert_near, assert_same_cache
from test_static_step import needs_triton
from tiny_models import START, VIDEO, tiny_model
from torch import nn
from transformers.integrations.finegrained_fp8 import FP8Linear

from videollm_mod.cache import MoDCache
from videollm_mod.compat import stored_weight
from videollm_mod.static_graphs import ModelGuard, _why_not_dtype, _why_not_llama, _why_not_plain, is_quantised
from videollm_mod.static_step import PlainOps, StaticLanguageModel

SIZE = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def four_bits(linear: nn.Linear, kind: str = "nf4", nested: bool = True) -> nn.Module:
    rows, columns = linear.weight.shape
    options = {"quant_type": kind, "compress_statistics": nested}
    quantised = bnb.nn.Linear4bit(columns, rows, bias=linear.bias is not None, compute_dtype=torch.float32, **options)
    quantised.weight = bnb.nn.Params4bit(linear.weight.data.clone(), requires_grad=False, **options)
    return quantised.to("cpu")


def eight_bits(linear: nn.Linear) -> nn.Module:
    rows, columns = linear.weight.shape
    quantised = bnb.nn.Linear8bitLt(columns, rows, bias=linear.bias is not None, has_fp16_weights=False)
    quantised.weight = bnb.nn.Int8Params(linear.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
    return quantised.to("cpu")


def blocks_of_float8(linear: nn.Linear, block: tuple[int, int] | None = (32, 64)) -> nn.Module:
    """As `FineGrainedFP8Config` makes it, whose own function needs a GPU."""
    rows, columns = linear.weight.shape
    quantised = FP8Linear(columns, rows, block_size=block, has_bias=linear.bias is not None)
    height, width = block or (rows, columns)
    tiles = linear.weight.data.unflatten(1, (-1, width)).unflatten(0, (-1, height))
    scale = tiles.abs().amax((1, 3)) / 448
    quantised.weight.data = (tiles / scale[:, None, :, None]).flatten(0, 1).flatten(1).to(torch.float8_e4m3fn)
    quantised.weight_scale_inv.data = scale if block else scale.squeeze()
    quantised.requires_grad_(False)
    return quantised


KINDS = {"nf4": four_bits, "8 bit": eight_bits, "float8 in blocks": blocks_of_float8}


def quantised_model(kind: str, seed: int = 0):
    """A model whose layers are quantised, and one with dense copies of the same weights."""
    small = tiny_model(seed, **SIZE, num_hidden_layers=4)
    dense = copy.deepcopy(small)
    for model, make in ((small, lambda quantised: quantised), (dense, dense_copy)):
        for layer in model.model.language_model.layers:
            for block in (layer.self_attn, layer.mlp):
                for name, linear in list(block.named_children()):
                    if isinstance(linear, nn.Linear):
                        setattr(block, name, make(KINDS[kind](linear)))
    return small, dense


def dense_copy(quantised: nn.Module) -> nn.Linear:
    stored = stored_weight(quantised)
    linear = nn.Linear(quantised.in_features, quantised.out_features, bias=False)
    linear.weight.data = stored.dense(torch.float32)
    return linear


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_weights_in_4_bits_are_read_as_bitsandbytes_reads_them(kind, nested):
    quantised = four_bits(nn.Linear(128, 96), kind, nested)
    expected = bnb.functional.dequantize_4bit(quantised.weight.data, quantised.weight.quant_state)
    stored = stored_weight(quantised)
    assert torch.equal(stored.dense(torch.float32), expected) and stored_weight(quantised) is stored
    quantised.weight = four_bits(nn.Linear(128, 96), kind, nested).weight  # such as `load_state_dict` puts another
    assert not torch.equal(stored_weight(quantised).dense(torch.float32), expected)


def test_weights_in_8_bits_are_read_before_and_after_the_first_use():
    linear = nn.Linear(128, 64)
    quantised, step = eight_bits(linear), linear.weight.abs().amax(1, keepdim=True) / 127
    for _ in range(2):  # bitsandbytes rounds to float16 before it rounds to 255 steps
        error = (stored_weight(quantised).dense(torch.float32) - linear.weight).abs()
        assert (error <= 0.5 * step + linear.weight.abs() * 2**-10).all()
        quantised(torch.randn(2, 128))


@pytest.mark.parametrize("block", [(32, 64), None])
def test_float8_in_blocks_is_read_as_the_layer_defines_it(block):
    linear = nn.Linear(192, 96)
    stored = stored_weight(blocks_of_float8(linear, block))
    assert stored.scale.shape == ((3, 3) if block else (1, 1))
    error = (stored.dense(torch.float32) - linear.weight).norm() / linear.weight.norm()
    assert error < 0.04  # float8_e4m3fn has 3 bits of mantissa


def test_weights_of_torchao_are_read():
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    for config in (torchao.Float8WeightOnlyConfig(), torchao.Int8WeightOnlyConfig()):
        linear = nn.Sequential(nn.Linear(128, 64)).bfloat16()
        torchao.quantize_(linear, config)
        assert torch.equal(stored_weight(linear[0]).dense(torch.bfloat16), linear[0].weight.dequantize())
        guard = ModelGuard([linear], [linear])
        assert guard.holds()
        torchao.quantize_(other := nn.Sequential(nn.Linear(128, 64)).bfloat16(), config)
        linear[0].weight = other[0].weight
        assert not guard.holds()


def test_what_cannot_be_read_is_told():
    uneven = four_bits(nn.Linear(96, 64))  # blocks of 64 numbers do not end with a row
    assert stored_weight(uneven) is None and not is_quantised(uneven)
    model, _ = quantised_model("nf4")
    language, parts = model.model.language_model, [model.model.language_model, model.model.connector, model.lm_head]
    quantised = [module for module in language.modules() if is_quantised(module)]
    assert len(quantised) == 7 * 4
    assert not (_why_not_plain(parts, quantised) or _why_not_llama(language) or _why_not_dtype(model, quantised))
    attention = language.layers[1].self_attn
    attention.k_proj = eight_bits(nn.Linear(128, 64, bias=False))
    assert _why_not_llama(language) == "weights that are read together are stored in different ways"
    attention.k_proj = four_bits(nn.Linear(96, 64, bias=False))
    assert _why_not_plain(parts, quantised) == "a layer is Linear4bit"


def fed(model, ops):
    """Static steps of text and a frame, of frames of two streams, and of a frame and text with all its logits."""
    features = torch.randn(2, 1, 5, 16, generator=torch.Generator().manual_seed(0)).to(model.device)
    frame = [START, *[VIDEO] * 5]
    static, caches = StaticLanguageModel(model, ops), [MoDCache(model.config) for _ in range(2)]
    results = static.feed_together([(caches[0], [7, 8, 9, *frame], features[0])], None)
    results += static.feed_together([(cache, frame, own) for cache, own in zip(caches, features, strict=True)], None)
    results += static.feed_together([(caches[0], [*frame, 8, 9], features[1])], None, after=[2])
    return results, caches


def assert_equal(made, expected):
    for result, other in zip(made[0], expected[0], strict=True):
        assert_near(result.logits, other.logits)
        assert_near(result.silence, other.silence)
    for cache, other in zip(made[1], expected[1], strict=True):
        assert_same_cache(cache, other)


@pytest.mark.parametrize("kind", ["nf4"])  # the others' own layers round the tokens as well, or need a GPU
@torch.no_grad()
def test_steps_in_plain_torch_equal_dense_copies(kind):
    model, dense = quantised_model(kind)
    assert_equal(fed(model, PlainOps), fed(dense, PlainOps))


@needs_triton
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["Kernels", "CublasKernels"])
@torch.no_grad()
def test_steps_by_kernels_equal_dense_copies(kind, name):
    kernels = pytest.importorskip("videollm_mod.static_kernels")
    model, dense = quantised_model(kind)
    if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        model, dense = model.to("cuda"), dense.to("cuda")
    assert_equal(fed(model, getattr(kernels, name)), fed(dense, PlainOps))
