"""Routers of a model that was dense: they start by choosing the tokens whose work the loss feels most.

New LayerExperts know nothing. Those of a converted model are zero, so that it is dense at keep ratio 1: below that all
scores tie, and each routed layer keeps the first tokens of a frame. Those of a model with random weights are random.
"""

from collections.abc import Iterable
from contextlib import ExitStack

import torch

from ..routing import LayerExpert

AMPLITUDE = 0.1  # standard deviation of the first scores: the gate, 1 + 0.2 * tanh(score), stays near 1
RIDGE = 1e-3
FLOOR = 1e-6  # of a sensitivity, relative to the mean
TINY = 1e-12


class SensitivityFit:
    """A linear map from a token to the logarithm of its sensitivity, by least squares over all tokens that were added.

    The sensitivity of a token to a layer is `|dL/dy . (y - x)|`: how much the loss changes, to the first order, if the
    token leaves the layer as it came (Molchanov et al., arXiv 1611.06440, for the weights of a network).
    """

    def __init__(self, size: int, device: torch.device):
        self.products = torch.zeros(size + 2, size + 2, dtype=torch.float64, device=device)

    def add(self, tokens: torch.Tensor, outputs: torch.Tensor, gradients: torch.Tensor) -> None:
        """Input, output and gradient of the layer for some tokens, all `[M, D]`."""
        tokens, outputs, gradients = (values.double() for values in (tokens, outputs, gradients))
        sensitivity = (gradients * (outputs - tokens)).sum(-1).abs()
        logarithm = (sensitivity / sensitivity.mean().clamp(min=TINY) + FLOOR).log()
        row = torch.cat([tokens, torch.ones_like(logarithm)[:, None], logarithm[:, None]], dim=1)
        self.products += row.T @ row

    def solve(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight `[D]` and bias `[]`, which give scores of mean 0 and standard deviation `AMPLITUDE`."""
        sums, count = self.products[-2], self.products[-2, -2]
        central = self.products - sums[:, None] * sums / count
        covariance, with_target = central[:-2, :-2], central[:-2, -1]
        ridge = RIDGE * covariance.diagonal().mean().clamp(min=TINY) * torch.eye(len(covariance)).to(covariance)
        weight = torch.linalg.solve(covariance + ridge, with_target)
        deviation = (weight @ covariance @ weight / count).sqrt().clamp(min=TINY)
        weight = weight * (AMPLITUDE / deviation)
        return weight, -(sums[:-2] @ weight) / count


def initialise_routers(model, batches: Iterable[dict]) -> list[int]:
    """Fit the LayerExperts of a model that was trained dense, so that they choose well from the first step on.

    The model runs once over each batch, forward and backward, with all tokens in all layers.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`): before adapters are added to it.
        batches: of inputs with `labels`, as a collator makes them, on the model's device.

    Returns:
        The layers whose routers were fitted.

    Raises:
        `ValueError`: if no layer has a LayerExpert, or the batches hold no frames.
    """
    layers = {
        layer.layer_idx: layer
        for layer in model.model.language_model.layers
        if isinstance(getattr(layer, "layer_expert", None), LayerExpert)
    }
    if not layers:
        raise ValueError("no layer has a LayerExpert: routers are those of vision_routing='mod' and learned selection")
    text_config, training, keep_ratio = model.config.text_config, model.training, model.keep_ratio
    fits = {
        index: SensitivityFit(text_config.hidden_size, layer.layer_expert.weight.device)
        for index, layer in layers.items()
    }
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def remember(layer, arguments, keywords, output):
        seen[layer.layer_idx] = (arguments[0] if arguments else keywords["hidden_states"], output)

    def differentiable(layer, arguments, keywords):
        tokens = arguments[0] if arguments else keywords["hidden_states"]
        if not tokens.requires_grad:  # all weights before this layer are frozen
            tokens.requires_grad_()

    with ExitStack() as hooks:
        first = layers[min(layers)]
        hooks.callback(first.register_forward_pre_hook(differentiable, with_kwargs=True).remove)
        for layer in layers.values():
            hooks.callback(layer.register_forward_hook(remember, with_kwargs=True).remove)
        hooks.callback(model.train, training)
        hooks.callback(setattr, model, "keep_ratio", keep_ratio)
        hooks.callback(setattr, text_config, "mod_gate", text_config.mod_gate)
        model.eval()  # keeps activations instead of computing them again
        model.keep_ratio = 1.0
        text_config.mod_gate = "none"  # dense, whatever the routers are now
        for batch in batches:
            with torch.enable_grad():
                loss = model(**batch, use_cache=False, logits_to_keep=1).loss
                gradients = torch.autograd.grad(loss, [output for _, output in seen.values()])
            is_vision = batch["input_ids"] == model.config.video_token_id
            for (index, values), gradient in zip(seen.items(), gradients, strict=True):
                fits[index].add(*(value.detach()[is_vision] for value in (*values, gradient)))
            seen.clear()
    if not next(iter(fits.values())).products.any():
        raise ValueError("the batches hold no frames, whose tokens the routers are to choose from")
    with torch.no_grad():
        for index, layer in layers.items():
            weight, bias = fits[index].solve()
            layer.layer_expert.weight.copy_(weight[None])
            layer.layer_expert.bias.fill_(bias)
    return list(layers)


__all__ = ["initialise_routers"]
