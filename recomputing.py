"""Gradient checkpointing by layer: what a training step computes again in its backward pass instead of keeping it.

    model.activation_checkpointing_enable({"recompute": "mlp"})
    model.activation_checkpointing_enable({"recompute": {"layer": 12, "mlp": 20}})

(`gradient_checkpointing_enable` is the older name of this method.)

`recompute` is one choice for all layers, or the number of layers for each choice, from the first layer to the last.
Later layers free their memory earlier in the backward pass, so the choice that keeps most belongs at the end. From
least memory to least time:

- `"pairs"`: keep the input of the first of two layers; a routed layer, which sees few tokens, is a good second one,
- `"entered"`: keep the tokens that enter a layer; its MLP is computed for some of them at a time,
- `"layer"`: keep the whole input of a layer, as transformers does,
- `"attention"`: as `"entered"`, and keep the result of attention, so that attention does not run again,
- `"mlp"`: keep all that attention needs except the norm, so that only the MLP runs again,
- `"activation"`: keep also the gate and up projections, so that only elementwise operations and a norm run again,
- `"none"`: keep everything.

Routing frees memory, and a choice that keeps more turns that memory into time.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

if TYPE_CHECKING:  # the model imports this file
    from .modeling_text import VideoLLMMoDDecoderLayer as Layer

CHUNK_LOGITS = 2**26  # that exist at a time: 0.25 GiB in float32
CHUNK_TOKENS = 4096  # that go at a time through what follows attention, where it is computed again


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


def set_recomputing(layers: "list[Layer]", options: dict, recompute: str | dict[str, int] | None) -> None:
    """Set what each of `layers` recomputes. Without `recompute` it is what transformers has just set, the layer's
    own `gradient_checkpointing`.

    Args:
        options: of `torch.utils.checkpoint.checkpoint`.
    """
    if recompute is None:
        choices = ["layer" if layer.gradient_checkpointing else "none" for layer in layers]
    else:
        choices = choices_of_layers(recompute, len(layers))
    for layer, choice in zip(layers, choices, strict=True):
        layer.recompute, layer.gradient_checkpointing = choice, False  # the model checkpoints, not transformers' layer
        layer.checkpoint = partial(checkpoint, **{"use_reentrant": False, **options})


def can_recompute(cache) -> bool:
    """Whether layers may run again: there is no cache, or one to which the same tokens can be added twice
    (`is_repeatable`)."""
    return cache is None or getattr(cache, "is_repeatable", False)


def run_layers(layers: Iterable, hidden_states: torch.Tensor, recomputes: bool, **arguments) -> torch.Tensor:
    """All layers, one after the other. With `recomputes` only the input of `"layer"` and of two consecutive `"pairs"`
    is kept; the other choices concern the parts of a layer, see `run_blocks`.

    Args:
        layers (`VideoLLMMoDDecoderLayer`s), hidden_states (`[B, T, D]`).
        arguments: of each layer.
    """
    for group in _groups(layers, recomputes):
        run: Callable[..., torch.Tensor] = partial(_run_group, group, **arguments)
        keeps_input_only = len(group) == 2 or (recomputes and group[0].recompute == "layer")
        hidden_states = group[0].checkpoint(run, hidden_states) if keeps_input_only else run(hidden_states)
    return hidden_states


def _groups(layers: Iterable, recomputes: bool) -> "list[list[Layer]]":
    """The layers one by one, and with `recomputes` consecutive `"pairs"` two by two."""
    groups: list[list[Layer]] = []
    for layer in layers:
        mates = recomputes and layer.recompute == "pairs" and groups and len(groups[-1]) == 1
        if mates and groups[-1][0].recompute == "pairs":
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups


def _run_group(layers: "list[Layer]", hidden_states: torch.Tensor, **arguments) -> torch.Tensor:
    for layer in layers:
        hidden_states = layer(hidden_states, **arguments)
    return hidden_states


def run_blocks(layer: "Layer", hidden_states: torch.Tensor, **attention) -> torch.Tensor:
    """The attention and MLP blocks of a decoder layer in training, recomputing what `layer.recompute` says.

    Args:
        layer (`VideoLLMMoDDecoderLayer`), hidden_states (`[B, K, D]`): the tokens that enter the layer.
        attention: arguments of the layer's attention.
    """
    return STRATEGIES[layer.recompute](layer, hidden_states, **attention)


def keep_all(layer: "Layer", hidden_states: torch.Tensor, **attention) -> torch.Tensor:
    return layer.mlp_block(layer.attention_block(hidden_states, **attention))


def keep_activation(layer: "Layer", hidden_states: torch.Tensor, **attention) -> torch.Tensor:
    hidden_states = _attention_block_without_norm(layer, hidden_states, **attention)
    with recomputed(layer.post_attention_layernorm, hidden_states) as normed:
        gate, up = layer.mlp.gate_proj(normed), layer.mlp.up_proj(normed)
    return hidden_states + layer.checkpoint(layer.mlp.down, gate, up)


def recompute_mlp(layer: "Layer", hidden_states: torch.Tensor, **attention) -> torch.Tensor:
    return layer.checkpoint(layer.mlp_block, _attention_block_without_norm(layer, hidden_states, **attention))


def keep_attention(layer: "Layer", hidden_states: torch.Tensor, **attention) -> torch.Tensor:
    # adapters may use dropout; with a mask, keys and values may be repeated for all heads first
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in layer.self_attn.modules())
    if drops or attention["attention_mask"] is not None:
        attended = with_attention_kept(layer.checkpoint, partial(_attend, layer, **attention), hidden_states)
    else:
        attended = _attend_without_projections(layer, hidden_states, **attention)
    return in_chunks(layer.checkpoint, partial(_after_attention, layer), hidden_states, attended)


def keep_entered(layer: "Layer", hidden_states: torch.Tensor, **attention) -> torch.Tensor:
    after = partial(in_chunks, layer.checkpoint, partial(_after_attention, layer))
    return without_last_part(layer.checkpoint, partial(_attend, layer, **attention), after, hidden_states)


def chunk_mlp(layer: "Layer", hidden_states: torch.Tensor, **attention) -> torch.Tensor:
    """For a pair of layers, which is itself recomputed as a whole."""
    attended = _attend(layer, hidden_states, **attention)
    return in_chunks(layer.checkpoint, partial(_after_attention, layer), hidden_states, attended)


STRATEGIES = {
    "pairs": chunk_mlp,
    "entered": keep_entered,
    "layer": keep_all,  # inside of a checkpoint of the whole layer, see `run_layers`
    "attention": keep_attention,
    "mlp": recompute_mlp,
    "activation": keep_activation,
    "none": keep_all,
}
CHOICES = tuple(STRATEGIES)


def _attention_block_without_norm(layer: "Layer", hidden_states: torch.Tensor, **attention) -> torch.Tensor:
    """`layer.attention_block`, which does not keep the result of the norm."""
    with recomputed(layer.input_layernorm, hidden_states) as normed:
        attended = layer.self_attn(normed, **attention)[0]
    return hidden_states + attended


def _attend(layer: "Layer", hidden_states: torch.Tensor, **attention) -> torch.Tensor:
    """The attention block up to the output projection."""
    return layer.self_attn.attend(layer.input_layernorm(hidden_states), **attention)[0]


def _attend_without_projections(layer: "Layer", hidden_states, position_embeddings, **attention) -> torch.Tensor:
    """`_attend`, which keeps its input and its result, and computes queries, keys and values again. It takes less of
    the host's time than a checkpoint that tells attention from other operations."""

    def project(hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with recomputed(layer.input_layernorm, hidden_states) as normed:
            return layer.self_attn.project(normed, position_embeddings)

    with recomputed(project, hidden_states) as projected:
        return layer.self_attn.attend_to(*projected, **attention)[0]


def _after_attention(layer: "Layer", hidden_states: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """The rest of the layer: output projection, residual, MLP block."""
    return layer.mlp_block(hidden_states + layer.self_attn.o_proj(attended))


class _Recomputation:
    """Stands in a graph for the results of a function: computes them from the function's input when they are needed.
    Several operations share them, so they stay until each has had its own."""

    def __init__(self, function: Callable, hidden_states: torch.Tensor):
        self.function, self.hidden_states = function, hidden_states.detach()
        self.saved = self.loaded = 0
        self.results: tuple[torch.Tensor, ...] | None = None
        device = hidden_states.device.type
        # the backward pass runs outside of the forward pass's autocast
        self.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)

    def __call__(self, number: int) -> torch.Tensor:
        if self.results is None:
            with (
                torch.enable_grad(),
                torch.autocast(*self.autocast),
            ):  # as in the forward pass: gradients decide which kernels run
                self.results = tuple(result.detach() for result in _as_tuple(self.function(self.hidden_states)))
        result, self.loaded = self.results[number], self.loaded + 1
        if self.loaded % self.saved == 0:
            self.results = None
        return result


def _as_tuple(results) -> tuple[torch.Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


@contextlib.contextmanager
def recomputed(function: Callable, hidden_states: torch.Tensor) -> Iterator:
    """`function(hidden_states)`, one tensor or several. Operations in the body of this `with` do not keep them for the
    backward pass. The function must not use random numbers."""
    results = function(hidden_states)
    if not torch.is_grad_enabled():
        yield results
        return
    recomputation = _Recomputation(function, hidden_states)

    def place(tensor: torch.Tensor) -> tuple:
        return tensor.data_ptr(), tensor.numel(), tensor.dtype

    numbers = {place(result): number for number, result in enumerate(_as_tuple(results))}

    def pack(tensor: torch.Tensor):
        number = numbers.get(place(tensor))
        if number is None:  # with its graph, a result that its own operation saves would never be freed
            return tensor.detach()
        recomputation.saved += 1
        return number, tensor.shape, tensor.stride(), recomputation

    def unpack(packed) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        number, shape, stride, recomputation = packed
        return recomputation(number).as_strided(shape, stride)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield results


def save_attention(context, operation, *args, **kwargs) -> CheckpointPolicy:
    """A policy of checkpoints that saves the result of attention, whichever kernel computes it."""
    is_attention = any(part in str(operation) for part in ("attention", "flash_attn"))
    return CheckpointPolicy.MUST_SAVE if is_attention else CheckpointPolicy.PREFER_RECOMPUTE


def with_attention_kept(checkpoint: Callable, function: Callable, hidden_states: torch.Tensor) -> torch.Tensor:
    """`function(hidden_states)`, of which all but attention is computed again in the backward pass."""
    contexts = partial(create_selective_checkpoint_contexts, save_attention)
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
    """`last(hidden_states, first(hidden_states))`, keeping only `hidden_states`.

    `last` consists of checkpoints itself. When the inputs of these are computed again, nothing needs their results:
    then `skip` makes it return an input instead, so that no part of a layer runs three times.
    """
    recomputing = _Flag()

    def run(hidden_states: torch.Tensor) -> torch.Tensor:
        return last(hidden_states, first(hidden_states), skip=recomputing.raised)

    return checkpoint(run, hidden_states, context_fn=lambda: (contextlib.nullcontext(), recomputing))


def in_chunks(checkpoint: Callable, function: Callable, *tensors: torch.Tensor, skip: bool = False) -> torch.Tensor:
    """`function(*tensors)` of tensors `[B, T, ...]`, each token by itself, for `CHUNK_TOKENS` tokens at a time. Each
    chunk is computed again in the backward pass, so that little of it exists at once. With `skip` only the inputs of
    the checkpoints matter."""
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


def head_losses(head: nn.Module, hidden_states: torch.Tensor, targets: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """float32 `[M]`: `F.cross_entropy(head(hidden_states).float(), targets, reduction="none")`. If this takes several
    chunks, the logits of each are computed again in the backward pass instead of being kept.

    Args:
        head: any module, `[..., D]` -> logits `[..., V]`.
        hidden_states (`[M, D]`), targets (`int64 [M]`), vocab_size (`int`): V.
    """

    def losses(hidden_states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(head(hidden_states).float(), targets, reduction="none")

    rows = max(1, CHUNK_LOGITS // vocab_size)
    if len(targets) <= rows or not torch.is_grad_enabled():
        return losses(hidden_states, targets)
    chunks = zip(hidden_states.split(rows), targets.split(rows), strict=True)
    return torch.cat([checkpoint(losses, *chunk, use_reentrant=False) for chunk in chunks])


__all__ = ["CHOICES", "choices_of_layers", "head_losses", "run_blocks", "run_layers", "set_recomputing"]
