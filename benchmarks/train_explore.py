"""What a training step of Llama-3-8B's geometry spends its time on, and what would make it faster. Temporary.

PYTORCH_ALLOC_CONF=expandable_segments:True python benchmarks/train_explore.py --minutes 6 --out DIR
"""

import argparse
import contextlib
import json
import time
import traceback
from pathlib import Path
from unittest import mock

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama import modeling_llama

from videollm_mod.bench.arithmetic import best_time, synchronise
from videollm_mod.bench.check import check
from videollm_mod.bench.step import Bench, Deadline, Way
from videollm_mod.bench.train import measure
from videollm_mod.modeling_text_videollm_mod import VideoLLMMoDDecoderLayer


def report(*values) -> None:
    print(f"[{time.perf_counter() - START:6.1f} s]", *values, flush=True)


@contextlib.contextmanager
def guarded(name: str):
    try:
        yield
    except Exception:
        report(f"{name} failed:\n{traceback.format_exc(limit=-6)}")


def attention_kernels(device: str, lengths: list[int], heads=(32, 8), head_dim=128) -> None:
    for length in lengths:
        q = torch.randn(1, heads[0], length, head_dim, device=device, dtype=torch.bfloat16, requires_grad=True)
        k, v = (
            torch.randn(1, heads[1], length, head_dim, device=device, dtype=torch.bfloat16, requires_grad=True)
            for _ in range(2)
        )
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            for grouped in (True, False):

                def attend(grouped=grouped, q=q, k=k, v=v):
                    own = (k, v) if grouped else (x.repeat_interleave(heads[0] // heads[1], dim=1) for x in (k, v))
                    return scaled_dot_product_attention(q, *own, is_causal=True, enable_gqa=grouped)

                with guarded(f"attention {backend} grouped={grouped}"), sdpa_kernel(backend):
                    forward = best_time(attend, device, repeats=3, calls=3)
                    both = best_time(lambda: attend().sum().backward(), device, repeats=3, calls=3)
                    report(
                        f"attention {length} {backend.name} grouped={grouped}: forward {1e3 * forward:.2f} ms "
                        f"({2 * heads[0] * head_dim * length**2 / forward / 1e12:.0f} T/s), "
                        f"with backward {1e3 * both:.2f} ms"
                    )


def product(gate, up):
    return torch.nn.functional.silu(gate) * up


@contextlib.contextmanager
def compiled_elementwise():
    """The MLP's product and the rotation of queries and keys by torch.compile."""
    fast, rotate = torch.compile(product, dynamic=True), modeling_llama.apply_rotary_pos_emb
    fast_rotate = torch.compile(rotate, dynamic=True)

    def mlp(self, x):
        return self.down_proj(fast(self.gate_proj(x), self.up_proj(x)))

    def down(self, gate, up):
        return self.mlp.down_proj(fast(gate, up))

    with (
        mock.patch.object(modeling_llama.LlamaMLP, "forward", mlp),
        mock.patch.object(VideoLLMMoDDecoderLayer, "_down", down),
        mock.patch.object(modeling_llama, "apply_rotary_pos_emb", fast_rotate),
    ):
        yield


@contextlib.contextmanager
def compiled_halves():
    """Each half of a layer by torch.compile."""
    torch._dynamo.config.cache_size_limit = 64
    layer = VideoLLMMoDDecoderLayer
    with (
        mock.patch.object(layer, "_think", torch.compile(layer._think)),
        mock.patch.object(layer, "_attend", torch.compile(layer._attend)),
    ):
        yield


def compare(bench: Bench, ways: list[Way], name: str, context, deadline: Deadline) -> None:
    for way in ways:
        with guarded(name), context() as _:
            start = time.perf_counter()
            bench.try_step(way)
            report(f"{name}: first step {time.perf_counter() - start:.1f} s")
            steps = [bench.try_step(way) for _ in range(3) if not deadline.passed()]
            report(f"{name}: {way.name}, {way.recompute}: (loss, seconds, GiB) {steps}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", default="llama3-8b")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--shapes", default="1200x10,600x50")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    deadline = Deadline(arguments.minutes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = [tuple(map(int, shape.split("x"))) for shape in arguments.shapes.split(",")]
    report(torch.__version__, torch.cuda.get_device_name() if device != "cpu" else device)

    with guarded("check"):
        checked = check(device) if device != "cpu" else check(device, "tiny", frames=20)
        errors = [f"{entry['gradient_error']:.4f}" for entry in checked.values()]
        report("all ways agree with float32:", *errors)
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "check.json").write_text(json.dumps(checked, indent=1))
    if device != "cpu":
        torch.cuda.empty_cache()
        with guarded("attention"):
            attention_kernels(device, [14_701, 5_101])
    bench = Bench(arguments.geometry, *shapes[0], device)
    synchronise(device)
    report("model made")
    frames, tokens = shapes[0]
    path = arguments.out / f"train_{frames}x{tokens}.json"
    with guarded("measure"):
        measure(bench, frames, tokens, path, 3, Deadline(min(arguments.minutes * 0.5, 3.2)), profile=True)
    report(shapes[0], "done")
    ways = [Way(True, recompute="attention"), Way(False, recompute="attention")]
    compare(bench, ways, "as it is", contextlib.nullcontext, deadline)
    compare(bench, ways, "compiled elementwise", compiled_elementwise, deadline)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        compare(bench, ways, "cuDNN attention", contextlib.nullcontext, deadline)
    for frames, tokens in shapes[1:]:
        path = arguments.out / f"train_{frames}x{tokens}.json"
        left = (deadline.end - time.perf_counter()) / 60
        with guarded("measure"):
            measure(bench, frames, tokens, path, 2, Deadline(0.75 * left), profile=False)
        report(frames, tokens, "done")
    bench.use_stream(*shapes[0])
    if not deadline.passed():
        # under "attention" the first half runs below a dispatch mode, which compiled code does not
        alike = [Way(True, recompute="mlp"), Way(False, recompute="mlp")]
        compare(bench, alike, "compiled halves", compiled_halves, deadline)


if __name__ == "__main__":
    START = time.perf_counter()
    main()
