"""The key-value cache of a routed model: every layer holds its own tokens and their positions in the stream.

Routed layers hold fewer keys than dense ones, so the length of a layer is not the length of the stream. The cache
counts that itself: `seen_tokens` columns so far, and `next_position` of each row. Each layer stores the positions of
its tokens beside their keys and values; rollback, reordering and batches with padding use those positions.

Shapes: B batch, L tokens a layer holds, T tokens of a call, E frames of the longest row.
"""

import copy
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

BUCKET = 64  # the sizes of buffers are multiples of this
SPARE = 8  # a new buffer is larger than needed by one part in `SPARE`
changes = itertools.count(1)  # numbers of the changes of all layers


def buffer_size(length: int) -> int:
    """Slots of a new buffer for `length` tokens."""
    return -(-(length + length // SPARE + 1) // BUCKET) * BUCKET


class GrowingTensor:
    """The preallocated buffer behind a tensor that its owner holds as an ordinary attribute.

    The owner holds `view`, the filled part of the buffer. If the attribute holds another tensor, because it was
    replaced, the next `append` copies that tensor into a new buffer. So all other operations can replace the
    tensor without knowing of buffers.

    Args:
        dim (`int`): the dimension along which the tensor grows.
    """

    buffer: torch.Tensor  # None while there is no `view`
    view: torch.Tensor | None

    def __init__(self, dim: int):
        self.dim = dim
        self.buffer = self.view = None  # type: ignore[assignment]
        self.shared = 0  # slots before this one are visible to copies, and are not written again

    def append(self, held: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
        """`held` followed by `new`; the owner has to hold the result."""
        if held is None or held.numel() == 0:
            return new  # there may be only one call, which then needs no buffer
        if torch.is_grad_enabled():
            return torch.cat([held, new], dim=self.dim)  # a gradient may need the old tensor unchanged
        held = self.reserve(held, new.shape[self.dim])
        start = held.shape[self.dim]
        self.buffer.narrow(self.dim, start, new.shape[self.dim]).copy_(new)
        return self.lengthen(start + new.shape[self.dim])

    def reserve(self, held: torch.Tensor, more: int) -> torch.Tensor:
        """Reserve `more` slots after `held`; the owner has to hold the result."""
        length = held.shape[self.dim]
        stop = length + more
        ours = held is self.view and length >= self.shared and stop <= self.buffer.shape[self.dim]
        if not ours or (self.buffer.is_inference() and not torch.is_inference_mode_enabled()):
            shape = list(held.shape)
            shape[self.dim] = buffer_size(stop)
            # free the old buffer before allocating the new one
            self.buffer = self.view = None  # type: ignore[assignment]
            self.buffer, self.shared = held.new_empty(shape), 0
            self.buffer.narrow(self.dim, 0, length).copy_(held.detach())
            return self.lengthen(length)
        return held

    def lengthen(self, length: int) -> torch.Tensor:
        """The first `length` slots of the buffer; the owner has to hold the result."""
        self.view = self.buffer.narrow(self.dim, 0, length)
        return self.view

    def shorten(self, held: torch.Tensor, length: int) -> torch.Tensor:
        """The first `length` slots of `held`; the owner has to hold the result."""
        if held is self.view:
            return self.lengthen(length)
        return held.narrow(self.dim, 0, length)

    def share(self) -> "GrowingTensor":
        """For a copy of the owner that holds the same tensor. The copy gets a buffer of its own when it appends; the
        owner continues in this one, after the slots that both see."""
        if self.view is not None:
            self.shared = max(self.shared, self.view.shape[self.dim])
        return GrowingTensor(self.dim)


PADDING = -1  # position of a slot that holds no token of its row


class Held:
    """A tensor that is made when it is read: making those of all layers takes longer than all else that the host does
    for a step, and hardly any is read before the next step. Its owner has `held`, the tensors by name, `catch_up()`,
    and `changed`, the number of the last change."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, owner, kind: type):
        if owner is None:
            return self
        owner.catch_up()
        return owner.held[self.name]

    def __set__(self, owner, value: torch.Tensor | None) -> None:
        owner.catch_up()
        owner.held[self.name], owner.changed = value, next(changes)


class MoDCacheLayer(DynamicLayer):
    """Keys and values `[B, heads, L, head_dim]` of one layer, with `positions` int64 `[B, L]` (-1: padding). All three
    grow in place (`GrowingTensor`)."""

    keys: torch.Tensor = Held()  # type: ignore[assignment]  # None before `is_initialized`, and so are values
    values: torch.Tensor = Held()  # type: ignore[assignment]
    positions: torch.Tensor | None = Held()  # type: ignore[assignment]

    def __init__(self) -> None:
        self.held: dict = {}
        self.behind = 0  # tokens in the buffers after those in `held`
        super().__init__()
        self.positions = None
        self.padded = False  # whether some slot is padding; a bool, so that the common case does not sync the device
        self._drop_buffers()

    def catch_up(self) -> None:
        """Let `held` have all tokens."""
        if self.behind:
            length, self.behind = self.get_seq_length(), 0
            self.held = {name: tensor.lengthen(length) for name, tensor in self.growing.items()}

    def _drop_buffers(self) -> None:
        """Keep the tensors but not the buffers behind them, whose memory is freed."""
        self.catch_up()
        self.growing = {"keys": GrowingTensor(2), "values": GrowingTensor(2), "positions": GrowingTensor(1)}
        self.changed = next(changes)

    def get_seq_length(self) -> int:
        keys = self.held["keys"]
        return self.behind if keys is None else keys.shape[2] + self.behind

    def record(self, positions: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor | None:
        """Record the tokens whose keys and values come with the next `update`.

        Args:
            positions (`int64 [B, K]`): their positions in the stream.
            valid (`bool [B, K]`, *optional*): False where a slot is padding.

        Returns:
            bool `[B, L + K]`, which of all keys are tokens; None if all are.
        """
        if valid is not None:
            positions = positions.masked_fill(~valid, PADDING)
            self.padded = True
        self.positions = self.growing["positions"].append(self.positions, positions)
        return self.positions >= 0 if self.padded else None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Start empty, with the shape and device of the given keys and values."""
        self.device = key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """As in `DynamicLayer`: add `[B, heads, K, head_dim]`, and return all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self.growing["keys"].append(self.keys, key_states)
        self.values = self.growing["values"].append(self.values, value_states)
        return self.keys, self.values

    def reserve(self, more: int, heads: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        """Reserve slots for `more` tokens of one row. The caller writes them, and then calls `lengthen`. heads: number
        and head_dim."""
        if not self.is_initialized:
            empty = torch.empty((1, heads[0], 0, heads[1]), dtype=dtype, device=device)
            self.lazy_initialization(empty, empty)
        if self.positions is None:
            self.positions = torch.empty((1, 0), dtype=torch.long, device=device)
        for name, tensor in self.growing.items():
            setattr(self, name, tensor.reserve(getattr(self, name), more))

    def lengthen(self, more: int) -> None:
        """Add `more` tokens that were written into the buffers."""
        self.behind += more
        self.changed = next(changes)

    @property
    def place(self) -> list[int]:
        """Addresses of the buffers of keys, values and positions, number of tokens held, and capacity."""
        buffers = [tensor.buffer for tensor in self.growing.values()]
        return [*(buffer.data_ptr() for buffer in buffers), self.keys.shape[2], buffers[0].shape[2]]

    def shorten(self, length: int) -> None:
        """Keep the first `length` slots."""
        for name, tensor in self.growing.items():
            held = getattr(self, name)
            if held is not None and held.dim() > tensor.dim and held.shape[tensor.dim] > length:
                setattr(self, name, tensor.shorten(held, length))

    def copy(self) -> "MoDCacheLayer":
        self.catch_up()
        other = copy.copy(self)
        other.held, other.changed = dict(self.held), next(changes)  # it has no buffers yet
        other.growing = {name: tensor.share() for name, tensor in self.growing.items()}
        return other

    def rollback(self, limits: torch.Tensor) -> None:
        """Drop every token at or after its row's limit. limits: int64 `[B]`."""
        if self.positions is None or self.positions.shape[1] == 0:
            return
        dropped = self.positions >= limits[:, None]
        # slots are in order, so a row keeps those before the first that it drops
        slots = torch.arange(dropped.shape[1], device=dropped.device).expand_as(dropped)
        length = int(slots.masked_fill(~dropped, dropped.shape[1]).amin(1).max())
        self.shorten(length)
        if self.padded or dropped.shape[0] > 1:
            self.positions = self.positions.masked_fill(dropped[:, :length], PADDING)
            self.padded = bool((self.positions < 0).any())

    def forget(self, leaving: torch.Tensor, rotate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        """See `MoDCache.forget`."""
        assert self.positions is not None  # the layer holds tokens
        stay = ~leaving[self.positions[0]]
        positions = self.positions[:, stay]
        distance = leaving.long().cumsum(0)[positions]
        self.keys, self.values = rotate(self.keys[:, :, stay], distance[0]), self.values[:, :, stay]
        self.positions = positions - distance
        self._drop_buffers()

    def select_rows(self, rows: torch.Tensor) -> None:
        if self.positions is None:
            return
        self.positions = self.positions.index_select(0, rows.to(self.positions.device))
        if self.is_initialized:
            self.keys = self.keys.index_select(0, rows.to(self.keys.device))
            self.values = self.values.index_select(0, rows.to(self.values.device))
        self._drop_buffers()

    def offload(self) -> None:
        """Move to the CPU. Waits for the copy, as a non-blocking copy to unpinned memory may be read too early."""
        if self.is_initialized:
            self.keys, self.values = self.keys.cpu(), self.values.cpu()
        self._drop_buffers()

    def prefetch(self) -> None:
        """As in `DynamicLayer`, on the stream of the cache, while attention reads on the default stream."""
        super().prefetch()
        if self.is_initialized and self.device.type == "cuda":
            for tensor in (self.keys, self.values):
                tensor.record_stream(torch.cuda.default_stream(self.device))

    def reset(self) -> None:
        self.keys = self.values = self.positions = None  # type: ignore[assignment]
        self.is_initialized = self.padded = False
        self._drop_buffers()


class Places:
    """Where the layers of a cache were in memory after a change. It holds no tensors.

    Args:
        table (`int64 [layers, 5]`): each layer's `place`.
    """

    def __init__(self, table: np.ndarray):
        self.table, self.change = table, next(changes)
        self.in_inference_mode = torch.is_inference_mode_enabled()

    def __reduce__(self):
        return type(None), ()  # a copy of the cache is elsewhere in memory

    def fit(self, layers: list[MoDCacheLayer], counts: np.ndarray) -> bool:
        """Whether nothing has changed, and `counts` more tokens fit into the buffers: then `reserve` is a no-op in
        all of them."""
        if self.in_inference_mode and not torch.is_inference_mode_enabled():
            return False  # some buffers can only be written in inference mode
        if (self.table[:, 3] + counts > self.table[:, 4]).any():
            return False
        return max([layer.changed for layer in layers], default=-1) < self.change  # a list: asked at every step


class MoDCache(Cache):
    """
    Cache of a `VideoLLMMoDTextModel`, which makes one if none is given.

    Attributes:
        seen_tokens (`int`): columns processed so far, padding included: what `get_seq_length()` returns.
        next_position (`int64 [B]` or None): position of the next token of each row.
        frame_ends (`int64 [B, E]` or None): positions of the frames' last tokens, -1 where a row has fewer.

    Args:
        config (`VideoLLMMoDTextConfig`, or a config that holds one): for the number of layers.
        offloading (`bool`): keep layers that are not in use on the CPU, as `DynamicCache(offloading=True)`.
    """

    next_position: torch.Tensor | None = Held()  # type: ignore[assignment]
    frame_ends: torch.Tensor | None = Held()  # type: ignore[assignment]
    layers: list[MoDCacheLayer]  # type: ignore[assignment]  # a cache of transformers mixes kinds of layers

    def __init__(self, config, offloading: bool = False):
        num_layers = config.get_text_config(decoder=True).num_hidden_layers
        super().__init__(layers=[MoDCacheLayer() for _ in range(num_layers)], offloading=offloading)
        self._clear()

    def _clear(self) -> None:
        self.seen_tokens = 0
        self.frames_forgotten = 0
        self.held: dict = {}
        self._end: tuple[int, torch.device] | None = None  # up to which the tensors lack what `advance_stream` added
        self._new_ends: list[int] = []
        self.next_position = self.frame_ends = None
        self._places: Places | None = None  # after `lengthen`

    def catch_up(self) -> None:
        """Let the tensors have what `advance_stream` added."""
        if self._end is None:
            return
        (position, device), ends, before = self._end, self._new_ends, self.held["frame_ends"]
        self._end, self._new_ends = None, []
        new = torch.tensor([ends], dtype=torch.long, device=device)
        self.held["frame_ends"] = new if before is None else torch.cat([before, new], dim=1)
        self.held["next_position"] = torch.full((1,), position, device=device)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, the same for every layer; layer `i` holds `layers[i].get_seq_length()` of them."""
        return self.seen_tokens

    @property
    def num_frames(self) -> torch.Tensor | None:
        """int64 [B]: frames each row has seen."""
        return None if self.frame_ends is None else self.frames_forgotten + (self.frame_ends >= 0).sum(1)

    @property
    def after_frame(self) -> torch.Tensor | None:
        """bool [B]: whether a row's last token was a frame's last."""
        if self.frame_ends is None or self.next_position is None:
            return None
        return (self.frame_ends == self.next_position[:, None] - 1).any(1)

    def values_of_last_frame(self, num_tokens: int) -> torch.Tensor | None:
        """The values `[B, num_tokens, heads * head_dim]` that layer 0, which holds every token, has of the last frame
        of each row. They are zero in rows without a frame; None if no row has one."""
        layer, ends = self.layers[0], self.frame_ends
        if ends is None or ends.shape[1] == 0 or not layer.is_initialized:
            return None
        device = layer.values.device
        last = ends.amax(1).to(device)
        slots = last[:, None] - torch.arange(num_tokens - 1, -1, -1, device=device)
        if layer.padded or len(ends) > 1:  # otherwise the token at position i is in slot i
            assert layer.positions is not None  # the layer holds frames
            slots = (layer.positions.to(device)[:, None] == slots[:, :, None]).int().argmax(2)
        index = slots[:, None, :, None].expand(-1, layer.values.shape[1], -1, layer.values.shape[3])
        values = layer.values.gather(2, index.clamp(min=0)).transpose(1, 2).flatten(2)
        return values.masked_fill((last < 0)[:, None, None], 0)

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys and values."""
        layers = [(layer.get_seq_length(), layer.held) for layer in self.layers if layer.is_initialized]
        tensors = [(length, held[name]) for length, held in layers for name in ("keys", "values")]
        return sum(length * x.shape[0] * x.shape[1] * x.shape[3] * x.element_size() for length, x in tensors)

    def token_bytes(self) -> torch.Tensor:
        """int64 [seen_tokens] on the CPU: bytes of each token of a single stream, over all layers."""
        sizes = torch.zeros(self.seen_tokens, dtype=torch.long)
        for layer in self.layers:
            if layer.is_initialized and layer.positions is not None and layer.keys.shape[2]:
                per_token = (layer.keys.nbytes + layer.values.nbytes) // layer.keys.shape[2]
                sizes[layer.positions[0].cpu()] += per_token
        return sizes

    def advance(
        self, positions: torch.Tensor, valid: torch.Tensor | None = None, ends_frame: torch.Tensor | None = None
    ) -> None:
        """Count a call's tokens, before its layers run.

        Args:
            positions (`int64 [B, T]`): their positions in the stream.
            valid (`bool [B, T]`, *optional*): False at padding.
            ends_frame (`bool [B, T]`, *optional*): True at the last token of each frame; None when there is no frame.
        """
        self.seen_tokens += positions.shape[1]
        if self.frame_ends is None:
            self.frame_ends = positions[:, :0]
        if valid is None:
            self.next_position = positions[:, -1] + 1
        else:
            last = positions.masked_fill(~valid, PADDING).max(1).values + 1
            self.next_position = last if self.next_position is None else last.maximum(self.next_position)
        if ends_frame is not None:
            ends_frame = ends_frame if valid is None else ends_frame & valid
            num_ends = int(ends_frame.sum(1).max())
            columns = ends_frame.int().argsort(dim=1, stable=True)[:, positions.shape[1] - num_ends :]
            ends = positions.gather(1, columns).masked_fill(~ends_frame.gather(1, columns), PADDING)
            self.frame_ends = torch.cat([self.frame_ends, ends], dim=1)

    def advance_stream(self, count: int, frame_ends: range, device: torch.device) -> None:
        """As `advance`, for one stream without padding, and `count` tokens after the last one. frame_ends: positions
        of the last tokens of the frames among them. Does not wait for the device."""
        self.seen_tokens += count
        self._new_ends += frame_ends
        self._end = self.seen_tokens, device

    def reserve(
        self, counts: np.ndarray, heads: tuple[int, int], dtype: torch.dtype, device: torch.device
    ) -> np.ndarray:
        """Reserve slots for more tokens of one row, `counts` for each layer, as `MoDCacheLayer.reserve`.

        Returns:
            int64 [layers, 5]: the `place` of each layer; what the last `lengthen` returned, if nothing has changed.
        """
        known = self._places
        if known is not None and known.fit(self.layers, counts):
            return known.table
        for layer, count in zip(self.layers, counts.tolist(), strict=True):
            layer.reserve(count, heads, dtype, device)
        return np.array([layer.place for layer in self.layers])

    def lengthen(self, places: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Add tokens that were written into the buffers. places: as returned by `reserve`, and so is the result."""
        for layer, count in zip(self.layers, counts.tolist(), strict=True):
            layer.lengthen(count)
        places = places.copy()
        places[:, 3] += counts
        self._places = Places(places)
        return places

    def rollback(self, position: int | torch.Tensor) -> None:
        """Forget everything from `position` on, in every layer; the next token then gets that position.

        Args:
            position (`int` or `int64 [B]`): of the stream, one for all rows or one a row; not after the row's end.

        Raises:
            `ValueError`: if a position is negative or after the end of its row.
        """
        if self.next_position is None or self.frame_ends is None:
            if torch.as_tensor(position).ne(0).any():
                raise ValueError(f"`position` must be 0 in an empty cache, got {position}")
            return
        devices = {layer.positions.device for layer in self.layers if layer.positions is not None}
        is_one_stream = len(self.next_position) == len(devices) == 1 and not any(x.padded for x in self.layers)
        if isinstance(position, int) and is_one_stream:
            self._rollback_stream(position, self.next_position, self.frame_ends)
            return
        limits = torch.as_tensor(position, device=self.next_position.device).expand_as(self.next_position)
        if (limits < 0).any() or (limits > self.next_position).any():
            raise ValueError(
                f"`position` must be between 0 and the row's end, got {limits.tolist()} with ends "
                f"{self.next_position.tolist()}"
            )
        self.seen_tokens -= int((self.next_position - limits).min())
        self.next_position = limits.clone()
        ends = self.frame_ends.masked_fill(self.frame_ends >= limits[:, None], PADDING)
        self.frame_ends = ends[:, (ends >= 0).any(0)]
        for layer in self.layers:
            layer.rollback(limits.to(layer.positions.device) if layer.positions is not None else limits)

    def _rollback_stream(self, position: int, next_position: torch.Tensor, frame_ends: torch.Tensor) -> None:
        """As `rollback`, for positions that ascend in every layer. Asks the device once how many tokens stay."""
        held = [(layer, layer.positions) for layer in self.layers if layer.positions is not None]
        device = held[0][1].device
        counts = [(positions < position).sum() for _, positions in held]
        counts += [(frame_ends < position).sum().to(device), next_position[0].to(device)]
        *lengths, frames, end = torch.stack(counts).tolist()
        if not 0 <= position <= end:
            raise ValueError(f"`position` must be between 0 and the row's end {end}, got {position}")
        self.seen_tokens -= end - position
        self.next_position = torch.full_like(next_position, position)
        self.frame_ends = frame_ends[:, :frames]
        for (layer, _), length in zip(held, lengths, strict=True):
            layer.shorten(length)

    def forget(self, leaving: torch.Tensor, rotation) -> None:
        """Remove tokens of a single stream from every layer that holds them. The remaining tokens are renumbered: they
        get the positions 0, 1, 2, ... in their order.

        Args:
            leaving (`bool [M]`): for each token that was seen, at positions 0 .. M-1, whether it leaves.
            rotation (`KeyRotation`): moves keys to earlier positions.

        Raises:
            `ValueError`: for several streams or another number of tokens.
        """
        ends, position = self.frame_ends, self.next_position
        if ends is None or position is None or position.tolist() != [len(leaving)] != [self.seen_tokens]:
            raise ValueError(f"`leaving` must hold each token of one stream, got {len(leaving)} for {position}")
        for index, layer in enumerate(self.layers):
            if layer.is_initialized:
                layer.forget(leaving.to(layer.keys.device), rotation.of_layer(index))
        leaving = leaving.to(ends.device)
        remaining = ends[:, ~leaving[ends[0]]]
        self.frames_forgotten += ends.shape[1] - remaining.shape[1]
        self.frame_ends = remaining - leaving.long().cumsum(0)[remaining]
        self.seen_tokens = len(leaving) - int(leaving.sum())
        self.next_position = torch.full_like(position, self.seen_tokens)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens of every row. It is negative or 0, as in transformers."""
        if tokens_to_remove > 0:
            more = "`rollback(position)` keeps the tokens before a position"
            raise ValueError(f"`tokens_to_remove` must be negative or 0, got {tokens_to_remove}; {more}")
        if tokens_to_remove and self.next_position is not None:
            self.rollback((self.next_position + tokens_to_remove).clamp(min=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the given rows, in the given order. indices: int64, of any length."""
        if self.next_position is None or self.frame_ends is None:
            return
        indices = indices.to(self.next_position.device)
        self.next_position = self.next_position.index_select(0, indices)
        self.frame_ends = self.frame_ends.index_select(0, indices)
        for layer in self.layers:
            layer.select_rows(indices)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.batch_select_indices(beam_idx)

    def copy(self) -> "MoDCache":
        """An independent cache of the same tokens. Both share tensors until one of them changes."""
        self.catch_up()
        other = copy.copy(self)
        other.held, other._new_ends = dict(self.held), []
        other.layers = [layer.copy() for layer in self.layers]
        return other

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.next_position is not None:
            rows = torch.arange(self.next_position.shape[0], device=self.next_position.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def reset(self) -> None:
        for layer in self.layers:
            layer.reset()
        self._clear()


class PackedCacheLayer(NamedTuple):
    """One layer of the caches of several streams."""

    layers: list[MoDCacheLayer]

    def record(self, positions: torch.Tensor, lengths: list[int]) -> None:
        """Record the tokens whose keys and values come next. positions: int64 `[1, sum(lengths)]`; lengths: tokens of
        each stream."""
        for layer, own in zip(self.layers, positions.split(lengths, dim=1), strict=True):
            layer.record(own, None)


class PackedCache:
    """The caches of several streams, of one row each, for a forward whose single row holds the tokens of all of them,
    stream after stream. Afterwards the caches are as if each stream had had its own forward.

    Args:
        caches (`list[MoDCache]`): A caches of one row.
        lengths (`list[int]`): tokens of this call that belong to each.
    """

    def __init__(self, caches: list[MoDCache], lengths: list[int]):
        self.caches, self.lengths = caches, lengths
        self.layers = [PackedCacheLayer(list(layers)) for layers in zip(*(c.layers for c in caches), strict=True)]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(cache.seen_tokens for cache in self.caches)

    @property
    def num_frames(self) -> torch.Tensor:
        """int64 [A]: frames each stream has seen."""
        return self._of_each("num_frames")

    @property
    def after_frame(self) -> torch.Tensor:
        """bool [A]: whether a stream's last token was a frame's last."""
        return self._of_each("after_frame").bool()

    def _of_each(self, name: str) -> torch.Tensor:
        device = next((c.next_position.device for c in self.caches if c.next_position is not None), None)
        values = [getattr(cache, name) for cache in self.caches]
        return torch.cat([torch.zeros(1, dtype=torch.long, device=device) if x is None else x.long() for x in values])

    def values_of_last_frame(self, num_tokens: int) -> torch.Tensor | None:
        """As `MoDCache.values_of_last_frame`, `[A, ...]` for A streams."""
        found = [cache.values_of_last_frame(num_tokens) for cache in self.caches]
        like = next((values for values in found if values is not None), None)
        return None if like is None else torch.cat([torch.zeros_like(like) if x is None else x for x in found])

    def advance(self, positions: torch.Tensor, valid: None = None, ends_frame: torch.Tensor | None = None) -> None:
        """As `MoDCache.advance`, for one row `[1, T]` that holds all streams."""
        ends = [None] * len(self.caches) if ends_frame is None else ends_frame.split(self.lengths, dim=1)
        for cache, own, own_ends in zip(self.caches, positions.split(self.lengths, dim=1), ends, strict=True):
            cache.advance(own, None, own_ends)


__all__ = ["GrowingTensor", "MoDCache", "MoDCacheLayer", "PackedCache", "changes"]
