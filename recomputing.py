"""What a training step computes again in its backward pass instead of keeping it: gradient checkpointing, by layer.

    model.activation_checkpointing_enable({"recompute": "mlp"})
    model.activation_checkpointing_enable({"recompute": {"layer": 12, "mlp": 20}})

(`gradient_checkpointing_enable` is the same method's older name.)

`recompute` is one choice for all layers, or how many layers have which one, from the first to the last; later layers
are done with earlier in the backward pass, so what keeps most belongs at the end. From least memory to least time:

- `"pairs"`: two layers as one, of which only the first's input is kept; a layer that routes is a small second one,
- `"entered"`: the tokens that enter a layer are kept; its MLP is done for a few of them at a time,
- `"layer"`: all of a layer's input is kept, as transformers does it,
- `"attention"`: as `"entered"`, and also attention's result, so that attention does not run again,
- `"mlp"`: all that attention needs but a norm, so that of a layer only its MLP runs again,
- `"activation"`: also what the MLP's first maps gave; all that is left is elementwise, and a norm,
- `"none"`: everything.

Routing frees memory, which a choice that keeps more turns into time.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

CHOICES = ("pairs", "entered", "layer", "attention", "mlp", "activation", "none")
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


def set_recomputing(layers: list, options: dict, recompute: str | dict[str, int] | None) -> None:
    """Have each of `layers` do as `recompute` says, or else as transformers has just told it by the layer's own
    `gradient_checkpointing`.

    Args:
        options: of `torch.utils.checkpoint.checkpoint`.
    """
    if recompute is None:
        choices = ["layer" if layer.gradient_checkpointing else "none" for layer in layers]
    else:
        choices = choices_of_layers(recompute, len(layers))
    for layer, choice in zip(layers, choices, strict=True):
        layer.recompute, layer.gradient_checkpointing = choice, False  # the model does it, not transformers' layer
        layer.checkpoint = partial(checkpoint, **{"use_reentrant": False, **options})


def units(layers: list, recomputes: bool) -> list[tuple[list, bool]]:
    """The layers in groups, and of each group whether only its input is kept: alone, or where `recomputes`, two by two
    if two that follow each other are to be `"pairs"`."""
    groups = []
    for layer in layers:
        mates = recomputes and layer.recompute == "pairs" and groups and len(groups[-1]) == 1
        if mates and groups[-1][0].recompute == "pairs":
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return [(group, len(group) == 2 or (recomputes and group[0].recompute == "layer")) for group in groups]


class _Again:
    """In place of results that a graph is to keep: a function and its input, from which they are computed when asked
    for. Several maps share them, so they stay until all have had theirs."""

    def __init__(self, function: Callable, hidden_states: torch.Tensor):
        self.function, self.hidden_states = function, hidden_states.detach()
        self.kept = self.asked = 0
        self.results, device = None, hidden_states.device.type
        # the backward pass is outside of the forward pass's autocast
        self.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)

    def __call__(self, number: int) -> torch.Tensor:
        if self.results is None:
            with torch.enable_grad(), torch.autocast(*self.autocast):  # as it was; gradients decide on kernels
                self.results = tuple(result.detach() for result in _as_tuple(self.function(self.hidden_states)))
        result, self.asked = self.results[number], self.asked + 1
        if self.asked % self.kept == 0:
            self.results = None
        return result


def _as_tuple(results) -> tuple[torch.Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


@contextlib.contextmanager
def computed_again(function: Callable, hidden_states: torch.Tensor, kept: bool = False) -> Iterator:
    """`function(hidden_states)`, one tensor or several; what is made of them below this does not keep them for the
    backward pass, unless `kept`. The function must need no random numbers."""
    results = function(hidden_states)
    if kept or not torch.is_grad_enabled():
        yield results
        return
    again = _Again(function, hidden_states)

    def place(tensor: torch.Tensor) -> tuple:
        return tensor.data_ptr(), tensor.numel(), tensor.dtype

    numbers = {place(result): number for number, result in enumerate(_as_tuple(results))}

    def pack(tensor: torch.Tensor):
        number = numbers.get(place(tensor))
        if number is None:  # with its graph, the result of a map that saves it would never be freed
            return tensor.detach()
        again.kept += 1
        return number, tensor.shape, tensor.stride(), again

    def unpack(packed) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        number, shape, stride, again = packed
        return again(number).as_strided(shape, stride)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield results


def keep_attention(context, operation, *args, **kwargs) -> CheckpointPolicy:
    """Of what a checkpoint would compute again, the result of attention is kept, whichever kernel gives it."""
    is_attention = any(part in str(operation) for part in ("attention", "flash_attn"))
    return CheckpointPolicy.MUST_SAVE if is_attention else CheckpointPolicy.PREFER_RECOMPUTE


def with_attention_kept(checkpoint: Callable, function: Callable, hidden_states: torch.Tensor) -> torch.Tensor:
    """`function(hidden_states)`, computed again in the backward pass but for attention."""
    contexts = partial(create_selective_checkpoint_contexts, keep_attention)
    return checkpoint(function, hidden_states, context_fn=contexts)


class _Flag(contextlib.AbstractContextManager):
    raised = False

    def __enter__(self) -> None:
        self.raised = True

    def __exit__(self, *exception) -> None:
        self.raised = False


def without_last_part(
    checkpoint: Callable, first: Callable, last: Callable, hidden_states: torch.Tensor
) -> torch.Tensor:
    """`last(hidden_states, first(hidden_states))`, of which only `hidden_states` is kept.

    `last` is a checkpoint itself, or several. While what they start from is computed again nothing needs their result:
    then an input takes its place, so that no part of a layer runs three times.
    """
    again = _Flag()

    def run(hidden_states: torch.Tensor) -> torch.Tensor:
        return last(hidden_states, first(hidden_states), skip=again.raised)

    return checkpoint(run, hidden_states, context_fn=lambda: (contextlib.nullcontext(), again))


def in_chunks(checkpoint: Callable, function: Callable, *tensors: torch.Tensor, skip: bool = False) -> torch.Tensor:
    """`function(*tensors)` of tensors `[B, T, ...]` in which no token sees another, a few of them at a time, computed
    again in the backward pass: so little of it exists at once. With `skip` only what checkpoints start from counts."""
    if skip:
        function = _first
    rows = [tensor.flatten(0, 1) for tensor in tensors]
    count = math.ceil(len(rows[0]) / CHUNK_TOKENS)
    if count == 1:
        return checkpoint(function, *rows).view_as(tensors[0])
    chunks = zip(*(row.chunk(count) for row in rows), strict=True)
    return torch.cat([checkpoint(function, *chunk) for chunk in chunks]).view_as(tensors[0])


def _first(tensor: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    return tensor
