"""The time that each kind of kernel takes in a training step."""

from collections import defaultdict
from collections.abc import Callable

import torch

from .arithmetic import synchronise
from .step import Bench, Way

KINDS = (  # the first kind of which a part occurs in the lower-case name of a kernel
    ("attention", ("flash", "fmha", "attention", "cudnn_generated")),
    ("matrix products", ("gemm", "cutlass", "nvjet", "xmma", "cublas", "splitk", "gemv", "dot_kernel")),
    ("optimizer", ("multi_tensor_apply", "fused_adam", "adam")),
    (
        "index, gather, scatter, sort",
        ("index", "gather", "scatter", "_scores_", "sort", "cub", "radix", "topk"),
    ),
    ("norm", ("rms_norm", "layer_norm", "rowwisemoments", "rsqrt", "mean")),
    ("loss", ("softmax", "nll_loss")),
    ("copy", ("memcpy", "memset", "copy", "fill", "cat")),
    ("elementwise", ("elementwise", "triton", "reduce", "_silu_", "_rotate_")),
)


def kind_of(name: str) -> str:
    name = name.lower()
    return next((kind for kind, parts in KINDS if any(part in name for part in parts)), "other")


def kernel_times(function: Callable, device: str) -> tuple[dict[str, float], list[tuple[float, int, str]]]:
    """Milliseconds of each kind of kernel in `function`, and `(milliseconds, calls, name)` of each kernel, slowest
    first."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device != "cpu":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        function()
        synchronise(device)
    kinds: dict[str, float] = defaultdict(float)
    kernels: list[tuple[float, int, str]] = []
    for event in profiler.key_averages():
        on_device = getattr(event, "self_device_time_total", 0) if device != "cpu" else event.self_cpu_time_total
        is_kernel = device == "cpu" or "cuda" in str(event.device_type).lower()
        if on_device and is_kernel and not event.key.startswith("ProfilerStep"):
            kinds[kind_of(event.key)] += on_device / 1000
            kernels.append((on_device / 1000, event.count, event.key))
    return dict(kinds), sorted(kernels, reverse=True)


def kernel_table(bench: Bench, way: Way, top: int = 25) -> dict:
    """Milliseconds of each kind of kernel and of the `top` kernels in one step, also as text."""
    kinds, kernels = kernel_times(lambda: bench.step(way), bench.device)
    total = sum(kinds.values())
    lines = [
        f"{ms:>9.1f} ms {100 * ms / total:>5.1f}% {kind}" for kind, ms in sorted(kinds.items(), key=lambda x: -x[1])
    ]
    lines += [f"{ms:>9.2f} ms {count:>6} x [{kind_of(name)}] {name[:110]}" for ms, count, name in kernels[:top]]
    return {"kinds_ms": kinds, "kernels": kernels[:top], "text": "\n".join(lines)}
