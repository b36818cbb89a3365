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

    from videollm_mod import fused, static_kernels, static_vision, weights

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
    chip = weights.Chip(int(capability), KIBIBYTES[int(capability)] * 1024)
    limits = mock.patch.object(weights, "chip", lambda device: chip)
    with mock.patch.object(triton.runtime.JITFunction, "run", compile_only), limits:
        take_static_steps()
        train()
        norm, x = torch.nn.LayerNorm(96), torch.zeros(1, 7, 96)
        static_vision.TowerKernels.add_and_norm(x, x, norm)
    modules = fused, static_kernels, static_vision, weights
    functions = {value for module in modules for value in vars(module).values() if hasattr(value, "warmup")}
    return {"kernels": sorted(name for name in map(name_of, functions) if name.endswith("_kernel")), "compiled": found}


def name_of(kernel) -> str:
    return f"{kernel.fn.__module__}.{kernel.fn.__name__}"


@torch.no_grad()
def take_static_steps() -> None:
    """Of one stream and of four, by our own kernels and beside cuBLAS, with weights of every kind."""
    from videollm_mod.bench.geometries import SEPARATOR, WEIGHTS
    from videollm_mod.bench.streams import random_model
    from videollm_mod.bench.weights import quantise
    from videollm_mod.cache import MoDCache
    from videollm_mod.static_kernels import CublasKernels, Kernels
    from videollm_mod.static_step import Shape, StaticStep

    for kind in WEIGHTS:
        model = random_model("tiny", "cpu", mod_layers="interleaved", **SIZE).eval()
        quantise(model, kind)
        routed = model.config.text_config.routed_layers
        for streams, ops in ((1, Kernels), (8, CublasKernels), *[(4, Kernels)] * (kind != "bf16")):
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


def test_codes_of_4_bits_are_decoded_in_ptx():
    """All pairs of codes, each with a scale, by instructions that are carried out here."""
    pytest.importorskip("triton", reason="needs Triton, which make test-kernels installs")
    from videollm_mod.weights import DECODING, StoredWeight, byte_tables

    code = torch.randn(16)
    pairs = torch.arange(256, dtype=torch.uint8)
    weight = StoredWeight(pairs[:, None], torch.ones(1), code=code)
    table = [word & 0xFFFFFFFF for word in byte_tables(weight).tolist()]
    scales = torch.rand(256).bfloat16()
    expected = torch.stack([code[pairs.long() >> 4], code[pairs.long() & 15]]).bfloat16() * scales
    words, of_scales = pairs.view(torch.uint32).tolist(), scales.view(torch.uint32).view(-1, 2).tolist()
    for number, (word, (first, second)) in enumerate(zip(words, of_scales, strict=True)):
        registers = {"$4": word, "$37": first, "$38": second}
        registers |= {f"${5 + 4 * place}": own for place, own in enumerate(table)}
        carry_out(DECODING.value, registers)
        made = torch.tensor([registers[f"${place}"] for place in range(4)]).to(torch.uint32).view(torch.bfloat16)
        assert torch.equal(made.view(2, 4), expected[:, 4 * number : 4 * number + 4])


def carry_out(code: str, registers: dict[str, int]) -> None:
    """Instructions of PTX on 32 bits."""
    for statement in code.strip("{}").split(";"):
        name, _, rest = statement.strip().partition(" ")
        if name in ("", ".reg"):
            continue
        to, *given = rest.replace(" ", "").split(",")
        a, *rest = (registers[x] if x in registers else int(x, 0) for x in given)
        b, *c = rest or [0]
        if name == "mov.b32":
            registers[to] = a
        elif name == "fma.rn.bf16x2":
            numbers = torch.tensor([a, b, *c]).to(torch.uint32).view(torch.bfloat16).view(3, 2).double()
            made = (numbers[0] * numbers[1] + numbers[2]).bfloat16()
            registers[to] = int(made.view(torch.uint32))
        elif name == "prmt.b32":  # each 4 bits name a byte of b and a
            eight = (a | b << 32).to_bytes(8, "little")
            made = bytes(eight[c[0] >> 4 * place & 7] for place in range(4))
            assert not any(c[0] >> 4 * place & 8 for place in range(4))
            registers[to] = int.from_bytes(made, "little")
        else:
            registers[to] = {"and.b32": a & b, "or.b32": a | b, "shr.b32": a >> b}[name]
