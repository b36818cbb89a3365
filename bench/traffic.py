"""What a step of one frame reads from the GPU's memory, and how fast that memory is: no step takes less time than the
bytes at this rate."""

import functools
from typing import Any

import torch
from torch import nn

from ..weights import stored_weight

COPIED = 2**30  # bytes, many times what a cache holds
REPEATS = 10


@functools.cache
def copy_rate(device: torch.device) -> float:
    """Bytes read and written in a second by large copies."""
    source = torch.empty(COPIED, dtype=torch.uint8, device=device)
    target, (begin, end) = torch.empty_like(source), (torch.cuda.Event(True) for _ in range(2))
    target.copy_(source)
    begin.record()
    for _ in range(REPEATS):
        target.copy_(source)
    end.record()
    end.synchronize()
    return 2 * COPIED * REPEATS / begin.elapsed_time(end) * 1e3


def bytes_of_weights(model) -> int:
    """Bytes of the weights that a frame reads, as they lie in memory: of layers, head and connector."""
    total = 0
    for part in (*model.model.language_model.layers, model.lm_head, model.model.connector):
        for module in part.modules():
            weight: Any = stored_weight(module) if isinstance(module, nn.Linear) else None
            own = list(module.parameters(recurse=False)) if weight is None else [weight.values]
            if weight is not None and weight.scale is not None:
                own.append(weight.scale)
            total += sum(tensor.numel() * tensor.element_size() for tensor in own)
    return total


__all__ = ["bytes_of_weights", "copy_rate"]
