"""Weights of linear layers as they lie in memory, quantised or not, and their products with a few tokens as Triton
kernels.

A weight is the first operand of `tl.dot`, so that tensor cores take it from shared memory as it lies in device
memory. Where they multiply 8 bits, it is the tokens that are converted, once for all programs: each number becomes two
of 8 bits, of which the second is the rest that the first leaves, together about as exact as bfloat16. Codes of 4 bits
and their scales become bfloat16, the codes by permutations of bytes. In float32 all products are exact.

Tested with bitsandbytes 0.49.0 and 0.50.2, torchao 0.18.0 and the layers of transformers 5.17.0 to 5.24.0, which do
not document how they store weights. If a release changes that, `tests/test_quantised_steps.py` fails and names it.

Shapes: S slots, D width of a token, N rows of weights in a program, M slots rounded up.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

try:  # comes with torch for CUDA; elsewhere the kernels below are defined, but never run
    import triton
    import triton.language as tl
    from triton.language import constexpr
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

    jit = triton.jit
except ImportError:
    triton, tl, jit, constexpr = None, SimpleNamespace(), lambda function: function, lambda value: value

FEW_ROWS = 64  # tokens, on a CPU; with more, torch's usual operations are as fast
EIGHT_BITS = (torch.float8_e4m3fn, torch.int8)
# of each product, by the bits of its weights: rows of weights per program, columns at a time (half for many slots),
# programs that share the columns, warps, stages (fewer where shared memory is small); `benchmarks/step_tiles.py` finds
# the fastest
TILES = {
    "qkv": {16: (64, 128, 1, 4, 6), 8: (64, 512, 1, 4, 3), 4: (32, 256, 4, 2, 4)},
    "out": {16: (64, 128, 1, 4, 6), 8: (64, 256, 2, 4, 4), 4: (32, 256, 4, 2, 4)},
    "mlp_up": {16: (128, 128, 1, 4, 4), 8: (128, 128, 1, 4, 4), 4: (32, 256, 1, 2, 4)},
    "mlp_down": {16: (64, 256, 2, 4, 4), 8: (128, 128, 4, 4, 6), 4: (32, 256, 4, 2, 4)},
    "lm_head": {16: (64, 256, 1, 4, 4), 8: (64, 128, 1, 4, 6), 4: (32, 256, 1, 2, 4)},
}
IN_FLOAT32 = (32, 128, 1, 4, 3)  # of each product of a float32 model, which no tensor core computes exactly
DENSE_TILE = (16, 256)  # rows, and numbers or bytes of each, that a program copies; fewer of more rows, by the scales
# of 128 bytes of a row, that a program fetches before the kernel before it has ended; 0 starts kernels one by one
LINES = 4
PREFETCH = constexpr("{.reg .pred own; setp.ne.u32 own, $2, 0; @own prefetch.global.L2 [$1]; mov.u32 $0, 0;}")
# the largest number of 8 bits that a token's numbers are scaled to, and what the rest is multiplied with
SPLITS = {torch.float8_e4m3fn: (448.0, 16.0), torch.int8: (127.0, 254.0)}
# PTX that turns 4 bytes of two codes each into bfloat16: what the codes in the high halves stand for, and those in the
# low halves, times the scales in $37 and $38. `prmt` chooses 4 of 8 bytes by 3 bits each, so that a table of 16 takes
# three. The words of a table come as the operands $5, $9, ..., $33, since each is passed for every byte
_LOOK_UP = "prmt.b32 a, {}, {}, which; prmt.b32 b, {}, {}, which; prmt.b32 {}, a, b, half;"
_OF_A_PAIR = (
    _LOOK_UP.format("$5", "$9", "$13", "$17", "low")
    + _LOOK_UP.format("$21", "$25", "$29", "$33", "high")
    + "prmt.b32 ${}, low, high, 0x7351; prmt.b32 ${}, low, high, 0x6240;"
)
DECODING = constexpr(
    "{.reg .b32 which, half, a, b, low, high, zero; mov.b32 zero, 0x80008000;"  # -0, which adds nothing
    "and.b32 which, $4, 0x77777777; shr.b32 half, $4, 1;"
    "and.b32 half, half, 0x44444444; or.b32 half, half, 0x32103210;"
    + _OF_A_PAIR.format(0, 2)
    + "shr.b32 which, which, 16; shr.b32 half, half, 16;"
    + _OF_A_PAIR.format(1, 3)
    + "".join(f"fma.rn.bf16x2 ${n}, ${n}, ${37 + n % 2}, zero;" for n in range(4))
    + "}"
)
DECODING_OPERANDS = constexpr("=&r,=&r,=&r,=&r" + ",r" * 35)


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """
    The weight `[N, K]` of a linear layer as it lies in memory. A number of a quantised weight is its value, or what
    its code stands for, times the scale of its block.

    Attributes:
        values (`[N, K]`, or uint8 `[N, K // 2]`): values in the model's dtype, float8_e4m3fn or int8; or two codes in
            each byte, the first in its high half.
        scale (float32 `[ceil(N / rows), ceil(K / columns)]`, *optional*): of each block.
        rows, columns (`int`): of a block.
        code (float32 `[16]`, *optional*): what each code stands for.
    """

    values: torch.Tensor
    scale: torch.Tensor | None = None
    rows: int = 1
    columns: int = 1
    code: torch.Tensor | None = None

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """`[N, K]` in `dtype`; the values themselves where they are not quantised."""
        if self.scale is None:
            return self.values
        if self.code is None:
            values = self.values.float()
        else:
            codes = torch.stack([self.values >> 4, self.values & 15], dim=-1).flatten(1)
            values = self.code[codes.long()]
        scale = self.scale.repeat_interleave(self.rows, 0)[: len(values)].repeat_interleave(self.columns, 1)
        return (values * scale[:, : values.shape[1]]).to(dtype)


# of quantised layers: the parameter, and how it is stored, some of which was computed
_stored: WeakKeyDictionary[nn.Module, tuple[torch.Tensor, StoredWeight | None]] = WeakKeyDictionary()


def stored_weight(linear: nn.Module) -> StoredWeight | None:
    """The weight of a linear layer of torch, bitsandbytes (8 bits, NF4 and FP4), torchao (float8 and int8) or
    transformers (`FP8Linear`); None if it is stored in another way."""
    weight: Any = linear.weight
    if type(linear) is nn.Linear and type(weight.data) is torch.Tensor:
        return StoredWeight(weight.data) if weight.is_floating_point() else None
    known, stored = _stored.get(linear, (None, None))
    if known is not weight or (stored is not None and stored.values.device != known.device):
        stored = _quantised_weight(linear, weight)
        _stored[linear] = weight, stored
    return stored


def _quantised_weight(linear: Any, weight: Any) -> StoredWeight | None:
    if (state := getattr(weight, "quant_state", None)) is not None:
        return _of_four_bits(weight.data, state)
    if type(linear).__name__ == "Linear8bitLt":
        scale = getattr(weight, "SCB", None)
        scale = linear.state.SCB if scale is None else scale
        return None if scale is None else _of_blocks(weight.data, scale[:, None] / 127, (1, weight.shape[1]))
    if type(linear).__name__ == "FP8Linear":
        return _of_blocks(weight.data, linear.weight_scale_inv.data, linear.block_size)
    if hasattr(weight, "qdata") and type(linear) is nn.Linear:
        zero = getattr(weight, "zero_point", None)
        is_symmetric = zero is None or not zero.any()
        if is_symmetric and getattr(weight, "act_pre_scale", None) is None:
            return _of_blocks(weight.qdata, weight.scale, weight.block_size)
    return None


def _of_four_bits(values: torch.Tensor, state: Any) -> StoredWeight | None:
    rows, columns = state.shape
    if columns % state.blocksize or values.dtype != torch.uint8:
        return None
    scale = state.absmax
    if state.nested:  # the scales are quantised too
        of_blocks = state.state2.absmax.repeat_interleave(state.state2.blocksize)[: scale.numel()]
        scale = state.state2.code[scale.long()] * of_blocks + state.offset
    scale = scale.float().view(rows, -1).contiguous()
    return StoredWeight(values.view(rows, columns // 2), scale, 1, state.blocksize, state.code.float())


def _of_blocks(values: torch.Tensor, scale: torch.Tensor, block: Any) -> StoredWeight | None:
    """block: rows and columns, or None for all."""
    if values.dtype not in EIGHT_BITS or values.dim() != 2 or not values.is_contiguous():
        return None
    rows, columns = values.shape if block is None or scale.numel() == 1 else block
    if columns < values.shape[1] and columns % 32:  # which tensor cores take at a time
        return None
    scale = scale.to(values.device, torch.float32).reshape(-(-values.shape[0] // rows), -(-values.shape[1] // columns))
    return StoredWeight(values, scale.contiguous(), rows, columns)


def is_wrapped(weight: Any) -> bool:
    """Whether a weight is one of torchao, which holds the tensor that has an address."""
    return hasattr(weight, "qdata")


def addresses(weights: Iterable[Any], wrapped: bool) -> list[int]:
    """Where weights lie in memory. Their classes, such as those of bitsandbytes, are not asked first, which would take
    several times as long. wrapped: some of them are `is_wrapped`."""
    # torch's notes on extending it name this context manager; tried with torch 2.8, 2.11 and 2.13
    with torch._C.DisableTorchFunctionSubclass():
        return list(map(torch.Tensor.data_ptr, (getattr(x, "qdata", x) for x in weights) if wrapped else weights))


def linear_of_few(linear: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`linear(x)` of few rows `[S, D]`. On a CPU a product with the weight on the left takes half of the time."""
    if type(linear) is nn.Linear and linear.bias is None and x.device.type == "cpu" and len(x) <= FEW_ROWS:
        return (linear.weight @ x.t()).t()
    return linear(x)


@jit
def wait_for_inputs(EARLY: constexpr):
    """EARLY, unless it is 0: the kernel was launched while the one before it was at work, and so may be the next. Wait
    for the results of the one before."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()


@jit
def place(column, width, APART: constexpr):
    """Where a product reads a column of a token; APART: even columns come first, then the odd ones."""
    return column % 2 * (width // 2) + column // 2 if APART else column


@jit
def tokens_kernel(
    x_ptr, index_ptr, norm_ptr, out_ptr, scale_ptr, width, eps, largest, times, NORM: constexpr, HAS_INDEX: constexpr,
    SPLIT: constexpr, APART: constexpr, W: constexpr, EARLY: constexpr,
):  # fmt: skip
    """One slot as a product reads it: x[index[slot]], and its RMSNorm if NORM.

    SPLIT: out `[S, 2, D]` are two numbers of 8 bits for each, the second of what the first leaves `times` over, in
    units of `scale[slot]`. APART: see `place`.
    """
    wait_for_inputs(EARLY)
    slot, k = tl.program_id(0).to(tl.int64), tl.arange(0, W)
    token = slot
    if HAS_INDEX:
        token = tl.load(index_ptr + slot)
    x = tl.load(x_ptr + token * width + k, k < width, other=0.0).to(tl.float32)
    if NORM:
        weight = tl.load(norm_ptr + k, k < width, other=0.0).to(tl.float32)
        x = x * tl.rsqrt(tl.sum(x * x, axis=0) / width + eps) * weight
    dtype: constexpr = out_ptr.dtype.element_ty
    if SPLIT:
        x = x.to(x_ptr.dtype.element_ty).to(tl.float32)
        peak = tl.max(tl.abs(x), axis=0)
        unit = tl.where(peak > 0, peak / largest, 1.0)
        tl.store(scale_ptr + slot, unit)
        x = x / unit
        first = _to_8_bits(x, dtype)
        out_ptr += slot * 2 * width + k
        tl.store(out_ptr, first, k < width)
        tl.store(out_ptr + width, _to_8_bits((x - first.to(tl.float32)) * times, dtype), k < width)
    else:
        tl.store(out_ptr + slot * width + place(k, width, APART), x.to(dtype), k < width)


@jit
def _to_8_bits(x, dtype: constexpr):
    return tl.floor(x + 0.5).to(dtype) if dtype == tl.int8 else x.to(dtype)


@jit
def _from_float8(bits):
    """float8_e4m3fn as float32, by the bits of float16, whose exponent is 8 higher."""
    bits = bits.to(tl.int16)
    return ((bits & 0x80) << 8 | (bits & 0x7F) << 7).to(tl.float16, bitcast=True).to(tl.float32) * 256


@jit
def _add_columns(
    total, x_ptr, rows, length, w, inside, scale, code_ptr, table, start, TOKENS: constexpr, K: constexpr,
    BITS: constexpr, SPLIT: constexpr, SK: constexpr, DECODE: constexpr,
):  # fmt: skip
    """`total` `[N, TOKENS]` plus the product of weights and tokens over a few columns, from byte or number `start` of
    each row on. Columns share a scale, but where BITS is 4."""
    k, m, width = start + tl.arange(0, K), tl.arange(0, TOKENS), _columns_of(length, BITS)
    own = k < length
    weight = tl.load(w[:, None] + k[None, :], inside[:, None] & own[None, :], other=0.0)
    at, mask = x_ptr + m[None, :].to(tl.int64) * width + k[:, None], own[:, None] & (m < rows)[None, :]
    x = tl.load(at, mask, other=0.0)
    if BITS == 16:
        return tl.dot(weight, x, total, input_precision="ieee")
    if BITS == 4:
        odd = tl.load(at + length, mask, other=0.0)
        BLOCKS: constexpr = max(1, 2 * K // SK)
        block = start * 2 // SK + tl.arange(0, BLOCKS)
        exists = inside[:, None] & (block * SK < width)[None, :]
        scales = tl.load(scale[:, None] + block[None, :], exists, other=0.0).to(x.dtype)
        scales = tl.broadcast_to(scales[:, :, None], (weight.shape[0], BLOCKS, K // BLOCKS)).reshape(weight.shape)
        if DECODE:
            of_even, of_odd = tl.inline_asm_elementwise(
                DECODING, DECODING_OPERANDS,
                [weight, table[0], table[1], table[2], table[3], table[4], table[5], table[6], table[7], scales],
                (tl.bfloat16, tl.bfloat16), True, 4,
            )  # fmt: skip
        else:
            of_even = tl.load(code_ptr + (weight >> 4).to(tl.int32)).to(x.dtype) * scales
            of_odd = tl.load(code_ptr + (weight & 15).to(tl.int32)).to(x.dtype) * scales
        return tl.dot(of_odd, odd, tl.dot(of_even, x, total, input_precision="ieee"), input_precision="ieee")
    dtype: constexpr = tl.int32 if SPLIT and weight.dtype == tl.int8 else tl.float32
    part = tl.zeros(total.shape, dtype)
    if SPLIT:
        part = tl.dot(weight, x, part, out_dtype=dtype).to(tl.float32)
    else:
        if weight.dtype == tl.uint8:
            weight = _from_float8(weight)
        part = tl.dot(weight.to(x.dtype), x, part, input_precision="ieee")
    block = tl.minimum(start, width - 1) // SK  # a row may end before the columns do
    return total + part * tl.load(scale + block, inside, other=0.0)[:, None]


@jit
def _columns_of(length, BITS: constexpr):
    return length * 2 if BITS == 4 else length


@jit
def rows_of(w_ptr, scale_ptr, n, length, BITS: constexpr, SN: constexpr, SK: constexpr):
    """Where the rows `n` of a weight begin, and where their scales begin. length: of a row in memory, numbers or bytes
    of two codes. See `StoredWeight`."""
    scales = tl.cdiv(_columns_of(length, BITS), SK)
    return w_ptr + n.to(tl.int64) * length, scale_ptr + (n // SN).to(tl.int64) * scales


@jit
def dense_kernel(
    w_ptr, scale_ptr, code_ptr, out_ptr, rows, length, BITS: constexpr, SN: constexpr, SK: constexpr, N: constexpr,
    K: constexpr, EARLY: constexpr,
):  # fmt: skip
    """A part of `StoredWeight.dense`, computed in float32. The columns of a program share a scale."""
    wait_for_inputs(EARLY)
    EACH: constexpr = 2 if BITS == 4 else 1
    n, k = tl.program_id(0) * N + tl.arange(0, N), tl.program_id(1) * K + tl.arange(0, K)
    column, width = tl.program_id(1) * K * EACH + tl.arange(0, K * EACH), _columns_of(length, BITS)
    w, scale = rows_of(w_ptr, scale_ptr, n, length, BITS, SN, SK)
    mask = (n < rows)[:, None] & (k < length)[None, :]
    weight = tl.load(w[:, None] + k[None, :], mask, other=0.0)
    scales = tl.load(scale + tl.program_id(1) * K * EACH // SK, n < rows, other=0.0)[:, None]
    if BITS == 4:
        first = tl.load(code_ptr + (weight >> 4).to(tl.int32)) * scales
        dense = tl.interleave(first, tl.load(code_ptr + (weight & 15).to(tl.int32)) * scales)
    else:
        if weight.dtype == tl.uint8:
            weight = _from_float8(weight)
        dense = weight.to(tl.float32) * scales
    at = out_ptr + n[:, None].to(tl.int64) * width + column[None, :]
    tl.store(at, dense.to(out_ptr.dtype.element_ty), (n < rows)[:, None] & (column < width)[None, :])


@jit
def product(
    x_ptr, x_scale_ptr, times, rows, length, w, inside, scale, code_ptr, partial_ptr, done_ptr, M: constexpr,
    N: constexpr, K: constexpr, BITS: constexpr, SPLIT: constexpr, SK: constexpr, PARTS: constexpr, DECODE: constexpr,
    SHARES: constexpr, EARLY: constexpr,
):  # fmt: skip
    """`[M, N]`: the tokens that `tokens_kernel` wrote times rows of weights; and whether this program has the result.
    SHARES of the columns are summed by as many programs, of which the last one adds the sums, in their order.

    w, inside, scale (`[N]`): where each row begins, whether it exists, and where its scales begin. PARTS: of each row
    that are read at a time, with a scale of their own.
    """
    TOKENS: constexpr = M * 2 if SPLIT else M
    total = tl.zeros((N, TOKENS), tl.float32)
    if SPLIT:
        rows *= 2
    number = tl.program_id(1)
    share = tl.cdiv(tl.cdiv(length, SHARES), K * PARTS) * (K * PARTS)
    if EARLY:  # bring the first weights near, which no other kernel writes
        line: constexpr = 128 // w.dtype.element_ty.primitive_bitwidth * 8  # numbers in 128 bytes
        k = number * share + tl.arange(0, EARLY) * line
        tl.inline_asm_elementwise(
            PREFETCH, "=r,l,r", [w[:, None] + k[None, :], (inside[:, None] & (k < length)[None, :]).to(tl.int32)],
            tl.int32, False, 1,
        )  # fmt: skip
    wait_for_inputs(EARLY)
    table = code_ptr
    if DECODE:  # in registers
        one = code_ptr + tl.zeros((1, 1), tl.int32)
        table = (
            tl.load(one), tl.load(one + 1), tl.load(one + 2), tl.load(one + 3), tl.load(one + 4), tl.load(one + 5),
            tl.load(one + 6), tl.load(one + 7),
        )  # fmt: skip
    for begin in range(number * share, tl.minimum(number * share + share, length), K * PARTS):
        for part in tl.static_range(PARTS):
            total = _add_columns(
                total, x_ptr, rows, length, w, inside, scale, code_ptr, table, begin + part * K, TOKENS, K, BITS,
                SPLIT, SK, DECODE,
            )  # fmt: skip
    if SPLIT:
        m = tl.arange(0, M)
        first, rest = tl.split(tl.reshape(total, (N, M, 2)))
        total = (first + rest / times) * tl.load(x_scale_ptr + m, m * 2 < rows, other=0.0)[None, :]
    total, is_last = tl.trans(total), number == SHARES - 1
    if SHARES > 1:
        own = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
        partial_ptr += tl.program_id(0).to(tl.int64) * SHARES * M * N
        tl.store(partial_ptr + number * M * N + own, total)
        tl.debug_barrier()
        is_last = tl.atomic_add(done_ptr + tl.program_id(0), 1, sem="acq_rel") == SHARES - 1
        if is_last:
            total = tl.zeros((M, N), tl.float32)
            for other in tl.static_range(SHARES):
                total += tl.load(partial_ptr + other * M * N + own, cache_modifier=".cg")
            tl.store(done_ptr + tl.program_id(0), 0)
    return total, is_last


def read(
    name: str, x: torch.Tensor, slots: int, num_n: int, *linears: nn.Module, within: int = 0
) -> tuple[tuple[int, int], list, dict]:
    """How a kernel reads weights that are stored alike, for `num_n` rows in all.

    Returns:
        The grid; pointers to the values of each, to the scales of each, to the codes of all, to partial sums, and to
        how many of these are done; and keyword arguments. A program takes rows of one block of `within`.
    """
    weights: list[Any] = [stored_weight(linear) for linear in linears]  # all known, as `why_not` has seen
    first, values = weights[0], [_readable(weight) for weight in weights]
    scales = values if first.scale is None else [weight.scale for weight in weights]
    n, columns, shares, warps, stages = _tiles(name, x, slots, first)
    bits, n = _bits(first), min(n, within or n)
    parts, length = 1, first.values.shape[1]
    if bits == 8 and first.columns < length:
        parts = max(1, columns // (first.columns & -first.columns))
    options = {"M": rounded_up(slots), "N": n, "BITS": bits, "SPLIT": is_split(first, x), "SHARES": shares}
    options |= {"K": columns // parts // (2 if bits == 4 else 1), "PARTS": parts, "SN": first.rows, "length": length}
    decode = bits == 4 and x.dtype == torch.bfloat16 and chip(x.device).capability >= 80
    options |= {**starting(x.device), "SK": first.columns, "DECODE": decode, "num_warps": warps, "num_stages": stages}
    grid = triton.cdiv(num_n, n), shares
    sums = x, x
    if shares > 1:
        size = grid[0] * shares * options["M"] * n
        sums = x.new_empty(size, dtype=torch.float32), _counter(linears[0], grid[0], x.device)
    code = byte_tables(first) if decode else values[0] if first.code is None else first.code
    return grid, [*values, *scales, code, *sums], options


def _counter(linear: nn.Module, programs: int, device: torch.device) -> torch.Tensor:
    """int32 `[programs]`, zero between two products: each layer has its own, so that models can run at a time."""
    known = _counters.get(linear)
    if known is None or len(known) < programs or known.device != device:
        known = _counters[linear] = torch.zeros(programs, dtype=torch.int32, device=device)
    return known


_counters: WeakKeyDictionary[nn.Module, torch.Tensor] = WeakKeyDictionary()


def tokens(x: torch.Tensor, index: torch.Tensor | None, norm: nn.Module | None, linear: nn.Module) -> list:
    """The slots as the product with a linear layer reads them, normalised if there is a norm: the numbers, their
    units, and what the second of two numbers is multiplied with. Without a norm, columns are `is_apart` already."""
    weight: Any = stored_weight(linear)
    slots, width = len(x) if index is None else len(index), x.shape[1]
    split = is_split(weight, x)
    if norm is None and not split:
        return [x, x, 1.0]
    largest, times = SPLITS[weight.values.dtype] if split else (1.0, 1.0)
    size, dtype = ((slots, 2, width), weight.values.dtype) if split else ((slots, width), x.dtype)
    made, units = x.new_empty(size, dtype=dtype), x.new_empty(slots, dtype=torch.float32)
    tokens_kernel[(slots,)](
        x, index, x if norm is None else norm.weight, made, units, width,
        0.0 if norm is None else norm.variance_epsilon, largest, times, NORM=norm is not None,
        HAS_INDEX=index is not None, SPLIT=split, APART=is_apart(linear), W=rounded_up(width), num_warps=8,
        **starting(x.device),
    )  # fmt: skip
    return [made, units, times]


def is_apart(linear: nn.Module) -> bool:
    """Whether a product reads even and odd columns apart, since each byte of the weight holds one of both."""
    weight: Any = stored_weight(linear)
    return _bits(weight) == 4


def dense_weight(linear: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """`[N, K]` in `dtype`: a copy of a weight that is quantised, as `StoredWeight.dense` makes it."""
    weight: Any = stored_weight(linear)
    if weight.scale is None:
        return weight.values
    (rows, length), bits = weight.values.shape, _bits(weight)
    each = 2 if bits == 4 else 1
    out = weight.scale.new_empty((rows, length * each), dtype=dtype)
    n, k = DENSE_TILE
    if weight.columns < length * each:
        k = min(k, (weight.columns & -weight.columns) // each)
    n *= DENSE_TILE[1] // k
    dense_kernel[(triton.cdiv(rows, n), triton.cdiv(length, k))](
        _readable(weight), weight.scale, weight.code, out, rows, length, BITS=bits, SN=weight.rows, SK=weight.columns,
        N=n, K=k, num_warps=4, **starting(out.device),
    )  # fmt: skip
    return out


def _readable(weight: StoredWeight) -> torch.Tensor:
    """The values, as bytes where Triton does not have their type."""
    is_float8, capability = weight.values.dtype == torch.float8_e4m3fn, chip(weight.values.device).capability
    return weight.values.view(torch.uint8) if is_float8 and 0 < capability < 89 else weight.values


def is_split(weight: StoredWeight, x: torch.Tensor) -> bool:
    """Whether tokens become numbers of 8 bits, since tensor cores multiply these."""
    if weight.values.dtype not in SPLITS or x.dtype != torch.bfloat16:
        return False
    return not 0 < chip(x.device).capability < 89


def _bits(weight: StoredWeight) -> int:
    return 4 if weight.code is not None else 16 if weight.scale is None else 8


def _tiles(name: str, x: torch.Tensor, slots: int, weight: StoredWeight) -> tuple[int, int, int, int, int]:
    bits = _bits(weight)
    n, columns, shares, warps, stages = IN_FLOAT32 if x.dtype == torch.float32 else TILES[name][bits]
    columns //= 1 + (slots > 16)
    if n * rounded_up(slots) * (1 + is_split(weight, x)) > 128 * 64:  # sums, of which 4 warps have no room for more
        warps = max(warps, 8)
    # a stage keeps columns of tokens and weights in shared memory; but for one, where tensor cores read registers
    loaded = rounded_up(slots) * columns * x.element_size()
    loaded += n * columns * weight.values.element_size() // (2 if bits == 4 else 1)
    if bits == 4:
        loaded += 4 * n * max(1, columns // weight.columns)  # the scales
    capability, memory = chip(x.device)
    return n, columns, shares, warps, min(stages, memory // loaded + (capability < 90))


class Chip(NamedTuple):
    capability: int  # for compute, 90 for 9.0; 0 for Triton's interpreter, which has no limits
    shared_memory: int  # bytes that one program may use


@functools.cache
def chip(device: torch.device) -> Chip:
    if device.type != "cuda":
        return Chip(0, 2**31)
    major, minor = torch.cuda.get_device_capability(device)
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index)
    return Chip(10 * major + minor, properties["max_shared_mem"])


def starting(device: torch.device) -> dict:
    """Options of a launch: where a GPU can, a kernel starts while the one before it ends, see `wait_for_inputs`."""
    return {"EARLY": LINES, "launch_pdl": True} if LINES and chip(device).capability >= 90 else {"EARLY": 0}


def rounded_up(value: int, least: int = 16) -> int:
    """To a power of two."""
    return max(least, triton.next_power_of_2(value))


def byte_tables(weight: StoredWeight) -> torch.Tensor:
    """int32 `[8]`, for `DECODING`: of what each code stands for in bfloat16, the low bytes, and then the high ones."""
    known = _tables.get(weight)
    if known is None:
        assert weight.code is not None
        both = weight.code.bfloat16().view(torch.uint8).view(16, 2)
        known = _tables[weight] = both.t().contiguous().view(torch.int32).flatten()
    return known


_tables: WeakKeyDictionary[StoredWeight, torch.Tensor] = WeakKeyDictionary()

__all__ = [
    "FEW_ROWS",
    "TILES",
    "StoredWeight",
    "addresses",
    "dense_weight",
    "is_apart",
    "is_wrapped",
    "linear_of_few",
    "place",
    "product",
    "read",
    "rounded_up",
    "rows_of",
    "starting",
    "stored_weight",
    "tokens",
    "wait_for_inputs",
]
