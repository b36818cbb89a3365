"""The parts of a static step (`fast_step_videollm_mod`) in plain torch: the reference of `fast_kernels_videollm_mod`.

Each works on buffers that are there already, so that nothing of it depends on how long the stream is. In a routed
layer `index` names the token in each slot and `scale` how its output goes back: `y` is what the layer makes of `x`,
and the token becomes `scale[0] * y + scale[1] * x`. In others both are None, and slots are tokens.

Shapes: T tokens of a step, S slots of a layer, F frames, N vision tokens per frame, k of them kept, D hidden size,
I intermediate size, H heads, G key-value heads, V vocabulary.
"""

import torch
from torch import nn

from .routing_videollm_mod import GATE_STRENGTH, select_tokens


class PlainOps:
    """See the module. `layer` is a `VideoLLMMoDDecoderLayer`, `held` a `MoDCacheLayer` with room for what comes."""

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
    def project(x, index, layer, rotary, queries, held, base: int, count: int) -> None:
        """Normalise, project to queries `[S, H, head_dim]`, and write keys, values and positions of the first `count`
        slots behind what is held. rotary: cosine and sine `[T, head_dim]`; base: position of the first token."""
        attention, tokens = layer.self_attn, torch.arange(len(x), device=x.device) if index is None else index
        entered = layer.input_layernorm(x[tokens])
        shape, (cos, sin) = (len(tokens), -1, attention.head_dim), (part[tokens][:, None] for part in rotary)

        def turned(states):
            first, second = states.chunk(2, dim=-1)
            return states * cos + torch.cat([-second, first], dim=-1) * sin

        queries.copy_(turned(attention.q_proj(entered).view(shape)))
        new = {
            "keys": turned(attention.k_proj(entered).view(shape)).transpose(0, 1)[None, :, :count],
            "values": attention.v_proj(entered).view(shape).transpose(0, 1)[None, :, :count],
            "positions": (base + tokens)[None, :count],
        }
        for name, value in new.items():
            growing = held.rooms[name]
            growing.room.narrow(growing.dim, held.get_seq_length(), count).copy_(value)

    @staticmethod
    def attend(queries, layer, held, count: int, out) -> None:
        """Attention of the slots to all that is held and to the slots before them. out: `[S, H * head_dim]`."""
        length, slots = held.get_seq_length(), len(queries)
        keys, values = (held.rooms[name].room[0, :, : length + count] for name in ("keys", "values"))
        limit = length + torch.arange(slots, device=queries.device)
        visible = torch.arange(length + count, device=queries.device)[None] <= limit[:, None]
        attended = nn.functional.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            keys[None],
            values[None],
            visible[None, None],
            scale=layer.self_attn.scaling,
            enable_gqa=True,
        )
        out.copy_(attended[0].transpose(0, 1).reshape(slots, -1))

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


__all__ = ["PlainOps"]
