"""Static steps: the language model over a few frames or words of one stream or several, with shapes that never change.

The kernels of a step do not depend on the length of a stream: a table on the device says where the keys and values of
each stream are and how many there are. So on a GPU a step is captured once as a CUDA graph, which then serves every
stream. On other devices, and where `why_not` names a reason, sessions call the model itself.

The tokens of a call are split into text, which is padded to one of a few lengths, and frames, each with the one text
token before it (a separator, or the start of the stream). Any such split equals one call. Parts of several streams
that have the same shape run as one step, which reads all weights once.

Each step adds equally many tokens, or slots, to each of its streams, one stream after the other. In a routed layer a
slot holds a token that enters the layer: `index` names the token, and `scale` says how the layer's output `y` for the
token `x` goes back, as `scale[0] * y + scale[1] * x`. In other layers both are None, and the slots are the tokens.

Shapes: T tokens of a step, S slots of a layer, F frames, N vision tokens per frame, k of them kept, M features of a
frame and Dv their size, D hidden size of the language model, I intermediate size, H heads, G key-value heads,
V vocabulary, L layers with a LayerExpert. T, S and F count all streams of a step, unless a text says otherwise.
"""

import copy
import math
import weakref
from dataclasses import replace

import numpy as np
import torch

from .cache import MoDCache
from .configuration_videollm_mod import num_kept_tokens
from .selection import change_scores, difference_scores, first_values, select_tokens, uniform_priority
from .static_graphs import (
    MAX_CAPTURED,
    TEXT_LENGTHS,
    Graphs,
    ModelGuard,
    Shape,
    StepOutput,
    first_line,
    is_quantised,
    mixed_groups,
    split_call,
    split_streams,
    text_shape,
    why_not,
)
from .static_plain import PlainOps, write_slots

FEW_SLOTS = 16  # up to here our own kernels read the weights faster than cuBLAS
FEW_QUANTISED = 64  # the same for quantised weights, of which cuBLAS needs a dense copy
WARM_TEXT = 64  # texts up to this length are captured together with the first frame
GRAPHS = 32  # captured at most
TABLE_WIDTH = 8
MAX_RANKED = 256  # vision tokens of a frame, in a kernel
NOT_FINITE = "`video_features` must be finite, got nan or infinity"


class StaticStep:
    """
    A step of one shape, with its buffers.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`), shape (`Shape`).
        ops: `PlainOps`, or a class with the same operations.
    """

    def __init__(self, model, shape: Shape, ops=PlainOps):
        self._model, self.shape, self.ops = weakref.ref(model), shape, ops
        text, device, dtype = model.config.text_config, model.device, model.dtype
        streams, tokens, per_frame = shape.streams, shape.all_tokens, model.config.num_frame_tokens
        frames, layers = streams * shape.frames, text.num_hidden_layers
        stride = shape.tokens // shape.frames if frames else 0  # tokens of a frame and of the text before it
        self.text_before = before = max(0, stride - per_frame)
        self.slots = frames * (before + shape.num_kept)  # of a routed layer
        self.heads = text.num_key_value_heads, text.head_dim
        # for each layer: the slots of one stream, or in a step of text the slots that one token takes
        self.slots_each = np.full(layers, tokens // streams if frames else 1)
        self.routed = list(shape.routed)
        if frames:
            self.slots_each[self.routed] = self.slots // streams

        def buffer(*size, dtype=dtype):
            return torch.zeros(size, dtype=dtype, device=device)

        # the table has a row for each stream in each layer; the ids of the tokens follow it
        rows = layers * streams * TABLE_WIDTH
        self.control = buffer(rows + (frames * before if frames else tokens), dtype=torch.long)
        self.table = self.control[:rows].view(layers, streams, TABLE_WIDTH)
        self.ids = self.control[rows:]
        self.features = buffer(frames, *model.config.video_feature_shape)
        self.x = buffer(tokens, text.hidden_size)
        self.residual = buffer(tokens, text.hidden_size)
        self.queries = buffer(tokens, text.num_attention_heads, text.head_dim)
        self.attended = buffer(tokens, text.num_attention_heads * text.head_dim)
        self.intermediate = buffer(tokens, text.intermediate_size)
        self.offsets = torch.arange(tokens, device=device)
        if frames:
            self.rows = self.offsets[stride - 1 :: stride].contiguous()
            # one buffer, so that one launch copies all of it; logits are large and have their own, so that they do not
            # live on with what a frame kept
            routed = len(shape.routed)
            self._sizes = (routed, frames, shape.num_kept), (routed, frames, per_frame), (streams,), (frames,)
            self._found = buffer(sum(map(math.prod, self._sizes)), dtype=torch.long)
            self.kept, self.scores, self.finite, self.silence = self._parts(self._found)
            self.separator = model.config.frame_separator_token_id
            # slots of text are always the same, so only those of vision are written again
            self.index = buffer(self.slots, dtype=torch.long)
            self.index.view(frames, -1)[:, :before] = self.offsets.view(frames, -1)[:, :before]
            self.scale = torch.tensor([[1.0], [0.0]], device=device).repeat(1, self.slots)
            if shape.selection == "uniform" and not shape.mixed:
                self._keep(self._uniform)
            changes, differs = (shape.selection == name for name in ("change", "difference"))
            self.before = buffer(frames, per_frame, text.hidden_size * changes)
            self.values_before = buffer(streams, per_frame, math.prod(self.heads) * differs)
        else:
            self.rows = self.offsets if shape.every else buffer(streams, dtype=torch.long)
        self.logits = buffer(len(self.rows), model.lm_head.out_features)

    @property
    def model(self):
        return self._model()

    def _parts(self, found: torch.Tensor) -> list[torch.Tensor]:
        """Kept tokens, scores, whether features are finite, and probabilities of silence, as they lie in a buffer with
        8 bytes for each number."""
        parts = found.split([math.prod(size) for size in self._sizes])
        dtypes = torch.long, torch.float32, torch.bool, torch.float32
        return [
            part.view(dtype)[: len(part)].view(size)
            for part, dtype, size in zip(parts, dtypes, self._sizes, strict=True)
        ]

    @property
    def _own_counts(self) -> torch.Tensor | None:
        """int64 `[streams]`, on the device: how many tokens of a frame each stream keeps, in a mixed step."""
        return self.table[0, :, 7] if self.shape.mixed else None

    @property
    def _uniform(self) -> torch.Tensor:
        """The priority `[F, N]` of `mod_selection="uniform"`."""
        frames, counts = self.offsets.view(len(self.features), -1)[:, self.text_before :], self._own_counts
        of_frames = None if counts is None else counts.repeat_interleave(self.shape.frames)
        return uniform_priority(frames, self.shape.num_kept, of_frames)

    def _keep(self, priority: torch.Tensor, which: int | None = None) -> None:
        """Keep the tokens of each frame with the highest priority `[F, N]`, in the routed layer of that number or in
        all of them."""
        shape, counts = self.shape, self._own_counts
        of_frames = None if counts is None else counts.repeat_interleave(shape.frames)
        kept = select_tokens(priority, shape.num_kept, shape.force_last, of_frames)
        if which is None:
            self.kept.copy_(kept.expand_as(self.kept))
        else:
            self.kept[which].copy_(kept)
        write_slots(kept, priority.shape[1], self.index, self.scale, counts)

    def prepare(
        self,
        caches: list[MoDCache],
        ids: list[list[int]],
        features: list[torch.Tensor] | None,
        kept: list[int] | None = None,
    ) -> None:
        """Reserve slots in the caches, and write the inputs of a call into the buffers. There may be fewer streams
        than the step is for: the others write to no cache, and their results mean nothing. kept: for a mixed step, how
        many tokens of a frame each stream keeps."""
        shape, missing, on_gpu = self.shape, self.shape.streams - len(caches), self.x.device.type == "cuda"
        bases = [cache.seen_tokens - number * shape.tokens for number, cache in enumerate(caches)]
        counts = [shape.tokens if shape.frames else len(own) for own in ids]
        self._caches, self._bases, self._counts = caches, bases + [0] * missing, counts + [0] * missing
        self._added = np.outer(self.slots_each, np.sign(self._counts) if shape.frames else self._counts)
        if kept is not None:
            self._kept = kept + [0] * missing
            self._added[self.routed] = shape.frames * (self.text_before + np.array(self._kept)) * np.sign(self._counts)
        self._places = [
            cache.reserve(added, self.heads, self.x.dtype, self.x.device)
            for cache, added in zip(caches, self._added.T, strict=False)
        ]
        control = torch.zeros(len(self.control), dtype=torch.long, pin_memory=on_gpu)  # pinned: the host does not wait
        values, rows = control.numpy(), self.table.numel()
        table, tokens = values[:rows].reshape(self.table.shape), values[rows:].reshape(shape.streams, -1)
        for number, (places, own) in enumerate(zip(self._places, ids, strict=True)):
            table[:, number, :5], table[:, number, 5], tokens[number, : len(own)] = places, bases[number], own
        table[:, :, 6] = self._added
        if kept is not None:
            table[:, :, 7] = self._kept
        self.control.copy_(control, non_blocking=on_gpu)
        if features:
            joined = features[0] if len(features) == 1 else torch.cat(features)
            self.features[: len(joined)].copy_(joined)
            if shape.selection == "difference":
                for own, cache in zip(self.values_before, caches, strict=False):
                    found = cache.values_of_last_frame(len(own))
                    own.copy_(torch.zeros_like(own) if found is None else found[0])

    def forward(self, attend=None) -> None:
        """Run the step, from the buffers into the buffers.

        Args:
            attend (*optional*): in place of the attention of the ops; takes caches, as that of `PlainOps`.
        """
        language, shape = self.model.model.language_model, self.shape
        self._embed()
        positions = self.table[0, :, 5:6] + self.offsets.view(shape.streams, -1)
        rotary = [part[0] for part in language.rotary_emb(self.x[None], positions.view(1, -1))]
        if shape.frames and shape.routed and shape.selection == "difference":
            self._keep(self._differences(language.layers[0]))
        elif shape.mixed and shape.selection == "uniform":
            self._keep(self._uniform)
        for number, layer in enumerate(language.layers):
            own = rotary if layer.self_attn.has_rope else list(map(torch.full_like, rotary, (1.0, 0.0)))
            self._run_layer(number, layer, own, attend)
        self.ops.lm_head(self.x, self.rows, self.model, self.logits)
        if shape.frames and self.separator is not None:
            self.ops.token_probability(self.logits, self.separator, self.silence)

    def _embed(self) -> None:
        embeds = self.model.model.language_model.embed_tokens(self.ids)
        if self.shape.frames:
            x = self.x.view(len(self.features), -1, self.x.shape[1])
            x[:, : self.text_before] = embeds.view(len(x), self.text_before, x.shape[2])
            x[:, self.text_before :] = self.model.model.connector(self.features)
            largest = torch.linalg.vector_norm(self.features.view(self.shape.streams, -1), math.inf, dim=1)
            torch.lt(largest, math.inf, out=self.finite)  # two launches; `isfinite` takes four, and `all` one more
        else:
            self.x.copy_(embeds)
            if self.shape.every:
                return
            self.rows.copy_(self.offsets[:: self.shape.tokens] + self.table[0, :, 6] - 1)

    @property
    def _frame_tokens(self) -> torch.Tensor:
        """`[F, N, D]`, of all streams."""
        return self.x.view(len(self.features), -1, self.x.shape[1])[:, self.text_before :]

    def _differences(self, first_layer) -> torch.Tensor:
        """Scores `[F, N]` of `mod_selection="difference"`."""
        values = first_values(first_layer, self._frame_tokens).unflatten(0, (self.shape.streams, -1))
        before = torch.cat([self.values_before[:, None], values[:, :-1]], dim=1)
        return difference_scores(values, before).flatten(0, 1)

    def _run_layer(self, number: int, layer, rotary, attend) -> None:
        shape, ops, index, scale = self.shape, self.ops, None, None
        slots, counts = len(self.x), self._added[number].tolist()
        if shape.frames and number in shape.routed:
            index, scale, slots = self.index, self.scale, self.slots
            if shape.selection == "learned":
                size, which = (*self.scores.shape[1:], shape.num_kept), shape.routed.index(number)
                scores, kept = self.scores[which], self.kept[which]
                ranking = ops if size[1] <= MAX_RANKED else PlainOps  # one program ranks all tokens of a frame
                results = index, scale, scores, kept
                ranking.route(self.x, layer, size, *results, shape.gate, shape.force_last, self._own_counts)
            elif shape.selection == "change":
                self._keep(change_scores(self.before, self._frame_tokens), shape.routed.index(number))
        if shape.frames and shape.selection == "change" and number + 1 in shape.routed:
            self.before.copy_(self._frame_tokens)
        buffers = self.queries, self.attended, self.residual, self.intermediate
        queries, attended, residual, intermediate = (buffer[:slots] for buffer in buffers)
        own = [cache.layers[number] for cache in self._caches] + [None] * (shape.streams - len(self._caches))
        caches = self.table[number] if ops.reads_table else own
        ops.project_qkv(self.x, index, layer, rotary, queries, caches, self._bases, counts)
        if attend is None:
            ops.attend(queries, layer, caches, counts, attended)
        else:
            attend(queries, layer, own, counts, attended)
        ops.project_out(attended, layer, self.x, index, residual)
        ops.mlp_up(residual, layer, intermediate)
        ops.mlp_down(intermediate, layer, residual, self.x, index, scale)

    def finish(self) -> None:
        """Let the caches hold what was written behind them."""
        shape, stride = self.shape, self.model.config.num_frame_tokens + self.text_before
        for number, cache in enumerate(self._caches):
            base, count = cache.seen_tokens, self._counts[number]
            ends = range(base + stride - 1, base + stride * shape.frames, stride)
            cache.advance_stream(count, ends, self.x.device)
            cache.lengthen(self._places[number], self._added[:, number])

    def drop(self) -> None:
        """Hold no cache any longer."""
        self._caches, self._places = [], []

    def results(self) -> list[StepOutput]:
        """For each stream, copies of the results."""
        shape, streams = self.shape, self.shape.streams
        logits = self.logits.clone().view(streams, -1, self.logits.shape[1])
        if not shape.frames:
            counts = self._counts if shape.every else [1] * streams
            return [StepOutput(own[:count]) for own, count in zip(logits, counts, strict=True)]
        layers, scored = range(self.table.shape[0]), shape.selection == "learned" and shape.routed
        kept, scores, finite, silence = self._parts(self._found.clone())
        silence, kept = silence.view(streams, -1), kept.unflatten(1, (streams, shape.frames))
        scores, results = scores.unflatten(1, (streams, shape.frames)), []
        for number in range(streams):
            of_layer = dict(zip(shape.routed, kept[:, number].unbind(), strict=True))
            if shape.mixed:
                of_layer = {layer: own[:, : self._kept[number]] for layer, own in of_layer.items()}
            own_kept, own_scores = tuple(map(of_layer.get, layers)), scores[:, number] if scored else None
            own = logits[number], own_kept, own_scores, finite[number], silence[number], self.separator
            results.append(StepOutput(*own))
        return results


class StepsUnavailable(RuntimeError):
    """Static steps do not run here, for example because a kernel does not compile."""


class StaticLanguageModel:
    """
    The static steps of one model, which all its sessions share.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`).
        ops: `PlainOps`, for tests; the kernels of `static_kernels`, captured in graphs, if omitted.
    """

    def __init__(self, model, ops=None):
        self._model, self._ops = weakref.ref(model), ops
        self._steps: dict[Shape, StaticStep] = {}  # least recently used first
        self._graphs = Graphs(GRAPHS, model.device)
        parts = [model.model.language_model, model.model.connector, model.lm_head]
        self._guard = ModelGuard([model, model.model], parts)
        is_small = is_quantised(model.model.language_model.layers[0].self_attn.q_proj)
        self._few = FEW_QUANTISED if is_small else FEW_SLOTS
        self._asked = self._answer = None  # of `_options`, but for the keep ratio
        self._failure: str | None = None
        self._is_warm = False  # short texts have graphs

    def __reduce__(self):
        return type(None), ()  # a copy of the model builds its own

    @property
    def is_current(self) -> bool:
        """Whether graphs still hold the addresses of the model's weights, and no module has a forward hook."""
        return self._guard.holds()

    @property
    def broken(self) -> bool:
        """Whether steps do not run here."""
        return self._failure is not None

    @property
    def why_not(self) -> str | None:
        """Why steps do not run here, or run without graphs."""
        return self._failure or self._graphs.why_not

    def feed(self, cache: MoDCache, ids: list[int], features: torch.Tensor | None, keep_ratio: float | None):
        """As `feed_together`, for one stream.

        Returns:
            logits, kept and scores of its `StepOutput`.

        Raises:
            `ValueError`: for features that are not finite; the cache has then to be rolled back.
            `StepsUnavailable`: if steps do not run here; the cache has to be rolled back, too.
        """
        (fed,) = self.feed_together([(cache, ids, features)], keep_ratio)
        if fed.finite is not None and not bool(fed.finite):
            raise ValueError(NOT_FINITE)
        return fed.logits, fed.kept, fed.scores

    def feed_together(
        self,
        streams: list[tuple[MoDCache, list[int], torch.Tensor | None]],
        keep_ratio: float | list[float | None] | None,
        after: list[int] | None = None,
    ) -> list[StepOutput]:
        """Append to each cache its tokens, with the features `[F, M, Dv]` of the frames at their end. The results are
        still being computed: reading one waits for the device.

        Args:
            keep_ratio: of all streams, or of each; the model's own if None.
            after (*optional*): for each stream the number of tokens of text after its frames, of each of which logits
                are returned; 0 if omitted.

        Raises:
            `StepsUnavailable`: the caches have then to be rolled back.
        """
        with self._graphs.exclusive():
            per_frame = self._model().config.num_frame_tokens
            ratios = keep_ratio if isinstance(keep_ratio, list) else [keep_ratio] * len(streams)
            options = self._options(ratios, per_frame)
            parts = [
                split_call(ids, 0 if features is None else len(features), per_frame, own, rest)
                for (_, ids, features), own, rest in zip(streams, options, after or [0] * len(streams), strict=True)
            ]
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
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self._failure = f"a step cannot be run: {first_line(error)}"
            raise StepsUnavailable(self._failure) from error

    def _forward(self, step: StaticStep) -> None:
        """Run a step, if possible by its graph, which is captured when its shape comes for the second time."""
        if self._ops is not None:
            step.forward()
        elif step.shape.all_tokens > MAX_CAPTURED:
            step.forward(attend=PlainOps.attend)  # the host knows how long the streams are
        else:
            graph = self._graphs.get(step.shape)
            if graph is None and self._graphs.is_due(step.shape):
                graph = self._graphs.capture(step.shape, step.forward)
            if graph is None:
                step.forward()
            else:
                graph()

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
        return [shape for shape, _ in split_call(ids, frames, per_frame, self._options(keep_ratio, per_frame), after)]

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
    if known is not None and known.is_current and not model.training:
        return None if known.broken else known, known.why_not
    reason = why_not(model)
    if reason is not None:
        return None, reason
    try:
        from .static_kernels import Kernels as _  # noqa: F401
    except ImportError as error:
        return None, str(error)
    model._static_steps = StaticLanguageModel(model)
    return model._static_steps, None


__all__ = ["StaticLanguageModel", "StaticStep", "StepsUnavailable", "static_language_model"]
