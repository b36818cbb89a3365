"""The vision tower as one CUDA graph for each number of frames, where it is on a GPU.

The towers, as transformers builds them, also run with fewer passes over memory: as few large operations in plain
torch, one Triton kernel, and the epilogue of a cuBLASLt product.

Shapes: F frames, H and W pixels, P patches (with CLIP's class token before them), M features of a frame, Dv hidden
size of the vision tower, I its intermediate size.
"""

import weakref
from functools import partial
from types import SimpleNamespace

import torch
from torch import nn

from .configuration_videollm_mod import VISION_MODEL_TYPES
from .static_graphs import Graphs, ModelGuard

try:  # comes with torch for CUDA; elsewhere the kernel below is defined, but never run
    import triton
    import triton.language as tl

    jit = triton.jit
except ImportError:
    triton, tl, jit = None, SimpleNamespace(constexpr=None), lambda function: function

GRAPHS = 20  # numbers of frames with a graph: in a pool of streams all up to 15 occur, and powers of two
MAX_FRAMES = 64  # of one graph: with more, launching kernels takes no time beside the work
ROWS, WARPS = 1, 4  # of one program of the kernel


class PlainTowerOps:
    """The parts of the tower that `TowerKernels` replaces or could replace, in plain torch."""

    @staticmethod
    def embed(core, pixels: torch.Tensor) -> torch.Tensor:
        """Frames `[F, 3, H, W]` to embedded patches `[F, P, Dv]`. Patches do not overlap, so the convolution is one
        product."""
        embeddings, kind = core.embeddings, core.config.model_type
        convolution, size = embeddings.patch_embedding, embeddings.patch_size
        rows, columns = (side // size for side in pixels.shape[2:])
        patches = (
            pixels[:, :, : rows * size, : columns * size].unflatten(3, (columns, size)).unflatten(2, (rows, size))
        )
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        if kind == "siglip_vision_model":
            embedded = nn.functional.linear(patches, convolution.weight.flatten(1), convolution.bias)
            return embedded + embeddings.position_embedding.weight
        embedded, empty = nn.functional.linear(patches, convolution.weight.flatten(1)), torch.zeros_like(pixels[:1])
        if kind == "clip_vision_model":
            return core.pre_layrnorm(nn.functional.pad(embedded, (0, 0, 1, 0)) + embeddings(empty))
        # an empty frame becomes the bias and the embeddings of positions, which these towers number in their own way
        mask = torch.ones(1, rows, columns, dtype=torch.bool, device=pixels.device)
        return embedded + embeddings(empty, patch_attention_mask=mask)

    @staticmethod
    def project_qkv(attention, normed: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values `[F, P, 3 * Dv]`. The weights are concatenated on each call, so that changed
        weights take effect; this takes a thousandth of the product's time."""
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
        return nn.functional.linear(normed, weight, bias)

    @staticmethod
    def attend(attention, qkv: torch.Tensor) -> torch.Tensor:
        """Attention `[F, P, Dv]` over the result of `project_qkv`."""
        queries, keys, values = qkv.unflatten(2, (3, attention.num_heads, attention.head_dim)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(queries, keys, values, scale=attention.scale)
        return attended.transpose(1, 2).flatten(2)

    @staticmethod
    def add_and_norm(x: torch.Tensor, more: torch.Tensor, norm: nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum, and the layer norm of the sum, `[F, P, Dv]` each."""
        x = x + more
        return x, norm(x)

    @staticmethod
    def mlp_up(mlp, normed: torch.Tensor) -> torch.Tensor:
        """The MLP's first layer and its activation, `[F, P, I]`."""
        return mlp.activation_fn(mlp.fc1(normed))


@jit
def _add_and_norm_kernel(
    x_ptr, more_ptr, weight_ptr, bias_ptr, sum_ptr, normed_ptr, rows, width, eps,
    ROWS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The sum of a few rows, rounded as a separate addition rounds it, and its layer norm."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    k = tl.arange(0, SIZE)
    inside = k < width
    at, mask = row[:, None] * width + k[None, :], (row < rows)[:, None] & inside[None, :]
    total = tl.load(x_ptr + at, mask, other=0.0).to(tl.float32) + tl.load(more_ptr + at, mask, other=0.0)
    total = total.to(sum_ptr.dtype.element_ty)
    tl.store(sum_ptr + at, total, mask)
    values = total.to(tl.float32)
    mean = tl.sum(values, axis=1) / width
    centred = tl.where(inside[None, :], values - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=1) / width + eps)
    weight = tl.load(weight_ptr + k, inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + k, inside, other=0.0).to(tl.float32)
    normed = centred * scale[:, None] * weight[None, :] + bias[None, :]
    tl.store(normed_ptr + at, normed.to(normed_ptr.dtype.element_ty), mask)


class TowerKernels(PlainTowerOps):
    """`PlainTowerOps` with a Triton kernel, and with cuBLASLt's GELU epilogue."""

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
    def mlp_up(mlp, normed: torch.Tensor) -> torch.Tensor:
        if mlp.config.hidden_act != "gelu_pytorch_tanh":
            return PlainTowerOps.mlp_up(mlp, normed)
        rows = normed.flatten(0, 1)
        # the epilogue is the tanh approximation of GELU
        activated = torch._addmm_activation(mlp.fc1.bias, rows, mlp.fc1.weight.t(), use_gelu=True)
        return activated.view(*normed.shape[:2], -1)


def run(tower, pixels: torch.Tensor, ops=PlainTowerOps, feature_layer: int | list[int] | None = None):
    """The forward pass of a tower for frames `[F, 3, H, W]` in its dtype.

    Args:
        feature_layer: `vision_feature_layer` of the model's config. Layers above it are left out.

    Returns:
        Its `last_hidden_state` `[F, P, Dv]`, or the hidden states of `feature_layer`, and SigLIP's `pooler_output`
        `[F, Dv]`, None without a pooling head or with a `feature_layer`.
    """
    core = getattr(tower, "vision_model", tower)
    layers = core.encoder.layers
    indices = [feature_layer] if isinstance(feature_layer, int) else feature_layer or []
    wanted = [index % (len(layers) + 1) for index in indices]
    used = layers if feature_layer is None else layers[: max(wanted)]
    x = ops.embed(core, pixels)
    states, normed = {0: x}, layers[0].layer_norm1(x)
    norms = [*(layer.layer_norm1 for layer in layers[1:]), core.post_layernorm]
    for number, (layer, next_norm) in enumerate(zip(used, norms, strict=False), 1):
        attended = ops.attend(layer.self_attn, ops.project_qkv(layer.self_attn, normed))
        x, normed = ops.add_and_norm(x, layer.self_attn.out_proj(attended), layer.layer_norm2)
        x, normed = ops.add_and_norm(x, layer.mlp.fc2(ops.mlp_up(layer.mlp, normed)), next_norm)
        if number in wanted:
            states[number] = x
    if feature_layer is not None:
        return torch.cat([states[number] for number in wanted], dim=-1), None
    if core.config.model_type == "clip_vision_model":
        return x, None
    return normed, core.head(normed) if getattr(core, "use_head", False) else None


def is_plain(tower) -> bool:
    """Whether `run` computes the tower's own `forward`: it is an unmodified tower of transformers."""
    if tower.config.model_type not in VISION_MODEL_TYPES or tower.config._attn_implementation != "sdpa":
        return False
    core = getattr(tower, "vision_model", tower)
    if tower.training or not len(core.encoder.layers):
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


class StaticVision:
    """The vision tower of one model, with a graph for each number of frames that has come twice."""

    def __init__(self, model):
        self._model = weakref.ref(model)
        tower = model.model.vision_tower
        self._guard = ModelGuard([model.model], [tower])
        self._graphs = Graphs(GRAPHS, tower.device)
        self._ops = TowerKernels if triton is not None and is_plain(tower) else None

    def __reduce__(self):
        return type(None), ()  # a copy of the model builds its own

    @property
    def is_current(self) -> bool:
        """Whether the graphs still hold the addresses of the tower's weights, and no module has a forward hook."""
        return self._guard.holds()

    def encode(self, pixels: torch.Tensor) -> torch.Tensor | None:
        """As `__call__`, or None if the tower has changed. Where there is a graph, which runs no module, modules are
        looked at while the device is at work."""
        if not self._guard.weights_hold():
            return None
        is_captured = self._graphs.get(len(pixels)) is not None
        if not is_captured and not self._guard.modules_hold():
            return None
        features = self(pixels)
        return None if is_captured and not self._guard.modules_hold() else features

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features `[F, M, Dv]` of frames `[F, 3, H, W]`."""
        model, count = self._model().model, len(pixels)
        with self._graphs.exclusive():
            graph = self._graphs.get(count)
            if graph is None and count <= MAX_FRAMES and self._graphs.is_due(count):
                buffer = pixels.to(model.vision_tower.dtype, copy=True)
                graph = self._graphs.capture(count, partial(self._features, model), buffer)
            return self._features(model, pixels) if graph is None else graph(pixels).clone()

    def _features(self, model, pixels: torch.Tensor, cut=None) -> torch.Tensor:
        if self._ops is not None:
            try:
                tower, layer = model.vision_tower, model.config.vision_feature_layer
                return model.tokens_of(*run(tower, pixels.to(tower.dtype), self._ops, layer))
            except torch.OutOfMemoryError:
                raise
            except Exception:  # for example where the kernel cannot be compiled
                self._ops = None
        return model.frame_tokens(pixels).pooler_output


def encode(model, pixels: torch.Tensor) -> torch.Tensor:
    """Features `[F, M, Dv]` of frames `[F, 3, H, W]`, as `model.encode_frames` gives them; on a GPU by a graph."""
    vision = model.config.vision_config
    right = tuple(pixels.shape[1:]) == (vision.num_channels, vision.image_size, vision.image_size)
    # a graph keeps the precision that it was captured in
    if pixels.device.type != "cuda" or model.training or not right or torch.is_autocast_enabled("cuda"):
        return model.encode_frames(pixels).pooler_output
    known = vars(model).get("_vision_graphs")
    features = None if known is None else known.encode(pixels)
    if features is None:
        known = model._vision_graphs = StaticVision(model)
        features = known.encode(pixels)
    return model.encode_frames(pixels).pooler_output if features is None else features  # a hook has to see each call


__all__ = ["PlainTowerOps", "TowerKernels", "encode", "is_plain", "run"]
