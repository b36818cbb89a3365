"""CUDA graphs of parts of a model: how they are captured and kept, when they are out of date, which models have
them, and the static steps of a language model, each of which becomes a graph.

A graph holds the addresses of weights and buffers. It saves the host's time of launching kernels one by one.
"""

import copy
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import repeat
from operator import getitem, itemgetter

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .cache import MoDCache
from .configuration_videollm_mod import num_kept_tokens
from .static_step import (
    FIRST_LAYERS,
    MAX_CAPTURED,
    MAX_TOKENS,
    TEXT_LENGTHS,
    PlainOps,
    Shape,
    StaticStep,
    StepOutput,
    mixed_groups,
    split_call,
    split_streams,
    text_shape,
)
from .weights import FEW_ROWS, StoredWeight, addresses, is_wrapped, stored_weight

FEW_SLOTS = 16  # up to here our own kernels read the weights faster than cuBLAS
FEW_QUANTISED = 64  # the same for quantised weights, of which cuBLAS needs a dense copy
WARM_TEXT = 64  # texts up to this length are captured together with the first frame
GRAPHS = 32  # captured at most
NOT_FINITE = "`video_features` must be finite, got nan or infinity"

forward_hooks, forward_pre_hooks = itemgetter("_forward_hooks"), itemgetter("_forward_pre_hooks")


class Graph:
    """One captured call of a function, in parts. Each replay runs the same kernels on the same tensors."""

    def __init__(self, parts: "list[torch.cuda.CUDAGraph]", inputs: tuple[torch.Tensor, ...], outputs):
        self._parts, self._inputs, self._outputs = parts, inputs, outputs

    def __call__(self, *inputs: torch.Tensor, check: Callable[[], None] = lambda: None):
        """Replay with other inputs of the same shapes. The returned tensors are overwritten by the next replay.
        check: is called before the last part, and raises if that must not run."""
        for own, value in zip(self._inputs, inputs, strict=True):
            own.copy_(value)
        for part in self._parts[:-1]:
            part.replay()
        check()
        self._parts[-1].replay()
        return self._outputs


class Graphs:
    """
    The CUDA graphs of one part of a model, by key. All share one memory pool, since they run one after the other.

    Args:
        limit (`int`): graphs to keep; the least recently used one makes room for the next.
        device (`torch.device`): of the part. On other devices than CUDA nothing is ever captured.
    """

    def __init__(self, limit: int, device: torch.device):
        self._limit, self.device = limit, device
        self._graphs: dict[Hashable, Graph] = {}  # least recently used first
        self._seen: set[Hashable] = set()
        self._lock = threading.Lock()
        self._last_stream: torch.cuda.Stream | None = None
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
            if self.device.type != "cuda":
                yield
                return
            with torch.cuda.device(self.device):
                stream, last = torch.cuda.current_stream(), self._last_stream
                if last is not None and last != stream:
                    stream.wait_stream(last)
                self._last_stream = stream
                yield

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
        """The graph of `function(*inputs, cut)`. None if it cannot be captured: then `why_not` says why.

        Args:
            function: calls `cut()` where the next part begins: one is launched while the device works on another.
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
        return torch.cuda.graph_pool_handle(), torch.cuda.Stream(self.device)

    def _capture(self, function: Callable, inputs: tuple[torch.Tensor, ...]) -> Graph:
        (pool, stream), current = self._pool_and_stream, torch.cuda.current_stream(self.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            function(*inputs, lambda: None)  # kernels are compiled, and libraries allocate workspaces, before
        current.wait_stream(stream)
        parts: list[torch.cuda.CUDAGraph] = []
        with ExitStack() as part:

            def cut() -> None:
                part.close()
                parts.append(torch.cuda.CUDAGraph())
                part.enter_context(torch.cuda.graph(parts[-1], pool, stream, "thread_local"))

            cut()
            outputs = function(*inputs, cut)
        return Graph(parts, inputs, outputs)


class ModelGuard:
    """
    Notices changes of what the graphs of some modules depend on: `holds()` as long as all is as it was when the guard
    was made. It keeps modules, but no weights.

    It is asked at every step, so whole lists are compared instead of single modules. Weights are looked at before the
    part of a graph is launched that would read freed memory. Modules may be looked at while it runs: a graph reads the
    weights of those that it was captured with, which the guard keeps.

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
        self._wrapped = any(map(is_wrapped, map(getitem, self._owners, self._names)))
        self._next_hook: int | None = None  # torch's counter of hooks when these modules were last searched for any
        self._known_addresses, self._known_forwards = self._addresses(), self._forwards()

    def _forwards(self) -> list:
        """Functions that replace a `forward`, for example where accelerate loads weights for each call."""
        return list(map(dict.get, self._attributes, repeat("forward")))

    def _addresses(self) -> list[int]:
        return addresses(map(getitem, self._owners, self._names), self._wrapped)

    def holds(self) -> bool:
        """Whether modules and weights are where they were, and no module has a forward hook."""
        return self.modules_hold() and self.weights_hold()

    def modules_hold(self) -> bool:
        """Whether modules are where they were, and none has a forward hook."""
        if self._children != self._known_children:
            return False
        next_hook = RemovableHandle.next_id
        if next_hook != self._next_hook:
            if any(map(forward_hooks, self._attributes)) or any(map(forward_pre_hooks, self._attributes)):
                return False
            self._next_hook = next_hook
        return self._forwards() == self._known_forwards

    def weights_hold(self) -> bool:
        """Whether the modules' weights are where they were."""
        try:
            return self._addresses() == self._known_addresses
        except (KeyError, TypeError, AttributeError):  # a weight was removed, or set to None
            return False


def why_not(model) -> str | None:
    """Why a model has no static steps; None if it has them."""
    text, language = model.config.text_config, model.model.language_model
    device = model.device
    if device.type not in ("cuda", "cpu"):
        return f"the model is on {device.type}"
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
    if device.type == "cuda" and text.head_dim not in (32, 64, 128, 256):
        return f"its head_dim is {text.head_dim}"
    quantised = [module for part in (language, model.lm_head) for module in part.modules() if is_quantised(module)]
    if quantised and device.type == "cpu":
        return "its weights are quantised"
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


class StepsUnavailable(RuntimeError):
    """Static steps do not run here, for example because a kernel does not compile."""


class StaticLanguageModel:
    """
    The static steps of one model, which all its sessions share.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`).
        ops: `PlainOps`, for tests; if omitted the kernels of `static_kernels`, captured in graphs, and `PlainOps` on a
            CPU.

    Attributes:
        max_tokens (`int`): of a stream in one call. On a CPU, more tokens are a matter of computing, not of launching
            operations, and go to the model itself.
        captures (`bool`): steps can become graphs.
    """

    def __init__(self, model, ops=None):
        on_cpu = ops is None and model.device.type == "cpu"
        self._model, self._ops = weakref.ref(model), PlainOps if on_cpu else ops
        self.max_tokens, self.captures = FEW_ROWS if on_cpu else MAX_TOKENS, not on_cpu
        self._steps: dict[Shape, StaticStep] = {}  # least recently used first
        self.device, self._graphs = model.device, Graphs(GRAPHS, model.device)
        language, connector = model.model.language_model, model.model.connector
        self._guard = ModelGuard([model, model.model], [language, connector, model.lm_head])
        first = [language.embed_tokens, connector, *language.layers[:FIRST_LAYERS]]
        self._guard_of_first = ModelGuard([], first) if ops is None and not on_cpu else self._guard
        self._few = FEW_QUANTISED if is_quantised(language.layers[0].self_attn.q_proj) else FEW_SLOTS
        self._last: tuple = None, None  # what was asked of one stream last, and the only step of it
        self._asked = self._answer = None  # of `_options`, but for the keep ratio
        self._failure: str | None = None
        self._changed = False  # a module had changed when a step had been launched
        self._is_warm = False  # short texts have graphs

    def __reduce__(self):
        return type(None), ()  # a copy of the model builds its own

    @property
    def is_current(self) -> bool:
        """Whether graphs still hold the addresses of the model's weights, and no module has a forward hook."""
        return self._guard.holds()

    @property
    def may_run(self) -> bool:
        """As `is_current`, but changes of all but the first layers' weights are found when a step is launched."""
        if self._changed or self._failure is not None:
            self._changed = not self.is_current
            return not self._changed
        return self._guard_of_first.weights_hold()

    @property
    def broken(self) -> bool:
        """Whether steps do not run here."""
        return self._failure is not None

    @property
    def why_not(self) -> str | None:
        """Why steps do not run here, or run without graphs."""
        return self._failure or self._graphs.why_not

    def feed(self, cache: MoDCache, ids: list[int], features: torch.Tensor | None, keep_ratio: float | None):
        """As `feed_together`, for one stream: logits, kept and scores of its `StepOutput`.

        Raises:
            `ValueError`: for features that are not finite; the cache has then to be rolled back.
            `StepsUnavailable`: if steps do not run here; the cache has to be rolled back, too.
        """
        (fed,) = self.feed_together([(cache, ids, features)], keep_ratio)
        if fed.finite is not None and not bool(fed.finite):
            raise ValueError(NOT_FINITE)
        return fed.logits, fed.kept, fed.scores

    def feed_together(
        self, streams: list[tuple], keep_ratio: float | list[float | None] | None, after: list[int] | None = None
    ) -> list[StepOutput]:
        """Append to each cache its tokens, with the features `[F, M, Dv]` of the frames at their end. The results are
        still being computed: reading one waits for the device.

        Args:
            streams: of each the `MoDCache`, the ids, and the features if it has frames.
            keep_ratio: of all streams, or of each; the model's own if None.
            after (*optional*): for each stream the number of tokens of text after its frames, of each of which logits
                are returned; 0 if omitted.

        Raises:
            `StepsUnavailable`: the caches have then to be rolled back.
        """
        ratios = keep_ratio if isinstance(keep_ratio, list) else [keep_ratio] * len(streams)
        (_, ids, features), *others = streams
        asked = None if others or features is None else (list(ids), len(features), ratios, after)
        with self._graphs.exclusive():
            config = self._model().config
            is_ready = self._is_warm or not self.captures
            if is_ready and asked == self._last[0] is not None and vars(config.text_config) == self._asked:
                found = self._run_streams(self._last[1], [(*streams[0], None)], True)
                self._check(self._guard.modules_hold())  # while the device is at work
                return found
            per_frame = config.num_frame_tokens
            options = self._options(ratios, per_frame)
            parts = [
                split_call(ids, 0 if features is None else len(features), per_frame, own, rest)
                for (_, ids, features), own, rest in zip(streams, options, after or [0] * len(streams), strict=True)
            ]
            self._last = asked if len(parts[0]) == 1 else None, parts[0][0][0]
            outputs: list[list[StepOutput]] = [[] for _ in streams]
            done = [0] * len(streams)
            while any(parts):
                # frames are the last of a stream's parts: they wait until all other streams have read their text too
                due = [number for number, own in enumerate(parts) if own and not own[0][0].frames]
                due = due or [number for number, own in enumerate(parts) if own]
                groups: dict[Shape, list[int]] = {}
                for number in due:
                    groups.setdefault(parts[number][0][0], []).append(number)
                for shape, members in mixed_groups(groups):
                    done_now = {number: parts[number].pop(0) for number in members}
                    for chunk, own_shape in split_streams(shape, members):
                        own = []
                        for number in chunk:
                            cache, ids, features = streams[number]
                            part, length = done_now[number]
                            own.append((cache, ids[done[number] :][:length], features, part.num_kept))
                            done[number] += length
                        is_output = [shape.frames or shape.every or not parts[number] for number in chunk]
                        found = self._run_streams(own_shape, own, any(is_output))
                        for number, output, wanted in zip(chunk, found, is_output, strict=False):
                            outputs[number] += [output] * bool(wanted)
            self._check(self._guard.modules_hold())  # while the device is at work
            if self._graphs.keys and not self._is_warm:
                self._warm_up(options[0])
            return [joined(own) for own in outputs]

    def _run_streams(self, shape: Shape, streams: list[tuple], has_output: bool) -> list[StepOutput]:
        """Run one step; returns results if they are among those of the call."""
        step = self._step(shape)
        caches, ids, features, kept = ([own[item] for own in streams] for item in range(4))
        if shape.frames:
            ids = [own[:: shape.tokens // shape.frames] if step.text_before else [] for own in ids]
        try:
            step.prepare(caches, ids, features if shape.frames else None, kept if shape.mixed else None)
            self._run(step)
            results = step.results() if has_output else []
            step.finish()  # while the device is at work
        finally:
            step.drop()
        return results[: len(streams)]

    def _options(self, keep_ratios: list[float | None], per_frame: int) -> list[tuple]:
        """For each keep ratio the fields of a `Shape` of frames from `num_kept` to `routed`, computed again if the
        config has changed."""
        text = self._model().config.text_config
        asked = vars(text)
        if asked != self._asked:
            text.check_routing()
            routed = text.routed_layers if text.vision_routing == "mod" else ()
            self._answer = text.mod_gate, text.mod_selection, text.mod_force_keep_last, routed
            self._asked = copy.deepcopy(asked)
        own, is_routed = text.mod_keep_ratio, bool(self._answer[-1])
        kept = {x: num_kept_tokens(own if x is None else x, per_frame) * is_routed for x in set(keep_ratios)}
        return [(kept[ratio], *self._answer) for ratio in keep_ratios]

    def _step(self, shape: Shape) -> StaticStep:
        step = self._steps.pop(shape, None)
        if step is None:
            ops = self._ops
            if ops is None:
                from .static_kernels import CublasKernels, Kernels

                ops = Kernels if shape.all_tokens <= self._few else CublasKernels
            with torch.inference_mode(False), torch.no_grad():  # its buffers are written in any mode
                step = StaticStep(self._model(), shape, ops)
        if shape.all_tokens <= MAX_CAPTURED:  # larger ones have large buffers, which are quickly made
            if len(self._steps) >= 2 * GRAPHS:
                oldest = next(iter(self._steps))
                del self._steps[oldest]
                self._graphs.drop(oldest)  # it writes into the buffers of its step
            self._steps[shape] = step
        return step

    def _run(self, step: StaticStep) -> None:
        try:
            self._forward(step)
        except (torch.OutOfMemoryError, StepsUnavailable):
            raise
        except Exception as error:
            self._failure = f"a step cannot be run: {first_line(error)}"
            raise StepsUnavailable(self._failure) from error

    def _forward(self, step: StaticStep) -> None:
        """Run a step, if possible by its graph, which is captured when its shape comes for the second time."""
        graph = self._graphs.get(step.shape)
        if graph is not None:
            graph(check=lambda: self._check(self._guard.weights_hold()))
            return
        self._check(self._guard.modules_hold())  # they run now
        if self._ops is not None:
            step.forward()
        elif step.shape.all_tokens > MAX_CAPTURED:
            step.forward(attend=PlainOps.attend)  # the host knows how long the streams are
        elif self._graphs.is_due(step.shape) and (graph := self._graphs.capture(step.shape, step.forward)):
            graph()
        else:
            step.forward()

    def _check(self, holds: bool) -> None:
        if not holds:
            self._changed = True
            raise StepsUnavailable("the model has changed")

    def _warm_up(self, options: tuple) -> None:
        """Capture short texts too, so that no question waits for it."""
        self._is_warm = True
        for length in TEXT_LENGTHS:
            if length <= WARM_TEXT:
                self._capture(text_shape(length, options))

    def _capture(self, shape: Shape) -> None:
        """Capture a step, unless it is captured already, with an empty stream. Failing is no error."""
        if self.why_not is not None or shape in self._graphs.keys:
            return
        model = self._model()
        step = self._step(shape)
        ids = [0] * (shape.frames * step.text_before if shape.frames else shape.tokens)
        size = (shape.frames, *model.config.video_feature_shape)
        features = [torch.zeros(size, dtype=model.dtype, device=model.device)] if shape.frames else None
        try:
            step.prepare([MoDCache(model.config)], [ids], features)
            self._graphs.capture(shape, step.forward)
        except Exception as error:  # results of a call may exist already: nothing may fail it now
            self._graphs.give_up(error)
        finally:
            step.drop()

    def shapes(self, ids: list[int], keep_ratio: float | None) -> list[Shape]:
        """The steps of a stream that is fed these tokens, at the end of which there may be frames and text after them.
        The keep ratio is the model's own if omitted."""
        config = self._model().config
        video, per_frame = config.video_token_id, config.num_frame_tokens
        frames = ids.count(video) // per_frame
        after = ids[::-1].index(video) if frames else 0
        (options,) = self._options([keep_ratio], per_frame)
        return [shape for shape, _ in split_call(ids, frames, per_frame, options, after)]

    def capture(self, shape: Shape) -> None:
        """Capture a step before it is needed. If that fails, `why_not` says so, and steps run without graphs."""
        with self._graphs.exclusive():
            self._capture(shape)


def joined(outputs: list[StepOutput]) -> StepOutput:
    """The output of a stream's frames, with the logits of the text after them, if there is any; or of its only step
    with an output."""
    first, *after = outputs
    return replace(first, logits=torch.cat([output.logits for output in after])) if after else first


def static_language_model(model) -> tuple[StaticLanguageModel | None, str | None]:
    """The model's static steps, or why it has none. They are built anew if the model has changed."""
    if torch.is_autocast_enabled("cuda"):  # on other devices there are no static steps
        return None, "autocast is on"  # a graph keeps the precision that it was captured in
    known = vars(model).get("_static_steps")
    if known is not None and not model.training and known.may_run:
        return None if known.broken else known, known.why_not
    reason = why_not(model)
    if reason is not None:
        return None, reason
    if model.device.type == "cuda":
        try:
            from .static_kernels import Kernels as _  # noqa: F401
        except ImportError as error:
            return None, str(error)
    model._static_steps = StaticLanguageModel(model)
    return model._static_steps, None


__all__ = [
    "NOT_FINITE",
    "Graph",
    "Graphs",
    "ModelGuard",
    "StaticLanguageModel",
    "StepsUnavailable",
    "first_line",
    "has_own_forward",
    "is_quantised",
    "static_language_model",
    "why_not",
]
