"""Which tokens of a frame enter a layer: how many of them, by which scores, and the choice itself.

Shapes: F frames, N vision tokens per frame, k of them kept, D hidden size, V size of a token's values.
"""

from collections.abc import Sequence

import torch

from .configuration_videollm_mod import check_keep_ratio, num_kept_tokens
from .containers import is_number

KeepRatio = float | Sequence[float] | torch.Tensor  # one for all frames of a call, or one for each
SAME = 1 / 256  # a smaller difference, relative to the token, is the rounding of an equal token


def kept_counts(keep_ratio: KeepRatio, num_frames: int, num_frame_tokens: int) -> int | list[int]:
    """How many tokens each frame keeps; one number if all keep equally many.

    Raises:
        `ValueError`: for a ratio out of range, or another number of ratios than frames.
    """
    if not isinstance(keep_ratio, list | tuple | torch.Tensor):
        return kept_count(keep_ratio, num_frame_tokens)
    shape = list(keep_ratio.shape) if isinstance(keep_ratio, torch.Tensor) else [len(keep_ratio)]
    if shape != [num_frames]:
        got = f"{shape[0]} ratios" if len(shape) == 1 else f"a tensor {shape}"
        raise ValueError(f"`keep_ratio` must be one number, or one for each of {num_frames} frames, got {got}")
    ratios = keep_ratio.tolist() if isinstance(keep_ratio, torch.Tensor) else list(keep_ratio)
    counts = {ratio: kept_count(ratio, num_frame_tokens) for ratio in ratios}
    different = set(counts.values()) or {0}
    return different.pop() if len(different) == 1 else [counts[ratio] for ratio in ratios]


def kept_count(keep_ratio: float, num_frame_tokens: int) -> int:
    """`num_kept_tokens`, and 0 for the ratio 0, which only a call may have. Raises `ValueError` as `kept_counts`."""
    if is_number(keep_ratio) and keep_ratio == 0:
        return 0
    check_keep_ratio("keep_ratio", keep_ratio)
    return num_kept_tokens(keep_ratio, num_frame_tokens)


def select_tokens(
    priority: torch.Tensor, num_kept: int, force_last: bool = False, counts: torch.Tensor | None = None
) -> torch.Tensor:
    """The `num_kept` tokens of each frame with the highest priority, ties to the lower index.

    Args:
        priority (`[F, N]`): of any ordered dtype.
        force_last (`bool`): always keep the frame's last token.
        counts (`int64 [F]`, *optional*): how many of them to select in each frame, at most `num_kept`. The first of
            its other tokens follow.

    Returns:
        int64 `[F, num_kept]`, ascending; with `counts`, the selected and the others are each ascending.
    """
    order = priority.argsort(dim=1, descending=True, stable=True)
    if force_last:
        is_other = (order != priority.shape[1] - 1).int()
        order = order.gather(1, is_other.argsort(dim=1, stable=True))  # the last token first, then the others in order
    if counts is None:
        return order[:, :num_kept].sort(dim=1).values
    num_tokens = priority.shape[1]
    behind = torch.arange(num_tokens, device=order.device) >= counts[:, None]
    return (order + num_tokens * behind).sort(dim=1).values[:, :num_kept] % num_tokens


def change_scores(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """float32 `[F, N]`: how much a layer changed a token, relative to the token. before, after: `[F, N, D]`."""
    before, after = before.float(), after.float()
    return (after - before).norm(dim=-1) / after.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)


def first_values(layer, tokens: torch.Tensor) -> torch.Tensor:
    """The values `[F, N, V]` of tokens `[F, N, D]` in a decoder layer: what others read of them by attention.

    Raises:
        `ValueError`: if this process holds only a part of them.
    """
    attention = layer.self_attn
    values = attention.v_proj(layer.input_layernorm(tokens))
    width = attention.config.num_key_value_heads * attention.head_dim
    if values.shape[-1] != width:
        raise ValueError(
            "mod_selection='difference' cannot be used with tensor parallelism: each process holds "
            f"{values.shape[-1]} of {width} values"
        )
    return values


def difference_scores(values: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """float32 `[F, N]`: how far the values of a token are from those of the same token of the frame before, both
    `[F, N, V]`. 0 if they are equal but for rounding, which would otherwise choose among the tokens of a still image.
    """
    values = values.float()
    distance = (values - before.float()).norm(dim=-1)
    return distance.where(distance > SAME * values.norm(dim=-1), 0)


def uniform_priority(frames: torch.Tensor, num_kept: int, counts: torch.Tensor | None = None) -> torch.Tensor:
    """Priority that selects `floor((j + 0.5) * N / k)` for j in 0 .. k-1. k is `num_kept`, or at most that in each
    frame, `counts` (`int64 [F]`)."""
    num_tokens, slots = frames.shape[1], torch.arange(num_kept, device=frames.device)
    if counts is None:
        chosen = ((2 * slots + 1) * num_tokens) // (2 * num_kept)
        priority = torch.zeros(num_tokens, dtype=torch.long, device=frames.device).index_fill(0, chosen, 1)
        return priority.expand_as(frames)
    counts = counts[:, None]
    chosen = ((2 * slots + 1) * num_tokens // (2 * counts.clamp(min=1))).clamp(max=num_tokens - 1)
    return torch.zeros_like(frames).scatter_add(1, chosen, (slots < counts).long())


def random_priority(frames: torch.Tensor, frame_numbers: torch.Tensor, layer_idx: int, seed: int) -> torch.Tensor:
    """Priority by a hash of (seed, layer, number of the frame in its stream, token). It does not depend on how streams
    are split into calls, or batched."""
    tokens = torch.arange(frames.shape[1], device=frames.device)
    per_layer = int(_mix(_mix(torch.tensor(seed)) + layer_idx))
    per_frame = _mix(frame_numbers + per_layer)
    return _mix(per_frame[:, None] + tokens)


# splitmix64's finaliser (Steele et al., OOPSLA 2014) on the low 63 bits, since torch's shifts of int64 keep the sign
_MIX_1, _MIX_2 = 0x3F58476D1CE4E5B9, 0x14D049BB133111EB
_LOW_BITS = (1 << 63) - 1


def _mix(state: torch.Tensor) -> torch.Tensor:
    state = (state + 0x1E3779B97F4A7C15) & _LOW_BITS
    state = ((state ^ (state >> 30)) * _MIX_1) & _LOW_BITS
    state = ((state ^ (state >> 27)) * _MIX_2) & _LOW_BITS
    return state ^ (state >> 31)


__all__ = [
    "KeepRatio",
    "change_scores",
    "difference_scores",
    "first_values",
    "kept_counts",
    "random_priority",
    "select_tokens",
    "uniform_priority",
]
