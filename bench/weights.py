"""Quantised weights for `bench stream`, made by the layers that users load them into."""

import torch
from torch import nn

BITS = {"bf16": 16, "fp8": 8, "int8": 8, "nf4": 4}
BLOCK = 128  # rows and columns of a block with one scale, the default of `FineGrainedFP8Config`


def quantise(model, weights: str) -> None:
    """Quantise the layers of the language model in place, and for fp8 the head, as `from_pretrained` would with
    `FineGrainedFP8Config`, or `BitsAndBytesConfig` with nested scales.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`): on its device.
        weights (`str`): one of `geometries.WEIGHTS`; with `"bf16"` nothing is changed.

    Raises:
        `ImportError`: for int8 and nf4 without bitsandbytes.
    """
    for layer in model.model.language_model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, linear in list(block.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(block, name, quantised(linear, weights))
    if weights == "fp8":
        model.lm_head = quantised(model.lm_head, weights)


def quantised(linear: nn.Linear, weights: str) -> nn.Linear:
    """The layer with weights of that kind, made on its device."""
    if weights == "bf16":
        return linear
    return {"fp8": float8, "int8": eight_bits, "nf4": four_bits}[weights](linear)


def float8(linear: nn.Linear) -> nn.Linear:
    from transformers.integrations.finegrained_fp8 import FP8Linear

    rows, columns = linear.weight.shape
    block = (BLOCK if rows % BLOCK == 0 else rows, BLOCK if columns % BLOCK == 0 else columns)
    with torch.device("meta"):
        quantised = FP8Linear(columns, rows, block_size=block, has_bias=linear.bias is not None)
    tiles = linear.weight.data.float().unflatten(1, (-1, block[1])).unflatten(0, (-1, block[0]))
    scale = tiles.abs().amax((1, 3), keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    values = (tiles / scale).to(torch.float8_e4m3fn).flatten(0, 1).flatten(1)
    quantised.weight = nn.Parameter(values, requires_grad=False)
    quantised.weight_scale_inv = nn.Parameter(scale[:, 0, :, 0].contiguous(), requires_grad=False)
    quantised.bias = linear.bias
    return quantised


def eight_bits(linear: nn.Linear) -> nn.Linear:
    bnb, (rows, columns) = bitsandbytes(), linear.weight.shape
    options = {"has_fp16_weights": False, "device": "meta"}
    made = bnb.nn.Linear8bitLt(columns, rows, bias=linear.bias is not None, **options)
    values, scale, _ = bnb.functional.int8_vectorwise_quant(linear.weight.data.half())
    made.weight = bnb.nn.Int8Params(values, requires_grad=False, has_fp16_weights=False, CB=values, SCB=scale)
    made.bias = linear.bias
    return made


def four_bits(linear: nn.Linear) -> nn.Linear:
    bnb, (rows, columns) = bitsandbytes(), linear.weight.shape
    options = {"quant_type": "nf4", "compress_statistics": True}
    made = bnb.nn.Linear4bit(
        columns, rows, bias=linear.bias is not None, compute_dtype=linear.weight.dtype, device="meta", **options
    )
    values, state = bnb.functional.quantize_4bit(linear.weight.data, **options)
    made.weight = bnb.nn.Params4bit(values, requires_grad=False, quant_state=state, bnb_quantized=True, **options)
    made.bias = linear.bias
    return made


def bitsandbytes():
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError("--weights int8 and nf4 need bitsandbytes: pip install 'videollm-mod[quant]'") from error
    return bitsandbytes


__all__ = ["BITS", "quantise", "quantised"]
