"""SigLIP's vision tower with fewer passes over memory, for inference.

With many frames the tower's products keep a GPU busy, but everything between them only moves numbers: so the
activation is part of the product before it, each sum is one with the normalisation after it, and queries, keys and
values come from one product. `run` with `PlainTowerOps` is the reference of `fast_tower_kernels_videollm_mod`.

Shapes: F frames, H and W pixels, P patches per frame, Dv hidden size, I intermediate size.
"""

import torch
from torch import nn


class PlainTowerOps:
    """The parts that kernels replace, in plain torch."""

    @staticmethod
    def embed(embeddings, pixels: torch.Tensor) -> torch.Tensor:
        """Frames `[F, 3, H, W]` to patches `[F, P, Dv]`: patches do not overlap, so it is one product."""
        convolution, size = embeddings.patch_embedding, embeddings.patch_size
        rows, columns = (side // size for side in pixels.shape[2:])
        patches = (
            pixels[:, :, : rows * size, : columns * size].unflatten(3, (columns, size)).unflatten(2, (rows, size))
        )
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        made = nn.functional.linear(patches, convolution.weight.flatten(1), convolution.bias)
        return made + embeddings.position_embedding.weight

    @staticmethod
    def project(attention, entered: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values `[F, P, 3 * Dv]`. The weights are joined each time, so that those that change are
        seen; it takes a thousandth of the product."""
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
        return nn.functional.linear(entered, weight, bias)

    @staticmethod
    def attend(attention, joined: torch.Tensor) -> torch.Tensor:
        """`[F, P, Dv]` of what `project` made."""
        heads = joined.unflatten(2, (3, attention.num_heads, attention.head_dim)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(*heads, scale=attention.scale)
        return attended.transpose(1, 2).flatten(2)

    @staticmethod
    def add_and_norm(x: torch.Tensor, more: torch.Tensor, norm: nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum, and it normalised, `[F, P, Dv]` each."""
        x = x + more
        return x, norm(x)

    @staticmethod
    def widen(mlp, entered: torch.Tensor) -> torch.Tensor:
        """`[F, P, I]`: projected and activated."""
        return mlp.activation_fn(mlp.fc1(entered))


def run(tower, pixels: torch.Tensor, ops=PlainTowerOps) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`last_hidden_state` `[F, P, Dv]` and `pooler_output` `[F, Dv]` (None without a head) of frames `[F, 3, H, W]` in
    the tower's dtype."""
    core = getattr(tower, "vision_model", tower)
    layers = core.encoder.layers
    x = ops.embed(core.embeddings, pixels)
    entered = layers[0].layer_norm1(x)
    norms = [layer.layer_norm1 for layer in layers[1:]] + [core.post_layernorm]
    for layer, next_norm in zip(layers, norms, strict=True):
        attended = ops.attend(layer.self_attn, ops.project(layer.self_attn, entered))
        x, entered = ops.add_and_norm(x, layer.self_attn.out_proj(attended), layer.layer_norm2)
        x, entered = ops.add_and_norm(x, layer.mlp.fc2(ops.widen(layer.mlp, entered)), next_norm)
    return entered, core.head(entered) if core.use_head else None


def is_plain_siglip(tower) -> bool:
    """Whether `run` is the tower's own forward: SigLIP as transformers builds it, with nothing put in its place."""
    if tower.config.model_type != "siglip_vision_model" or tower.config._attn_implementation != "sdpa":
        return False
    core = getattr(tower, "vision_model", tower)
    if tower.config.hidden_act != "gelu_pytorch_tanh" or tower.training or not len(core.encoder.layers):
        return False
    for layer in core.encoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        linear = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, mlp.fc1, mlp.fc2)
        if any(type(part) is not nn.Linear or part.bias is None for part in linear):
            return False
        if any(type(norm) is not nn.LayerNorm for norm in (layer.layer_norm1, layer.layer_norm2)):
            return False
    weights = list(tower.parameters())
    return len({(type(weight.data), weight.dtype, weight.device) for weight in weights}) == 1


__all__ = ["PlainTowerOps", "is_plain_siglip", "run"]
