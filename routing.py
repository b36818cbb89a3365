"""Which tokens enter which layer: the LayerExpert, where frames are, the gather and scatter around a layer, and how
the tokens of a frame are chosen.

A frame is N consecutive vision tokens. All text and the k best tokens of each frame enter a routed layer; the other
vision tokens skip it unchanged. The choice depends on a frame and the frame before it only, so it is causal: a stream
fed in pieces is routed exactly as the same stream in one pass.

Shapes: B batch, T tokens of this call, F frames of this call over all rows, N vision tokens per frame, k of them kept,
K slots (kept tokens of the longest row), D hidden size.
"""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .cache import MoDCache, PackedCache
from .configuration_videollm_mod import TRAINING_FREE, VideoLLMMoDTextConfig, check_keep_ratio, num_kept_tokens
from .containers import is_number
from .fused import Enter, Scatter, kernels_for, put_back, scatter_gated

KeepRatio = float | Sequence[float] | torch.Tensor  # one for all frames of a call, or one for each
SAME = 1 / 256  # a smaller difference, relative to the token, is the rounding of an equal token
NOTHING = -1  # in place of a token, where a frame keeps fewer than others
GATE_STRENGTH = 0.2  # p-MoD (arXiv 2412.04449): a kept token's update is scaled by 1 + 0.2 * tanh(score)


class LayerExpert(nn.Linear):
    """The learned router of one layer: one linear map of a token to a scalar, `s = w.x + b`, in float32.

    Source: VideoLLM-MoD (arXiv 2408.16730), section 3.2.
    """

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, 1, dtype=torch.float32)  # whatever the dtype of the model

    def forward(
        self, hidden_states: torch.Tensor, rows: torch.Tensor | None = None, known: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`[..., D]` of any dtype -> scores `[...]` in float32, also under autocast.

        Args:
            rows (`int64`, *optional*): the tokens of `hidden_states` `[M, D]` to score; scores have its shape.
            known (`float32`, *optional*): their scores, which only need a gradient; no row occurs twice.
        """
        device = hidden_states.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            weight, bias = self.weight.float(), self.bias.float()
            if known is not None:
                return _KnownScores.apply(hidden_states, weight, bias, rows, known)
            if rows is not None:
                kernels = kernels_for(hidden_states) if self.training and not torch.is_grad_enabled() else None
                if kernels is not None:
                    return kernels.scores(hidden_states, rows, weight, bias)
                hidden_states = hidden_states[rows]
            return nn.functional.linear(hidden_states.float(), weight, bias).squeeze(-1)


class _KnownScores(torch.autograd.Function):
    """The scores of `rows`, known from the choice of tokens, with their gradient. It needs only `hidden_states`, which
    are kept anyway, and the weight."""

    @staticmethod
    def forward(ctx, hidden_states, weight, bias, rows, known):
        ctx.save_for_backward(hidden_states, weight)
        ctx.rows = rows
        return known.view_as(known)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        hidden_states, weight = ctx.saved_tensors
        to_tokens = to_weight = None
        if ctx.needs_input_grad[0]:
            to_tokens = torch.zeros_like(hidden_states)
            to_tokens.index_copy_(0, ctx.rows, (grad[:, None] * weight).to(hidden_states.dtype))
        if ctx.needs_input_grad[1]:
            with torch.autocast(grad.device.type, enabled=False):
                to_weight = grad[None] @ hidden_states.index_select(0, ctx.rows).float()
        return to_tokens, to_weight, grad.sum()[None] if ctx.needs_input_grad[2] else None, None, None


@dataclass
class StreamLayout:
    """Where the frames, separators and padding of one call are. Built by `StreamLayout.of`."""

    frames: torch.Tensor  # int64 [F, N]: flat index (row * T + column) of every vision token, frames in row order
    frame_numbers: torch.Tensor  # int64 [F]: frames of the same stream before each frame
    is_text: torch.Tensor  # bool [B, T]: neither vision nor padding; separators count as text
    is_separator: torch.Tensor  # bool [B, T]: the separator id directly after a frame's last vision token
    valid: torch.Tensor | None  # bool [B, T]: not padding; None if there is no padding
    lengths: list[int] | None = None  # tokens of each stream, if one row holds several; see `of_streams`

    @classmethod
    def of(
        cls,
        is_vision: torch.Tensor,
        is_separator_id: torch.Tensor,
        num_frame_tokens: int,
        valid: torch.Tensor | None = None,
        frames_seen: torch.Tensor | None = None,
        after_frame: torch.Tensor | None = None,
    ) -> "StreamLayout":
        """
        Args:
            is_vision (`bool [B, T]`): placeholders of vision tokens.
            is_separator_id (`bool [B, T]`): tokens with the separator's id, wherever they are.
            num_frame_tokens (`int`): N.
            valid (`bool [B, T]`, *optional*): False at padding.
            frames_seen (`int64 [B]`, *optional*): frames of each row in earlier calls.
            after_frame (`bool [B]`, *optional*): whether the last token of the earlier calls ended a frame.

        Raises:
            `ValueError`: if the placeholders are not whole frames of consecutive tokens.
        """
        batch_size, length = is_vision.shape
        device = is_vision.device
        placeholders = is_vision.flatten().nonzero().squeeze(-1)
        num_frames, rest = divmod(placeholders.numel(), num_frame_tokens)
        frames = placeholders[: num_frames * num_frame_tokens].view(num_frames, num_frame_tokens)
        rows = frames[:, 0] // length
        whole = (frames[:, -1] - frames[:, 0] == num_frame_tokens - 1) & (rows == frames[:, -1] // length)
        if rest or not whole.all():
            raise ValueError(
                f"`input_ids` break inside a frame: a frame is {num_frame_tokens} consecutive vision placeholders, "
                f"got rows with {is_vision.sum(1).tolist()} of them"
            )

        per_row = torch.zeros(batch_size, dtype=torch.long, device=device).index_add_(0, rows, torch.ones_like(rows))
        frame_numbers = torch.arange(num_frames, device=device) - (per_row.cumsum(0) - per_row)[rows]
        if frames_seen is not None:
            frame_numbers = frame_numbers + frames_seen[rows]

        ends_frame = torch.zeros(batch_size * length, dtype=torch.bool, device=device)
        ends_frame[frames[:, -1]] = True
        follows_frame = previous_token(ends_frame.view(batch_size, length), valid, after_frame)
        return cls(
            frames=frames,
            frame_numbers=frame_numbers,
            is_text=~is_vision if valid is None else ~is_vision & valid,
            is_separator=is_separator_id & follows_frame,
            valid=valid,
        )

    def of_segments(self, segments: torch.Tensor) -> "StreamLayout":
        """The layout with the frames of each packed sequence numbered from 0. segments (`int64 [B, T]`):
        the sequence of each token."""
        row_and_segment = torch.stack([self.frames[:, 0] // segments.shape[1], segments.flatten()[self.frames[:, 0]]])
        count = torch.arange(self.num_frames, device=segments.device)
        starts = torch.ones_like(count, dtype=torch.bool)
        starts[1:] = (row_and_segment[:, 1:] != row_and_segment[:, :-1]).any(0)
        return replace(self, frame_numbers=count - (count * starts).cummax(0).values)

    def of_streams(
        self, lengths: list[int], is_separator_id: torch.Tensor, frames_seen: torch.Tensor, after_frame: torch.Tensor
    ) -> "StreamLayout":
        """The layout of a row `[1, T]` that holds the tokens of several streams, one stream after the other.

        Args:
            lengths (`list[int]`): tokens of each of A streams, none of them 0.
            is_separator_id (`bool [1, T]`), frames_seen (`int64 [A]`), after_frame (`bool [A]`): as in `of`.
        """
        device = self.frames.device
        ends = torch.tensor(lengths).cumsum(0)
        stream = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(device)[self.frames[:, 0]]
        per_stream = torch.zeros(len(lengths), dtype=torch.long, device=device)
        per_stream.index_add_(0, stream, torch.ones_like(stream))
        number = torch.arange(self.num_frames, device=device) - (per_stream.cumsum(0) - per_stream)[stream]
        first = (ends - torch.tensor(lengths)).to(device)
        opens = is_separator_id[0, first] & after_frame.to(device)
        return replace(
            self,
            frame_numbers=number + frames_seen.to(device)[stream],
            is_separator=self.is_separator.index_copy(1, first, opens[None]),
            lengths=lengths,
        )

    @property
    def num_frames(self) -> int:
        return self.frames.shape[0]

    @property
    def owners(self) -> torch.Tensor:
        """int64 [F]: the row of each frame, or its stream if one row holds several."""
        first = self.frames[:, 0].contiguous()
        if self.lengths is None:
            return first // self.is_text.shape[1]
        return torch.searchsorted(torch.tensor(self.lengths, device=first.device).cumsum(0), first, right=True)

    @property
    def follows(self) -> torch.Tensor:
        """bool [F]: whether a frame of this call is the one before in the same stream. A frame that ends under padding
        is before no other."""
        owners, numbers, found = self.owners, self.frame_numbers, torch.zeros_like(self.frames[:, 0], dtype=torch.bool)
        found[1:] = (owners[1:] == owners[:-1]) & (numbers[1:] == numbers[:-1] + 1)
        if self.valid is not None:
            found[1:] &= self.valid.flatten()[self.frames[:-1, -1]]
        return found

    @property
    def ends_frame(self) -> torch.Tensor:
        """bool `[B, T]`: the last token of each frame, whose output decides whether to speak."""
        mask = torch.zeros_like(self.is_text).flatten()
        mask[self.frames[:, -1]] = True
        return mask.view_as(self.is_text)


def previous_token(flags: torch.Tensor, valid: torch.Tensor | None, before: torch.Tensor | None) -> torch.Tensor:
    """bool `[B, T]` -> bool `[B, T]`: the flag of the previous token that is no padding. before (`bool [B]`): the flag
    of the last token of earlier calls."""
    if before is None:
        before = flags.new_zeros(flags.shape[0])
    if valid is None:
        return torch.cat([before[:, None], flags[:, :-1]], dim=1)
    columns = torch.arange(flags.shape[1], device=flags.device).expand_as(flags)
    last_valid = columns.masked_fill(~valid, -1).cummax(dim=1).values
    previous = torch.cat([last_valid.new_full((flags.shape[0], 1), -1), last_valid[:, :-1]], dim=1)
    return torch.where(previous >= 0, flags.gather(1, previous.clamp(min=0)), before[:, None])


@dataclass
class Route:
    """The tokens that enter one layer, as the slots of a smaller batch `[B, K]`."""

    index: torch.Tensor  # int64 [B, K]: flat index of the token in each slot; slots keep the tokens' order
    filled: torch.Tensor | None  # int64 [M]: flat slots that hold a token; None if all do
    valid: torch.Tensor | None  # bool [B, K]: False in empty slots and at padding; None if there are none
    vision_slots: torch.Tensor  # int64 [F * k]: flat slots of the kept vision tokens
    vision_numbers: torch.Tensor  # int64 [B * K]: index in `vision_slots` of each slot; -1 for others
    gate: torch.Tensor | None  # float32 [F * k]: scores of the kept vision tokens; None without a gate
    mod_gate: str
    expert: LayerExpert | None = None  # which computed the scores
    lengths: list[int] | None = None  # slots of each stream, if one row holds several

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[B or 1, T, ...]` -> `[B, K, ...]`, without a gradient."""
        batch_size, num_slots = self.index.shape
        tokens = tokens.expand(batch_size, *tokens.shape[1:])
        return tokens.flatten(0, 1)[self.index.flatten()].view(batch_size, num_slots, *tokens.shape[2:])

    def enter(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens that enter the layer, `[B, K, D]`, and all tokens, `[B, T, D]`, for `scatter` alone to use."""
        if not torch.is_grad_enabled():
            return hidden_states.flatten(0, 1)[self.index], hidden_states
        entered, tokens = Enter.apply(hidden_states.flatten(0, 1), self.index.flatten(), self.filled)
        return entered.view(*self.index.shape, -1), tokens.view_as(hidden_states)

    def scatter(self, tokens: torch.Tensor, entered: torch.Tensor, processed: torch.Tensor) -> torch.Tensor:
        """Apply the gate to the output of a layer, and put it back among the tokens that skipped the layer.

        Args:
            tokens (`[B, T, D]`), entered (`[B, K, D]`): from `enter`.
            processed (`[B, K, D]`): the layer's output for `entered`.
        """
        entered, processed = entered.flatten(0, 1), processed.flatten(0, 1)
        gate, expert = self.gate, self.expert
        if gate is not None and expert is not None and self.mod_gate != "none":
            if torch.is_grad_enabled() and kernels_for(tokens, entered, processed) is not None:
                gated = self._scatter_gated(tokens.flatten(0, 1), entered, processed, gate, expert)
                return gated.view_as(tokens)
            kept = processed.index_select(0, self.vision_slots)
            if torch.is_grad_enabled():  # with its gradient
                gate = expert(entered, self.vision_slots, gate)
            if self.mod_gate == "residual":  # x + (1 + g) * (y - x) written as y + g * (y - x): exact where g = 0
                change = GATE_STRENGTH * gate.tanh()[:, None] * (kept - entered.index_select(0, self.vision_slots))
                processed = processed.index_add(0, self.vision_slots, change.to(processed.dtype))
            else:  # sigmoid(s) * y, as in the paper's released code; written as a change of y it would lose digits
                gated = (gate.sigmoid()[:, None] * kept).to(processed.dtype)
                processed = processed.index_copy(0, self.vision_slots, gated)
        scatter = Scatter.apply if torch.is_grad_enabled() else put_back
        return scatter(tokens.flatten(0, 1), processed, self.index.flatten(), self.filled).view_as(tokens)

    def _scatter_gated(
        self,
        tokens: torch.Tensor,
        entered: torch.Tensor,
        processed: torch.Tensor,
        gate: torch.Tensor,
        expert: LayerExpert,
    ) -> torch.Tensor:
        if self.mod_gate == "residual":
            tanh = gate.tanh()
            strength, slope = GATE_STRENGTH * tanh, GATE_STRENGTH * (1 - tanh * tanh)
            factors = torch.stack([1 + strength, -strength, slope, -slope])
        else:
            sigmoid, zeros = gate.sigmoid(), torch.zeros_like(gate)
            factors = torch.stack([sigmoid, zeros, sigmoid * (1 - sigmoid), zeros])
        targets = self.index.flatten()
        if self.filled is not None:
            targets = torch.full_like(targets, -1).index_copy(0, self.filled, targets[self.filled])
        weight, bias = expert.weight.float(), expert.bias.float()
        return scatter_gated(
            tokens, entered, processed, weight, bias, targets, self.vision_numbers, self.vision_slots, factors
        )


@dataclass
class FrameRouter:
    """Routes one call. The slots are laid out once; each routed layer then chooses the tokens for them."""

    layout: StreamLayout
    config: VideoLLMMoDTextConfig
    keep_ratio: KeepRatio | None = None  # of this call, in [0, 1], or one a frame; the config's if None
    cache: MoDCache | PackedCache | None = None  # as it was before this call
    scores: dict[int, torch.Tensor] = field(default_factory=dict)  # layer -> float32 [F, N], of its LayerExpert
    # layer -> int64 [F, k], ascending; where frames keep different numbers, `NOTHING` follows
    kept: dict[int, torch.Tensor] = field(default_factory=dict)
    seen: dict[str, torch.Tensor] = field(default_factory=dict)  # what training-free scores need, see `watch`

    def __post_init__(self) -> None:
        self.config.check_routing()
        ratio = self.config.mod_keep_ratio if self.keep_ratio is None else self.keep_ratio
        counts = kept_counts(ratio, *self.layout.frames.shape)
        routing, layout = self.config.vision_routing, self.layout
        self._layers: tuple[int, ...] = ()
        if routing == "full" or (layout.num_frames == 0 and (routing == "mod" or not layout.is_separator.any())):
            return  # nothing to skip: all tokens enter every layer
        num_layers = self.config.num_hidden_layers
        if routing == "mod":
            self._layers = self.config.routed_layers
            enters = layout.is_text
        else:
            first, step = (self.config.early_exit_layer, 1) if routing == "early_exit" else (1, 2)
            self._layers = tuple(range(first, num_layers, step))
            counts, enters = 0, layout.is_text & ~layout.is_separator
        self._lay_out_slots(counts, enters)
        cache, self.cache = self.cache, None  # which will hold this call too
        if routing == "mod" and self.config.mod_selection == "difference" and cache is not None:
            before = cache.values_of_last_frame(layout.frames.shape[1])
            if before is not None:
                self.seen["frame before"] = before

    def _lay_out_slots(self, counts: int | list[int], enters: torch.Tensor) -> None:
        """The slots are the same in every routed layer: one for a text token, and for a frame as many in a row as it
        keeps tokens, `counts`, or one number a frame. Rows are aligned to the right, as with left padding."""
        layout, (batch_size, length) = self.layout, enters.shape
        width = enters.long().flatten()
        self._counts = None
        if isinstance(counts, int):
            width[layout.frames[:, 0]] = counts
        else:
            self._counts = torch.tensor(counts, device=width.device)
            width[layout.frames[:, 0]] = self._counts
        width = width.view(batch_size, length)
        ends = width.cumsum(1)
        num_slots = int(ends[:, -1].max())
        shift = torch.arange(batch_size, device=width.device)[:, None] * num_slots + num_slots - ends[:, -1:]
        first_slot = (ends - width + shift).flatten()

        num_kept = counts if isinstance(counts, int) else max(counts)
        self._shape, self._num_kept = (batch_size, num_slots), num_kept
        self._index = torch.zeros(batch_size * num_slots, dtype=torch.long, device=width.device)
        text = enters.flatten().nonzero().squeeze(-1)
        self._index[first_slot[text]] = text
        slots = torch.arange(num_kept, device=width.device)
        # where the frames keep different numbers of tokens: which of `[F, k]` are some
        self._own = None if self._counts is None else (slots < self._counts[:, None]).flatten().nonzero().squeeze(-1)
        self._vision_slots = self._of_frames(first_slot[layout.frames[:, 0]][:, None] + slots)
        self._vision_numbers = torch.full_like(self._index, -1)
        self._vision_numbers[self._vision_slots] = torch.arange(len(self._vision_slots), device=width.device)
        filled = torch.cat([first_slot[text], self._vision_slots])
        self._filled = None if filled.numel() == batch_size * num_slots else filled
        self._lengths = None
        if layout.lengths is not None:
            self._lengths = torch.stack([own.sum() for own in width[0].split(layout.lengths)]).tolist()

    def _of_frames(self, values: torch.Tensor) -> torch.Tensor:
        """`[F, k]` as one vector, without what fills up a frame that keeps fewer tokens."""
        return values.flatten() if self._own is None else values.flatten()[self._own]

    def routes(self, layer_idx: int) -> bool:
        """Whether some token of this call skips the layer or is gated in it."""
        return layer_idx in self._layers

    def __call__(self, layer_idx: int, expert: LayerExpert | None, hidden_states: torch.Tensor) -> Route:
        """Choose the tokens that enter layer `layer_idx`, from its input `hidden_states` `[B, T, D]`."""
        index, gate = self._index, None
        if self._vision_slots.numel():
            if layer_idx not in self.kept:  # otherwise a checkpoint is being recomputed, with the same choice
                self._choose(layer_idx, expert, hidden_states.detach())
            kept, scores = self.kept[layer_idx], self.scores.get(layer_idx)
            kept = kept if self._own is None else kept.clamp(min=0)
            index = index.index_copy(0, self._vision_slots, self._of_frames(self.layout.frames.gather(1, kept)))
            if scores is not None:
                gate = self._of_frames(scores.gather(1, kept))
        valid = None
        if self._filled is not None or self.layout.valid is not None:
            filled = slice(None) if self._filled is None else self._filled
            valid = torch.zeros_like(index, dtype=torch.bool)
            valid[filled] = True if self.layout.valid is None else self.layout.valid.flatten()[index[filled]]
        return Route(
            index=index.view(self._shape),
            filled=self._filled,
            valid=None if valid is None else valid.view(self._shape),
            vision_slots=self._vision_slots,
            vision_numbers=self._vision_numbers,
            gate=gate,
            mod_gate=self.config.mod_gate,
            expert=expert,
            lengths=self._lengths,
        )

    @torch.no_grad()
    def watch(self, layer, hidden_states: torch.Tensor) -> None:
        """Remember what the training-free scores of later layers need of a layer's input `[B, T, D]`. Called when the
        layer has chosen its own tokens.

        Args:
            layer (`VideoLLMMoDDecoderLayer`).
        """
        selection = self.config.mod_selection
        if not self._layers or selection not in TRAINING_FREE or not self.layout.num_frames:
            return
        if selection == "change" and self.routes(layer.layer_idx + 1):
            self.seen["input of the layer before"] = hidden_states.flatten(0, 1)[self.layout.frames]
        elif selection == "difference" and layer.layer_idx == 0:
            values = first_values(layer, hidden_states.flatten(0, 1)[self.layout.frames])
            self.seen["difference"] = difference_scores(values, self._values_before(values))

    def _values_before(self, values: torch.Tensor) -> torch.Tensor:
        """`[F, N, V]` of the frame before each, from the `values` of this call and from the cache; zero for the first
        frame of a stream."""
        before, cached = values.roll(1, 0), self.seen.get("frame before")
        earlier = torch.zeros_like(values) if cached is None else cached.to(values)[self.layout.owners]
        return torch.where(self.layout.follows[:, None, None], before, earlier)

    @torch.no_grad()
    def _choose(self, layer_idx: int, expert: LayerExpert | None, hidden_states: torch.Tensor) -> None:
        scores, priority = self._score(layer_idx, expert, hidden_states)
        kept = select_tokens(priority, self._num_kept, self.config.mod_force_keep_last, self._counts)
        if self._counts is not None:
            others = torch.arange(self._num_kept, device=kept.device) >= self._counts[:, None]
            kept = kept.masked_fill(others, NOTHING)
        self.kept[layer_idx] = kept
        if scores is not None:
            self.scores[layer_idx] = scores

    def _score(self, layer_idx, expert, hidden_states) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Scores `[F, N]` for the gate (None without a LayerExpert), and the priority `[F, N]` to select by."""
        frames, selection = self.layout.frames, self.config.mod_selection
        if selection == "change":
            after = hidden_states.flatten(0, 1)[frames]
            return None, change_scores(self.seen["input of the layer before"].to(after.device), after)
        if selection == "difference":
            return None, self.seen["difference"].to(frames.device)
        if selection == "uniform":
            return None, uniform_priority(frames, self._num_kept, self._counts)
        if selection == "random":
            return None, random_priority(frames, self.layout.frame_numbers, layer_idx, self.config.mod_seed)
        if expert is None:
            raise ValueError(
                f"layer {layer_idx} has no LayerExpert: the model was built with another `mod_layers`, "
                '`mod_selection` or `vision_routing`; build it with mod_selection="learned" and this layer in '
                f"`mod_layers` (now {self.config.mod_layers!r})"
            )
        scores = expert(hidden_states.flatten(0, 1), frames)
        return scores, scores

    def to(self, device: torch.device, non_blocking: bool = False) -> "FrameRouter":
        """A copy on `device` that records into the same `scores` and `kept`, for layers on several devices."""
        moved = copy.copy(self)
        moved.__dict__.update(_to_device(self.__dict__, device, non_blocking))
        moved.layout = replace(self.layout, **_to_device(self.layout.__dict__, device, non_blocking))
        return moved


def _to_device(attributes: dict, device: torch.device, non_blocking: bool) -> dict:
    return {
        name: value.to(device, non_blocking=non_blocking) if isinstance(value, torch.Tensor) else value
        for name, value in attributes.items()
    }


def kept_counts(keep_ratio: KeepRatio, num_frames: int, num_frame_tokens: int) -> int | list[int]:
    """How many tokens each frame keeps; one number if all keep equally many.

    Raises:
        `ValueError`: for a ratio out of range, or another number of ratios than frames.
    """
    if isinstance(keep_ratio, str) or not isinstance(keep_ratio, Sequence | torch.Tensor):
        return kept_count(keep_ratio, num_frame_tokens)
    shape = list(keep_ratio.shape) if isinstance(keep_ratio, torch.Tensor) else [len(keep_ratio)]
    if shape != [num_frames]:
        got = f"{shape[0]} ratios" if len(shape) == 1 else f"a tensor {shape}"
        raise ValueError(f"`keep_ratio` must be one number, or one for each of {num_frames} frames, got {got}")
    ratios = keep_ratio.tolist() if isinstance(keep_ratio, torch.Tensor) else list(keep_ratio)
    counts = {ratio: kept_count(ratio, num_frame_tokens) for ratio in ratios}
    different = set(counts.values()) or {0}
    return different.pop() if len(different) == 1 else [counts[ratio] for ratio in ratios]


def kept_count(keep_ratio: float, num_frame_tokens: int) -> int:
    """`num_kept_tokens`, and 0 for the ratio 0, which only a call may have. Raises `ValueError` as `kept_counts`."""
    if is_number(keep_ratio) and keep_ratio == 0:
        return 0
    check_keep_ratio("keep_ratio", keep_ratio)
    return num_kept_tokens(keep_ratio, num_frame_tokens)


def select_tokens(
    priority: torch.Tensor, num_kept: int, force_last: bool = False, counts: torch.Tensor | None = None
) -> torch.Tensor:
    """The `num_kept` tokens of each frame with the highest priority, ties to the lower index.

    Args:
        priority (`[F, N]`): of any ordered dtype.
        force_last (`bool`): always keep the frame's last token.
        counts (`int64 [F]`, *optional*): how many of them to select in each frame, at most `num_kept`. The first of
            its other tokens follow.

    Returns:
        int64 `[F, num_kept]`, ascending; with `counts`, the selected and the others are each ascending.
    """
    order = priority.argsort(dim=1, descending=True, stable=True)
    if force_last:
        is_other = (order != priority.shape[1] - 1).int()
        order = order.gather(1, is_other.argsort(dim=1, stable=True))  # the last token first, then the others in order
    if counts is None:
        return order[:, :num_kept].sort(dim=1).values
    num_tokens = priority.shape[1]
    behind = torch.arange(num_tokens, device=order.device) >= counts[:, None]
    return (order + num_tokens * behind).sort(dim=1).values[:, :num_kept] % num_tokens


def change_scores(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """float32 `[F, N]`: how much a layer changed a token, relative to the token. before, after: `[F, N, D]`."""
    before, after = before.float(), after.float()
    return (after - before).norm(dim=-1) / after.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)


def first_values(layer, tokens: torch.Tensor) -> torch.Tensor:
    """The values `[F, N, V]` of tokens `[F, N, D]` in a decoder layer: what others read of them by attention.

    Raises:
        `ValueError`: if this process holds only a part of them.
    """
    attention = layer.self_attn
    values = attention.v_proj(layer.input_layernorm(tokens))
    width = attention.config.num_key_value_heads * attention.head_dim
    if values.shape[-1] != width:
        raise ValueError(
            "mod_selection='difference' cannot be used with tensor parallelism: each process holds "
            f"{values.shape[-1]} of {width} values"
        )
    return values


def difference_scores(values: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """float32 `[F, N]`: how far the values of a token are from those of the same token of the frame before, both
    `[F, N, V]`. 0 if they are equal but for rounding, which would otherwise choose among the tokens of a still image.
    """
    values = values.float()
    distance = (values - before.float()).norm(dim=-1)
    return distance.where(distance > SAME * values.norm(dim=-1), 0)


def uniform_priority(frames: torch.Tensor, num_kept: int, counts: torch.Tensor | None = None) -> torch.Tensor:
    """Priority that selects `floor((j + 0.5) * N / k)` for j in 0 .. k-1. k is `num_kept`, or at most that in each
    frame, `counts` (`int64 [F]`)."""
    num_tokens, slots = frames.shape[1], torch.arange(num_kept, device=frames.device)
    if counts is None:
        chosen = ((2 * slots + 1) * num_tokens) // (2 * num_kept)
        priority = torch.zeros(num_tokens, dtype=torch.long, device=frames.device).index_fill(0, chosen, 1)
        return priority.expand_as(frames)
    counts = counts[:, None]
    chosen = ((2 * slots + 1) * num_tokens // (2 * counts.clamp(min=1))).clamp(max=num_tokens - 1)
    return torch.zeros_like(frames).scatter_add(1, chosen, (slots < counts).long())


def random_priority(frames: torch.Tensor, frame_numbers: torch.Tensor, layer_idx: int, seed: int) -> torch.Tensor:
    """Priority by a hash of (seed, layer, number of the frame in its stream, token). It does not depend on how streams
    are split into calls, or batched."""
    tokens = torch.arange(frames.shape[1], device=frames.device)
    per_layer = int(_mix(_mix(torch.tensor(seed)) + layer_idx))
    per_frame = _mix(frame_numbers + per_layer)
    return _mix(per_frame[:, None] + tokens)


# splitmix64's finaliser (Steele et al., OOPSLA 2014) on the low 63 bits, since torch's shifts of int64 keep the sign
_MIX_1, _MIX_2 = 0x3F58476D1CE4E5B9, 0x14D049BB133111EB
_LOW_BITS = (1 << 63) - 1


def _mix(state: torch.Tensor) -> torch.Tensor:
    state = (state + 0x1E3779B97F4A7C15) & _LOW_BITS
    state = ((state ^ (state >> 30)) * _MIX_1) & _LOW_BITS
    state = ((state ^ (state >> 27)) * _MIX_2) & _LOW_BITS
    return state ^ (state >> 31)


__all__ = ["FrameRouter", "KeepRatio", "LayerExpert", "Route", "StreamLayout", "select_tokens"]
