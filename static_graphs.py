"""Whether parts of a model are still those whose addresses a captured graph holds."""

from itertools import repeat
from operator import getitem, itemgetter

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

hooks, pre_hooks = itemgetter("_forward_hooks"), itemgetter("_forward_pre_hooks")


class Unchanged:
    """
    What a graph of some modules depends on, as it is now; true as long as it is so. It holds modules, but no weights.

    This is asked before every step, while the device waits: whole lists are compared, not module by module.

    Args:
        owners (`list[nn.Module]`): in which the modules stand.
        parts (`list[nn.Module]`): the modules, with all in them.
    """

    def __init__(self, owners: list[nn.Module], parts: list[nn.Module]):
        modules = [module for part in parts for module in part.modules()]
        self._attributes = [vars(module) for module in modules]
        self._children = [module._modules for module in owners + modules]
        self._known_children = [dict(children) for children in self._children]
        places = [(own, name) for own in (module._parameters for module in modules) for name in own]
        weights = [(own, name) for own, name in places if own[name] is not None]
        self._owners, self._names = [own for own, _ in weights], [name for _, name in weights]
        self._handles = None  # of hooks, handed out until these modules were looked through for any
        self._known_addresses, self._known_forwards = self._addresses(), self._forwards()

    def _forwards(self) -> list:
        """What modules do instead of their classes' `forward`, as where accelerate brings weights for a call."""
        return list(map(dict.get, self._attributes, repeat("forward")))

    def _addresses(self) -> list[int]:
        return list(map(torch.Tensor.data_ptr, map(getitem, self._owners, self._names)))

    def __bool__(self) -> bool:
        """Whether modules and weights are where they were, and nobody wants to see the modules' calls."""
        if self._children != self._known_children:
            return False
        handles = RemovableHandle.next_id
        if handles != self._handles:
            if any(map(hooks, self._attributes)) or any(map(pre_hooks, self._attributes)):
                return False
            self._handles = handles
        if self._forwards() != self._known_forwards:
            return False
        try:
            return self._addresses() == self._known_addresses
        except (KeyError, TypeError):  # a weight is gone, or None
            return False


def has_own_forward(module: nn.Module) -> bool:
    """Whether a module does something else than its class, as where accelerate brings weights for a call."""
    forward = vars(module).get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


__all__ = ["Unchanged", "has_own_forward"]
