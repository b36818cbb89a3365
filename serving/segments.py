"""Which tokens of a session's cache a store holds already, and in which of its segments.

A segment holds the keys, values and positions of the tokens that are new at a save, and never changes. A session that
evicts tokens also rotates the keys of the remaining ones. They are not written again: the store notes which tokens
left, and evicts them from the segments in the same way when it restores them. A rotation computes each number on its
own, so on a device of the same kind the restored cache has the same bits. A segment is written again with the next
save once half of its tokens have left, or after `OLDEST` evictions. So a session rarely writes more than twice what is
new, and its segments never hold more than twice what it remembers.

A log of frames that is fed again would be smaller. But the keys of the remaining tokens depend on the frames that were
evicted, so the whole stream would have to be fed again, and the floats of other batches would be different ones
(`benchmarks/session_store.py` measures both).

Shapes: M tokens of the stream that are cached, at positions 0 .. M-1; L of them held by a layer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch

from ..cache import MoDCache, MoDCacheLayer
from ..memory import KeyRotation
from ..session_state import ascending, state_tensors

OLDEST = 8  # evictions that are done again when a segment is read
AT_ONCE = 64 << 20  # bytes that are gathered on a device before they are copied to the host
LAYER = {"keys": 2, "values": 2, "positions": 1}  # tensors of a layer, and the dimension of their tokens
NOBODY = -1  # owner of a token that no segment holds


@dataclass(frozen=True)
class Segment:
    """
    A file of the store.

    Args:
        number (`int`): of the session's segments, in the order in which they were written.
        generation (`int`): of the process that wrote it, so that two processes never write the same file.
        evictions (`int`): evictions of the session before it was written.
        tokens (`int`): how many it holds.
        sha256 (`str`): of its bytes.
    """

    number: int
    generation: int
    evictions: int
    tokens: int
    sha256: str = ""

    @property
    def name(self) -> str:
        return f"{self.number:08d}.{self.generation:010d}.safetensors"


def written_before(generation: int, name: str) -> bool:
    """Whether a file, complete or not, was written by an owner of an earlier generation."""
    found = re.search(r"\d{8}\.(\d{10})\.(safetensors|jsonl)", name)
    return found is not None and int(found[1]) < generation


@dataclass(frozen=True)
class Written:
    """
    What a store holds of a session.

    Args:
        segments (`tuple[Segment, ...]`): in the order in which they were written; the last also holds the state.
        owners (int32 `[M]`): the number of the segment that holds each token.
        masks (`tuple[bool [M], ...]`): which tokens left in each eviction since that of number `first`.
        first (`int`): evictions before the oldest segment was written.
    """

    segments: tuple[Segment, ...] = ()
    owners: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int32))
    masks: tuple[torch.Tensor, ...] = ()
    first: int = 0

    @property
    def evictions(self) -> int:
        """Of the session so far."""
        return self.first + len(self.masks)

    def after(
        self, masks: Sequence[torch.Tensor], seen_tokens: int, number: int, generation: int
    ) -> tuple["Written", torch.Tensor]:
        """What the store holds after the next save, and bool `[M]`, which tokens that save has to write.

        Args:
            masks (`bool [M]` each): of the evictions since the last save.
            seen_tokens (`int`): M now.
            number (`int`), generation (`int`): of the segment that it writes.
        """
        owners = self.owners
        for mask in masks:
            owners = lengthened(owners, len(mask))[~mask]
        owners, evictions = lengthened(owners, seen_tokens), self.evictions + len(masks)
        left = [
            segment
            for segment in self.segments
            if 2 * int((owners == segment.number).sum()) > segment.tokens and evictions - segment.evictions <= OLDEST
        ]
        wanted = ~torch.isin(owners, torch.tensor([segment.number for segment in left], dtype=torch.int32))
        owners = owners.masked_fill(wanted, number)
        first = min((segment.evictions for segment in left), default=evictions)
        new = Segment(number, generation, evictions, int(wanted.sum()))
        return Written((*left, new), owners, (*self.masks, *masks)[first - self.first :], first), wanted


def lengthened(owners: torch.Tensor, length: int) -> torch.Tensor:
    """`owners` with the tokens after them, which nobody owns."""
    return torch.cat([owners, owners.new_full((length - len(owners),), NOBODY)])


@dataclass(frozen=True)
class Held:
    """
    A session at one point, while the session itself goes on. Its tensors are shared until one of both changes.

    Args:
        cache (`MoDCache`), tensors (`dict[str, torch.Tensor]`): of the session, each where it is.
    """

    cache: MoDCache
    tensors: dict[str, torch.Tensor]

    @classmethod
    def of(cls, session) -> "Held":
        """For the thread that uses the model."""
        return cls(session.state.cache.copy(), state_tensors(session))


def snapshot(held: Held, written: Written, wanted: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of a segment, on the host: the wanted tokens of each layer, and the state of the session. For any
    thread."""
    layers = {index: layer for index, layer in enumerate(held.cache.layers) if layer.is_initialized}
    positions = {index: layer.positions for index, layer in layers.items() if layer.positions is not None}
    on = {device: wanted.to(device) for device in {own.device for own in positions.values()}}
    chosen = [on[own.device][own[0]] for own in positions.values()]
    counts = to_host([mask.sum() for mask in chosen])  # the only time that the device is waited for before the copy
    tensors: dict[str, torch.Tensor] = {}
    for (index, layer), mask, count in zip(layers.items(), chosen, counts, strict=True):
        at = torch.nonzero_static(mask, size=int(count)).flatten()
        tensors |= {f"layers.{index}.keys": layer.keys[:, :, at], f"layers.{index}.values": layer.values[:, :, at]}
        tensors[f"layers.{index}.positions"] = positions[index][:, at]
    state = held.tensors | {"owners": written.owners}
    state |= {f"leaving.{written.first + index}": mask for index, mask in enumerate(written.masks)}
    tensors |= {f"state.{name}": value for name, value in state.items()}
    return dict(zip(tensors, to_host(list(tensors.values())), strict=True))


def to_host(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors on the host. Those of one dtype on one device are copied together."""
    found: list[torch.Tensor] = list(tensors)
    far = [index for index, tensor in enumerate(tensors) if tensor.device.type != "cpu"]
    alike = sorted(far, key=lambda i: (str(tensors[i].device), str(tensors[i].dtype)))
    for _, group in groupby(alike, key=lambda i: (tensors[i].device, tensors[i].dtype)):
        batches: list[list[int]] = [[]]
        size = 0
        for index in group:
            size += tensors[index].nbytes
            if size > AT_ONCE:
                batches.append([])
                size = tensors[index].nbytes
            batches[-1].append(index)
        for batch in filter(None, batches):
            together = torch.cat([tensors[index].flatten() for index in batch])
            copied = together.detach().to("cpu").split([tensors[index].numel() for index in batch])
            for index, own in zip(batch, copied, strict=True):
                found[index] = own.view(tensors[index].shape)
    return found


def check_segment(segment: Segment, tensors: dict[str, torch.Tensor], limit: int, model) -> None:
    """Raise `ValueError` if a segment does not hold what a cache of the model can hold. An index that is out of range
    would end a process that uses CUDA.

    Args:
        limit (`int`): tokens that the session had cached at the next eviction, or has now.
    """
    text = model.config.text_config
    if not isinstance(segment.tokens, int):
        raise ValueError(f"the segment {segment.name} must hold a number of tokens")
    for index in range(text.num_hidden_layers):
        names = [f"layers.{index}.{name}" for name in LAYER]
        if not any(name in tensors for name in names):
            continue
        keys, values, positions = (tensors[name] for name in names)
        shape = [1, text.num_key_value_heads, positions.numel(), text.head_dim]
        fits = list(keys.shape) == list(values.shape) == shape and keys.dtype == values.dtype == model.dtype
        fits = fits and list(positions.shape) == [1, positions.numel()] and positions.dtype == torch.long
        if not fits or not ascending(positions[0], limit):
            raise ValueError(f"the segment {segment.name} does not hold keys and values of this model")


def assemble(found: list[tuple[Segment, dict]], masks: Sequence[torch.Tensor], first: int, model) -> dict:
    """The tensors `layers.*` of a session from its segments, on the device of the model.

    Args:
        found (`list`): the segments and their tensors.
        masks (`bool [M]` each), first (`int`): as in `Written`.
    """
    layers = [MoDCacheLayer() for _ in range(model.config.text_config.num_hidden_layers)]
    rotation = KeyRotation(model.model.language_model.rotary_emb)
    for evictions, mask in enumerate([*masks, None], start=first):
        own = [tensors for segment, tensors in found if segment.evictions == evictions]
        for index, layer in enumerate(layers):
            parts = [tensors for tensors in own if f"layers.{index}.keys" in tensors]
            for name, dim in LAYER.items() if parts else ():
                held = [getattr(layer, name)] if layer.is_initialized else []
                new = torch.cat([part[f"layers.{index}.{name}"] for part in parts], dim).to(model.device)
                setattr(layer, name, torch.cat([*held, new], dim))
            layer.is_initialized = layer.is_initialized or bool(parts)
            if mask is not None and layer.is_initialized:
                layer.forget(mask.to(model.device), rotation.of_layer(index))
    tensors = {}
    for index, layer in enumerate(layers):
        if layer.positions is not None:
            order = layer.positions[0].argsort()  # what was written again comes earlier in the stream
            for name, dim in LAYER.items():
                tensors[f"layers.{index}.{name}"] = getattr(layer, name).index_select(dim, order)
    return tensors


__all__ = ["Held", "Segment", "Written", "assemble", "check_segment", "snapshot", "written_before"]
