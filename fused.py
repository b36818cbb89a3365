"""Elementwise parts of a layer: one kernel each where a gradient is wanted on a GPU with Triton, else plain torch.

What plain torch writes in between is most of a training step's time that is neither a product nor attention. Without a
gradient everything is plain torch, so that a stream in pieces stays what it is in one pass to the last digit.

Shapes: B batch, T tokens, H heads, D hidden size, I intermediate size, F frames, N vision tokens per frame.
"""

import functools
import sys

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.utils import logging

logger = logging.get_logger(__name__)


@functools.cache
def _kernels():
    """None where there are none, or where they cannot be compiled: Triton needs a C compiler."""
    try:  # in the form that those who load code from a hub follow to its file
        from .fused_kernels import leave
    except ImportError:
        return None
    kernels = sys.modules[leave.__module__]
    try:
        one = torch.ones(1, device="cuda")
        kernels.silu_product(one, one)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        logger.warning(f"elementwise parts are left to plain torch, their kernels do not run: {error}")
        return None
    return kernels


def kernels_for(*tensors: torch.Tensor):
    """The kernels, if all `tensors` are on the current GPU and of one dtype; else None. A compiler fuses by itself."""
    if torch.compiler.is_compiling():
        return None
    first = tensors[0]
    alike = all(tensor.device == first.device and tensor.dtype == first.dtype for tensor in tensors)
    return _kernels() if alike and first.is_cuda and first.get_device() == torch.cuda.current_device() else None


def silu_product(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up`."""
    if torch.is_grad_enabled() and kernels_for(gate, up) is not None:
        return _SiluProduct.apply(gate, up)
    return nn.functional.silu(gate) * up


class _SiluProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return _kernels().silu_product(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return _kernels().silu_gradients(*ctx.saved_tensors, grad)


def rotate(queries, keys, cos, sin) -> tuple[torch.Tensor, torch.Tensor]:
    """queries, keys (`[B, T, H, head_dim]`, each its own H), cos, sin (`[B or 1, T, head_dim]`) of their positions."""
    if torch.is_grad_enabled() and kernels_for(queries, keys, cos, sin) is not None:
        return _Rotate.apply(queries, keys, cos, sin)
    return apply_rotary_pos_emb(queries, keys, cos, sin, unsqueeze_dim=2)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, keys, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _kernels().rotate(queries, keys, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx, queries, keys):
        return *_kernels().rotate(queries, keys, *ctx.saved_tensors, back=True), None, None


def put_rows(tokens: torch.Tensor, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """tokens `[M, D]` with `x` `[K, D]` at `rows` (`int64 [K]`). It has no gradient of its own."""
    kernels = kernels_for(tokens, x)
    return tokens.index_copy(0, rows, x) if kernels is None else kernels.put_rows(tokens, rows, x)


def leave_gated(passing, entered, processed, weight, bias, targets, numbers, slots, factors) -> torch.Tensor:
    """`passing` with `factors[0] * processed + factors[1] * entered`, or where a slot has no number `processed`, at
    `targets`; the factors are functions of the scores `entered @ weight + bias`, which get their gradient. It is there
    only where kernels are; `Route.leave` says the same in plain torch.

    Args:
        passing (`[M, D]`), entered, processed (`[K, D]`): tokens of one dtype.
        weight (`float32 [1, D]`), bias (`float32 [1]`): of the scores.
        targets (`int64 [K]`): row of `passing` of each slot, -1 where it holds no token.
        numbers (`int64 [K]`): of each slot that is gated, among V of them; -1 for others. slots (`int64 [V]`): these.
        factors (`float32 [4, V]`): of `processed`, of `entered`, and their derivatives by the score.
    """
    return _LeaveGated.apply(passing, entered, processed, weight, bias, targets, numbers, slots, factors)


class _LeaveGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, passing, entered, processed, weight, bias, targets, numbers, slots, factors):
        # what is not saved for backward here is the same when a checkpoint recomputes
        ctx.targets, ctx.numbers, ctx.slots, ctx.factors = targets, numbers, slots, factors
        ctx.save_for_backward(entered, processed.index_select(0, slots), weight)
        return _kernels().leave(passing, entered, processed, targets, numbers, factors)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        entered, kept, weight = ctx.saved_tensors
        d_entered, d_processed, d_scores = _kernels().leave_gradients(
            grad, entered.contiguous(), kept, weight, ctx.targets, ctx.numbers, ctx.factors
        )
        with torch.autocast(grad.device.type, enabled=False):
            d_weight = d_scores[None] @ entered.index_select(0, ctx.slots).float() if ctx.needs_input_grad[3] else None
        return grad, d_entered, d_processed, d_weight, d_scores.sum()[None], None, None, None, None


__all__ = ["kernels_for", "leave_gated", "put_rows", "rotate", "silu_product"]
