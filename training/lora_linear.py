"""peft's LoRA layer with fewer passes over its input and output.

peft computes `base(x) + B(A(x)) * scale` in four kernels that each read or write all of the output; at rank 128 these
take a fifth of a layer's time. Here the scale goes onto the narrow middle, and the large product is added to the
adapter's in its own kernel; backwards, so is the adapter's part of the input's gradient. All that the backward pass
needs is saved before the large product runs: a checkpoint that recomputes a block whose last map this is stops there.
"""

import torch
from peft.tuners.lora import Linear
from torch import nn
from torch.autograd.function import once_differentiable

from .compat import change_class, is_plain


def computes_in(dtype: torch.dtype, weights: torch.dtype, device_type: str) -> bool:
    """Whether weights of an adapter meet inputs of `dtype` in that dtype: by their own or by autocast's."""
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type) == dtype
    return weights == dtype


class _Narrow(torch.autograd.Function):
    """The narrow middle `x A' * scale`, `[M, r]`; it keeps what `_Wide` needs, which gives the gradients of both."""

    @staticmethod
    def forward(ctx, tokens, down, up, scale):
        ctx.set_materialize_grads(False)
        middle = nn.functional.linear(tokens, down) * scale
        # not the result itself: torch 2.8 unpacks a saved result into a cycle that only the collector frees
        ctx.save_for_backward(tokens, down, up, middle.detach())
        return middle

    @staticmethod
    def backward(ctx, _):
        return None, None, None, None


class _Wide(torch.autograd.Function):
    """`middle B' + x W'`, `[M, outputs]`."""

    @staticmethod
    def forward(ctx, middle, tokens, down, up, scale, weight):
        ctx.narrow, ctx.scale, ctx.weight = middle.grad_fn, scale, weight
        return nn.functional.linear(middle, up).addmm_(tokens, weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        tokens, down, up, middle = ctx.narrow.saved_tensors
        _, needs_tokens, needs_down, needs_up, _, _ = ctx.needs_input_grad
        through = (grad @ up) * ctx.scale
        d_tokens = (grad @ ctx.weight).addmm_(through, down) if needs_tokens else None
        d_down = through.t() @ tokens if needs_down else None
        return None, d_tokens, d_down, grad.t() @ middle if needs_up else None, None, None


class LoraLinear(Linear):
    """What peft's layer computes. Where it does more than one plain adapter on a plain layer, peft's does it."""

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        base, name = self.get_base_layer(), self.active_adapters[0] if len(self.active_adapters) == 1 else None
        plain = (
            not (args or kwargs or self.disable_adapters or self.merged)
            and is_plain(self, name)
            and isinstance(self.lora_dropout[name], nn.Identity)
            and type(base) is nn.Linear
            and type(base.weight) is nn.Parameter  # neither split over devices nor quantised
            and base.weight.dtype == x.dtype
            and not base.weight.requires_grad
            and computes_in(x.dtype, self.lora_A[name].weight.dtype, x.device.type)
        )
        if not plain:
            return super().forward(x, *args, **kwargs)
        down, up = (adapters[name].weight.to(x.dtype) for adapters in (self.lora_A, self.lora_B))
        tokens = x.flatten(0, -2)
        if torch.is_grad_enabled() and (tokens.requires_grad or down.requires_grad or up.requires_grad):
            middle = _Narrow.apply(tokens, down, up, self.scaling[name])
            result = _Wide.apply(middle, tokens, down, up, self.scaling[name], base.weight)
        else:
            update = nn.functional.linear(nn.functional.linear(tokens, down) * self.scaling[name], up)
            result = update.addmm_(tokens, base.weight.t())
        if base.bias is not None:
            result = result + base.bias
        return result.unflatten(0, x.shape[:-1])


def use_lora_linear(model: nn.Module) -> None:
    """Have every plain LoRA layer of `model` compute as `LoraLinear` does."""
    change_class(model, Linear, LoraLinear)
