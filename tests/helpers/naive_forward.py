"""The routed forward pass in its simplest form: one row, token by token, without batching.

It shares only the weights with the fast implementation.
"""

import math

import torch
from tiny_models import SEPARATOR, VIDEO
from torch.nn import functional as F

MASK = (1 << 63) - 1


def mix(x: int) -> int:
    x = (x + 0x1E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0x3F58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x14D049BB133111EB) & MASK
    return x ^ (x >> 31)


def routed_layers(config) -> set[int]:
    chosen, count = config.mod_layers, config.num_hidden_layers
    if not isinstance(chosen, str):
        return set(chosen)
    return {
        i
        for i in range(count)
        if (chosen == "interleaved" and i % 2 == 1)
        or chosen == "all"
        or (chosen == "all_deep" and i >= 2)
        or (chosen == "interleaved_deep" and i % 2 == 1 and i >= 3)
    }


def keep_of_frame(config, scores: list[float], layer: int, frame: int, ratio: float) -> list[int]:
    n = len(scores)
    k = max(1, math.ceil(round(ratio * n, 6)))
    if config.mod_selection == "uniform":
        best = [math.floor((j + 0.5) * n / k) for j in range(k)]
        ranked = best + [i for i in range(n) if i not in best]
    elif config.mod_selection == "random":
        base = mix(mix(mix(config.mod_seed) + layer) + frame)
        ranked = sorted(range(n), key=lambda i: (-mix(base + i), i))
    else:
        ranked = sorted(range(n), key=lambda i: (-scores[i], i))
    if config.mod_force_keep_last:
        ranked = [n - 1] + [i for i in ranked if i != n - 1]
    return sorted(ranked[:k])


def rope(heads: torch.Tensor, position: int, theta: float) -> torch.Tensor:
    half = heads.shape[-1] // 2
    angles = position / theta ** (torch.arange(half, dtype=torch.float64) / half)
    cos, sin = angles.cos().to(heads.dtype), angles.sin().to(heads.dtype)
    a, b = heads.split(half, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def rms(x: torch.Tensor, norm) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean() + norm.variance_epsilon) * norm.weight


def decoder_layer(layer, config, tokens: list[torch.Tensor], positions: list[int]) -> list[torch.Tensor]:
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    theta, attention = config.rope_parameters["rope_theta"], layer.self_attn
    normed = [rms(x, layer.input_layernorm) for x in tokens]
    q = [attention.q_proj(x).view(heads, dim) for x in normed]
    k = [attention.k_proj(x).view(kv_heads, dim) for x in normed]
    v = [attention.v_proj(x).view(kv_heads, dim) for x in normed]
    q = [rope(x, p, theta) for x, p in zip(q, positions, strict=True)]
    k = [rope(x, p, theta) for x, p in zip(k, positions, strict=True)]
    outputs = []
    for i, x in enumerate(tokens):
        mixed = []
        for head in range(heads):
            group = head // (heads // kv_heads)
            keys, values = (torch.stack([x[group] for x in earlier[: i + 1]]) for earlier in (k, v))
            mixed.append((keys @ q[i][head] / math.sqrt(dim)).softmax(0) @ values)
        x = x + attention.o_proj(torch.cat(mixed))
        y = rms(x, layer.post_attention_layernorm)
        mlp = layer.mlp
        outputs.append(x + mlp.down_proj(F.silu(mlp.gate_proj(y)) * mlp.up_proj(y)))
    return outputs


def naive_forward(model, ids: list[int], features: torch.Tensor, ratios: list[float] | None = None):
    """(logits [T, V], kept tokens of each frame by layer) of one row without padding. ratios: the keep ratio of each
    frame; the model's own if omitted."""
    config, text = model.config, model.config.text_config
    ratios = [text.mod_keep_ratio] * len(features) if ratios is None else ratios
    n, language = config.num_frame_tokens, model.model.language_model
    frames, tokens, token = [], [], 0
    for i, token_id in enumerate(ids):
        if token_id == VIDEO:
            if token % n == 0:
                frames.append([])
            frames[-1].append(i)
            tokens.append(model.model.connector(features[token // n, token % n]))
            token += 1
        else:
            tokens.append(language.embed_tokens.weight[token_id])
    vision = {i for frame in frames for i in frame}
    last = {frame[-1] for frame in frames}
    separators = {i for i, token_id in enumerate(ids) if token_id == SEPARATOR and i - 1 in last}

    kept_by_layer, before = {}, None
    values = [language.layers[0].self_attn.v_proj(rms(x, language.layers[0].input_layernorm)) for x in tokens]
    for layer_idx, layer in enumerate(language.layers):
        enters, gates = set(range(len(ids))), {}
        if text.vision_routing == "mod" and layer_idx in routed_layers(text):
            kept_by_layer[layer_idx] = []
            enters -= vision
            for number, frame in enumerate(frames):
                scores = [torch.zeros(()) for _ in frame]
                if text.mod_selection == "learned":
                    expert = layer.layer_expert
                    scores = [expert.weight[0] @ tokens[i] + expert.bias[0] for i in frame]
                elif text.mod_selection == "change":
                    scores = [(tokens[i] - before[i]).norm() / tokens[i].norm() for i in frame]
                elif text.mod_selection == "difference":
                    earlier = [values[i] for i in frames[number - 1]] if number else [0 * values[i] for i in frame]
                    for j, (i, x) in enumerate(zip(frame, earlier, strict=True)):
                        apart = (values[i] - x).norm()
                        scores[j] = apart if apart * 256 > values[i].norm() else scores[j]
                kept = keep_of_frame(text, [s.item() for s in scores], layer_idx, number, ratios[number])
                kept_by_layer[layer_idx].append(kept)
                for j in kept:
                    enters.add(frame[j])
                    if text.mod_selection == "learned":
                        gates[frame[j]] = scores[j]
        elif (text.vision_routing == "early_exit" and layer_idx >= text.early_exit_layer) or (
            text.vision_routing == "layer_skip" and layer_idx % 2 == 1
        ):
            enters -= vision | separators
        order, before = sorted(enters), list(tokens)
        outputs = decoder_layer(layer, text, [tokens[i] for i in order], order)
        for i, y in zip(order, outputs, strict=True):
            if i in gates and text.mod_gate == "residual":
                y = tokens[i] + (1 + 0.2 * torch.tanh(gates[i])) * (y - tokens[i])
            elif i in gates and text.mod_gate == "output":
                y = torch.sigmoid(gates[i]) * y
            tokens[i] = y
    logits = torch.stack([model.lm_head(rms(x, language.norm)) for x in tokens])
    return logits, kept_by_layer
