"""The operations of a training step, counted, and the speed of the device, measured.

Only matrix products count, and nothing that is recomputed: two operations per weight and token in the forward pass,
two in the backward pass (frozen weights have no gradient), the gradients of the adapters, and causal attention with
two products forward and five backward.
"""

import time

import torch

from ..configuration_videollm_mod import num_kept_tokens
from ..evaluation.operations import layer_maps


def layer_tokens(model, inputs: dict) -> tuple[int, int]:
    """The length of the sequence, and the number of tokens that enter a routed layer."""
    length, frames = inputs["input_ids"].shape[1], len(inputs["video_features"])
    per_frame = model.config.num_frame_tokens
    kept = num_kept_tokens(model.config.text_config.mod_keep_ratio, per_frame)
    return length, length - frames * (per_frame - kept)


def step_operations(model, inputs: dict, rank: int, routed: bool, all_logits: bool) -> float:
    """Floating-point operations of a step with adapters of `rank`."""
    text = model.config.text_config
    hidden, queries, maps = text.hidden_size, text.num_attention_heads * text.head_dim, layer_maps(text)

    def linear(tokens: int, shapes: list[tuple[int, int]]) -> float:
        large = sum(a * b for a, b in shapes)
        small = rank * sum(a + b for a, b in shapes)
        return tokens * (2 * 2 * large + 3 * 2 * small)

    full, kept = layer_tokens(model, inputs)
    per_layer = {tokens: linear(tokens, maps) + 7 * queries * tokens**2 for tokens in (full, kept)}
    num_routed = len(text.routed_layers) if routed else 0
    labelled = full if all_logits else int((inputs["labels"] != -100).sum())
    layers = (text.num_hidden_layers - num_routed) * per_layer[full] + num_routed * per_layer[kept]
    return layers + linear(labelled, [(hidden, text.vocab_size)])


def measured_rates(device: str) -> dict[str, float]:
    """Operations per second of a large bfloat16 matrix product, and bytes per second that a copy reads and writes."""
    size = 8192 if device != "cpu" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(2**30 if device != "cpu" else 2**24, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {
        "matmul_operations_per_s": 2 * size**3 / best_time(lambda: a @ b, device),
        "copy_bytes_per_s": 2 * source.numel() / best_time(lambda: target.copy_(source), device),
    }


def best_time(function, device: str, repeats: int = 10, calls: int = 5) -> float:
    """Seconds per call: the best of `repeats` means over `calls` calls."""
    seconds = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        for _ in range(calls):
            function()
        synchronise(device)
        seconds.append((time.perf_counter() - start) / calls)
    return min(seconds)


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
