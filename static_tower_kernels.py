"""The parts of SigLIP's tower (`static_tower`) for a GPU: a Triton kernel, and cuBLASLt's epilogue."""

import torch
from torch import nn

from .static_vision import PlainTowerOps

try:  # comes with torch for CUDA; whoever loads the model without it never gets here, but its loader reads this
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("the fast vision tower needs Triton: pip install triton") from error


@triton.jit
def _add_and_norm_kernel(
    x_ptr, more_ptr, weight_ptr, bias_ptr, sum_ptr, normed_ptr, rows, width, eps,
    ROWS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """A few rows: their sum, rounded as a sum by itself would be, and it normalised."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    k = tl.arange(0, SIZE)
    inside = k < width
    at, mask = row[:, None] * width + k[None, :], (row < rows)[:, None] & inside[None, :]
    total = tl.load(x_ptr + at, mask, other=0.0).to(tl.float32) + tl.load(more_ptr + at, mask, other=0.0)
    total = total.to(sum_ptr.dtype.element_ty)
    tl.store(sum_ptr + at, total, mask)
    values = total.to(tl.float32)
    mean = tl.sum(values, axis=1) / width
    apart = tl.where(inside[None, :], values - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(apart * apart, axis=1) / width + eps)
    weight = tl.load(weight_ptr + k, inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + k, inside, other=0.0).to(tl.float32)
    normed = apart * scale[:, None] * weight[None, :] + bias[None, :]
    tl.store(normed_ptr + at, normed.to(normed_ptr.dtype.element_ty), mask)


ROWS, WARPS = 1, 4  # of one program


class TowerKernels(PlainTowerOps):
    @staticmethod
    def add_and_norm(x: torch.Tensor, more: torch.Tensor, norm: nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
        x, more = x.contiguous(), more.contiguous()
        total, normed, width = torch.empty_like(x), torch.empty_like(x), x.shape[-1]
        rows = x.numel() // width
        _add_and_norm_kernel[(triton.cdiv(rows, ROWS),)](
            x, more, norm.weight, norm.bias, total, normed, rows, width, norm.eps,
            ROWS=ROWS, SIZE=triton.next_power_of_2(width), num_warps=WARPS,
        )  # fmt: skip
        return total, normed

    @staticmethod
    def widen(mlp, entered: torch.Tensor) -> torch.Tensor:
        rows = entered.flatten(0, 1)
        # the epilogue is GELU by tanh, which is the tower's
        made = torch._addmm_activation(mlp.fc1.bias, rows, mlp.fc1.weight.t(), use_gelu=True)
        return made.view(*entered.shape[:2], -1)


__all__ = ["TowerKernels"]
