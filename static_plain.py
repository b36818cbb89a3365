"""The operations of a static step in plain torch: what `static_kernels` computes, and what a GPU does where kernels do
not fit.

Shapes: as in `static_step`.
"""

import torch
from torch import nn
from torch.nn.attention.bias import causal_lower_right

from .routing import GATE_STRENGTH
from .selection import select_tokens


class PlainOps:
    """The operations of a step in plain torch: the reference of `static_kernels.Kernels`. Results go into buffers.

    `layer` is a `VideoLLMMoDDecoderLayer`. `caches` are its `MoDCacheLayer`s, one a stream, with buffers that hold the
    new tokens; None for a stream that only fills up the step. `bases` and `counts` have one entry a stream: what to
    add to the number of a token to get its position, and how many slots are no padding (0 to fill up).
    """

    reads_table = False  # takes caches, not a layer's table on the device

    @staticmethod
    def route(x, layer, shape, index, scale, scores, kept, gate: str, force_last: bool, counts=None) -> None:
        """Choose the slots of a routed layer.

        Args:
            x (`[T, D]`): F times one token of text, or none, and the N tokens of a frame.
            shape: (F, N, k).
            index (`int64 [S]`), scale (`float32 [2, S]`), scores (`float32 [F, N]`), kept (`int64 [F, k]`): results.
            counts (`int64 [streams]`, *optional*): how many tokens of a frame each stream keeps, at most k. Then
                `kept` holds these first. See `write_slots`.
        """
        frames, per_frame, num_kept = shape
        before = len(x) // frames - per_frame
        scores.copy_(layer.layer_expert(x.view(frames, before + per_frame, -1)[:, before:]))
        of_frames = None if counts is None else counts.repeat_interleave(frames // len(counts))
        kept.copy_(select_tokens(scores, num_kept, force_last, of_frames))
        own = scores.gather(1, kept)
        times_y, times_x = torch.ones_like(own), torch.zeros_like(own)
        if gate == "residual":
            times_y, times_x = 1 + GATE_STRENGTH * own.tanh(), -GATE_STRENGTH * own.tanh()
        elif gate == "output":
            times_y = own.sigmoid()
        write_slots(kept, per_frame, index, scale, counts, (times_y, times_x))

    @staticmethod
    def project_qkv(x, index, layer, rotary, queries, caches, bases: list[int], counts: list[int]) -> None:
        """Normalise and project the slots: queries into `queries` `[S, H, head_dim]`, keys, values and positions
        behind those that the caches hold. rotary: cosine and sine `[T, head_dim]`."""
        attention, tokens = layer.self_attn, torch.arange(len(x), device=x.device) if index is None else index
        own, normed = [part[tokens][None] for part in rotary], layer.input_layernorm(x[tokens])[None]
        own_queries, keys, values = attention.project(normed, own)
        queries.copy_(own_queries[0].transpose(0, 1))
        for cache, base, slots in zip(caches, bases, slots_of(counts, len(tokens)), strict=True):
            if cache is None:
                continue
            new = {"keys": keys[:, :, slots], "values": values[:, :, slots], "positions": (base + tokens[slots])[None]}
            for name, value in new.items():
                growing = cache.growing[name]
                growing.buffer.narrow(growing.dim, cache.get_seq_length(), value.shape[growing.dim]).copy_(value)

    @staticmethod
    def attend(queries, layer, caches, counts: list[int], out) -> None:
        """Attention of each slot to the cache of its stream and to the slots up to itself. out: `[S, H * head_dim]`,
        zero at padding."""
        out.zero_()
        for cache, slots in zip(caches, slots_of(counts, len(queries)), strict=True):
            if cache is None:
                continue
            count, length = slots.stop - slots.start, cache.get_seq_length()
            keys, values = (cache.growing[name].buffer[:, :, : length + count] for name in ("keys", "values"))
            attended = nn.functional.scaled_dot_product_attention(
                queries[slots].transpose(0, 1)[None],
                keys,
                values,
                causal_lower_right(count, length + count),
                scale=layer.self_attn.scaling,
                enable_gqa=True,
            )
            out[slots].view(count, *queries.shape[1:]).copy_(attended[0].transpose(0, 1))

    @staticmethod
    def project_out(attended, layer, x, index, residual) -> None:
        """residual `[S, D]`: the slots' tokens plus the output of attention."""
        residual.copy_((x if index is None else x[index]) + layer.self_attn.o_proj(attended))

    @staticmethod
    def mlp_up(residual, layer, intermediate) -> None:
        """intermediate `[S, I]`: the product of the activated gate and up projections of the normalised slots."""
        normed = layer.post_attention_layernorm(residual)
        intermediate.copy_(layer.mlp.act_fn(layer.mlp.gate_proj(normed)) * layer.mlp.up_proj(normed))

    @staticmethod
    def mlp_down(intermediate, layer, residual, x, index, scale) -> None:
        """Add the down projection to `residual`, and scatter the slots into `x` `[T, D]`, through the gate."""
        processed = residual + layer.mlp.down_proj(intermediate)
        if index is None:
            x.copy_(processed)
        else:
            x[index] = (scale[0, :, None] * processed + scale[1, :, None] * x[index]).to(x.dtype)

    @staticmethod
    def lm_head(x, rows, model, logits) -> None:
        """logits `[R, V]` of the tokens `rows` (`int64 [R]`)."""
        logits.copy_(model.lm_head(model.model.language_model.norm(x[rows])))

    @staticmethod
    def token_probability(logits, token: int, probability) -> None:
        """probability (`float32 [R]`): of one token, by logits `[R, V]`."""
        probability.copy_(logits.softmax(-1, dtype=torch.float32)[:, token])


def slots_of(counts: list[int], slots: int) -> list[slice]:
    """For each stream its slots that are no padding, among all `slots` of a step."""
    each = slots // len(counts)
    return [slice(number * each, number * each + count) for number, count in enumerate(counts)]


def write_slots(
    kept: torch.Tensor,
    per_frame: int,
    index: torch.Tensor,
    scale: torch.Tensor,
    counts: torch.Tensor | None = None,
    times: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """Write the slots of what frames kept.

    Without `counts`, a frame has one slot for each token of text before it, which is never written again, and one for
    each token that it kept. With `counts`, the slots of all its frames come first in a stream, each of them with so
    many tokens, and then the slots of the others, whose tokens are to stay as they are.

    Args:
        kept (`int64 [F, k]`), per_frame (`int`): N.
        index (`int64 [S]`), scale (`float32 [2, S]`): results.
        counts (`int64 [streams]`, *optional*): tokens of `kept` that each stream keeps, the first ones.
        times (two of `float32 [F, k]`, *optional*): the scale of the kept tokens; 1 and 0 if omitted.
    """
    frames, num_kept = kept.shape
    before = len(index) // frames - num_kept
    number = torch.arange(frames, device=kept.device)[:, None]
    first = number * (before + per_frame)
    if counts is None:
        index.view(frames, -1)[:, before:] = first + before + kept
        if times is not None:
            scale.view(2, frames, -1)[:, :, before:] = torch.stack(times)
        return
    each = frames // len(counts)
    own, column = counts.repeat_interleave(each)[:, None], torch.arange(before + num_kept, device=kept.device)
    stream, number, is_own = number // each, number % each, column < before + own
    other = each * (before + own) + number * (num_kept - own) + column - before - own
    slot = stream * each * len(column) + torch.where(is_own, number * (before + own) + column, other)
    index[slot] = first + torch.cat([column[:before].expand(frames, -1), before + kept], dim=1)
    ones = torch.ones(frames, before, device=kept.device)
    times_y, times_x = (torch.ones_like(kept), torch.zeros_like(kept)) if times is None else times
    scale[0, slot] = torch.cat([ones, times_y], dim=1).where(is_own, 0)
    scale[1, slot] = torch.cat([0 * ones, times_x], dim=1).where(is_own, 1)


__all__ = ["PlainOps", "write_slots"]
