"""Every Triton kernel compiles without a GPU, with the arguments that steps, training and the tower pass to it.

`make test-kernels` installs Triton and runs these tests; `make test` has no Triton.
"""

from unittest import mock

import pytest
import torch
from fresh_process import run_fresh

KIBIBYTES = {80: 163, 90: 227}  # of shared memory that a program may use, by the compute capability
SIZE = {
    "hidden_size": 1024,
    "intermediate_size": 1792,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize("capability", KIBIBYTES)
def test_every_kernel_compiles(capability, tmp_path):
    pytest.importorskip("triton", reason="needs Triton, which make test-kernels installs")
    made = run_fresh(compiled, tmp_path / "own", capability, TRITON_INTERPRET="0")
    assert sorted(made["compiled"]) == made["kernels"] and len(made["kernels"]) > 15
    assert max(made["compiled"].values()) <= KIBIBYTES[capability] * 1024


def compiled(capability: str) -> dict:
    """The names of all kernels; and of those that compiled, with the largest shared memory in bytes."""
    import triton
    from triton.backends.compiler import GPUTarget

    from videollm_mod import fused, static_kernels, static_vision
    from videollm_mod.bench.geometries import WEIGHTS

    found: dict[str, int] = {}
    run = triton.runtime.JITFunction.run

    def compile_only(kernel, *arguments, warmup=False, **options):
        made = run(kernel, *arguments, warmup=True, **options)
        found[name_of(kernel)] = max(found.get(name_of(kernel), 0), made.metadata.shared)
        return made

    device = mock.Mock()
    device.get_current_target.return_value = GPUTarget("cuda", int(capability), 32)
    device.get_current_device.return_value = 0
    triton.runtime.driver.set_active(device)
    limits = mock.patch.object(static_kernels, "_shared_memory", lambda device: KIBIBYTES[int(capability)] * 1024)
    with mock.patch.object(triton.runtime.JITFunction, "run", compile_only), limits:
        take_static_steps([kind for kind in WEIGHTS if kind != "fp8" or int(capability) >= 89])  # see `why_not`
        train()
        norm, x = torch.nn.LayerNorm(96), torch.zeros(1, 7, 96)
        static_vision.TowerKernels.add_and_norm(x, x, norm)
    modules = fused, static_kernels, static_vision
    functions = {value for module in modules for value in vars(module).values() if hasattr(value, "warmup")}
    return {"kernels": sorted(name for name in map(name_of, functions) if name.endswith("_kernel")), "compiled": found}


def name_of(kernel) -> str:
    return f"{kernel.fn.__module__}.{kernel.fn.__name__}"


@torch.no_grad()
def take_static_steps(kinds: list[str]) -> None:
    """Of one stream and of four, by our own kernels and beside cuBLAS, with weights of these kinds."""
    from videollm_mod.bench.geometries import SEPARATOR
    from videollm_mod.bench.streams import random_model
    from videollm_mod.bench.weights import quantise
    from videollm_mod.cache import MoDCache
    from videollm_mod.static_kernels import CublasKernels, Kernels
    from videollm_mod.static_step import Shape, StaticStep

    for weights in kinds:
        model = random_model("tiny", "cpu", mod_layers="interleaved", **SIZE).eval()
        quantise(model, weights)
        routed = model.config.text_config.routed_layers
        for streams, ops in ((1, Kernels), (4, CublasKernels if weights == "bf16" else Kernels)):
            step = StaticStep(model, Shape(1, 11, 2, "residual", "learned", False, routed, streams), ops)
            step.prepare([MoDCache(model.config) for _ in range(streams)], [[SEPARATOR]] * streams, None)
            step.forward()


def train() -> None:
    """The forward and the backward pass of a step of training."""
    from videollm_mod import fused, routing
    from videollm_mod.bench.streams import random_model, random_stream

    model = random_model("tiny", "cpu", mod_layers="interleaved").train()
    with (
        mock.patch.object(fused, "_kernels", lambda: fused.Kernels),
        mock.patch.object(fused, "kernels_for", lambda *tensors: fused.Kernels),
        mock.patch.object(routing, "kernels_for", lambda *tensors: fused.Kernels),
    ):
        model(**random_stream(model, 3, "cpu")).loss.backward()
