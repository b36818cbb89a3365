"""The operations of a static step as Triton kernels; `static_step.PlainOps` says what each computes, in plain torch.

A step of few tokens reads all weights once and computes almost nothing, so at best it takes the time of reading them.
For that there are few small kernels in between, and no processor is idle while keys are read: eight kernels a layer,
and one more where it is routed. Rotary embedding, activation, gate and scatter are folded into the ends of the
projections; attention is split along the keys and then combined. Normalisation has its own kernel: folded into a
projection, every program would repeat it, which takes longer than a launch.

Where keys and values are, and how many, is read from a table on the device, so that one captured graph serves every
stream at every length. A step of several streams has equally many slots for each, one stream after the other, and a
row of the table for each.

Steps of many tokens (`CublasKernels`) leave the products to cuBLAS.
"""

from typing import Any

import torch
from torch import nn

from .fused import Kernels as Elementwise
from .routing import GATE_STRENGTH
from .weights import (
    dense_weight,
    is_apart,
    place,
    product,
    read,
    rounded_up,
    rows_of,
    starting,
    stored_weight,
    tokens,
    wait_for_inputs,
)

try:  # comes with torch for CUDA; without it nothing imports this module, but a loader of remote code reads it
    import triton
    import triton.language as tl
    from triton.language import constexpr
except ImportError as error:
    raise ImportError("static steps need Triton: pip install triton") from error

# A stream's row of a layer's table, int64: addresses of keys, values and positions (0 to 2), tokens held (3), capacity
# (4), what to add to a token's number in the step to get its position (5), tokens or slots of this step to write (6),
# and in a mixed step tokens of a frame to keep (7). In rows that fill up the step all are 0.
WIDTH = constexpr(8)  # of a row
SPLITS = 16  # of the keys; times 8 key-value heads they are as many as an H100 has processors
KEYS_AT_ONCE = (64, 4, 3)  # of a split, warps, stages
# for the kernel that scores and ranks the tokens of a frame: columns at a time for frames of up to 16 tokens, warps.
# It is one program with nothing beside it, so its time is the latency of its loads unless they are issued together
ROUTE = (2048, 16)
# for the probability of a token, one program for each row: logits at a time, warps
PROBABILITY = (16384, 32)
MOST_SLOTS = 64


@triton.jit
def _rotate_and_store(
    first, second, head, c, m, index_ptr, table_ptr, cos_ptr, sin_ptr, q_ptr, rows, each, H: constexpr, G: constexpr,
    HEAD: constexpr, HAS_INDEX: constexpr, MANY: constexpr,
):  # fmt: skip
    """Columns `c` of both halves of a head of slots `m`, as projected. Queries and keys are rotated; queries go into
    `q_ptr`, keys and values behind those that their stream holds."""
    HALF: constexpr = HEAD // 2
    tokens = m.to(tl.int64)
    if HAS_INDEX:
        tokens = tl.load(index_ptr + m, m < rows, other=0)
    inside = (m < rows)[:, None]
    dtype = q_ptr.dtype.element_ty
    if head < H + G:
        at = tokens[:, None] * HEAD + c[None, :]
        cos = tl.load(cos_ptr + at, inside, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + at, inside, other=0.0).to(tl.float32)
        first, second = first * cos - second * sin, second * cos + first * sin
    if head < H:
        at = q_ptr + (m[:, None].to(tl.int64) * H + head) * HEAD + c[None, :]
        tl.store(at, first.to(dtype), inside)
        tl.store(at + HALF, second.to(dtype), inside)
    else:
        row, number = table_ptr, m  # of its stream, and of the slot within it
        if MANY:
            row, number = table_ptr + tl.minimum(m, rows - 1) // each * WIDTH, m % each
        held, is_new = tl.load(row + 3), (number < tl.load(row + 6)) & (m < rows)
        address, own = tl.load(row + 0), head - H
        if head >= H + G:
            address, own = tl.load(row + 1), head - H - G
        buffer = tl.multiple_of(address.to(tl.pointer_type(dtype)), 256)
        at = (buffer + (own * tl.load(row + 4) + held + number) * HEAD)[:, None] + c[None, :]
        tl.store(at, first.to(dtype), is_new[:, None])
        tl.store(at + HALF, second.to(dtype), is_new[:, None])
        if (head == H) & (tl.min(c, axis=0) == 0):  # positions are written once
            positions = tl.load(row + 2).to(tl.pointer_type(tl.int64))
            tl.store(positions + held + number, tl.load(row + 5) + tokens, is_new)


@triton.jit
def _qkv_kernel(
    x_ptr, x_scale_ptr, times, index_ptr, table_ptr, wq_ptr, wk_ptr, wv_ptr, sq_ptr, sk_ptr, sv_ptr, code_ptr,
    partial_ptr, done_ptr, bq_ptr, bk_ptr, bv_ptr, cos_ptr, sin_ptr, q_ptr, rows, each, length, H: constexpr, G:
    constexpr, HEAD: constexpr, HAS_INDEX: constexpr, HAS_BIAS: constexpr, MANY: constexpr, M: constexpr, N: constexpr,
    K: constexpr, BITS: constexpr, SPLIT: constexpr, SN: constexpr, SK: constexpr, PARTS: constexpr, DECODE: constexpr,
    SHARES: constexpr, EARLY: constexpr,
):  # fmt: skip
    """x: the slots' tokens, normalised. A program takes N / 2 columns of the first half of a head, and those that are
    rotated with them."""
    HALF: constexpr = HEAD // 2
    EACH: constexpr = N // 2
    BLOCKS: constexpr = HALF // EACH
    head, block = tl.program_id(0) // BLOCKS, tl.program_id(0) % BLOCKS
    w_ptr, s_ptr, b_ptr, own = wq_ptr, sq_ptr, bq_ptr, head
    if head >= H + G:
        w_ptr, s_ptr, b_ptr, own = wv_ptr, sv_ptr, bv_ptr, head - H - G
    elif head >= H:
        w_ptr, s_ptr, b_ptr, own = wk_ptr, sk_ptr, bk_ptr, head - H
    i, m = tl.arange(0, N), tl.arange(0, M)
    n = own * HEAD + block * EACH + i % EACH + i // EACH * HALF
    w, scale = rows_of(w_ptr, s_ptr, n, length, BITS, SN, SK)
    total, is_last = product(
        x_ptr, x_scale_ptr, times, rows, length, w, n < (own + 1) * HEAD, scale, code_ptr, partial_ptr, done_ptr, M, N,
        K, BITS, SPLIT, SK, PARTS, DECODE, SHARES, EARLY,
    )  # fmt: skip
    if not is_last:
        return
    if HAS_BIAS:
        total += tl.load(b_ptr + n).to(tl.float32)[None, :]
    first, second = tl.split(tl.permute(tl.reshape(total, (M, 2, EACH)), (0, 2, 1)))
    _rotate_and_store(
        first, second, head, block * EACH + tl.arange(0, EACH), m, index_ptr, table_ptr, cos_ptr, sin_ptr, q_ptr, rows,
        each, H, G, HEAD, HAS_INDEX, MANY,
    )  # fmt: skip


@triton.jit
def _rotate_kernel(
    q_ptr, k_ptr, v_ptr, index_ptr, table_ptr, cos_ptr, sin_ptr, rows, each, H: constexpr, G: constexpr,
    HEAD: constexpr, HAS_INDEX: constexpr, MANY: constexpr, M: constexpr, EARLY: constexpr,
):  # fmt: skip
    """The second half of `_qkv_kernel`, after the projections; queries are rotated in place."""
    wait_for_inputs(EARLY)
    HALF: constexpr = HEAD // 2
    head, c = tl.program_id(1), tl.arange(0, HALF)
    m = tl.program_id(0) * M + tl.arange(0, M)
    source, own, num = q_ptr, head, H
    if head >= H + G:
        source, own, num = v_ptr, head - H - G, G
    elif head >= H:
        source, own, num = k_ptr, head - H, G
    at = source + (m[:, None].to(tl.int64) * num + own) * HEAD + c[None, :]
    first = tl.load(at, (m < rows)[:, None], other=0.0).to(tl.float32)
    second = tl.load(at + HALF, (m < rows)[:, None], other=0.0).to(tl.float32)
    _rotate_and_store(
        first, second, head, c, m, index_ptr, table_ptr, cos_ptr, sin_ptr, q_ptr, rows, each, H, G, HEAD, HAS_INDEX,
        MANY,
    )  # fmt: skip


@triton.jit
def _attend_kernel(
    q_ptr, table_ptr, part_ptr, max_ptr, sum_ptr, rows, each, blocks, scaling, H: constexpr, G: constexpr,
    HEAD: constexpr, R: constexpr, K: constexpr, EARLY: constexpr,
):  # fmt: skip
    """Attention of a block of R queries to one split of the keys of one key-value head of one stream."""
    wait_for_inputs(EARLY)
    SHARE: constexpr = H // G  # queries of a slot that read one key-value head
    group, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    stream, block = tl.program_id(2) // blocks, tl.program_id(2) % blocks
    table_ptr += stream * WIDTH
    r = block * R + tl.arange(0, R)
    slot, head = r // SHARE, group * SHARE + r % SHARE  # the slot within its stream
    d = tl.arange(0, HEAD)
    dtype = q_ptr.dtype.element_ty
    # buffers begin at a multiple of 256 bytes and hold a multiple of 64 tokens, which allows wide reads
    held, capacity = tl.load(table_ptr + 3), tl.multiple_of(tl.load(table_ptr + 4), 64)
    length = held + tl.load(table_ptr + 6)
    keys = tl.multiple_of(tl.load(table_ptr + 0).to(tl.pointer_type(dtype)), 256) + group * capacity * HEAD
    values = tl.multiple_of(tl.load(table_ptr + 1).to(tl.pointer_type(dtype)), 256) + group * capacity * HEAD
    row, is_slot = (stream * each + slot) * H + head, slot < each
    q = tl.load(q_ptr + row[:, None] * HEAD + d[None, :], is_slot[:, None], other=0.0)
    peak = tl.full((R,), float("-inf"), tl.float32)
    total = tl.zeros((R,), tl.float32)
    part = tl.zeros((R, HEAD), tl.float32)
    share = tl.cdiv(tl.cdiv(length, splits), K) * K
    begin = split * share
    end = tl.minimum(tl.minimum(begin + share, length), held + (block * R + R - 1) // SHARE + 1)
    for start in range(begin, end, K):
        j = start + tl.arange(0, K)
        inside = j < length
        k = tl.load(keys + j[None, :] * HEAD + d[:, None], inside[None, :], other=0.0)
        scores = tl.dot(q, k, input_precision="ieee") * (scaling * 1.4426950408889634)
        scores = tl.where((j[None, :] <= held + slot[:, None]) & inside[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - anchor[:, None])
        shrink = tl.exp2(peak - anchor)
        v = tl.load(values + j[:, None] * HEAD + d[None, :], inside[:, None], other=0.0)
        part = tl.dot(weights.to(dtype), v, part * shrink[:, None], input_precision="ieee")
        total = total * shrink + tl.sum(weights, axis=1)
        peak = higher
    at = split * rows + row
    tl.store(part_ptr + at[:, None] * HEAD + d[None, :], part, is_slot[:, None])
    tl.store(max_ptr + at, peak, is_slot)
    tl.store(sum_ptr + at, total, is_slot)


@triton.jit
def _combine_kernel(
    part_ptr, max_ptr, sum_ptr, out_ptr, rows, splits, H: constexpr, HEAD: constexpr, S: constexpr, APART: constexpr,
    EARLY: constexpr,
):  # fmt: skip
    """Combine the splits of one query and head; 0 where there is no key, as in streams that fill up the step. APART:
    see `place`."""
    wait_for_inputs(EARLY)
    row, s, d = tl.program_id(0), tl.arange(0, S), tl.arange(0, HEAD)
    peak = tl.load(max_ptr + s * rows + row, s < splits, other=float("-inf"))
    highest = tl.max(peak, axis=0)
    weight = tl.exp2(peak - tl.where(highest == float("-inf"), 0.0, highest))
    total = tl.sum(weight * tl.load(sum_ptr + s * rows + row, s < splits, other=0.0), axis=0)
    at = part_ptr + (s[:, None] * rows + row) * HEAD + d[None, :]
    part = tl.load(at, ((s < splits) & (weight > 0))[:, None], other=0.0)
    out = tl.sum(part * weight[:, None], axis=0) / tl.where(total > 0, total, 1.0)
    at = row // H * H * HEAD + place(row % H * HEAD + d, H * HEAD, APART)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty))


@triton.jit
def _add_kernel(
    y_ptr, y_scale_ptr, times, w_ptr, s_ptr, code_ptr, partial_ptr, done_ptr, b_ptr, residual_ptr, x_ptr, index_ptr,
    scale_ptr, rows, length, num_n, FROM_X: constexpr, HAS_INDEX: constexpr, HAS_BIAS: constexpr, M: constexpr, N:
    constexpr, K: constexpr, BITS: constexpr, SPLIT: constexpr, SN: constexpr, SK: constexpr, PARTS: constexpr, DECODE:
    constexpr, SHARES: constexpr, EARLY: constexpr,
):  # fmt: skip
    """FROM_X: `residual = x[index] + y @ w`. Otherwise
    `x[index] = scale[0] * (residual + y @ w) + scale[1] * x[index]`."""
    n, m = tl.program_id(0) * N + tl.arange(0, N), tl.arange(0, M)
    w, scale = rows_of(w_ptr, s_ptr, n, length, BITS, SN, SK)
    first, is_last = product(
        y_ptr, y_scale_ptr, times, rows, length, w, n < num_n, scale, code_ptr, partial_ptr, done_ptr, M, N, K,
        BITS, SPLIT, SK, PARTS, DECODE, SHARES, EARLY,
    )  # fmt: skip
    if not is_last:
        return
    mask = (m < rows)[:, None] & (n < num_n)[None, :]
    tokens = m.to(tl.int64)
    if HAS_INDEX:
        tokens = tl.load(index_ptr + m, m < rows, other=0)
    if HAS_BIAS:
        first += tl.load(b_ptr + n, n < num_n, other=0.0).to(tl.float32)[None, :]
    x_at = x_ptr + tokens[:, None] * num_n + n[None, :]
    residual_at = residual_ptr + m[:, None] * num_n + n[None, :]
    if FROM_X:
        first += tl.load(x_at, mask, other=0.0).to(tl.float32)
        tl.store(residual_at, first.to(residual_ptr.dtype.element_ty), mask)
    else:
        first += tl.load(residual_at, mask, other=0.0).to(tl.float32)
        if HAS_INDEX:
            times_y = tl.load(scale_ptr + m, m < rows, other=1.0)
            times_x = tl.load(scale_ptr + rows + m, m < rows, other=0.0)
            first = first * times_y[:, None] + times_x[:, None] * tl.load(x_at, mask, other=0.0).to(tl.float32)
        tl.store(x_at, first.to(x_ptr.dtype.element_ty), mask)


@triton.jit
def _project_kernel(
    x_ptr, x_scale_ptr, times, w_ptr, w2_ptr, s_ptr, s2_ptr, code_ptr, partial_ptr, done_ptr, out_ptr, rows, length,
    num_n, GATED: constexpr, M: constexpr, N: constexpr, K: constexpr, BITS: constexpr, SPLIT: constexpr, SN:
    constexpr, SK: constexpr, PARTS: constexpr, DECODE: constexpr, SHARES: constexpr, EARLY: constexpr, APART:
    constexpr,
):  # fmt: skip
    """out = x @ w, or GATED: silu(x @ w) * (x @ w2), of which a program takes N / 2 columns. APART: see `place`."""
    EACH: constexpr = N // 2 if GATED else N
    i, m = tl.arange(0, N), tl.arange(0, M)
    n = tl.program_id(0) * EACH + i % EACH
    w, scale = rows_of(w_ptr, s_ptr, n, length, BITS, SN, SK)
    if GATED:
        w2, scale2 = rows_of(w2_ptr, s2_ptr, n, length, BITS, SN, SK)
        w, scale = tl.where(i < EACH, w, w2), tl.where(i < EACH, scale, scale2)
    out, is_last = product(
        x_ptr, x_scale_ptr, times, rows, length, w, n < num_n, scale, code_ptr, partial_ptr, done_ptr, M, N, K,
        BITS, SPLIT, SK, PARTS, DECODE, SHARES, EARLY,
    )  # fmt: skip
    if not is_last:
        return
    if GATED:
        gate, up = tl.split(tl.permute(tl.reshape(out, (M, 2, EACH)), (0, 2, 1)))
        out = gate * tl.sigmoid(gate) * up
    n = tl.program_id(0) * EACH + tl.arange(0, EACH)
    at = out_ptr + m[:, None].to(tl.int64) * num_n + place(n, num_n, APART)[None, :]
    tl.store(at, out.to(out_ptr.dtype.element_ty), (m < rows)[:, None] & (n < num_n)[None, :])


@triton.jit
def _probability_kernel(
    logits_ptr, probability_ptr, token, SIZE: constexpr, K: constexpr, EARLY: constexpr,
):  # fmt: skip
    """The softmax of one row at one token. Each of K lanes has its own maximum and sum."""
    wait_for_inputs(EARLY)
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * SIZE
    peak = tl.full((K,), float("-inf"), tl.float32)
    total = tl.zeros((K,), tl.float32)
    for start in tl.static_range(0, SIZE, K):
        k = start + tl.arange(0, K)
        x = tl.load(logits_ptr + k, k < SIZE, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(peak, x)
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(peak - anchor) + tl.exp(x - anchor)
        peak = higher
    highest = tl.max(peak, axis=0)
    total = tl.sum(total * tl.exp(peak - highest), axis=0)
    own = tl.load(logits_ptr + token).to(tl.float32)
    tl.store(probability_ptr + row, tl.exp(own - highest) / total)


@triton.jit
def _route_kernel(
    x_ptr, w_ptr, b_ptr, index_ptr, scale_ptr, scores_ptr, kept_ptr, counts_ptr, slots, before, per_frame, num_kept,
    each, apart, STRENGTH: constexpr, GATE: constexpr, FORCE_LAST: constexpr, MIXED: constexpr, SIZE: constexpr,
    P: constexpr, K: constexpr, EARLY: constexpr,
):  # fmt: skip
    """For one frame, after `before` tokens of text: the scores, the `num_kept` highest (ties go to the lower index),
    and their slots. MIXED: a stream, which has `each` frames, keeps its own number of tokens, from `counts_ptr`, where
    those of two streams are so far `apart`; see `static_step.write_slots`."""
    wait_for_inputs(EARLY)
    frame, i = tl.program_id(0), tl.arange(0, P)
    count, first = num_kept, frame * (before + num_kept)
    if MIXED:
        count = tl.load(counts_ptr + frame // each * apart).to(tl.int32)
        of_stream = frame // each * each * (before + num_kept)
        first = of_stream + frame % each * (before + count)
    token = frame * (before + per_frame) + before + i
    own = i < per_frame
    bias = tl.load(b_ptr).to(tl.float32)
    products = tl.zeros((P, K), tl.float32)
    for start in tl.static_range(0, SIZE, K):  # unrolled and summed once at the end, so that loads are issued together
        k = start + tl.arange(0, K)
        x = tl.load(x_ptr + token[:, None] * SIZE + k[None, :], own[:, None] & (k < SIZE)[None, :], other=0.0)
        w = tl.load(w_ptr + k, k < SIZE, other=0.0).to(tl.float32)
        products += x.to(tl.float32) * w[None, :]
    scores = tl.sum(products, axis=1) + bias
    priority = tl.where(own, scores, float("-inf"))
    if FORCE_LAST:
        priority = tl.where(i == per_frame - 1, float("inf"), priority)
    tl.store(scores_ptr + frame * per_frame + i, scores, own)
    higher = (priority[None, :] > priority[:, None]) | (
        (priority[None, :] == priority[:, None]) & (i[None, :] < i[:, None])
    )
    rank = tl.sum((higher & own[None, :]).to(tl.int32), axis=1)
    is_kept = own & (rank < count)
    slot = tl.cumsum(is_kept.to(tl.int32), axis=0) - 1
    fits = is_kept & (slot < count)  # NaN has no order
    at = first + before + slot
    tl.store(index_ptr + at, token.to(tl.int64), fits)
    tl.store(kept_ptr + frame * num_kept + slot, i.to(tl.int64), fits)
    if GATE == 1:
        gate = STRENGTH * (2.0 * tl.sigmoid(2.0 * scores) - 1.0)
        tl.store(scale_ptr + at, 1.0 + gate, fits)
        tl.store(scale_ptr + slots + at, -gate, fits)
    elif GATE == 2:
        tl.store(scale_ptr + at, tl.sigmoid(scores), fits)
    if MIXED:  # slots may have been others in the step before
        if GATE == 0:
            tl.store(scale_ptr + at, tl.full((P,), 1.0, tl.float32), fits)
        if GATE != 1:
            tl.store(scale_ptr + slots + at, tl.zeros((P,), tl.float32), fits)
        tl.store(index_ptr + first + i, (token - before).to(tl.int64), i < before)
        tl.store(scale_ptr + first + i, tl.full((P,), 1.0, tl.float32), i < before)
        tl.store(scale_ptr + slots + first + i, tl.zeros((P,), tl.float32), i < before)
        is_other = own & (fits == 0)
        number = tl.cumsum(is_other.to(tl.int32), axis=0) - 1
        is_other = is_other & (number < num_kept - count)
        at = of_stream + each * (before + count) + frame % each * (num_kept - count) + number
        tl.store(index_ptr + at, token.to(tl.int64), is_other)
        tl.store(kept_ptr + frame * num_kept + count + number, i.to(tl.int64), is_other)
        tl.store(scale_ptr + at, tl.zeros((P,), tl.float32), is_other)
        tl.store(scale_ptr + slots + at, tl.full((P,), 1.0, tl.float32), is_other)


class Kernels:
    """As `PlainOps`, for at most `MOST_SLOTS`. Instead of caches, bases and counts it reads `table`, the rows of one
    layer in the table on the device, int64 `[streams, 8]`."""

    reads_table = True

    @staticmethod
    def route(x, layer, shape, index, scale, scores, kept, gate: str, force_last: bool, counts=None) -> None:
        frames, per_frame, num_kept = shape
        expert, width, padded = layer.layer_expert, x.shape[1], rounded_up(per_frame)
        columns, warps = ROUTE
        _route_kernel[(frames,)](
            x, expert.weight, expert.bias, index, scale, scores, kept, counts, index.shape[0],
            len(x) // frames - per_frame, per_frame, num_kept,
            frames if counts is None else frames // len(counts), 1 if counts is None else counts.stride(0),
            STRENGTH=GATE_STRENGTH, GATE={"none": 0, "residual": 1, "output": 2}[gate], FORCE_LAST=force_last,
            MIXED=counts is not None, SIZE=width, P=padded, K=min(max(64, columns * 16 // padded), rounded_up(width)),
            num_warps=warps, **starting(x.device),
        )  # fmt: skip

    @staticmethod
    def project_qkv(x, index, layer, rotary, queries, table, bases, counts) -> None:
        attention, (rows, heads, head_dim) = layer.self_attn, queries.shape
        if attention.config.qk_norm:  # which comes between the two parts of this kernel
            return CublasKernels.project_qkv(x, index, layer, rotary, queries, table, bases, counts)
        parts = attention.q_proj, attention.k_proj, attention.v_proj
        groups = parts[1].out_features // head_dim
        rows_of_all = (heads + 2 * groups) * head_dim
        grid, pointers, options = read("qkv", x, rows, rows_of_all, *parts, within=head_dim)
        biases = [pointers[0] if part.bias is None else part.bias for part in parts]
        _qkv_kernel[grid](
            *tokens(x, index, layer.input_layernorm, parts[0]), index, table, *pointers, *biases, *rotary, queries,
            rows, rows // len(table), H=heads, G=groups, HEAD=head_dim, HAS_INDEX=index is not None,
            HAS_BIAS=parts[0].bias is not None, MANY=len(table) > 1, **options,
        )  # fmt: skip

    @staticmethod
    def _is_own(slots: int, *linears) -> bool:
        """Whether our own products read these weights."""
        return True

    @classmethod
    def attend(cls, queries, layer, table, counts, out) -> None:
        slots, heads, head_dim = queries.shape
        groups, streams = layer.self_attn.k_proj.out_features // head_dim, len(table)
        each, output = slots // streams, layer.self_attn.o_proj
        apart = cls._is_own(slots, output) and is_apart(output)
        block = min(64, rounded_up(each * heads // groups))
        blocks = triton.cdiv(each * heads // groups, block)
        splits, (keys, warps, stages) = max(1, SPLITS // (blocks * streams)), KEYS_AT_ONCE
        keys = min(keys, max(16, keys * 256 // (head_dim * queries.element_size())))
        part = queries.new_empty((splits, slots * heads, head_dim), dtype=torch.float32)
        peak, total = (queries.new_empty((splits, slots * heads), dtype=torch.float32) for _ in range(2))
        _attend_kernel[(groups, splits, blocks * streams)](
            queries, table, part, peak, total, slots * heads, each, blocks, layer.self_attn.scaling, H=heads, G=groups,
            HEAD=head_dim, R=block, K=keys, num_warps=warps, num_stages=stages, **starting(queries.device),
        )  # fmt: skip
        _combine_kernel[(slots * heads,)](
            part, peak, total, out, slots * heads, splits, H=heads, HEAD=head_dim, S=rounded_up(splits, 1),
            APART=apart, num_warps=4, **starting(queries.device),
        )  # fmt: skip

    @staticmethod
    def _add(name, y, linear, residual, x, index, scale, from_x: bool) -> None:
        rows, num_n = len(y), linear.out_features
        grid, pointers, options = read(name, y, rows, num_n, linear)
        _add_kernel[grid](
            *tokens(y, None, None, linear), *pointers, linear.bias, residual, x, index, scale, rows,
            num_n=num_n, FROM_X=from_x, HAS_INDEX=index is not None, HAS_BIAS=linear.bias is not None, **options,
        )  # fmt: skip

    @classmethod
    def project_out(cls, attended, layer, x, index, residual) -> None:
        cls._add("out", attended, layer.self_attn.o_proj, residual, x, index, None, True)

    @staticmethod
    def _project(name, x, index, norm, out, linear, second=None, apart: bool = False) -> None:
        """out: `x @ w` of normalised slots, or of two weights `silu(x @ w) * (x @ w2)`."""
        (slots, num_n), both = out.shape, second is not None
        grid, pointers, options = read(name, x, slots, num_n * (1 + both), linear, second or linear)
        _project_kernel[grid](
            *tokens(x, index, norm, linear), *pointers, out, slots, num_n=num_n, GATED=both, APART=apart, **options
        )

    @classmethod
    def mlp_up(cls, residual, layer, intermediate) -> None:
        norm, mlp = layer.post_attention_layernorm, layer.mlp
        apart = is_apart(mlp.down_proj)
        cls._project("mlp_up", residual, None, norm, intermediate, mlp.gate_proj, mlp.up_proj, apart)

    @classmethod
    def mlp_down(cls, intermediate, layer, residual, x, index, scale) -> None:
        cls._add("mlp_down", intermediate, layer.mlp.down_proj, residual, x, index, scale, False)

    @classmethod
    def lm_head(cls, x, rows, model, logits) -> None:
        cls._project("lm_head", x, rows, model.model.language_model.norm, logits, model.lm_head)

    @staticmethod
    def token_probability(logits, token: int, probability) -> None:
        size = logits.shape[1]
        _probability_kernel[(len(logits),)](
            logits, probability, token, SIZE=size, K=min(PROBABILITY[0], rounded_up(size)), num_warps=PROBABILITY[1],
            **starting(logits.device),
        )  # fmt: skip


class CublasKernels(Kernels):
    """As `Kernels`, for any number of slots: cuBLAS computes the products. Of quantised weights it needs dense copies,
    so where slots are few, as in routed layers, and for the head, our own products read these."""

    @staticmethod
    def _is_own(slots: int, *linears) -> bool:
        stored: Any = map(stored_weight, linears)  # all known, as `why_not` has seen
        return slots <= MOST_SLOTS and all(weight.scale is not None for weight in stored)

    @classmethod
    def project_qkv(cls, x, index, layer, rotary, queries, table, bases, counts) -> None:
        attention, (rows, heads, head_dim) = layer.self_attn, queries.shape
        parts = attention.q_proj, attention.k_proj, attention.v_proj
        if cls._is_own(rows, *parts) and not attention.config.qk_norm:
            return super().project_qkv(x, index, layer, rotary, queries, table, bases, counts)
        normed = layer.input_layernorm(x if index is None else x[index])
        torch.mm(normed, dense_weight(attention.q_proj, x.dtype).t(), out=queries.view(rows, -1))
        if attention.q_proj.bias is not None:
            queries.view(rows, -1).add_(attention.q_proj.bias)
        keys, values = (nn.functional.linear(normed, dense_weight(part, x.dtype), part.bias) for part in parts[1:])
        groups = keys.shape[1] // head_dim
        if attention.config.qk_norm:
            queries.copy_(attention.q_norm(queries))
            keys = attention.k_norm(keys.view(rows, groups, head_dim))
        _rotate_kernel[(triton.cdiv(rows, 16), heads + 2 * groups)](
            queries, keys, values, index, table, *rotary, rows, rows // len(table), H=heads, G=groups, HEAD=head_dim,
            HAS_INDEX=index is not None, MANY=len(table) > 1, M=16, num_warps=4, **starting(x.device),
        )  # fmt: skip

    @classmethod
    def project_out(cls, attended, layer, x, index, residual) -> None:
        if cls._is_own(len(attended), layer.self_attn.o_proj):
            return super().project_out(attended, layer, x, index, residual)
        before, linear = x if index is None else x[index], layer.self_attn.o_proj
        torch.addmm(before, attended, dense_weight(linear, x.dtype).t(), out=residual)
        if linear.bias is not None:
            residual.add_(linear.bias)

    @classmethod
    def mlp_up(cls, residual, layer, intermediate) -> None:
        if cls._is_own(len(residual), layer.mlp.gate_proj, layer.mlp.down_proj):
            return super().mlp_up(residual, layer, intermediate)
        normed = layer.post_attention_layernorm(residual)
        gate, up = (normed @ dense_weight(part, normed.dtype).t() for part in (layer.mlp.gate_proj, layer.mlp.up_proj))
        Elementwise.silu_product(gate, up, intermediate)

    @classmethod
    def mlp_down(cls, intermediate, layer, residual, x, index, scale) -> None:
        if cls._is_own(len(residual), layer.mlp.gate_proj, layer.mlp.down_proj):
            return super().mlp_down(intermediate, layer, residual, x, index, scale)
        weight = dense_weight(layer.mlp.down_proj, x.dtype).t()
        if index is None:
            torch.addmm(residual, intermediate, weight, out=x)
            return
        processed = torch.addmm(residual, intermediate, weight)
        x.index_copy_(0, index, (scale[0, :, None] * processed + scale[1, :, None] * x[index]).to(x.dtype))

    @classmethod
    def lm_head(cls, x, rows, model, logits) -> None:
        if cls._is_own(len(rows), model.lm_head):
            return super().lm_head(x, rows, model, logits)
        normed = model.model.language_model.norm(x[rows])
        torch.mm(normed, dense_weight(model.lm_head, x.dtype).t(), out=logits)


__all__ = ["CublasKernels", "Kernels"]
