"""What each piece of a training step takes on this GPU, with its fused kernels and in plain torch, and whether both
are the same; then whole steps with and without them.

    python -m videollm_mod.benchmarks.train_pieces --seconds 150
"""

import argparse
import contextlib
import functools
import statistics
import time
import traceback
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import nn

from .. import fused_videollm_mod as fused
from .. import recomputing_videollm_mod as recomputing
from .. import routing_videollm_mod as routing
from ..bench.arithmetic import best_time
from ..bench.check import check
from ..bench.kernels import kernel_table
from ..bench.overhead import routing_seconds
from ..bench.step import Bench, Deadline, Way
from ..bench.train import REFERENCE
from ..training.lora_linear import LoraLinear, use_lora_linear

LENGTHS = (14_701, 5_101)  # tokens of dense and of routed layers, 1200 frames of 10 tokens
STEPS = ("mlp", "activation", "attention", "entered", "layer")


@contextlib.contextmanager
def guarded(name: str):
    try:
        yield
    except Exception:
        print(f"{name} FAILED\n{traceback.format_exc(limit=-5)}", flush=True)


@contextlib.contextmanager
def plain_torch():
    with contextlib.ExitStack() as stack:
        for module in (fused, routing):
            stack.enter_context(mock.patch.object(module, "kernels_for", lambda *tensors: None))
        yield


def both(name: str, function, inputs: list[torch.Tensor], device: str) -> None:
    """Time of `function(*inputs)` forwards and with its gradients, each way, and its relative error from float32."""
    inputs = [value.detach().requires_grad_(value.is_floating_point()) for value in inputs]

    def outputs(values):
        made = function(*values)
        return made if isinstance(made, tuple) else (made,)

    def gradients(values, weights):
        own = [value for value in values if value.requires_grad]
        return torch.autograd.grad(outputs(values), own, [w.to(values[0].dtype) for w in weights])

    torch.manual_seed(1)
    weights = [torch.randn_like(output) for output in outputs(inputs)]
    exact = [value.detach().float().requires_grad_() if value.requires_grad else value for value in inputs]
    with plain_torch():
        expected = [*outputs(exact), *gradients(exact, weights)]
    for label, context in (("fused", contextlib.nullcontext), ("plain", plain_torch)):
        with guarded(f"{name}, {label}"), context():
            got = [*outputs(inputs), *gradients(inputs, weights)]
            errors = [float((a.float() - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True)]
            forward = best_time(lambda: outputs(inputs), device, 3, 5)
            whole = best_time(lambda: gradients(inputs, weights), device, 3, 5)
            print(
                f"{name:<28} {label}: {1e3 * forward:7.3f} ms, with backward {1e3 * whole:7.3f} ms; errors "
                + " ".join(f"{error:.1e}" for error in errors),
                flush=True,
            )


def pieces(device: str, length: int) -> None:
    new = functools.partial(torch.randn, device=device, dtype=torch.bfloat16)
    with guarded("silu"):
        both(f"silu product {length}", fused.silu_product, [new(length, 14_336), new(length, 14_336)], device)
    with guarded("rotate"):
        angles = torch.randn(1, length, 64, device=device).repeat(1, 1, 2)
        cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()

        def turn(queries, keys):
            turned = fused.rotate(queries, keys, cos.to(queries.dtype), sin.to(queries.dtype))
            return tuple(turned)

        both(f"rotate {length}", turn, [new(1, length, 32, 128), new(1, length, 8, 128)], device)


def routing_pieces(device: str) -> None:
    tokens, frames = (
        torch.randn(14_701, 4096, device=device, dtype=torch.bfloat16),
        torch.arange(12_000, device=device),
    )
    frames = frames.view(1200, 10) + torch.arange(1200, device=device)[:, None]
    rows = torch.randperm(14_701, device=device)[:5101].sort().values
    new = torch.randn(5101, 4096, device=device, dtype=torch.bfloat16)
    expert = routing.LayerExpert(4096).to(device)
    for label, context in (("fused", contextlib.nullcontext), ("plain", plain_torch)):
        with guarded(label), context(), torch.no_grad():
            scores = expert(tokens, frames)
            exact = (tokens[frames].double() @ expert.weight.double()[0] + expert.bias.double()).float()
            error = float((scores - exact).abs().max() / exact.abs().max())
            same = torch.equal(fused.put_rows(tokens, rows, new), tokens.index_copy(0, rows, new))
            seconds = best_time(lambda: expert(tokens, frames), device, 3, 10)
            putting = best_time(lambda: fused.put_rows(tokens, rows, new), device, 3, 10)
            print(f"scores {label}: {1e3 * seconds:.3f} ms, error {error:.1e}; ", end="")
            print(f"rows put: {1e3 * putting:.3f} ms, same {same}", flush=True)


def adapters(device: str, length: int) -> None:
    """Our LoRA layer beside peft's."""
    for inputs, outputs in ((4096, 14_336), (14_336, 4096), (4096, 4096), (4096, 1024)):
        with guarded(f"adapter {inputs}x{outputs}"):
            layer = nn.Sequential(nn.Linear(inputs, outputs, bias=False, device=device, dtype=torch.bfloat16))
            config = LoraConfig(r=128, lora_alpha=256, target_modules=["0"], init_lora_weights=False)
            model = get_peft_model(layer, config, autocast_adapter_dtype=False).to(device)
            use_lora_linear(model)
            x = torch.randn(1, length, inputs, device=device, dtype=torch.bfloat16, requires_grad=True)
            trained = [x, *(p for p in model.parameters() if p.requires_grad)]
            weight = torch.randn(1, length, outputs, device=device, dtype=torch.bfloat16)
            made = {}
            for kind in (LoraLinear, Linear):
                next(m for m in model.modules() if isinstance(m, Linear)).__class__ = kind

                def run(model=model, x=x, trained=trained, weight=weight):
                    return torch.autograd.grad(model(x), trained, weight)

                made[kind] = (run(), best_time(run, device, 3, 5))
            pairs = zip(made[LoraLinear][0], made[Linear][0], strict=True)
            errors = [float((a - b).norm() / b.norm()) for a, b in pairs]
            print(
                f"adapter {inputs} to {outputs}, {length} tokens, with backward: {1e3 * made[LoraLinear][1]:.2f} ms, "
                f"peft's {1e3 * made[Linear][1]:.2f} ms, differ by {' '.join(f'{e:.1e}' for e in errors)}",
                flush=True,
            )


def steps(machine: Bench, deadline: Deadline) -> None:
    ways = [REFERENCE, *(Way(True, recompute=choice) for choice in STEPS), Way(False, recompute="mlp")]
    for way in ways:
        for label, context in (("fused", contextlib.nullcontext), ("plain", plain_torch)):
            if deadline.passed():
                return
            with guarded(f"{way.name} {way.recompute}"), context():
                done = [machine.try_step(way) for _ in range(3)][1:]
                if None in done:
                    print(f"{way.name:<20} {way.recompute:<12} {label}: out of memory", flush=True)
                    continue
                seconds, peak = statistics.median(step[1] for step in done), done[-1][2]
                print(
                    f"{way.name:<20} {way.recompute:<12} {label}: {1e3 * seconds:6.0f} ms {peak:6.2f} GiB "
                    f"loss {done[-1][0]:.4f}",
                    flush=True,
                )


def chunks(machine: Bench, deadline: Deadline) -> None:
    """How many tokens an MLP that is computed again should take at a time."""
    for count in (4096, 6144, 8192, 16_384):
        for choice in ("attention", "entered"):
            with guarded("chunks"), mock.patch.object(recomputing, "CHUNK_TOKENS", count):
                if not deadline.passed():
                    done = [machine.try_step(Way(True, recompute=choice)) for _ in range(3)][1:]
                    print(f"{choice} in chunks of {count}: (loss, seconds, GiB) {done}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", default="llama3-8b")
    parser.add_argument("--seconds", type=float, default=150.0)
    arguments = parser.parse_args()
    start, deadline = time.perf_counter(), Deadline(arguments.seconds / 60)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def say(what: str) -> None:
        print(f"[{time.perf_counter() - start:6.1f} s] {what}", flush=True)

    say(f"{torch.__version__} {torch.cuda.get_device_name() if device != 'cpu' else device}")
    if device != "cpu":
        for length in LENGTHS:
            pieces(device, length)
            adapters(device, length)
        with guarded("routing"):
            routing_pieces(device)
        torch.cuda.empty_cache()
    say("pieces done")
    with guarded("check"):
        checked = check(device) if device != "cpu" else check(device, "tiny", frames=20)
        say("all ways agree with float32: " + " ".join(f"{entry['gradient_error']:.4f}" for entry in checked.values()))
    if device != "cpu":
        torch.cuda.empty_cache()
    machine = Bench(arguments.geometry, *((1200, 10) if device != "cpu" else (20, 10)), device)
    say("model made")
    if device != "cpu":
        print(f"{torch.cuda.memory_allocated() / 2**30:.2f} GiB before the first step", flush=True)
    with guarded("steps"):
        steps(machine, deadline)
    say("steps done")
    chunks(machine, deadline)
    for way in (Way(True, recompute="mlp"), REFERENCE):
        with guarded("kernels"):
            if not deadline.passed():
                machine.try_step(way)
                print(f"--- {way.name}, {way.recompute}\n{kernel_table(machine, way, 40)['text']}", flush=True)
    with guarded("routing"):
        for label, context in (("fused", contextlib.nullcontext), ("plain", plain_torch)):
            with context():
                found = routing_seconds(machine)
            kernels = "\n".join(f"{ms:>9.2f} ms {count:>6} x {name[:100]}" for ms, count, name in found.pop("kernels"))
            print(f"routing alone, {label}: {found}\n{kernels}", flush=True)
    say("done")


if __name__ == "__main__":
    main()
