"""The parts of a static step (`static_step`) in plain torch: the reference of `static_kernels`.

Each works on buffers that are there already, so that nothing of it depends on how long the stream is. In a routed
layer `index` names the token in each slot and `scale` how its output goes back: `y` is what the layer makes of `x`,
and the token becomes `scale[0] * y + scale[1] * x`. In others both are None, and slots are tokens.

A step brings as many tokens, or slots, to each of its streams, one stream after the other. What differs between them
are `held`, their caches; `bases`, what is added to the number of a token in the step to give its position; and
`counts`, how many of a stream's slots are no padding. All three are lists of one a stream; a stream that only fills up
the step holds None, and its count is 0.

Shapes: T tokens of a step, S slots of a layer, F frames, N vision tokens per frame, k of them kept, D hidden size,
I intermediate size, H heads, G key-value heads, V vocabulary; T, S and F of all streams together.
"""

import torch
from torch import nn

from .routing import GATE_STRENGTH, select_tokens


class PlainOps:
    """See the module. `layer` is a `VideoLLMMoDDecoderLayer`, each of `held` a `MoDCacheLayer` with room for what
    comes."""

    @staticmethod
    def route(x, layer, shape, index, scale, scores, kept, gate: str, force_last: bool) -> None:
        """Choose the slots of a routed layer.

        Args:
            x (`[T, D]`), shape: (F, N, k). The tokens are F times one of text and a frame's.
            index (`int64 [S]`), scale (`float32 [2, S]`), scores (`float32 [F, N]`), kept (`int64 [F, k]`): results.
        """
        frames, per_frame, num_kept = shape
        scores.copy_(layer.layer_expert(x.view(frames, per_frame + 1, -1)[:, 1:]))
        kept.copy_(select_tokens(scores, num_kept, force_last))
        index.view(frames, -1)[:, 1:] = kept + 1 + torch.arange(frames, device=x.device)[:, None] * (per_frame + 1)
        own, (times_y, times_x) = scores.gather(1, kept), scale.view(2, frames, -1)[:, :, 1:]
        if gate == "residual":
            times_y.copy_(1 + GATE_STRENGTH * own.tanh())
            times_x.copy_(-GATE_STRENGTH * own.tanh())
        elif gate == "output":
            times_y.copy_(own.sigmoid())

    @staticmethod
    def project(x, index, layer, rotary, queries, held, bases: list[int], counts: list[int]) -> None:
        """Normalise, project to queries `[S, H, head_dim]`, and write keys, values and positions of the slots behind
        what is held. rotary: cosine and sine `[T, head_dim]`."""
        attention, tokens = layer.self_attn, torch.arange(len(x), device=x.device) if index is None else index
        entered = layer.input_layernorm(x[tokens])
        shape, (cos, sin) = (len(tokens), -1, attention.head_dim), (part[tokens][:, None] for part in rotary)

        def turned(states):
            first, second = states.chunk(2, dim=-1)
            return states * cos + torch.cat([-second, first], dim=-1) * sin

        queries.copy_(turned(attention.q_proj(entered).view(shape)))
        keys = turned(attention.k_proj(entered).view(shape)).transpose(0, 1)[None]
        values = attention.v_proj(entered).view(shape).transpose(0, 1)[None]
        for own, base, slots in zip(held, bases, slots_of(counts, len(tokens)), strict=True):
            if own is None:
                continue
            new = {"keys": keys[:, :, slots], "values": values[:, :, slots], "positions": (base + tokens[slots])[None]}
            for name, value in new.items():
                growing = own.rooms[name]
                growing.room.narrow(growing.dim, own.get_seq_length(), value.shape[growing.dim]).copy_(value)

    @staticmethod
    def attend(queries, layer, held, counts: list[int], out) -> None:
        """Attention of the slots to all that their stream holds and to its slots before them; of padding, anything
        finite. out: `[S, H * head_dim]`."""
        out.zero_()
        for own, slots in zip(held, slots_of(counts, len(queries)), strict=True):
            if own is None:
                continue
            count, length = slots.stop - slots.start, own.get_seq_length()
            keys, values = (own.rooms[name].room[:, :, : length + count] for name in ("keys", "values"))
            limit = length + torch.arange(count, device=queries.device)
            visible = torch.arange(length + count, device=queries.device)[None] <= limit[:, None]
            attended = nn.functional.scaled_dot_product_attention(
                queries[slots].transpose(0, 1)[None],
                keys,
                values,
                visible[None, None],
                scale=layer.self_attn.scaling,
                enable_gqa=True,
            )
            out[slots] = attended[0].transpose(0, 1).reshape(count, -1)

    @staticmethod
    def leave(attended, layer, x, index, between) -> None:
        """between `[S, D]`: the slots' tokens with what attention adds to them."""
        between.copy_((x if index is None else x[index]) + layer.self_attn.o_proj(attended))

    @staticmethod
    def widen(between, layer, wide) -> None:
        """wide `[S, I]`: normalised, projected, activated."""
        entered = layer.post_attention_layernorm(between)
        wide.copy_(layer.mlp.act_fn(layer.mlp.gate_proj(entered)) * layer.mlp.up_proj(entered))

    @staticmethod
    def narrow(wide, layer, between, x, index, scale) -> None:
        """Add what the MLP makes, and put the slots back among the tokens of `x`."""
        made = between + layer.mlp.down_proj(wide)
        if index is None:
            x.copy_(made)
        else:
            x[index] = (scale[0, :, None] * made + scale[1, :, None] * x[index]).to(x.dtype)

    @staticmethod
    def read(x, rows, model, logits) -> None:
        """logits `[R, V]` of the tokens `rows`."""
        logits.copy_(model.lm_head(model.model.language_model.norm(x[rows])))

    @staticmethod
    def decide(logits, token: int, probability) -> None:
        """probability `[R]`: of a token, float32, by logits `[R, V]`."""
        probability.copy_(logits.softmax(-1, dtype=torch.float32)[:, token])


def slots_of(counts: list[int], slots: int) -> list[slice]:
    """Of each stream the slots that are no padding, among all `slots` of a step."""
    each = slots // len(counts)
    return [slice(number * each, number * each + count) for number, count in enumerate(counts)]


__all__ = ["PlainOps", "slots_of"]
