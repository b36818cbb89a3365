"""The cache that is carried from window to window in training: several streams in rows, with gradients.

A `MoDCache` grows in place. This one stays as it was before its window, however often a layer runs in it: what a layer
adds is noted beside, so that a checkpoint can compute the layer again. `trimmed` makes the cache of the next window.

Shapes: B rows, L tokens that a layer holds, K tokens that enter it in this window, M tokens of the longest row.
"""

import copy

import torch

from ..cache import PADDING, MoDCache
from ..memory import KeyRotation


class CarriedLayer:
    """Keys and values `[B, heads, L, head_dim]` of one layer from earlier windows, with `positions` int64 `[B, L]`, -1
    at padding."""

    is_initialized = False  # once it has keys
    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    padded = False

    def __init__(self) -> None:
        self.new: dict[str, torch.Tensor] = {}  # of this window
        self.new_padded = False

    def get_seq_length(self) -> int:
        return self.positions.shape[1] if self.is_initialized else 0

    def record(self, positions: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor | None:
        """As `MoDCacheLayer.record`, without adding anything."""
        self.new["positions"] = positions if valid is None else positions.masked_fill(~valid, PADDING)
        self.new_padded = valid is not None
        return self.all("positions") >= 0 if self.padded or self.new_padded else None

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values, with those of this window at the end."""
        self.new |= {"keys": keys, "values": values}
        return self.all("keys"), self.all("values")

    def all(self, name: str) -> torch.Tensor:
        dim, new = 1 if name == "positions" else 2, self.new.get(name)
        held = [getattr(self, name)] if self.is_initialized else []
        parts = [*held, *([] if new is None else [new])]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)

    @property
    def has_tokens(self) -> bool:
        return self.is_initialized or "keys" in self.new


class CarriedCache(MoDCache):
    """The cache of rows of streams before a window.

    Args:
        config (`VideoLLMMoDConfig`).
    """

    is_repeatable = True  # layers may run again, see `recomputing`
    layers: list[CarriedLayer]  # type: ignore[assignment]
    frames_forgotten: torch.Tensor | int  # type: ignore[assignment]  # [B], once something was forgotten

    def __init__(self, config):
        super().__init__(config)
        self.layers = [CarriedLayer() for _ in self.layers]

    def trimmed(self, leaving: torch.Tensor, rotation: KeyRotation, detach: bool) -> "CarriedCache":
        """The cache for the next window, without the tokens that leave. The others are renumbered, as by
        `MoDCache.forget`.

        Args:
            leaving (`bool [B, M]`): of the tokens at positions 0 .. M-1 of each row.
            rotation (`KeyRotation`): moves keys to earlier positions.
            detach (`bool`): let no gradient flow back through it.
        """
        assert self.frame_ends is not None and self.next_position is not None  # the window had tokens
        gone = leaving.long().cumsum(1)
        position = self.next_position - gone[:, -1]
        stay, widths = {}, []
        for index, layer in enumerate(self.layers):
            if layer.has_tokens:
                stay[index] = kept(layer.all("positions"), leaving)
                widths += [stay[index].sum(1).amax(), stay[index].sum(1).amin()]
        frames_stay = kept(self.frame_ends, leaving)
        widths += [frames_stay.sum(1).amax(), position.amax()]
        *sizes, most_frames, most_tokens = torch.stack(widths).tolist()  # waits for the device once
        other = copy.copy(self)
        other.held, other._new_ends = dict(self.held), []
        other.layers = [CarriedLayer() for _ in self.layers]
        for (index, stays), most, fewest in zip(stay.items(), sizes[::2], sizes[1::2], strict=True):
            layer, new = self.layers[index], other.layers[index]
            slots = last_of(stays, most)
            positions = layer.all("positions").gather(1, slots)
            distance = gone.gather(1, positions.clamp(min=0))
            columns = slots[:, None, :, None]
            keys, values = (pick(layer.all(name), columns, detach) for name in ("keys", "values"))
            new.keys, new.values = rotation.of_layer(index)(keys, distance), values
            is_token = stays.gather(1, slots)
            new.positions = (positions - distance).masked_fill(~is_token, PADDING)
            new.padded, new.is_initialized = fewest < most, True
        slots = last_of(frames_stay, most_frames)
        ends = self.frame_ends.gather(1, slots)
        ends = ends - gone.gather(1, ends.clamp(min=0))
        other.frames_forgotten = self.frames_forgotten + (self.frame_ends >= 0).sum(1) - frames_stay.sum(1)
        other.frame_ends = ends.masked_fill(~frames_stay.gather(1, slots), PADDING)
        other.next_position, other.seen_tokens = position, most_tokens
        return other

    def of_rows(self, rows: list[int]) -> "CarriedCache":
        """The cache of some rows, before a window."""
        if self.next_position is None or rows == list(range(len(self.next_position))):
            return self
        other, index = copy.copy(self), torch.tensor(rows, device=self.next_position.device)
        other.held = {name: value[index] for name, value in self.held.items()}
        if isinstance(self.frames_forgotten, torch.Tensor):
            other.frames_forgotten = self.frames_forgotten[index]
        other.layers = [copy.copy(layer) for layer in self.layers]
        for layer in other.layers:
            layer.new = {}
            for name in ("keys", "values", "positions") if layer.is_initialized else ():
                setattr(layer, name, getattr(layer, name)[index])
        return other


def kept(positions: torch.Tensor, leaving: torch.Tensor) -> torch.Tensor:
    """bool: which slots hold a token that stays. positions: int64 `[B, L]`; leaving: bool `[B, M]`."""
    return (positions >= 0) & ~leaving.gather(1, positions.clamp(min=0))


def last_of(stay: torch.Tensor, count: int) -> torch.Tensor:
    """int64 `[B, count]`: the slots of each row that stay, in order; before them, where there are fewer, others."""
    return stay.int().argsort(dim=1, stable=True)[:, stay.shape[1] - count :]


def pick(tensor: torch.Tensor, columns: torch.Tensor, detach: bool) -> torch.Tensor:
    tensor = tensor.detach() if detach else tensor
    return tensor.gather(2, columns.expand(-1, tensor.shape[1], -1, tensor.shape[3]))


__all__ = ["CarriedCache"]
