"""peft's LoRA layer with fewer passes over its output.

peft computes `base(x) + B(A(x)) * scale` in four kernels that each read or write all of the output; at rank 128 these
take a fifth of a layer's time. Here the scale goes onto the narrow middle, and the large product is added to the
adapter's in its own kernel. Since the adapter comes first, a checkpoint that recomputes the last linear map of a block
stops before the large product, which no gradient needs.
"""

import torch
from peft.tuners.lora import Linear
from torch import nn


def computes_in(dtype: torch.dtype, weights: torch.dtype, device_type: str) -> bool:
    """Whether weights of an adapter meet inputs of `dtype` in that dtype: by their own or by autocast's."""
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type) == dtype
    return weights == dtype


class LoraLinear(Linear):
    """What peft's layer computes. Where it does more than one plain adapter on a plain layer, peft's does it."""

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        base, name = self.get_base_layer(), self.active_adapters[0] if len(self.active_adapters) == 1 else None
        plain = (
            not (args or kwargs or self.disable_adapters or self.merged)
            and name in self.lora_A
            and name not in self.lora_variant
            and isinstance(self.lora_dropout[name], nn.Identity)
            and not self.lora_bias[name]
            and type(base) is nn.Linear
            and type(base.weight) is nn.Parameter  # neither split over devices nor quantised
            and base.weight.dtype == x.dtype
            and computes_in(x.dtype, self.lora_A[name].weight.dtype, x.device.type)
        )
        if not plain:
            return super().forward(x, *args, **kwargs)
        down, up = (adapters[name].weight.to(x.dtype) for adapters in (self.lora_A, self.lora_B))
        tokens = x.flatten(0, -2)
        update = nn.functional.linear(nn.functional.linear(tokens, down) * self.scaling[name], up)
        result = update.addmm_(tokens, base.weight.t())
        if base.bias is not None:
            result = result + base.bias
        return result.unflatten(0, x.shape[:-1])


def use_lora_linear(model: nn.Module) -> None:
    """Have every plain LoRA layer of `model` compute as `LoraLinear` does."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = LoraLinear
