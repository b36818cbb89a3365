"""Static steps read quantised weights as they lie in memory, and equal the model with dense copies of them."""

import copy
import os
from types import SimpleNamespace

import bitsandbytes as bnb
import pytest
import torch
from comparing import assert_near, assert_same_cache
from test_static_step import needs_triton
from tiny_models import START, VIDEO, tiny_model
from torch import nn

from videollm_mod.bench.geometries import WEIGHTS
from videollm_mod.bench.weights import eight_bits, float8, four_bits, quantise
from videollm_mod.cache import MoDCache
from videollm_mod.static_graphs import (
    ModelGuard,
    StaticLanguageModel,
    _why_not_dtype,
    _why_not_llama,
    _why_not_plain,
    is_quantised,
)
from videollm_mod.static_step import PlainOps
from videollm_mod.weights import Chip, StoredWeight, dense_weight, stored_weight

SIZE = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def quantised_model(weights: str, seed: int = 0):
    """A model whose layers are quantised, and one with dense copies of the same weights."""
    small = tiny_model(seed, **SIZE, num_hidden_layers=4)
    dense = copy.deepcopy(small)
    for model in (small, dense):
        quantise(model, weights)
    for block in [dense, *(m for layer in dense.model.language_model.layers for m in (layer.self_attn, layer.mlp))]:
        for name, linear in list(block.named_children()):
            if is_quantised(linear):
                setattr(block, name, dense_copy(linear))
    return small, dense


def dense_copy(quantised: nn.Module) -> nn.Linear:
    linear = nn.Linear(quantised.in_features, quantised.out_features, bias=False)
    linear.weight.data = stored_weight(quantised).dense(torch.float32)
    return linear


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_weights_in_4_bits_are_read_as_bitsandbytes_reads_them(kind, nested):
    options = {"quant_type": kind, "compress_statistics": nested, "requires_grad": False}
    quantised = bnb.nn.Linear4bit(128, 96)
    quantised.weight = bnb.nn.Params4bit(torch.randn(96, 128), **options).to("cpu")
    expected = bnb.functional.dequantize_4bit(quantised.weight.data, quantised.weight.quant_state)
    stored = stored_weight(quantised)
    assert torch.equal(stored.dense(torch.float32), expected) and stored_weight(quantised) is stored
    quantised.weight = bnb.nn.Params4bit(torch.randn(96, 128), **options).to("cpu")
    assert not torch.equal(stored_weight(quantised).dense(torch.float32), expected)


def test_weights_in_8_bits_are_read_before_and_after_the_first_use():
    linear = nn.Linear(128, 64)
    quantised, step = eight_bits(linear), linear.weight.abs().amax(1, keepdim=True) / 127
    for _ in range(2):  # bitsandbytes rounds to float16 before it rounds to 255 steps
        error = (stored_weight(quantised).dense(torch.float32) - linear.weight).abs()
        assert (error <= 0.5 * step + linear.weight.abs() * 2**-10).all()
        quantised(torch.randn(2, 128))


@pytest.mark.parametrize("shape", [(256, 384), (96, 200)])
def test_float8_in_blocks_is_read_as_the_layer_defines_it(shape):
    linear = nn.Linear(*shape[::-1], bias=False)
    quantised = float8(linear)
    stored, (rows, columns) = stored_weight(quantised), quantised.block_size
    expected = quantised.weight.float()
    for row in range(0, shape[0], rows):
        for column in range(0, shape[1], columns):
            scale = quantised.weight_scale_inv[row // rows, column // columns]
            expected[row : row + rows, column : column + columns] *= scale
    assert torch.equal(stored.dense(torch.float32), expected)
    assert (expected - linear.weight).norm() < 0.04 * linear.weight.norm()  # there are 3 bits of mantissa
    quantised.block_size, quantised.weight_scale_inv.data = None, torch.tensor(0.5)
    assert torch.equal(stored_weight(copy.deepcopy(quantised)).dense(torch.float32), 0.5 * quantised.weight.float())


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
    uneven = four_bits(nn.Linear(96, 64, bias=False))  # blocks of 64 numbers do not end with a row
    assert stored_weight(uneven) is None and not is_quantised(uneven)
    narrow = float8(nn.Linear(96, 64, bias=False))  # tensor cores take 32 columns of float8 at a time
    narrow.block_size, narrow.weight_scale_inv.data = (64, 48), torch.ones(1, 2)
    assert stored_weight(narrow) is None
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


@torch.no_grad()
def test_steps_in_plain_torch_equal_dense_copies():
    model, dense = quantised_model("nf4")  # the other kinds' own layers round the tokens as well, or need a GPU
    assert_equal(fed(model, PlainOps), fed(dense, PlainOps))


@needs_triton
@pytest.mark.parametrize("weights", WEIGHTS[1:])
@pytest.mark.parametrize("name", ["Kernels", "CublasKernels"])
@torch.no_grad()
def test_steps_by_kernels_equal_dense_copies(monkeypatch, weights, name):
    kernels = pytest.importorskip("videollm_mod.static_kernels")
    monkeypatch.setattr(kernels, "MOST_SLOTS", 4)  # of routed layers; others need dense copies beside cuBLAS
    model, dense = quantised_model(weights)
    if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        model, dense = model.to("cuda"), dense.to("cuda")
    assert_equal(fed(model, getattr(kernels, name)), fed(dense, PlainOps))


def on_device():
    return "cuda" if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1" else "cpu"


def product_by_kernels(monkeypatch, stored: StoredWeight, y: torch.Tensor) -> torch.Tensor:
    """`y @ w`, as the down projection of a step computes it."""
    kernels = pytest.importorskip("videollm_mod.static_kernels")
    rows, columns = stored.values.shape[0], y.shape[1]
    monkeypatch.setattr("videollm_mod.weights.stored_weight", lambda linear: stored)
    layer = SimpleNamespace(mlp=SimpleNamespace(down_proj=nn.Linear(columns, rows, bias=False)))
    x = y.new_zeros(len(y), rows)
    if stored.code is not None:  # as the operation before it writes its input
        y = torch.cat([y[:, ::2], y[:, 1::2]], dim=1)
    kernels.Kernels.mlp_down(y, layer, torch.zeros_like(x), x, None, None)
    return x


@needs_triton
@pytest.mark.parametrize("shape", [(256, 384), (72, 192)])
@pytest.mark.parametrize("weights", WEIGHTS[1:])
def test_dense_copies_by_the_kernel_equal_those_in_plain_torch(weights, shape):
    linear = nn.Linear(*shape[::-1], bias=False)
    quantised = {"fp8": float8, "int8": eight_bits, "nf4": four_bits}[weights](linear).to(on_device())
    for dtype in (torch.float32, torch.bfloat16)[: 1 + (on_device() == "cuda")]:  # the interpreter cuts bfloat16 off
        assert torch.equal(dense_weight(quantised, dtype), stored_weight(quantised).dense(dtype))


@needs_triton
@torch.no_grad()
def test_no_scale_is_read_beyond_a_row(monkeypatch):
    """A program reads more columns at a time than these rows have; what lies behind the last scale is no number."""
    scale = torch.rand(128, device=on_device())
    scale[64:] = float("nan")
    values = torch.randint(-127, 128, (64, 192), dtype=torch.int8, device=on_device())
    stored, y = StoredWeight(values, scale[:64, None], 1, 192), torch.randn(3, 192, device=on_device())
    assert_near(product_by_kernels(monkeypatch, stored, y), y @ stored.dense(torch.float32).t())


@needs_triton
@pytest.mark.parametrize("weights", WEIGHTS[1:])
@torch.no_grad()
def test_products_in_bfloat16_are_as_exact_as_bfloat16(monkeypatch, weights):
    """Twice, since programs that share columns count how many are done; with a token that has an outlier, and one that
    is zero."""
    if weights != "int8" and on_device() == "cpu":
        pytest.skip("Triton's interpreter carries no rounding of float8 into the exponent, and multiplies no bfloat16")
    linear = nn.Linear(1152, 192, bias=False).bfloat16()
    stored = stored_weight({"fp8": float8, "int8": eight_bits, "nf4": four_bits}[weights](linear).to(on_device()))
    y = torch.randn(11, 1152, device=on_device())
    y[3, 5], y[4] = 100, 0
    y = y.bfloat16()
    exact = y.float() @ stored.dense(torch.float32).t()
    for _ in range(2):
        made = product_by_kernels(monkeypatch, stored, y).float()
        error = (made - exact).norm(dim=1) / exact.norm(dim=1).clamp(min=1e-9)
        assert error.max() < 5e-3, error


@needs_triton
@torch.no_grad()
def test_float8_is_read_by_its_bits_on_older_gpus(monkeypatch):
    """All numbers that are finite, below compute capability 8.9."""
    monkeypatch.setattr("videollm_mod.weights.chip", lambda device: Chip(80, 96 * 1024))
    codes = torch.arange(256, dtype=torch.uint8, device=on_device()).view(torch.float8_e4m3fn)
    values = codes[codes.float().isfinite()][torch.randint(254, (64, 256), device=on_device())]
    y, scale = torch.randn(3, 256, device=on_device()), torch.rand(1, 1, device=on_device())
    stored = StoredWeight(values, scale, 64, 256)
    assert_near(product_by_kernels(monkeypatch, stored, y), y @ stored.dense(torch.float32).t())
