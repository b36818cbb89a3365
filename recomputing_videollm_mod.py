"""What a training step computes again in its backward pass instead of keeping it: gradient checkpointing, by layer.

    model.gradient_checkpointing_enable({"use_reentrant": False, "recompute": "mlp"})
    model.gradient_checkpointing_enable({"use_reentrant": False, "recompute": {"layer": 12, "mlp": 20}})

`recompute` is one choice for all layers, or how many layers have which one, from the first to the last; later layers
are done with earlier in the backward pass, so what keeps most belongs at the end. From least memory to least time:

- `"pairs"`: two layers as one, of which only the first's input is kept; a layer that routes is a small second one,
- `"layer"`: a layer's input is kept, as transformers does it,
- `"attention"`: also attention's result, so that attention does not run again,
- `"mlp"`: all that attention needs, so that of a layer only its MLP runs again,
- `"activation"`: also what the MLP's first maps gave; all that is left is elementwise,
- `"none"`: everything.

Routing frees memory, which a choice that keeps more turns into time.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

CHOICES = ("pairs", "layer", "attention", "mlp", "activation", "none")
CHUNK_TOKENS = 4096  # that go through what follows attention at a time, where that is computed again


def choices_of_layers(recompute: str | dict[str, int], num_layers: int) -> list[str]:
    """One of `CHOICES` for each layer.

    Raises:
        `ValueError`: for another choice, or numbers that do not add up to `num_layers`.
    """
    counts = recompute if isinstance(recompute, dict) else {recompute: num_layers}
    unknown = [choice for choice in counts if choice not in CHOICES]
    if unknown:
        raise ValueError(f"`recompute` must be one of {', '.join(CHOICES)}, got {unknown[0]!r}")
    if sum(counts.values()) != num_layers or min(counts.values()) < 0:
        raise ValueError(f"`recompute` must name the choices of {num_layers} layers, got {recompute}")
    return [choice for choice, count in counts.items() for _ in range(count)]


def without_recompute(function: Callable) -> tuple[Callable, str | dict[str, int] | None]:
    """torch's `checkpoint` with its arguments bound, less `recompute`, which it does not know; and that.

    Raises:
        `ValueError`: for a choice that reentrant checkpointing cannot do.
    """
    options = dict(getattr(function, "keywords", {}))
    if "recompute" not in options:
        return function, None
    recompute = options.pop("recompute")
    if options.setdefault("use_reentrant", False):
        raise ValueError("`recompute` needs `use_reentrant=False`")
    return partial(function.func, *function.args, **options), recompute


def set_recomputing(layers: list, function: Callable, recompute: str | dict[str, int] | None) -> None:
    """Have each of `layers` do as `recompute` says, or as its `gradient_checkpointing` does, with `function`."""
    if recompute is None:
        choices = ["layer" if layer.gradient_checkpointing else "none" for layer in layers]
    else:
        choices = choices_of_layers(recompute, len(layers))
    for layer, choice in zip(layers, choices, strict=True):
        layer.recompute, layer.gradient_checkpointing = choice, choice == "layer"
        layer._gradient_checkpointing_func = function


def units(layers: list, paired: bool) -> list[list]:
    """The layers in groups of one, or if `paired` of two where two that follow each other are to be."""
    groups = []
    for layer in layers:
        mates = paired and layer.recompute == "pairs" and groups and len(groups[-1]) == 1
        if mates and groups[-1][0].recompute == "pairs":
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups


def keep_attention(context, operation, *args, **kwargs) -> CheckpointPolicy:
    """Of what a checkpoint would compute again, the result of attention is kept, whichever kernel gives it."""
    is_attention = any(part in str(operation) for part in ("attention", "flash_attn"))
    return CheckpointPolicy.MUST_SAVE if is_attention else CheckpointPolicy.PREFER_RECOMPUTE


def with_attention_kept(checkpoint: Callable, function: Callable, hidden_states: torch.Tensor) -> torch.Tensor:
    """`function(hidden_states)`, computed again in the backward pass but for attention."""
    contexts = partial(create_selective_checkpoint_contexts, keep_attention)
    return checkpoint(function, hidden_states, context_fn=contexts)


def in_chunks(checkpoint: Callable, function: Callable, *tensors: torch.Tensor) -> torch.Tensor:
    """`function(*tensors)` of tensors `[B, T, ...]` in which no token sees another, a few of them at a time, computed
    again in the backward pass: so little of it exists at once."""
    rows = [tensor.flatten(0, 1) for tensor in tensors]
    count = math.ceil(len(rows[0]) / CHUNK_TOKENS)
    chunks = zip(*(row.chunk(count) for row in rows), strict=True)
    return torch.cat([checkpoint(function, *chunk) for chunk in chunks]).view_as(tensors[0])
