"""CUDA graphs of parts of a model: how they are captured and kept, when they are out of date, which models have
them, and the shapes and outputs of their steps.

A graph holds the addresses of weights and buffers. It saves the host's time of launching kernels one by one.
"""

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat
from operator import getitem, itemgetter

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .compat import StoredWeight, stored_weight

TEXT_LENGTHS = (1, 16, 32, 64, 128, 256)  # of steps without frames
MAX_TOKENS = 16_384  # of one step
MAX_CAPTURED = 1024  # tokens of a captured step: with more, launching kernels takes no time beside the work

forward_hooks, forward_pre_hooks = itemgetter("_forward_hooks"), itemgetter("_forward_pre_hooks")


class Graph:
    """One captured call of a function. Each replay runs the same kernels on the same tensors."""

    def __init__(self, graph: "torch.cuda.CUDAGraph", inputs: tuple[torch.Tensor, ...], outputs):
        self._graph, self._inputs, self._outputs = graph, inputs, outputs

    def __call__(self, *inputs: torch.Tensor):
        """Replay with other inputs of the same shapes. The returned tensors are overwritten by the next replay."""
        for own, value in zip(self._inputs, inputs, strict=True):
            own.copy_(value)
        self._graph.replay()
        return self._outputs


class Graphs:
    """
    The CUDA graphs of one part of a model, by key. All share one memory pool, since they run one after the other.

    Args:
        limit (`int`): graphs to keep; the least recently used one makes room for the next.
        device (`torch.device`): of the part. On other devices than CUDA nothing is ever captured.
    """

    def __init__(self, limit: int, device: torch.device):
        self._limit, self._device = limit, device
        self._graphs: dict[Hashable, Graph] = {}  # least recently used first
        self._seen: set[Hashable] = set()
        self._lock = threading.Lock()
        self._last_use: torch.cuda.Event | None = None
        self.why_not: str | None = None  # graphs cannot be captured here

    @property
    def keys(self) -> list[Hashable]:
        """The keys of the graphs that exist, least recently used first."""
        return list(self._graphs)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Use the graphs and their buffers alone. Threads may have CUDA streams of their own, so the current stream
        waits, on the device, for the stream of the last use."""
        with self._lock:
            if self._device.type != "cuda":
                yield
                return
            with torch.cuda.device(self._device):
                stream = torch.cuda.current_stream()
                if self._last_use is not None:
                    stream.wait_event(self._last_use)
                try:
                    yield
                finally:
                    self._last_use = stream.record_event()

    def get(self, key: Hashable) -> Graph | None:
        graph = self._graphs.pop(key, None)
        if graph is not None:
            self._graphs[key] = graph
        return graph

    def drop(self, key: Hashable) -> None:
        self._graphs.pop(key, None)
        self._seen.discard(key)

    def is_due(self, key: Hashable) -> bool:
        """Whether to capture the graph of `key`: when it is asked for the second time, unless capturing has failed."""
        if key in self._seen:
            return self.why_not is None
        self._seen.add(key)
        return False

    def capture(self, key: Hashable, function: Callable, *inputs: torch.Tensor) -> Graph | None:
        """The graph of `function(*inputs)`. None if it cannot be captured: then `why_not` says why.

        Args:
            inputs: belong to the graph from now on.
        """
        if len(self._graphs) >= self._limit:
            self.drop(next(iter(self._graphs)))
        try:
            self._graphs[key] = self._capture(function, inputs)
        except RuntimeError as error:  # out of memory, or an operation that cannot be captured
            self.give_up(error)
        return self._graphs.get(key)

    def give_up(self, error: BaseException) -> None:
        """Capture nothing from now on."""
        self.why_not = f"a graph cannot be captured: {first_line(error)}"

    @cached_property
    def _pool_and_stream(self) -> tuple:
        """Blocks of a pool are reused only on the stream that they were allocated on."""
        return torch.cuda.graph_pool_handle(), torch.cuda.Stream(self._device)

    def _capture(self, function: Callable, inputs: tuple[torch.Tensor, ...]) -> Graph:
        pool, stream = self._pool_and_stream
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            function(*inputs)  # kernels are compiled, and libraries allocate workspaces, outside of the graph
        current.wait_stream(stream)
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            outputs = function(*inputs)
        return Graph(graph, inputs, outputs)


class ModelGuard:
    """
    Notices changes of what the graphs of some modules depend on: `holds()` as long as all is as it was when the guard
    was made. It keeps modules, but no weights.

    It is asked before every step, while the device waits, so whole lists are compared instead of single modules.

    Args:
        owners (`list[nn.Module]`): the modules that hold `parts`.
        parts (`list[nn.Module]`): the captured modules, with all their submodules.
    """

    def __init__(self, owners: list[nn.Module], parts: list[nn.Module]):
        modules = [module for part in parts for module in part.modules()]
        self._attributes = [vars(module) for module in modules]
        self._children = [module._modules for module in owners + modules]
        self._known_children = [dict(children) for children in self._children]
        places = [(own, name) for own in (module._parameters for module in modules) for name in own]
        weights = [(own, name) for own, name in places if own[name] is not None]
        self._owners: list[dict] = [own for own, _ in weights]
        self._names = [name for _, name in weights]
        # weights of torchao are wrappers, which have no address
        wrapped = any(hasattr(own[name], "qdata") for own, name in weights)
        self._address = _address if wrapped else torch.Tensor.data_ptr
        self._next_hook: int | None = None  # torch's counter of hooks when these modules were last searched for any
        self._known_addresses, self._known_forwards = self._addresses(), self._forwards()

    def _forwards(self) -> list:
        """Functions that replace a `forward`, for example where accelerate loads weights for each call."""
        return list(map(dict.get, self._attributes, repeat("forward")))

    def _addresses(self) -> list[int]:
        return list(map(self._address, map(getitem, self._owners, self._names)))

    def holds(self) -> bool:
        """Whether modules and weights are where they were, and no module has a forward hook."""
        if self._children != self._known_children:
            return False
        next_hook = RemovableHandle.next_id
        if next_hook != self._next_hook:
            if any(map(forward_hooks, self._attributes)) or any(map(forward_pre_hooks, self._attributes)):
                return False
            self._next_hook = next_hook
        if self._forwards() != self._known_forwards:
            return False
        try:
            return self._addresses() == self._known_addresses
        except (KeyError, TypeError, AttributeError):  # a weight was removed, or set to None
            return False


def _address(weight: torch.Tensor) -> int:
    return getattr(weight, "qdata", weight).data_ptr()


@dataclass(frozen=True)
class StepOutput:
    """What a step, or several in a row, computed for one stream, which has F frames here. It is on the device.

    Attributes:
        logits (`[F, V]`): after each frame, or `[1, V]` after the last token where there is no frame; or `[M, V]` of
            each of M tokens of text that come after the frames.
        kept (`tuple`): for each layer the tokens of the frames it kept, int64 `[F, k]` or None.
        scores (`float32 [L, F, N]` or None): of the LayerExperts in use.
        finite (`bool []` or None): whether the features were finite; if not, the cache has to be rolled back.
        silence (`float32 [F]` or None), separator (`int` or None): after each frame the probability of a token, and
            that token, the frame separator of the model's config.
    """

    logits: torch.Tensor
    kept: tuple = ()
    scores: torch.Tensor | None = None
    finite: torch.Tensor | None = None
    silence: torch.Tensor | None = None
    separator: int | None = None


@dataclass(frozen=True)
class Shape:
    """What a step is built for. `frames` and `tokens` are those of one of its `streams`; one token of text is before
    each frame, or none. frames = 0 means text, of which the last logits are computed, or those of `every` token. A
    `mixed` step is for streams that each keep any number of tokens of a frame, up to `num_kept`."""

    frames: int
    tokens: int
    num_kept: int
    gate: str
    selection: str
    force_last: bool
    routed: tuple[int, ...]
    streams: int = 1
    every: bool = False
    mixed: bool = False

    @property
    def all_tokens(self) -> int:
        return self.streams * self.tokens


def text_shape(tokens: int, options: tuple, every: bool = False) -> Shape:
    """The shape of a step without frames. Its tokens are padded to one of a few lengths."""
    return replace(Shape(0, tokens, *options), num_kept=0, routed=(), every=every)


def split_text(words: int, options: tuple, every: bool = False) -> list[tuple[Shape, int]]:
    """The steps for so many tokens of text, each with the number of its tokens."""
    lengths = [min(words - start, TEXT_LENGTHS[-1]) for start in range(0, words, TEXT_LENGTHS[-1])]
    padded = (next(size for size in TEXT_LENGTHS if size >= length) for length in lengths)
    return [(text_shape(size, options, every), length) for size, length in zip(padded, lengths, strict=True)]


def split_call(ids: list[int], frames: int, per_frame: int, options: tuple, after: int) -> list[tuple[Shape, int]]:
    """The steps for the tokens of a stream: text, frames and text after them, each with the number of its tokens. The
    step of the frames takes the token of text before each of them, unless frames follow each other directly.

    Args:
        per_frame (`int`): N.
        options (`tuple`): of a `Shape`, from `num_kept` to `routed`.
        after (`int`): tokens after the frames, of each of which logits are needed.
    """
    start = len(ids) - after - per_frame  # of the last frame
    before = int(frames > 0 and start > 0 and ids[start - 1] != ids[start])
    block = frames * (before + per_frame)
    words = len(ids) - block - after
    if words < 0:
        raise ValueError("`ids` must hold at most one token of text between frames")
    shapes = split_text(words, options)
    if frames:
        shapes.append((Shape(frames, block, *options), block))
    return shapes + split_text(after, options, every=True)


def mixed_groups(groups: dict[Shape, list[int]]) -> list[tuple[Shape, list[int]]]:
    """Groups of streams by the shape of their step. Those that differ only in how many tokens they keep become one,
    since reading the weights takes most of the time of a step; not beyond the size of captured steps, where computing
    does."""
    if len(groups) == 1:
        return list(groups.items())
    alike: dict[Shape, list[Shape]] = {}
    for shape in groups:
        alike.setdefault(replace(shape, num_kept=0), []).append(shape)
    found = []
    for shapes in alike.values():
        members = sorted(number for shape in shapes for number in groups[shape])
        if len(shapes) == 1 or len(members) * shapes[0].tokens > MAX_CAPTURED:
            found += [(shape, groups[shape]) for shape in shapes]
        else:
            most = max(shape.num_kept for shape in shapes)
            found.append((replace(shapes[0], num_kept=most, mixed=True), members))
    return found


def split_streams(shape: Shape, members: list) -> list[tuple[list, Shape]]:
    """The members of a group that share a step, and the shape of that step. Where it is captured, their number is
    rounded up to a power of two, so that there are few graphs."""
    per_step, steps = max(1, MAX_TOKENS // shape.tokens), []
    for start in range(0, len(members), per_step):
        own = members[start : start + per_step]
        padded = 1 << (len(own) - 1).bit_length()
        streams = padded if padded * shape.tokens <= MAX_CAPTURED else len(own)
        steps.append((own, replace(shape, streams=streams)))
    return steps


def why_not(model) -> str | None:
    """Why a model has no static steps; None if it has them."""
    text, language = model.config.text_config, model.model.language_model
    if model.device.type != "cuda":
        return "the model is not on a CUDA device"
    if model.training:
        return "the model is in training mode"
    if text.vision_routing not in ("mod", "full"):
        return f"vision_routing={text.vision_routing!r}"
    if text.vision_routing == "mod" and text.mod_selection == "random":
        return "mod_selection='random'"
    if model.dtype not in (torch.bfloat16, torch.float32):
        return f"the model's dtype is {model.dtype}"
    if text.hidden_act != "silu" or text.mlp_bias:
        return "its MLP is not Llama's"
    if language.rotary_emb.rope_type in ("dynamic", "longrope"):
        return f"the rope_type is {language.rotary_emb.rope_type!r}"
    if text.head_dim not in (32, 64, 128, 256):
        return f"its head_dim is {text.head_dim}"
    quantised = [module for part in (language, model.lm_head) for module in part.modules() if is_quantised(module)]
    return (
        _why_not_plain([language, model.model.connector, model.lm_head], quantised)
        or _why_not_llama(language)
        or _why_not_dtype(model, quantised)
    )


def is_quantised(module: nn.Module) -> bool:
    """Whether a module is a linear layer whose weight kernels can read although it is quantised."""
    stored = stored_weight(module) if isinstance(module, nn.Linear) else None
    return stored is not None and stored.scale is not None


def _why_not_plain(parts: list[nn.Module], quantised: list[nn.Module]) -> str | None:
    """Why kernels cannot take the place of the forward methods of these modules; None if they can."""
    modules = [module for part in parts for module in part.modules()]
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks or has_own_forward(module):
            return "a module has hooks"
        is_plain = type(module) is nn.Linear or type(module).__name__ == "LayerExpert" or module in quantised
        if isinstance(module, nn.Linear) and not is_plain:
            return f"a layer is {type(module).__name__}"
    plain = [module for module in modules if module not in quantised]
    weights = [weight for module in plain for weight in module.parameters(recurse=False)]
    if any(type(weight.data) is not torch.Tensor or not weight.is_contiguous() for weight in weights):
        return "its weights are no plain tensors"
    if len({weight.device for weight in weights}) > 1:
        return "its weights are on several devices"
    return None


def _why_not_llama(language) -> str | None:
    for layer in language.layers:
        attention, mlp = layer.self_attn, layer.mlp
        inputs = attention.q_proj, attention.k_proj, attention.v_proj
        for module in [*inputs, attention.o_proj, *mlp.children()]:
            if isinstance(module, nn.Linear) != hasattr(module, "weight") or hasattr(module, "base_layer"):
                return f"a layer is {type(module).__name__}"
        for together in (inputs, (mlp.gate_proj, mlp.up_proj)):  # one kernel reads all of them
            if len({_layout(stored_weight(module)) for module in together}) > 1:
                return "weights that are read together are stored in different ways"
    return None


def _layout(stored: StoredWeight | None) -> tuple:
    """What a kernel is compiled for."""
    assert stored is not None
    return stored.values.dtype, stored.code is None, stored.rows, stored.columns


def _why_not_dtype(model, quantised: list[nn.Module]) -> str | None:
    language = model.model.language_model
    modules = [language.embed_tokens, model.lm_head, language.norm, *language.layers.modules()]
    modules = [module for module in modules if type(module).__name__ != "LayerExpert" and module not in quantised]
    weights = [weight for module in modules for weight in module.parameters(recurse=False)]
    return None if all(weight.dtype == model.dtype for weight in weights) else "its weights are of several dtypes"


def has_own_forward(module: nn.Module) -> bool:
    """Whether the `forward` of a module is not that of its class, for example where accelerate has wrapped it."""
    forward = vars(module).get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


__all__ = [
    "MAX_TOKENS",
    "Graph",
    "Graphs",
    "ModelGuard",
    "Shape",
    "StepOutput",
    "first_line",
    "has_own_forward",
    "is_quantised",
    "mixed_groups",
    "split_call",
    "split_streams",
    "text_shape",
    "why_not",
]
