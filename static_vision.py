"""The vision tower as a CUDA graph for each number of frames, where it is on a GPU; SigLIP's in its fast form.

Shapes: F frames, H and W pixels, N vision tokens per frame, Dv hidden size of the vision tower.
"""

import threading
import weakref

import torch
from torch import nn

from .static_graphs import Unchanged


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


GRAPHS = 12  # numbers of frames that are captured, those in use last; in a pool they change
MOST_FRAMES = 64  # of one graph; with more, launching takes no time beside the work


class FastVision:
    """The graphs of one model's vision tower."""

    def __init__(self, model):
        self._model = weakref.ref(model)
        tower = model.model.vision_tower
        self._unchanged = Unchanged([model.model], [tower])
        self._graphs: dict[int, tuple] = {}  # number of frames -> graph, pixels, features
        self._seen: set[int] = set()
        self._fails = False
        self._ops = fast_ops(tower)
        self._lock = threading.Lock()
        self._done: torch.cuda.Event | None = None  # the last use of a graph's buffers, on whichever stream

    def __reduce__(self):
        return type(None), ()  # a copy of the model makes its own

    @property
    def is_current(self) -> bool:
        """Whether the tower is still the one whose addresses the graphs hold, and nobody wants to see its calls."""
        return bool(self._unchanged)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        model, count = self._model().model, len(pixels)
        with self._lock, torch.cuda.device(pixels.device):
            is_due = count in self._seen and count <= MOST_FRAMES and not self._fails
            if count not in self._graphs and is_due:
                try:
                    self._capture(model, pixels)
                except RuntimeError:  # out of memory, or a tower that cannot be captured
                    self._fails = True
            self._seen.add(count)
            if count not in self._graphs:
                return self._features(model, pixels)
            graph, own_pixels, features = self._graphs[count] = self._graphs.pop(count)
            stream = torch.cuda.current_stream(pixels.device)
            if self._done is not None:  # threads may have streams of their own
                stream.wait_event(self._done)
            own_pixels.copy_(pixels)
            graph.replay()
            features = features.clone()
            self._done = stream.record_event()
            return features

    def _features(self, model, pixels: torch.Tensor) -> torch.Tensor:
        if self._ops is not None:
            try:
                return model.tokens_of(*run(model.vision_tower, pixels.to(model.vision_tower.dtype), self._ops))
            except torch.OutOfMemoryError:
                raise
            except Exception:  # as where a kernel cannot be compiled
                self._ops = None
        return model.frame_tokens(pixels).pooler_output

    def _capture(self, model, pixels: torch.Tensor) -> None:
        if len(self._graphs) >= GRAPHS:
            self._graphs.pop(next(iter(self._graphs)))
        own_pixels = pixels.to(model.vision_tower.dtype, copy=True)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(pixels.device)
        stream.wait_stream(torch.cuda.current_stream(pixels.device))
        with torch.cuda.stream(stream):
            self._features(model, own_pixels)
        torch.cuda.current_stream(pixels.device).wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            features = self._features(model, own_pixels)
        self._graphs[len(pixels)] = graph, own_pixels, features


def fast_ops(tower):
    """The parts of the tower's fast form; None where it has none."""
    if not is_plain_siglip(tower):
        return None
    try:
        from .static_tower_kernels import TowerKernels
    except ImportError:
        return None
    return TowerKernels


def encode(model, pixels: torch.Tensor) -> torch.Tensor:
    """Features `[F, N, Dv]` of frames `[F, 3, H, W]`, as `model.encode_frames`."""
    vision = model.config.vision_config
    right = tuple(pixels.shape[1:]) == (vision.num_channels, vision.image_size, vision.image_size)
    # a graph is of the precision that it was captured in
    if pixels.device.type != "cuda" or model.training or not right or torch.is_autocast_enabled("cuda"):
        return model.encode_frames(pixels).pooler_output
    known = vars(model).get("_vision_graphs")
    if known is None or not known.is_current:
        known = model._vision_graphs = FastVision(model)
        if not known.is_current:  # hooks want to see every call
            return model.encode_frames(pixels).pooler_output
    return known(pixels)


__all__ = ["PlainTowerOps", "encode", "is_plain_siglip", "run"]
