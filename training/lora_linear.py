"""peft's LoRA layer with fewer passes over its input and output.

peft computes `base(x) + B(A(x)) * scale` in four kernels, each of which reads or writes the whole output. At rank 128
they take a fifth of a layer's time. Here the scale is applied to `A(x)`, which is small, and the kernel of the large
product adds the adapter's output; the backward pass does the same for the gradient of the input. Everything that the
backward pass needs is saved before the large product, so a checkpoint of a block that ends in this layer does not
compute that product again.
"""

from typing import cast

import torch
from peft.tuners.lora import Linear
from torch import nn
from torch.autograd.function import once_differentiable

from .compat import change_class, is_plain


def computes_in(dtype: torch.dtype, weights: torch.dtype, device_type: str) -> bool:
    """Whether an adapter computes in `dtype`, by the dtype of its weights or by autocast."""
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type) == dtype
    return weights == dtype


class _LoraDown(torch.autograd.Function):
    """`x A' * scale`, `[M, r]`. It saves the tensors from which `_LoraUp` computes the gradients of both."""

    @staticmethod
    def forward(ctx, tokens, down, up, scale):
        ctx.set_materialize_grads(False)
        middle = nn.functional.linear(tokens, down) * scale
        # not the result itself: torch 2.8 unpacks a saved result into a cycle that only the garbage collector frees
        ctx.save_for_backward(tokens, down, up, middle.detach())
        return middle

    @staticmethod
    def backward(ctx, _):
        return None, None, None, None


class _LoraUp(torch.autograd.Function):
    """`middle B' + x W'`, `[M, outputs]`."""

    @staticmethod
    def forward(ctx, middle, tokens, down, up, scale, weight):
        ctx.lora_down, ctx.scale, ctx.weight = middle.grad_fn, scale, weight
        return nn.functional.linear(middle, up).addmm_(tokens, weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        tokens, down, up, middle = ctx.lora_down.saved_tensors
        _, needs_tokens, needs_down, needs_up, _, _ = ctx.needs_input_grad
        through = (grad @ up) * ctx.scale
        d_tokens = (grad @ ctx.weight).addmm_(through, down) if needs_tokens else None
        d_down = through.t() @ tokens if needs_down else None
        return None, d_tokens, d_down, grad.t() @ middle if needs_up else None, None, None


class LoraLinear(Linear):
    """Equal to peft's layer, which still computes everything but one plain adapter on a plain layer."""

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        base, name = self.get_base_layer(), self.active_adapters[0] if len(self.active_adapters) == 1 else ""
        plain = (
            not (args or kwargs or self.disable_adapters or self.merged)
            and is_plain(self, name)
            and isinstance(self.lora_dropout[name], nn.Identity)
            and type(base) is nn.Linear
            and type(base.weight) is nn.Parameter  # neither sharded nor quantised
            and base.weight.dtype == x.dtype
            and not base.weight.requires_grad
            and computes_in(x.dtype, cast(nn.Linear, self.lora_A[name]).weight.dtype, x.device.type)
        )
        if not plain:
            return super().forward(x, *args, **kwargs)
        parts = (base, self.lora_A[name], self.lora_B[name])
        weight, down, up = (cast(nn.Linear, part).weight.to(x.dtype) for part in parts)
        tokens = x.flatten(0, -2)
        if torch.is_grad_enabled() and (tokens.requires_grad or down.requires_grad or up.requires_grad):
            middle = _LoraDown.apply(tokens, down, up, self.scaling[name])
            result = _LoraUp.apply(middle, tokens, down, up, self.scaling[name], weight)
        else:
            update = nn.functional.linear(nn.functional.linear(tokens, down) * self.scaling[name], up)
            result = update.addmm_(tokens, weight.t())
        if base.bias is not None:
            result = result + base.bias
        return result.unflatten(0, x.shape[:-1])


def use_lora_linear(model: nn.Module) -> None:
    """Turn every plain LoRA layer of `model` into a `LoraLinear`."""
    change_class(model, Linear, LoraLinear)
