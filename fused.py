"""Elementwise parts of a layer for training: one Triton kernel each on a GPU, plain torch everywhere else.

The intermediate results that plain torch writes here take most of the time of a training step that is neither matrix
products nor attention. A kernel reads its inputs and writes its outputs once, and computes in float32 in between.
Without gradients everything runs in plain torch, so that a stream fed in pieces equals one pass to the last digit.

Shapes: B batch, T tokens, H heads, D hidden size, I intermediate size, F frames, N vision tokens per frame.
"""

import functools
from types import SimpleNamespace

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.utils import logging

try:  # comes with torch for CUDA; elsewhere the kernels below are defined, but never run
    import triton
    import triton.language as tl

    jit = triton.jit
except ImportError:
    triton, tl, jit = None, SimpleNamespace(constexpr=None), lambda function: function

logger = logging.get_logger(__name__)

BLOCK, WARPS = 2048, 8  # elements per program: 16 bytes per thread in bfloat16


@jit
def _silu_product_kernel(gate_ptr, up_ptr, out_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    gate = tl.load(gate_ptr + at, inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, (gate * tl.sigmoid(gate) * up).to(out_ptr.dtype.element_ty), inside)


@jit
def _silu_gradients_kernel(gate_ptr, up_ptr, grad_ptr, d_gate_ptr, d_up_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    gate = tl.load(gate_ptr + at, inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + at, inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    d_gate = grad * up * (sigmoid + silu * (1 - sigmoid))
    tl.store(d_gate_ptr + at, d_gate.to(d_gate_ptr.dtype.element_ty), inside)
    tl.store(d_up_ptr + at, (grad * silu).to(d_up_ptr.dtype.element_ty), inside)


@jit
def _rotate_heads(
    source_ptr, out_ptr, row, cos, sin, H: tl.constexpr, HEAD: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    head, c = tl.arange(0, HEADS), tl.arange(0, WIDTH)
    at = (row * H + head[:, None]) * HEAD + c[None, :]
    inside = (head < H)[:, None] & (c < HEAD // 2)[None, :]
    first = tl.load(source_ptr + at, inside, other=0.0).to(tl.float32)
    second = tl.load(source_ptr + at + HEAD // 2, inside, other=0.0).to(tl.float32)
    dtype = out_ptr.dtype.element_ty
    tl.store(out_ptr + at, (first * cos - second * sin).to(dtype), inside)
    tl.store(out_ptr + at + HEAD // 2, (second * cos + first * sin).to(dtype), inside)


@jit
def _rotate_kernel(
    q_ptr, k_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr, angles, H: tl.constexpr, G: tl.constexpr,
    HEAD: tl.constexpr, Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, WIDTH: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, WIDTH)
    at = (row % angles) * HEAD + c
    cos = tl.load(cos_ptr + at, c < HEAD // 2, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + at, c < HEAD // 2, other=0.0).to(tl.float32)[None, :]
    if BACK:
        sin = -sin
    _rotate_heads(q_ptr, q_out_ptr, row, cos, sin, H, HEAD, Q_HEADS, WIDTH)
    _rotate_heads(k_ptr, k_out_ptr, row, cos, sin, G, HEAD, K_HEADS, WIDTH)


@jit
def _scores_kernel(x_ptr, rows_ptr, weight_ptr, bias_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.load(rows_ptr + tl.program_id(0))
    products = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, WIDTH, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * WIDTH + at, at < WIDTH, other=0.0).to(tl.float32)
        products += x * tl.load(weight_ptr + at, at < WIDTH, other=0.0)
    tl.store(out_ptr + tl.program_id(0), tl.sum(products, axis=0) + tl.load(bias_ptr))


@jit
def _scatter_rows_kernel(out_ptr, rows_ptr, x_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.load(rows_ptr + tl.program_id(0))
    for start in range(0, WIDTH, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + tl.program_id(0).to(tl.int64) * WIDTH + at, at < WIDTH, other=0.0)
        tl.store(out_ptr + row * WIDTH + at, x, at < WIDTH)


@jit
def _scatter_kernel(
    out_ptr, targets_ptr, numbers_ptr, x_ptr, y_ptr, factors_ptr, num_gated, D: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    slot, c = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    target, number = tl.load(targets_ptr + slot), tl.load(numbers_ptr + slot)
    y = tl.load(y_ptr + slot * D + c, c < D, other=0.0).to(tl.float32)
    if number >= 0:
        x = tl.load(x_ptr + slot * D + c, c < D, other=0.0).to(tl.float32)
        y = y * tl.load(factors_ptr + number) + x * tl.load(factors_ptr + num_gated + number)
    tl.store(out_ptr + target * D + c, y.to(out_ptr.dtype.element_ty), c < tl.where(target >= 0, D, 0))


@jit
def _scatter_gradients_kernel(
    grad_ptr, targets_ptr, numbers_ptr, x_ptr, kept_ptr, weight_ptr, factors_ptr, num_gated, dx_ptr, dy_ptr,
    d_scores_ptr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    slot, c = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    target, number = tl.load(targets_ptr + slot), tl.load(numbers_ptr + slot)
    dy = tl.load(grad_ptr + target * D + c, c < tl.where(target >= 0, D, 0), other=0.0).to(tl.float32)
    dx = tl.zeros((BLOCK,), tl.float32)
    if number >= 0:
        x = tl.load(x_ptr + slot * D + c, c < D, other=0.0).to(tl.float32)
        y = tl.load(kept_ptr + number.to(tl.int64) * D + c, c < D, other=0.0).to(tl.float32)
        slope_y = tl.load(factors_ptr + 2 * num_gated + number)
        slope_x = tl.load(factors_ptr + 3 * num_gated + number)
        d_score = tl.sum(dy * (slope_y * y + slope_x * x), axis=0)
        tl.store(d_scores_ptr + number, d_score)
        weight = tl.load(weight_ptr + c, c < D, other=0.0)
        dx = dy * tl.load(factors_ptr + num_gated + number) + d_score * weight
        dy = dy * tl.load(factors_ptr + number)
    tl.store(dx_ptr + slot * D + c, dx.to(dx_ptr.dtype.element_ty), c < D)
    tl.store(dy_ptr + slot * D + c, dy.to(dy_ptr.dtype.element_ty), c < D)


class Kernels:
    """The launchers of the kernels above. Functions of the same name below say what each computes."""

    @staticmethod
    def silu_product(gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        gate, up, count = gate.contiguous(), up.contiguous(), gate.numel()
        out = torch.empty_like(gate) if out is None else out
        _silu_product_kernel[(triton.cdiv(count, BLOCK),)](gate, up, out, count, BLOCK, num_warps=WARPS)
        return out

    @staticmethod
    def silu_gradients(gate, up, grad) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up, grad = gate.contiguous(), up.contiguous(), grad.contiguous()
        d_gate, d_up, count = torch.empty_like(gate), torch.empty_like(up), gate.numel()
        grid = (triton.cdiv(count, BLOCK),)
        _silu_gradients_kernel[grid](gate, up, grad, d_gate, d_up, count, BLOCK, num_warps=WARPS)
        return d_gate, d_up

    @staticmethod
    def rotate(queries, keys, cos, sin, back: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """With `back`, rotate by the negative angle, as gradients are."""
        queries, keys, cos, sin = (tensor.contiguous() for tensor in (queries, keys, cos, sin))
        rotated = torch.empty_like(queries), torch.empty_like(keys)
        heads, groups, head_dim = queries.shape[2], keys.shape[2], queries.shape[3]
        sizes = [triton.next_power_of_2(size) for size in (heads, groups, head_dim // 2)]
        _rotate_kernel[(queries.shape[0] * queries.shape[1],)](
            queries, keys, cos, sin, *rotated, cos.shape[0] * cos.shape[1], heads, groups, head_dim, *sizes, back
        )
        return rotated

    @staticmethod
    def scores(x: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """LayerExpert scores, float32 `[F, N]`, of the rows `rows` (`int64 [F, N]`) of `x` `[M, D]`. weight `[1, D]`
        and bias `[1]` are float32. The plain form is `LayerExpert.forward`."""
        x, rows = x.contiguous(), rows.contiguous()
        out = torch.empty(rows.shape, dtype=torch.float32, device=x.device)
        _scores_kernel[(rows.numel(),)](x, rows, weight.contiguous(), bias, out, x.shape[1], 1024)
        return out

    @staticmethod
    def scatter_rows(tokens: torch.Tensor, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        out = tokens.clone(memory_format=torch.contiguous_format)
        if rows.numel():
            _scatter_rows_kernel[(rows.numel(),)](out, rows.contiguous(), x.contiguous(), out.shape[1], 1024)
        return out

    @staticmethod
    def scatter(tokens, entered, processed, targets, numbers, factors) -> torch.Tensor:
        """The forward pass of `scatter_gated`."""
        out = tokens.clone(memory_format=torch.contiguous_format)
        block = triton.next_power_of_2(out.shape[1])
        _scatter_kernel[(len(targets),)](
            out, targets, numbers, entered.contiguous(), processed.contiguous(), factors, factors.shape[1],
            out.shape[1], block, num_warps=WARPS,
        )  # fmt: skip
        return out

    @staticmethod
    def scatter_gradients(grad, entered, kept, weight, targets, numbers, factors) -> tuple[torch.Tensor, ...]:
        """Gradients of `entered`, `processed` and the scores. `kept` `[V, D]` are the gated rows of `processed`."""
        d_entered, d_processed = torch.empty_like(entered), torch.empty_like(entered)
        d_scores, width = torch.empty_like(factors[0]), entered.shape[1]
        _scatter_gradients_kernel[(len(targets),)](
            grad.contiguous(), targets, numbers, entered, kept, weight.contiguous(), factors, factors.shape[1],
            d_entered, d_processed, d_scores, width, triton.next_power_of_2(width), num_warps=WARPS,
        )  # fmt: skip
        return d_entered, d_processed, d_scores


@functools.cache
def _kernels() -> type[Kernels] | None:
    """The kernels; None without Triton, or where it cannot compile them: it needs a C compiler."""
    if triton is None:
        return None
    try:
        one = torch.ones(1, device="cuda")
        Kernels.silu_product(one, one)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        logger.warning(f"fused kernels do not run here, so elementwise operations use plain torch: {error}")
        return None
    return Kernels


def kernels_for(*tensors: torch.Tensor) -> type[Kernels] | None:
    """The kernels if all `tensors` have one dtype and are on the current GPU, else None. They are also left out under
    `torch.compile`, which fuses by itself."""
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
    """Rotary position embedding.

    Args:
        queries, keys (`[B, T, H, head_dim]`): H may differ.
        cos, sin (`[B or 1, T, head_dim]`): of the tokens' positions.
    """
    if torch.is_grad_enabled() and kernels_for(queries, keys, cos, sin) is not None:
        return _Rotate.apply(queries, keys, cos, sin)
    # in one go, since launching operations takes most of the time of a short text
    both, cos, sin = torch.cat([queries, keys], dim=2), cos[:, :, None], sin[:, :, None]
    first, second = both.chunk(2, dim=-1)
    both = both * cos + torch.cat([-second, first], dim=-1) * sin
    return both[:, :, : queries.shape[2]], both[:, :, queries.shape[2] :]


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, keys, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _kernels().rotate(queries, keys, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx, queries, keys):
        return *_kernels().rotate(queries, keys, *ctx.saved_tensors, back=True), None, None


def scatter_rows(tokens: torch.Tensor, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """tokens `[M, D]` with the rows `rows` (`int64 [K]`) replaced by `x` `[K, D]`. It defines no gradient."""
    kernels = kernels_for(tokens, x)
    return tokens.index_copy(0, rows, x) if kernels is None else kernels.scatter_rows(tokens, rows, x)


def scatter_gated(tokens, entered, processed, weight, bias, targets, numbers, slots, factors) -> torch.Tensor:
    """Put the output of a routed layer back among all tokens, through the gate. Only the kernels do it this way;
    `Route.scatter` is the plain form.

    A gated slot gives `factors[0] * processed + factors[1] * entered`, any other slot `processed`. The factors are
    functions of the scores `entered @ weight + bias`, which receive their gradient here.

    Args:
        tokens (`[M, D]`), entered, processed (`[K, D]`): all of one dtype.
        weight (`float32 [1, D]`), bias (`float32 [1]`): of the LayerExpert.
        targets (`int64 [K]`): the row of `tokens` for each slot; -1 for an empty slot.
        numbers (`int64 [K]`): the number of each slot among the V gated ones; -1 for a slot without a gate.
        slots (`int64 [V]`): the gated slots.
        factors (`float32 [4, V]`): of `processed`, of `entered`, and the derivatives of both by the score.
    """
    return _ScatterGated.apply(tokens, entered, processed, weight, bias, targets, numbers, slots, factors)


class _ScatterGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens, entered, processed, weight, bias, targets, numbers, slots, factors):
        # a checkpoint that recomputes finds these as they are, so they need not be saved for the backward pass
        ctx.targets, ctx.numbers, ctx.slots, ctx.factors = targets, numbers, slots, factors
        ctx.save_for_backward(entered, processed.index_select(0, slots), weight)
        return _kernels().scatter(tokens, entered, processed, targets, numbers, factors)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        entered, kept, weight = ctx.saved_tensors
        d_entered, d_processed, d_scores = _kernels().scatter_gradients(
            grad, entered.contiguous(), kept, weight, ctx.targets, ctx.numbers, ctx.factors
        )
        with torch.autocast(grad.device.type, enabled=False):
            d_weight = d_scores[None] @ entered.index_select(0, ctx.slots).float() if ctx.needs_input_grad[3] else None
        return grad, d_entered, d_processed, d_weight, d_scores.sum()[None], None, None, None, None


class Enter(torch.autograd.Function):
    """Tokens `[M, D]` -> those at `index`, and all of them.

    The backward pass of plain indexing would add a tensor that is mostly zeros to the gradient of all tokens. Instead
    `Scatter` passes the gradient of all tokens on as it is, and here the rows of the entered tokens are replaced.
    """

    @staticmethod
    def forward(ctx, tokens, index, filled):
        ctx.index, ctx.filled = (index, None) if filled is None else (index[filled], filled)  # a slot may be empty
        return tokens.index_select(0, index), tokens.view_as(tokens)

    @staticmethod
    def backward(ctx, entered, tokens):
        if ctx.filled is not None:
            entered = entered.index_select(0, ctx.filled)
        return scatter_rows(tokens, ctx.index, entered), None, None


def put_back(tokens, processed, index, filled) -> torch.Tensor:
    """Tokens `[M, D]` with those at `index` (`int64 [K]`) replaced by `processed` `[K, D]`, at the slots `filled`."""
    return scatter_rows(tokens, *((index, processed) if filled is None else (index[filled], processed[filled])))


class Scatter(torch.autograd.Function):
    """`put_back`, where `Enter` took the tokens from."""

    @staticmethod
    def forward(ctx, tokens, processed, index, filled):
        # not saved as tensors for backward: a checkpoint would recompute the whole layer to get them
        ctx.index, ctx.filled, ctx.shape = index if filled is None else index[filled], filled, processed.shape
        return put_back(tokens, processed, index, filled)

    @staticmethod
    def backward(ctx, tokens):
        processed = tokens.index_select(0, ctx.index)
        if ctx.filled is not None:
            processed = tokens.new_zeros(ctx.shape).index_copy(0, ctx.filled, processed)
        return tokens, processed, None, None


__all__ = [
    "Enter",
    "Kernels",
    "Scatter",
    "kernels_for",
    "put_back",
    "rotate",
    "scatter_gated",
    "scatter_rows",
    "silu_product",
]
