"""The cost of routing itself in a training step: scores, selection, gather and scatter, with their gradients."""

import torch

from ..routing import FrameRouter
from .arithmetic import best_time
from .kernels import kernel_times
from .step import Bench


def routing_seconds(bench: Bench) -> dict:
    """Seconds of all routed layers of a step without their attention and MLP: of the kernels on the device, and by the
    clock. In a real step, the host launches these kernels while the device is busy with others. With them, the
    `kernels` that take longest, as of `kernel_times`."""
    model, text = bench.model, bench.model.config.text_config
    text.vision_routing = "mod"
    layout = model.model.lay_out(bench.inputs["input_ids"])
    length = bench.inputs["input_ids"].shape[1]
    device, dtype = bench.device, model.dtype
    tokens = torch.randn(1, length, text.hidden_size, device=device, dtype=dtype, requires_grad=True)
    angles = torch.randn(1, length, text.head_dim, device=device, dtype=dtype)
    gradient = torch.randn_like(tokens)
    layers = model.model.language_model.layers
    model.train()

    def route_all() -> None:
        router, hidden_states = FrameRouter(layout, text), tokens
        for index in text.routed_layers:
            route = router(index, layers[index].layer_expert, hidden_states)
            entered, all_tokens = route.enter(hidden_states)
            route.gather(angles), route.gather(angles)
            hidden_states = route.scatter(all_tokens, entered, entered)
        hidden_states.backward(gradient)
        tokens.grad = None

    seconds = {"clock": best_time(route_all, bench.device, repeats=3, calls=3)}
    kinds, kernels = kernel_times(route_all, bench.device)
    seconds["device"] = sum(kinds.values()) / 1000
    bench.optimizer.zero_grad()
    return seconds | {"kernels": kernels[:25]}
