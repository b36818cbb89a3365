"""Static steps: the language model over a few frames or words of one stream or several, with shapes that never change.

The kernels of a step do not depend on the length of a stream: a table on the device says where the keys and values of
each stream are and how many there are. So on a GPU a step is captured once as a CUDA graph, which then serves every
stream. On a CPU steps of few tokens are static too. Where `why_not` names a reason, sessions call the model itself.

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

import functools
import math
import weakref
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn.attention.bias import causal_lower_right

from .cache import MoDCache
from .fused import rotate
from .routing import (
    GATE_STRENGTH,
    change_scores,
    difference_scores,
    first_values,
    select_tokens,
    uniform_priority,
)
from .weights import linear_of_few

TEXT_LENGTHS = (1, 16, 32, 64, 128, 256)  # of steps without frames
MAX_TOKENS = 16_384  # of one step
MAX_CAPTURED = 1024  # tokens of a captured step: with more, launching kernels takes no time beside the work
TABLE_WIDTH = 8
FIRST_LAYERS = 4  # a graph of their own
MAX_RANKED = 256  # vision tokens of a frame, in a kernel
FEW_QUERIES = 32  # of a CPU; with more, torch's usual operations are as fast


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
        steps.append((own, shape if streams == shape.streams else replace(shape, streams=streams)))
    return steps


class PlainOps:
    """The operations of a step in plain torch: the reference of `static_kernels.Kernels`. Results go into buffers.

    `layer` is a `VideoLLMMoDDecoderLayer`. `caches` are its `MoDCacheLayer`s, one a stream, with buffers that hold the
    new tokens; None for a stream that only fills up the step. `bases` and `counts` have one entry a stream: what to
    add to the number of a token to get its position, and how many slots are no padding (0 to fill up).
    """

    reads_table = False  # takes caches, not a layer's table on the device

    @staticmethod
    def route(x, layer, shape, index, scale, scores, kept, gate: str, force_last: bool, counts=None) -> None:
        """Choose the slots of a routed layer.

        Args:
            x (`[T, D]`): F times one token of text, or none, and the N tokens of a frame.
            shape: (F, N, k).
            index (`int64 [S]`), scale (`float32 [2, S]`), scores (`float32 [F, N]`), kept (`int64 [F, k]`): results.
            counts (`int64 [streams]`, *optional*): how many tokens of a frame each stream keeps, at most k. Then
                `kept` holds these first. See `write_slots`.
        """
        frames, per_frame, num_kept = shape
        before = len(x) // frames - per_frame
        scores.copy_(layer.layer_expert(x.view(frames, before + per_frame, -1)[:, before:]))
        of_frames = None if counts is None else counts.repeat_interleave(frames // len(counts))
        kept.copy_(select_tokens(scores, num_kept, force_last, of_frames))
        own = scores.gather(1, kept)
        times_y, times_x = torch.ones_like(own), torch.zeros_like(own)
        if gate == "residual":
            times_y, times_x = 1 + GATE_STRENGTH * own.tanh(), -GATE_STRENGTH * own.tanh()
        elif gate == "output":
            times_y = own.sigmoid()
        write_slots(kept, per_frame, index, scale, counts, (times_y, times_x))

    @staticmethod
    def project_qkv(x, index, layer, rotary, queries, caches, bases: list[int], counts: list[int]) -> None:
        """Normalise and project the slots: queries into `queries` `[S, H, head_dim]`, keys, values and positions
        behind those that the caches hold. rotary: cosine and sine `[T, head_dim]`."""
        attention, tokens = layer.self_attn, torch.arange(len(x), device=x.device) if index is None else index
        if index is not None:
            x, rotary = x[index], [part[index] for part in rotary]
        normed = layer.input_layernorm(x)
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        own = [linear_of_few(part, normed).view(1, len(x), -1, attention.head_dim) for part in projections]
        own[:2] = attention.normalised(*own[:2])
        if attention.has_rope:
            own[:2] = rotate(*own[:2], *(part[None] for part in rotary))
        queries.copy_(own[0][0])
        keys, values = (part.transpose(1, 2) for part in own[1:])
        for cache, base, slots in zip(caches, bases, slots_of(counts, len(tokens)), strict=True):
            if cache is None:
                continue
            new, start = (keys[:, :, slots], values[:, :, slots], (base + tokens[slots])[None]), cache.get_seq_length()
            for growing, value in zip(cache.growing.values(), new, strict=True):
                growing.buffer.narrow(growing.dim, start, value.shape[growing.dim]).copy_(value)

    @staticmethod
    def attend(queries, layer, caches, counts: list[int], out) -> None:
        """Attention of each slot to the cache of its stream and to the slots up to itself. out: `[S, H * head_dim]`,
        zero at padding."""
        out.zero_()
        for cache, slots in zip(caches, slots_of(counts, len(queries)), strict=True):
            if cache is None:
                continue
            count, own, length = slots.stop - slots.start, queries[slots].transpose(0, 1), cache.get_seq_length()
            keys, values = (cache.growing[name].buffer[:, :, : length + count] for name in ("keys", "values"))
            if count <= FEW_QUERIES and keys.dtype == torch.float32:
                attended = attend_few(own, keys[0], values[0], layer.self_attn.scaling)
            else:
                attended = nn.functional.scaled_dot_product_attention(
                    own[None],
                    keys,
                    values,
                    causal_lower_right(count, length + count),
                    scale=layer.self_attn.scaling,
                    enable_gqa=True,
                )[0]
            out[slots].view(count, *queries.shape[1:]).copy_(attended.transpose(0, 1))

    @staticmethod
    def project_out(attended, layer, x, index, residual) -> None:
        """residual `[S, D]`: the slots' tokens plus the output of attention."""
        residual.copy_((x if index is None else x[index]) + linear_of_few(layer.self_attn.o_proj, attended))

    @staticmethod
    def mlp_up(residual, layer, intermediate) -> None:
        """intermediate `[S, I]`: the product of the activated gate and up projections of the normalised slots."""
        normed = layer.post_attention_layernorm(residual)
        gate, up = linear_of_few(layer.mlp.gate_proj, normed), linear_of_few(layer.mlp.up_proj, normed)
        torch.mul(nn.functional.silu(gate), up, out=intermediate)

    @staticmethod
    def mlp_down(intermediate, layer, residual, x, index, scale) -> None:
        """Add the down projection to `residual`, and scatter the slots into `x` `[T, D]`, through the gate."""
        processed = residual + linear_of_few(layer.mlp.down_proj, intermediate)
        if index is None:
            x.copy_(processed)
        else:
            x[index] = (scale[0, :, None] * processed + scale[1, :, None] * x[index]).to(x.dtype)

    @staticmethod
    def lm_head(x, rows, model, logits) -> None:
        """logits `[R, V]` of the tokens `rows` (`int64 [R]`)."""
        logits.copy_(linear_of_few(model.lm_head, model.model.language_model.norm(x[rows])))

    @staticmethod
    def token_probability(logits, token: int, probability) -> None:
        """probability (`float32 [R]`): of one token, by logits `[R, V]`."""
        probability.copy_(logits.softmax(-1, dtype=torch.float32)[:, token])


@functools.lru_cache(FEW_QUERIES)
@torch.inference_mode(False)
def later(count: int, device: torch.device) -> torch.Tensor:
    """float32 `[count, count]`: -inf where a key comes after the query, 0 elsewhere."""
    return torch.full((count, count), -math.inf, device=device).triu(1)


def attend_few(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attention of few queries `[H, S, head_dim]`, at the end of keys and values `[G, L, head_dim]`. On a CPU it takes
    less time than a fused kernel, which works on blocks of many queries."""
    heads, count, size = queries.shape
    own = (scaling * queries).reshape(len(keys), -1, size)
    scores = own @ keys.transpose(1, 2)
    if count > 1:
        scores.view(heads, count, -1)[:, :, -count:] += later(count, queries.device)
    return (scores.softmax(-1) @ values).view(heads, count, size)


def slots_of(counts: list[int], slots: int) -> list[slice]:
    """For each stream its slots that are no padding, among all `slots` of a step."""
    each = slots // len(counts)
    return [slice(number * each, number * each + count) for number, count in enumerate(counts)]


def write_slots(
    kept: torch.Tensor,
    per_frame: int,
    index: torch.Tensor,
    scale: torch.Tensor,
    counts: torch.Tensor | None = None,
    times: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """Write the slots of what frames kept.

    Without `counts`, a frame has one slot for each token of text before it, which is never written again, and one for
    each token that it kept. With `counts`, the slots of all its frames come first in a stream, each of them with so
    many tokens, and then the slots of the others, whose tokens are to stay as they are.

    Args:
        kept (`int64 [F, k]`), per_frame (`int`): N.
        index (`int64 [S]`), scale (`float32 [2, S]`): results.
        counts (`int64 [streams]`, *optional*): tokens of `kept` that each stream keeps, the first ones.
        times (two of `float32 [F, k]`, *optional*): the scale of the kept tokens; 1 and 0 if omitted.
    """
    frames, num_kept = kept.shape
    before = len(index) // frames - num_kept
    number = torch.arange(frames, device=kept.device)[:, None]
    first = number * (before + per_frame)
    if counts is None:
        index.view(frames, -1)[:, before:] = first + before + kept
        if times is not None:
            scale.view(2, frames, -1)[:, :, before:] = torch.stack(times)
        return
    each = frames // len(counts)
    own, column = counts.repeat_interleave(each)[:, None], torch.arange(before + num_kept, device=kept.device)
    stream, number, is_own = number // each, number % each, column < before + own
    other = each * (before + own) + number * (num_kept - own) + column - before - own
    slot = stream * each * len(column) + torch.where(is_own, number * (before + own) + column, other)
    index[slot] = first + torch.cat([column[:before].expand(frames, -1), before + kept], dim=1)
    ones = torch.ones(frames, before, device=kept.device)
    times_y, times_x = (torch.ones_like(kept), torch.zeros_like(kept)) if times is None else times
    scale[0, slot] = torch.cat([ones, times_y], dim=1).where(is_own, 0)
    scale[1, slot] = torch.cat([0 * ones, times_x], dim=1).where(is_own, 1)


class StaticStep:
    """A step of one shape, with its buffers. ops: `PlainOps`, or a class with the same operations."""

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
        self._ahead: tuple = (None,) * 4  # of `_inputs_of` the next call

    @property
    def model(self):
        return self._model()

    def _parts(self, found: torch.Tensor) -> list[torch.Tensor]:
        """Kept tokens, scores, whether features are finite, and probabilities of silence, as they lie in a buffer with
        8 bytes for each number."""
        parts, dtypes = found.split(list(map(math.prod, self._sizes))), (torch.long, torch.float32, torch.bool)
        each = zip(parts, (*dtypes, torch.float32), self._sizes, strict=True)
        return [part.view(dtype)[: len(part)].view(size) for part, dtype, size in each]

    @property
    def _own_counts(self) -> torch.Tensor | None:
        """int64 `[streams]`, on the device: how many tokens of a frame each keeps, in a mixed step."""
        return self.table[0, :, 7] if self.shape.mixed else None

    @property
    def _uniform(self) -> torch.Tensor:
        """The priority `[F, N]` of `mod_selection="uniform"`."""
        frames, counts = self.offsets.view(len(self.features), -1)[:, self.text_before :], self._own_counts
        of_frames = None if counts is None else counts.repeat_interleave(self.shape.frames)
        return uniform_priority(frames, self.shape.num_kept, of_frames)

    def _keep(self, priority: torch.Tensor, which: int | None = None) -> None:
        """Keep the tokens of each frame with the highest priority `[F, N]`, in one routed layer or in all."""
        shape, counts = self.shape, self._own_counts
        of_frames = None if counts is None else counts.repeat_interleave(shape.frames)
        kept = select_tokens(priority, shape.num_kept, shape.force_last, of_frames)
        if which is None:
            self.kept.copy_(kept.expand_as(self.kept))
        else:
            self.kept[which].copy_(kept)
        write_slots(kept, priority.shape[1], self.index, self.scale, counts)

    def _count(self, ids: list[list[int]], kept: list[int] | None) -> None:
        """How many tokens and slots a call adds to each stream."""
        shape, missing = self.shape, [0] * (self.shape.streams - len(ids))
        self._counts = [shape.tokens if shape.frames else len(own) for own in ids] + missing
        self._added = np.outer(self.slots_each, np.sign(self._counts) if shape.frames else self._counts)
        if kept is not None:
            self._kept = kept + missing
            self._added[self.routed] = shape.frames * (self.text_before + np.array(self._kept)) * np.sign(self._counts)

    def _bases_of(self, caches: list[MoDCache]) -> list[int]:
        return [cache.seen_tokens - number * self.shape.tokens for number, cache in enumerate(caches)]

    def _inputs_of(self, ids: list[list[int]], bases: list[int], places: list[np.ndarray], kept) -> tuple:
        """The table and the ids of a call, after what they are made from."""
        # pinned: the host does not wait
        control = torch.zeros(len(self.control), dtype=torch.long, pin_memory=self.x.is_cuda)
        values, rows = control.numpy(), self.table.numel()
        table, tokens = values[:rows].reshape(self.table.shape), values[rows:].reshape(self.shape.streams, -1)
        for number, own in enumerate(ids):
            table[:, number, :5], table[:, number, 5] = places[number], bases[number]
            tokens[number, : len(own)] = own
        table[:, :, 6] = self._added
        if kept is not None:
            table[:, :, 7] = self._kept
        return (ids, kept), bases, places, control

    def prepare(
        self, caches: list[MoDCache], ids: list[list[int]], features: list[torch.Tensor] | None, kept=None
    ) -> None:
        """Reserve slots in the caches, and write the inputs of a call into the buffers. Streams that are missing write
        to no cache, and their results mean nothing. kept: for a mixed step, how many tokens of a frame each keeps."""
        shape, known = self.shape, self._ahead
        if known[0] != (ids, kept):
            self._count(ids, kept)
        self._caches, x = caches, self.x
        self._places = [
            cache.reserve(self._added[:, number], self.heads, x.dtype, x.device) for number, cache in enumerate(caches)
        ]
        self._bases = self._bases_of(caches) + [0] * (shape.streams - len(caches))
        is_known = known[0] == (ids, kept) and known[1] == self._bases
        if not is_known or any(own is not other for own, other in zip(self._places, known[2], strict=True)):
            known = self._inputs_of(ids, self._bases, self._places, kept)
        self._ahead = known
        self.control.copy_(known[3], non_blocking=True)
        if features:
            joined = features[0] if len(features) == 1 else torch.cat(features)
            self.features[: len(joined)].copy_(joined)
            if shape.selection == "difference":
                for own, cache in zip(self.values_before, caches, strict=False):
                    found = cache.values_of_last_frame(len(own))
                    own.copy_(torch.zeros_like(own) if found is None else found[0])

    def forward(self, cut=None, attend=None) -> None:
        """Run the step, from the buffers into the buffers. cut: is called after the first layers. attend: in place of
        the attention of the ops; takes caches, as that of `PlainOps`."""
        language, shape = self.model.model.language_model, self.shape
        self._embed()
        positions = self.table[0, :, 5:6] + self.offsets.view(shape.streams, -1)
        rotary = [part[0] for part in language.rotary_emb(self.x[None], positions.view(1, -1))]
        if shape.frames and shape.routed and shape.selection == "difference":
            self._keep(self._differences(language.layers[0]))
        elif shape.mixed and shape.selection == "uniform":
            self._keep(self._uniform)
        for number, layer in enumerate(language.layers):
            if cut is not None and number == FIRST_LAYERS:
                cut()
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
        places: list[np.ndarray] = []
        for number, cache in enumerate(self._caches):
            base, count = cache.seen_tokens, self._counts[number]
            ends = range(base + stride - 1, base + stride * shape.frames, stride)
            cache.advance_stream(count, ends, self.x.device)
            places.append(cache.lengthen(self._places[number], self._added[:, number]))
        if shape.frames:  # the next frames will probably come in the same way, and now the device is at work
            (ids, kept), bases = self._ahead[0], self._bases_of(self._caches)
            self._ahead = self._inputs_of(ids, bases + self._bases[len(bases) :], places, kept)

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


__all__ = [
    "MAX_TOKENS",
    "PlainOps",
    "Shape",
    "StaticStep",
    "StepOutput",
    "mixed_groups",
    "split_call",
    "split_streams",
    "text_shape",
    "write_slots",
]
