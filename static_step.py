"""The language model over a few frames or words of one stream or several, with shapes that never change: a static
step.

What it takes does not depend on the length of a stream, so that on a GPU it is captured once as a CUDA graph and
then replayed for every stream: where a stream's keys and values lie and how many there are stands in a table on the
device. Elsewhere, and where something does not fit (`why_not`), sessions run the model as it is.

A call's tokens are cut into text, which is padded to one of a few lengths, and frames, each with the one token of text
before it (a separator, or the stream's start). Any such cuts give what one call gives. Of several streams, those parts
that are of one shape make one step together, in which all weights are read once.

Shapes: F frames of a stream, N vision tokens per frame, k of them kept, Dv hidden size of the vision tower, V
vocabulary, L layers with a LayerExpert.
"""

import copy
import math
import threading
import weakref
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from .cache import MoDCache
from .configuration_videollm_mod import num_kept_tokens
from .routing import select_tokens, uniform_priority
from .static_graphs import Unchanged, has_own_forward
from .static_ops import PlainOps

TEXT_LENGTHS = (1, 16, 32, 64, 128, 256)  # of steps without frames
FEW_SLOTS = 16  # up to here kernels of our own read the weights faster than cuBLAS
WARM_TEXT = 64  # texts up to this length are captured with the first frame
MOST_TOKENS = 16_384  # of one step
MOST_CAPTURED = 1024  # tokens of a step that is captured; with more, launching takes no time beside the work
GRAPHS = 32  # captured at most
TABLE_WIDTH = 8


@dataclass(frozen=True)
class Shape:
    """What a step is built for. frames = 0: `tokens` of text. Both are those of one of its `streams`."""

    frames: int
    tokens: int
    num_kept: int
    gate: str
    selection: str
    force_last: bool
    routed: tuple[int, ...]
    streams: int = 1

    @property
    def all_tokens(self) -> int:
        return self.streams * self.tokens


@dataclass(frozen=True)
class Fed:
    """What came of the tokens of one stream.

    Attributes:
        logits (`[F, V]`): after each frame, or `[1, V]` after the last token where there is no frame.
        kept (`tuple`): for each layer which tokens of the frames it kept, int64 `[F, k]` or None.
        scores (`float32 [L, F, N]` or None): of the layers with a LayerExpert at work.
        finite (`bool []` or None): whether the features were; if not, the stream's cache has to be rolled back.
        silence (`float32 [F]` or None), separator (`int` or None): how probable a token, the frame separator of the
            model's config, is after each frame.
    """

    logits: torch.Tensor
    kept: tuple = ()
    scores: torch.Tensor | None = None
    finite: torch.Tensor | None = None
    silence: torch.Tensor | None = None
    separator: int | None = None


class StaticStep:
    """
    One shape of step, with its buffers.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`), shape (`Shape`).
        kernels: the parts; `PlainOps` if omitted.
    """

    def __init__(self, model, shape: Shape, kernels=PlainOps):
        self._model, self.shape, self.kernels = weakref.ref(model), shape, kernels
        text, device, dtype = model.config.text_config, model.device, model.dtype
        streams, tokens, per_frame = shape.streams, shape.all_tokens, model.config.num_frame_tokens
        frames, layers = streams * shape.frames, text.num_hidden_layers
        self.slots = frames * (1 + shape.num_kept)  # of a routed layer
        self.heads = text.num_key_value_heads, text.head_dim
        # of each layer: slots of one stream, or for a step of text what a token of it takes
        self.each = np.full(layers, tokens // streams if frames else 1)
        if frames:
            self.each[list(shape.routed)] = self.slots // streams

        def buffer(*size, dtype=dtype):
            return torch.zeros(size, dtype=dtype, device=device)

        # the table: of each layer a row a stream; then the tokens' ids
        rows = layers * streams * TABLE_WIDTH
        self.control = buffer(rows + (frames or tokens), dtype=torch.long)
        self.table = self.control[:rows].view(layers, streams, TABLE_WIDTH)
        self.ids = self.control[rows:]
        self.features = buffer(frames, per_frame, model.config.vision_config.hidden_size)
        self.x = buffer(tokens, text.hidden_size)
        self.between = buffer(tokens, text.hidden_size)
        self.queries = buffer(tokens, text.num_attention_heads, text.head_dim)
        self.attended = buffer(tokens, text.num_attention_heads * text.head_dim)
        self.wide = buffer(tokens, text.intermediate_size)
        self.offsets = torch.arange(tokens, device=device)
        if frames:
            self.rows = self.offsets[per_frame :: per_frame + 1].contiguous()
            # these lie together, so that one launch copies them; logits, which are large, lie apart, so that they do
            # not live on with what a frame kept
            routed = len(shape.routed)
            self._sizes = (routed, frames, shape.num_kept), (routed, frames, per_frame), (streams,), (frames,)
            self._found = buffer(sum(map(math.prod, self._sizes)), dtype=torch.long)
            self.kept, self.scores, self.finite, self.silence = self._parts(self._found)
            self.separator = model.config.frame_separator_token_id
            # slots of text are always the same, so only those of vision are written again
            self.index = buffer(self.slots, dtype=torch.long)
            self.index.view(frames, -1)[:, 0] = self.offsets[:: per_frame + 1]
            self.scale = torch.tensor([[1.0], [0.0]], device=device).repeat(1, self.slots)
            if shape.selection == "uniform":
                numbers = self.offsets.view(frames, -1)[:, 1:]
                kept = select_tokens(uniform_priority(numbers, shape.num_kept), shape.num_kept, shape.force_last)
                self.kept.copy_(kept.expand_as(self.kept))
                self.index.view(frames, -1)[:, 1:] = numbers.gather(1, kept)
        else:
            self.rows = buffer(streams, dtype=torch.long)
        self.logits = buffer(frames or streams, model.lm_head.out_features)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.runs = 0

    @property
    def model(self):
        return self._model()

    def _parts(self, found: torch.Tensor) -> list[torch.Tensor]:
        """Kept tokens, scores, whether features were finite, and how probable silence is, as they lie in a buffer with
        8 bytes for each."""
        parts = found.split([math.prod(size) for size in self._sizes])
        dtypes = torch.long, torch.float32, torch.bool, torch.float32
        return [
            part.view(dtype)[: len(part)].view(size)
            for part, dtype, size in zip(parts, dtypes, self._sizes, strict=True)
        ]

    def prepare(self, caches: list[MoDCache], ids: list[list[int]], features: list[torch.Tensor] | None) -> None:
        """Make room in the caches, and write what differs from call to call into the buffers. There may be fewer
        streams than the step is for: of the others nothing is written, and what comes of them means nothing."""
        shape, missing, on_gpu = self.shape, self.shape.streams - len(caches), self.x.device.type == "cuda"
        bases = [cache.seen_tokens - number * shape.tokens for number, cache in enumerate(caches)]
        counts = [shape.tokens if shape.frames else len(own) for own in ids]
        self._caches, self._bases, self._counts = caches, bases + [0] * missing, counts + [0] * missing
        self._added = np.outer(self.each, np.sign(self._counts) if shape.frames else self._counts)
        self._places = [
            cache.reserve(added, self.heads, self.x.dtype, self.x.device)
            for cache, added in zip(caches, self._added.T, strict=False)
        ]
        control = torch.zeros(len(self.control), dtype=torch.long, pin_memory=on_gpu)  # pinned, so that nobody waits
        values, rows = control.numpy(), self.table.numel()
        table, tokens = values[:rows].reshape(self.table.shape), values[rows:].reshape(shape.streams, -1)
        for number, (places, own) in enumerate(zip(self._places, ids, strict=True)):
            table[:, number, :5], table[:, number, 5], tokens[number, : len(own)] = places, bases[number], own
        table[:, :, 6] = self._added
        self.control.copy_(control, non_blocking=on_gpu)
        if features:
            features = features[0] if len(features) == 1 else torch.cat(features)
            self.features[: len(features)].copy_(features)

    def forward(self, kernels_on_host: bool = False, attend=None) -> None:
        """From the buffers into the buffers.

        Args:
            kernels_on_host (`bool`): the kernels know a layer of the streams by its caches; else by its table.
            attend (*optional*): instead of the kernels' own, by the caches.
        """
        model, shape, kernels = self.model.model, self.shape, self.kernels
        language = model.language_model
        embeds = language.embed_tokens(self.ids)
        if shape.frames:
            x = self.x.view(len(self.features), -1, self.x.shape[1])
            x[:, 0] = embeds
            x[:, 1:] = model.connector(self.features)
            largest = torch.linalg.vector_norm(self.features.view(shape.streams, -1), math.inf, dim=1)
            torch.lt(largest, math.inf, out=self.finite)  # in two launches; `isfinite` takes four and `all` one more
        else:
            self.x.copy_(embeds)
            self.rows.copy_(self.offsets[:: shape.tokens] + self.table[0, :, 6] - 1)
        positions = self.table[0, :, 5:6] + self.offsets.view(shape.streams, -1)
        rotary = [part[0] for part in language.rotary_emb(self.x[None], positions.view(1, -1))]
        for number, layer in enumerate(language.layers):
            routed = bool(shape.frames) and number in shape.routed
            index = scale = None
            slots, counts = len(self.x), self._added[number].tolist()
            if routed:
                index, scale, slots = self.index, self.scale, self.slots
                which = shape.routed.index(number)
                if shape.selection == "learned":
                    kernels.route(
                        self.x, layer, (*self.features.shape[:2], shape.num_kept), index, scale,
                        self.scores[which], self.kept[which], shape.gate, shape.force_last,
                    )  # fmt: skip
            queries, attended, wide = self.queries[:slots], self.attended[:slots], self.wide[:slots]
            between, memory = self.between[:slots], self.table[number]
            held = [cache.layers[number] for cache in self._caches] + [None] * (shape.streams - len(self._caches))
            if kernels_on_host:
                memory = held
            kernels.project(self.x, index, layer, rotary, queries, memory, self._bases, counts)
            if attend is None:
                kernels.attend(queries, layer, memory, counts, attended)
            else:
                attend(queries, layer, held, counts, attended)
            kernels.leave(attended, layer, self.x, index, between)
            kernels.widen(between, layer, wide)
            kernels.narrow(wide, layer, between, self.x, index, scale)
        kernels.read(self.x, self.rows, self.model, self.logits)
        if shape.frames:
            kernels.decide(self.logits, self.separator, self.silence)

    def finish(self) -> None:
        """Let the caches hold what was written behind them."""
        shape, apart = self.shape, self.model.config.num_frame_tokens + 1
        for number, cache in enumerate(self._caches):
            base, count = cache.seen_tokens, self._counts[number]
            ends = range(base + apart - 1, base + apart * shape.frames, apart)
            cache.advance_stream(count, ends, self.x.device)
            cache.lengthen(self._places[number], self._added[:, number])

    def drop(self) -> None:
        """Hold no cache any longer."""
        self._caches, self._places = [], []

    def results(self) -> list[Fed]:
        """Of each stream, until the step is carried out again."""
        shape, streams = self.shape, self.shape.streams
        logits = self.logits.clone().view(streams, -1, self.logits.shape[1])
        if not shape.frames:
            return [Fed(own) for own in logits]
        layers, scored = range(self.table.shape[0]), shape.selection == "learned" and shape.routed
        kept, scores, finite, silence = self._parts(self._found.clone())
        silence = silence.view(streams, -1)
        kept = kept.unflatten(1, (streams, shape.frames))
        scores, results = scores.unflatten(1, (streams, shape.frames)) if scored else None, []
        for number in range(streams):
            of_layer = dict(zip(shape.routed, kept[:, number].unbind(), strict=True))
            own = scores[:, number] if scored else None
            kept_of = tuple(map(of_layer.get, layers))
            results.append(Fed(logits[number], kept_of, own, finite[number], silence[number], self.separator))
        return results


NOT_FINITE = "`video_features` must be finite, got nan or infinity"


class StepsUnavailable(RuntimeError):
    """Static steps do not run here, as where a kernel cannot be compiled."""


class FastLanguageModel:
    """
    The static steps of one model, which its sessions share.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`).
        kernels: `PlainOps`, for tests; those of `static_kernels` and graphs if omitted.
    """

    def __init__(self, model, kernels=None):
        self._model = weakref.ref(model)
        self._kernels = kernels
        self._steps: dict[Shape, StaticStep] = {}
        self._lock = threading.Lock()
        parts = [model.model.language_model, model.model.connector, model.lm_head]
        self._unchanged = Unchanged([model, model.model], parts)
        self._device = model.device if model.device.type == "cuda" else -1  # -1: leave it as it is
        self._asked = self._answer = None  # of `_options`
        self._pool = None
        self.why_not: str | None = None  # steps, or else their graphs, do not work here
        self.broken = False
        self._done: torch.cuda.Event | None = None  # the last use of the buffers, on whichever CUDA stream
        self._is_warm: bool | None = None  # False: the first graph was captured, those of text are due

    def __reduce__(self):
        return type(None), ()  # a copy of the model makes its own

    @property
    def is_current(self) -> bool:
        """Whether the model is still the one whose addresses the graphs hold, and nobody wants to see its calls."""
        return bool(self._unchanged)

    def feed(self, cache: MoDCache, ids: list[int], features: torch.Tensor | None, keep_ratio: float | None):
        """As `feed_together`, of one stream.

        Returns:
            logits, kept and scores of its `Fed`.

        Raises:
            `ValueError`: for features that are not finite; the cache has then to be rolled back.
            `StepsUnavailable`: so too.
        """
        (fed,) = self.feed_together([(cache, ids, features)], keep_ratio)
        if fed.finite is not None and not bool(fed.finite):
            raise ValueError(NOT_FINITE)
        return fed.logits, fed.kept, fed.scores

    def feed_together(
        self, streams: list[tuple[MoDCache, list[int], torch.Tensor | None]], keep_ratio: float | None
    ) -> list[Fed]:
        """Of each stream tokens after all that its cache holds, with the features `[F, N, Dv]` of the frames at their
        end. Whoever looks at a result waits for the device; until then it is at work.

        Raises:
            `StepsUnavailable`: the caches have then to be rolled back.
        """
        with self._lock, torch.cuda.device(self._device), self._after_others():
            per_frame = self._model().config.num_frame_tokens
            options = self._options(keep_ratio, per_frame)
            parts = [self._cut(ids, features, per_frame, options) for _, ids, features in streams]
            done, results = [0] * len(streams), [None] * len(streams)
            while any(parts):
                # frames are the last of a stream's parts: they wait until others have read their text, too
                due = [number for number, own in enumerate(parts) if own and not own[0][0].frames]
                due = due or [number for number, own in enumerate(parts) if own]
                groups: dict[Shape, list[int]] = {}
                for number in due:
                    groups.setdefault(parts[number][0][0], []).append(number)
                for shape, members in groups.items():
                    lengths = {number: parts[number].pop(0)[1] for number in members}
                    for chunk, own_shape in in_steps(shape, members):
                        own = []
                        for number in chunk:
                            cache, ids, features = streams[number]
                            own.append((cache, ids[done[number] :][: lengths[number]], features))
                            done[number] += lengths[number]
                        found = self._take(own_shape, own, not all(parts[number] for number in chunk))
                        for number, result in zip(chunk, found, strict=True):
                            results[number] = result
            if self._is_warm is False:
                self._warm_up(streams[0][0], shape)
            return results

    @contextmanager
    def _after_others(self):
        """Threads may have CUDA streams of their own, and the buffers are the same: each use waits for the last."""
        if self._device == -1:
            yield
            return
        stream = torch.cuda.current_stream()
        if self._done is not None:
            stream.wait_event(self._done)
        try:
            yield
        finally:
            self._done = stream.record_event()

    def _take(self, shape: Shape, streams: list[tuple], is_last: bool) -> list[Fed | None]:
        """Carry out one step; what came of it where it is the last of a stream."""
        step = self._step(shape)
        caches, ids, features = ([own[item] for own in streams] for item in range(3))
        if shape.frames:
            ids = [own[:: shape.tokens // shape.frames] for own in ids]
        try:
            step.prepare(caches, ids, features if shape.frames else None)
            self._run(step)
            results = step.results() if is_last else [None] * len(streams)
            step.finish()  # while the device is at work
        finally:
            step.drop()
        return results[: len(streams)]

    def _options(self, keep_ratio: float | None, per_frame: int) -> tuple:
        """The values of a `Shape` of frames from `num_kept` to `routed`; found anew when the config has changed."""
        text = self._model().config.text_config
        asked = (vars(text), keep_ratio, per_frame)
        if asked != self._asked:
            text.check_routing()
            routed = text.routed_layers if text.vision_routing == "mod" else ()
            ratio = text.mod_keep_ratio if keep_ratio is None else keep_ratio
            kept = num_kept_tokens(ratio, per_frame) if routed else 0
            self._answer = kept, text.mod_gate, text.mod_selection, text.mod_force_keep_last, routed
            self._asked = copy.deepcopy(asked)
        return self._answer

    @staticmethod
    def _cut(ids, features, per_frame: int, options: tuple) -> list[tuple[Shape, int]]:
        """The steps that these tokens take, each with how many it takes."""
        frames = 0 if features is None else len(features)
        block = frames * (per_frame + 1)
        shapes, words = [], len(ids) - block
        if words < 0:
            raise ValueError("`ids` must hold one token of text before each frame")
        while words > 0:
            length = min(words, TEXT_LENGTHS[-1])
            padded = next(size for size in TEXT_LENGTHS if size >= length)
            shapes.append((Shape(0, padded, 0, *options[1:4], ()), length))
            words -= length
        if frames:
            shapes.append((Shape(frames, block, *options), block))
        return shapes

    def _step(self, shape: Shape) -> StaticStep:
        step = self._steps.pop(shape, None)
        if step is None:
            kernels = self._kernels
            if kernels is None:
                from .static_kernels import Kernels, WideKernels

                kernels = Kernels if shape.all_tokens <= FEW_SLOTS else WideKernels
            with torch.inference_mode(False), torch.no_grad():  # its buffers are written in any mode
                step = StaticStep(self._model(), shape, kernels)
        if shape.all_tokens <= MOST_CAPTURED:  # the buffers of others are large, and quickly made
            if len(self._steps) >= 2 * GRAPHS:  # the one unused for longest
                self._steps.pop(next(iter(self._steps)))
            self._steps[shape] = step
        return step

    def _run(self, step: StaticStep) -> None:
        """Replay a step's graph; it is captured when its shape comes for the second time."""
        step.runs += 1
        try:
            self._carry_out(step)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self.broken, self.why_not = True, f"a step cannot be run: {first_line(error)}"
            raise StepsUnavailable(self.why_not) from error

    def _carry_out(self, step: StaticStep) -> None:
        if self._kernels is not None:
            step.forward(kernels_on_host=True)
            return
        if step.shape.all_tokens > MOST_CAPTURED:
            from .static_kernels import attend_on_host

            step.forward(attend=attend_on_host)
            return
        if step.graph is None and step.runs > 1 and self.why_not is None:
            self._try_to_capture(step)
            if self._is_warm is None:
                self._is_warm = False
        if step.graph is None:
            step.forward()
        else:
            step.graph.replay()

    def _warm_up(self, cache: MoDCache, shape: Shape) -> None:
        """Capture short texts too, so that no question waits for it. What they write lies behind what is held."""
        self._is_warm = True
        for length in TEXT_LENGTHS:
            if length <= WARM_TEXT and self.why_not is None:
                step = self._step(replace(shape, frames=0, tokens=length, num_kept=0, routed=(), streams=1))
                if step.graph is not None:
                    continue
                try:
                    step.prepare([cache], [[0] * length], None)
                    self._try_to_capture(step)
                except Exception as error:  # what the call has asked for is done: nothing may fail it now
                    self.why_not = f"a graph cannot be captured: {first_line(error)}"
                finally:
                    step.drop()

    def _try_to_capture(self, step: StaticStep) -> None:
        try:
            self._capture(step)
        except RuntimeError as error:  # out of memory, or something that cannot be captured
            self.why_not = f"a graph cannot be captured: {first_line(error)}"

    def _capture(self, step: StaticStep) -> None:
        if sum(other.graph is not None for other in self._steps.values()) >= GRAPHS:
            for other in self._steps.values():
                if other.graph is not None and other is not step:
                    other.graph, other.runs = None, 0
                    break
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(step.x.device)
        stream.wait_stream(torch.cuda.current_stream(step.x.device))
        with torch.cuda.stream(stream):
            step.forward()  # kernels are compiled, and libraries take their work space, outside of the graph
        torch.cuda.current_stream(step.x.device).wait_stream(stream)
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            step.forward()
        step.graph = graph


def in_steps(shape: Shape, members: list) -> list[tuple[list, Shape]]:
    """The members of a group that share a step, and the shape of that. Their number is made up to a power of two where
    the step is captured, so that graphs are few."""
    most, steps = max(1, MOST_TOKENS // shape.tokens), []
    for start in range(0, len(members), most):
        own = members[start : start + most]
        padded = 1 << (len(own) - 1).bit_length()
        streams = padded if padded * shape.tokens <= MOST_CAPTURED else len(own)
        steps.append((own, replace(shape, streams=streams)))
    return steps


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


def why_not(model) -> str | None:
    """Why a model has no static steps; None where it has them."""
    text = model.config.text_config
    language = model.model.language_model
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
    parts = (language, model.model.connector, model.lm_head)
    modules = [module for part in parts for module in part.modules()]
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks or has_own_forward(module):
            return "a module has hooks"
        if isinstance(module, nn.Linear) and type(module) is not nn.Linear and type(module).__name__ != "LayerExpert":
            return f"a layer is {type(module).__name__}"
    linear = ("q_proj", "k_proj", "v_proj", "o_proj")
    for layer in language.layers:
        for module in [*(getattr(layer.self_attn, name) for name in linear), *layer.mlp.children()]:
            if isinstance(module, nn.Linear) != hasattr(module, "weight") or hasattr(module, "base_layer"):
                return f"a layer is {type(module).__name__}"
    weights = [weight for part in parts for weight in part.parameters()]
    if any(type(weight.data) is not torch.Tensor or not weight.is_contiguous() for weight in weights):
        return "its weights are no plain tensors"
    own = [*language.embed_tokens.parameters(), *model.lm_head.parameters(), *language.norm.parameters()]
    for layer in language.layers:
        own += [weight for name, weight in layer.named_parameters() if not name.startswith("layer_expert")]
    if any(weight.dtype != model.dtype for weight in own):
        return "its weights are of several dtypes"
    if len({weight.device for weight in weights}) > 1:
        return "its weights are on several devices"
    return None


def fast_language_model(model) -> tuple[FastLanguageModel | None, str | None]:
    """The model's static steps, or why it has none. They are built anew where the model has changed."""
    if torch.is_autocast_enabled("cuda"):  # on other devices there are no static steps
        return None, "autocast is on"  # a graph keeps the precision that it was captured in
    known = vars(model).get("_static_steps")
    if known is not None and known.is_current and not model.training:
        return (None, known.why_not) if known.broken else (known, known.why_not)
    reason = why_not(model)
    if reason is None:
        try:
            from .static_kernels import Kernels as _  # noqa: F401
        except ImportError as error:
            reason = str(error)
    if reason is not None:
        return None, reason
    model._static_steps = FastLanguageModel(model)
    return model._static_steps, None


__all__ = ["NOT_FINITE", "FastLanguageModel", "Fed", "Shape", "StaticStep", "StepsUnavailable", "fast_language_model"]
