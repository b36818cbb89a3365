"""What a training step computes again in its backward pass instead of keeping it: gradient checkpointing, by layer.

    model.gradient_checkpointing_enable({"use_reentrant": False, "recompute": "mlp"})
    model.gradient_checkpointing_enable({"use_reentrant": False, "recompute": {"layer": 12, "mlp": 20}})

`recompute` is one choice for all layers, or how many layers have which one, from the first to the last; later layers
are done with earlier in the backward pass, so what keeps most belongs at the end. From least memory to least time:

- `"pairs"`: two layers as one, of which only the first's input is kept; a layer that routes is a small second one,
- `"layer"`: a layer's input is kept, as transformers does it,
- `"halves"`: also the input of its MLP; so of its two halves none needs to run to its end again,
- `"mlp"`: also what attention needs, so that attention does not run again,
- `"activation"`: also what the MLP's first maps gave; all that is left is elementwise,
- `"none"`: everything.

Routing frees memory, which a choice that keeps more turns into time.
"""

from collections.abc import Callable
from functools import partial

CHOICES = ("pairs", "layer", "halves", "mlp", "activation", "none")
PARTS = {"halves": {"attention", "mlp"}, "mlp": {"mlp"}, "activation": {"activation"}}


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


def part_of(layer, part: str, function: Callable, *tensors):
    """`function(*tensors)`, a part of `layer`, computed again in the backward pass if the layer's choice says so."""
    if layer.training and part in PARTS.get(layer.recompute, ()):
        return layer._gradient_checkpointing_func(function, *tensors)
    return function(*tensors)
