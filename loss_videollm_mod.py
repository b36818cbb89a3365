"""Cross-entropy through a large head, for a few tokens at a time.

At a vocabulary of 128,256 the logits of a thousand tokens take 0.5 GiB in float32, and a cross-entropy holds several
copies of them just when all that the backward pass needs is alive.

Shapes: M tokens that learn something, D hidden size, V vocabulary.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 2**26  # that exist at a time: 0.25 GiB in float32


def head_losses(head: nn.Module, hidden_states: torch.Tensor, targets: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """float32 `[M]`: `F.cross_entropy(head(hidden_states).float(), targets, reduction="none")`. Where that takes more
    than one chunk, a chunk's logits are computed again in the backward pass instead of being kept.

    Args:
        head: `[..., D]` -> logits `[..., V]`; any module.
        hidden_states (`[M, D]`), targets (`int64 [M]`), vocab_size (`int`): V.
    """

    def losses(hidden_states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(head(hidden_states).float(), targets, reduction="none")

    rows = max(1, CHUNK_LOGITS // vocab_size)
    if len(targets) <= rows or not torch.is_grad_enabled():
        return losses(hidden_states, targets)
    chunks = zip(hidden_states.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(losses, *chunk, use_reentrant=False) for chunk in chunks])


__all__ = ["head_losses"]
