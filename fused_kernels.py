"""Elementwise parts of a training step as Triton kernels; `fused` says what each does, in plain torch.

Each reads its inputs and writes its outputs once, and computes in float32 in between.
"""

import torch

try:  # comes with torch for CUDA; whoever loads the model without it never gets here, but its loader reads this
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("fused kernels need Triton: pip install triton") from error

BLOCK, WARPS = 2048, 8  # numbers a program: 16 bytes a thread in bfloat16


@triton.jit
def _silu_product_kernel(gate_ptr, up_ptr, out_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    gate = tl.load(gate_ptr + at, inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, (gate * tl.sigmoid(gate) * up).to(out_ptr.dtype.element_ty), inside)


@triton.jit
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


@triton.jit
def _turn(source_ptr, out_ptr, row, cos, sin, H: tl.constexpr, HEAD: tl.constexpr, HEADS: tl.constexpr,
          WIDTH: tl.constexpr):  # fmt: skip
    head, c = tl.arange(0, HEADS), tl.arange(0, WIDTH)
    at = (row * H + head[:, None]) * HEAD + c[None, :]
    inside = (head < H)[:, None] & (c < HEAD // 2)[None, :]
    first = tl.load(source_ptr + at, inside, other=0.0).to(tl.float32)
    second = tl.load(source_ptr + at + HEAD // 2, inside, other=0.0).to(tl.float32)
    dtype = out_ptr.dtype.element_ty
    tl.store(out_ptr + at, (first * cos - second * sin).to(dtype), inside)
    tl.store(out_ptr + at + HEAD // 2, (second * cos + first * sin).to(dtype), inside)


@triton.jit
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
    _turn(q_ptr, q_out_ptr, row, cos, sin, H, HEAD, Q_HEADS, WIDTH)
    _turn(k_ptr, k_out_ptr, row, cos, sin, G, HEAD, K_HEADS, WIDTH)


@triton.jit
def _scores_kernel(x_ptr, rows_ptr, weight_ptr, bias_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.load(rows_ptr + tl.program_id(0))
    products = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, WIDTH, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * WIDTH + at, at < WIDTH, other=0.0).to(tl.float32)
        products += x * tl.load(weight_ptr + at, at < WIDTH, other=0.0)
    tl.store(out_ptr + tl.program_id(0), tl.sum(products, axis=0) + tl.load(bias_ptr))


@triton.jit
def _put_rows_kernel(out_ptr, rows_ptr, x_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.load(rows_ptr + tl.program_id(0))
    for start in range(0, WIDTH, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + tl.program_id(0).to(tl.int64) * WIDTH + at, at < WIDTH, other=0.0)
        tl.store(out_ptr + row * WIDTH + at, x, at < WIDTH)


@triton.jit
def _leave_kernel(
    out_ptr, targets_ptr, numbers_ptr, x_ptr, y_ptr, factors_ptr, num_gated, D: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    slot, c = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    target, number = tl.load(targets_ptr + slot), tl.load(numbers_ptr + slot)
    y = tl.load(y_ptr + slot * D + c, c < D, other=0.0).to(tl.float32)
    if number >= 0:
        x = tl.load(x_ptr + slot * D + c, c < D, other=0.0).to(tl.float32)
        y = y * tl.load(factors_ptr + number) + x * tl.load(factors_ptr + num_gated + number)
    tl.store(out_ptr + target * D + c, y.to(out_ptr.dtype.element_ty), (c < D) & (target >= 0))


@triton.jit
def _leave_gradients_kernel(
    grad_ptr, targets_ptr, numbers_ptr, x_ptr, kept_ptr, weight_ptr, factors_ptr, num_gated, dx_ptr, dy_ptr,
    d_scores_ptr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    slot, c = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    target, number = tl.load(targets_ptr + slot), tl.load(numbers_ptr + slot)
    dy = tl.load(grad_ptr + target * D + c, (c < D) & (target >= 0), other=0.0).to(tl.float32)
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


def silu_product(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    gate, up = gate.contiguous(), up.contiguous()
    out, count = torch.empty_like(gate), gate.numel()
    _silu_product_kernel[(triton.cdiv(count, BLOCK),)](gate, up, out, count, BLOCK, num_warps=WARPS)
    return out


def silu_gradients(gate: torch.Tensor, up: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    gate, up, grad = gate.contiguous(), up.contiguous(), grad.contiguous()
    d_gate, d_up, count = torch.empty_like(gate), torch.empty_like(up), gate.numel()
    _silu_gradients_kernel[(triton.cdiv(count, BLOCK),)](gate, up, grad, d_gate, d_up, count, BLOCK, num_warps=WARPS)
    return d_gate, d_up


def rotate(queries, keys, cos, sin, back: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """queries, keys `[B, T, heads, head_dim]`; cos, sin `[B or 1, T, head_dim]`; `back` turns the other way."""
    queries, keys, cos, sin = (tensor.contiguous() for tensor in (queries, keys, cos, sin))
    turned = torch.empty_like(queries), torch.empty_like(keys)
    heads, groups, head_dim = queries.shape[2], keys.shape[2], queries.shape[3]
    sizes = [triton.next_power_of_2(size) for size in (heads, groups, head_dim // 2)]
    _rotate_kernel[(queries.shape[0] * queries.shape[1],)](
        queries, keys, cos, sin, *turned, cos.shape[0] * cos.shape[1], heads, groups, head_dim, *sizes, back
    )
    return turned


def scores(x: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """float32 `[F, N]`: those of rows `rows` (`int64 [F, N]`) of `x` `[M, D]`; weight `[1, D]` and bias in float32."""
    x, rows = x.contiguous(), rows.contiguous()
    out = torch.empty(rows.shape, dtype=torch.float32, device=x.device)
    _scores_kernel[(rows.numel(),)](x, rows, weight.contiguous(), bias, out, x.shape[1], 1024)
    return out


def put_rows(tokens: torch.Tensor, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    out = tokens.clone(memory_format=torch.contiguous_format)
    if rows.numel():
        _put_rows_kernel[(rows.numel(),)](out, rows.contiguous(), x.contiguous(), out.shape[1], 1024)
    return out


def leave(passing, entered, processed, targets, numbers, factors) -> torch.Tensor:
    """As `fused.leave_gated`, with `targets` -1 in empty slots."""
    out = passing.clone(memory_format=torch.contiguous_format)
    block = triton.next_power_of_2(out.shape[1])
    _leave_kernel[(len(targets),)](
        out, targets, numbers, entered.contiguous(), processed.contiguous(), factors, factors.shape[1], out.shape[1],
        block, num_warps=WARPS,
    )  # fmt: skip
    return out


def leave_gradients(grad, entered, kept, weight, targets, numbers, factors) -> tuple[torch.Tensor, ...]:
    """Of `entered`, `processed` and the scores; `kept` `[V, D]` are the gated rows of `processed`."""
    d_entered, d_processed = torch.empty_like(entered), torch.empty_like(entered)
    d_scores, width = torch.empty_like(factors[0]), entered.shape[1]
    _leave_gradients_kernel[(len(targets),)](
        grad.contiguous(), targets, numbers, entered, kept, weight.contiguous(), factors, factors.shape[1], d_entered,
        d_processed, d_scores, width, triton.next_power_of_2(width), num_warps=WARPS,
    )  # fmt: skip
    return d_entered, d_processed, d_scores


__all__ = ["leave", "leave_gradients", "put_rows", "rotate", "scores", "silu_gradients", "silu_product"]
