"""Tensors that grow in place: what comes is written behind what is there, into room that was taken in advance.

`torch.cat` copies all that is held for every frame that comes. Here that happens only when the room is full, and the
new room is larger by a share of what is held, so that a stream copies each token a few times in all.
"""

from itertools import count

import torch

BUCKET = 64  # rooms are multiples of this
SPARE = 8  # a new room is larger than what it must hold by its `SPARE`-th part
changes = count(1)  # of all rooms there are


def room_for(length: int) -> int:
    """Slots of a new room that must hold `length` of them."""
    return -(-(length + length // SPARE + 1) // BUCKET) * BUCKET


class GrowingTensor:
    """The room behind one tensor that its owner holds as an ordinary attribute.

    What the owner holds is `view`, the filled part of the room. If it holds anything else, because it, or somebody
    else, has put another tensor there, the next `append` takes that one over into a new room. So every other operation
    may treat the tensor as its own and knows nothing of rooms.

    Args:
        dim (`int`): along which it grows.
    """

    def __init__(self, dim: int):
        self.dim = dim
        self.room: torch.Tensor | None = None
        self.view: torch.Tensor | None = None
        self.shared = 0  # slots before this one are seen by others, and are not written again
        self.changed = 0  # number of the change that made the view

    def append(self, held: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
        """What is held followed by `new`, which becomes what is to be held."""
        if held is None or held.numel() == 0:
            return new  # one call may be all: it costs nothing more
        if torch.is_grad_enabled():
            return torch.cat([held, new], dim=self.dim)  # a gradient may need what was there, as it was
        held = self.reserve(held, new.shape[self.dim])
        start = held.shape[self.dim]
        self.room.narrow(self.dim, start, new.shape[self.dim]).copy_(new)
        return self.lengthen(start + new.shape[self.dim])

    def reserve(self, held: torch.Tensor, more: int) -> torch.Tensor:
        """Have room for `more` slots behind what is held; returns what is to be held."""
        length = held.shape[self.dim]
        stop = length + more
        ours = held is self.view and length >= self.shared and stop <= self.room.shape[self.dim]
        if not ours or (self.room.is_inference() and not torch.is_inference_mode_enabled()):
            shape = list(held.shape)
            shape[self.dim] = room_for(stop)
            self.room = self.view = None  # frees what nobody holds, before more is taken
            self.room, self.shared = held.new_empty(shape), 0
            self.room.narrow(self.dim, 0, length).copy_(held.detach())
            return self.lengthen(length)
        return held

    def lengthen(self, length: int) -> torch.Tensor:
        """The first `length` slots of the room as what is to be held, whoever has written them."""
        self.view, self.changed = self.room.narrow(self.dim, 0, length), next(changes)
        return self.view

    def shorten(self, held: torch.Tensor, length: int) -> torch.Tensor:
        """The first `length` slots of what is held."""
        if held is self.view:
            return self.lengthen(length)
        return held.narrow(self.dim, 0, length)

    def share(self) -> "GrowingTensor":
        """For a copy of the owner that holds the same tensor: it takes a room of its own once it appends, while the
        owner goes on here behind what both see."""
        if self.view is not None:
            self.shared = max(self.shared, self.view.shape[self.dim])
        return GrowingTensor(self.dim)


__all__ = ["GrowingTensor", "changes"]
