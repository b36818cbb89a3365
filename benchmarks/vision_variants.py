"""Which way from frames to features is fastest, and how near it is to float32, on this GPU.

    python -m videollm_mod.benchmarks.vision_variants --out FOLDER --seconds 60

One line each, on the screen and in `FOLDER/vision_variants.txt`, all of it in `vision_variants.json`. What fails is
noted and the rest goes on; nothing is begun after the time is up. The tower is SigLIP-L/16 at 384 pixels with random
weights.
"""

import argparse
import contextlib
import functools
import itertools
import json
import statistics
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import fast_tower_kernels_videollm_mod as kernels
from ..bench.streams import random_model
from ..fast_tower_kernels_videollm_mod import TowerKernels
from ..fast_tower_videollm_mod import PlainTowerOps, is_plain_siglip, run
from ..video_processing_videollm_mod import VideoLLMMoDVideoProcessor
from .record import surroundings

SIZE = (720, 1280)


class Log:
    def __init__(self, folder: Path, seconds: float):
        self.begin, self.end, self.folder = time.perf_counter(), time.perf_counter() + seconds, folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vision_variants.txt").write_text("")
        self.result = surroundings("triton")

    def say(self, text: str) -> None:
        text = f"[{time.perf_counter() - self.begin:5.1f}] {text}"
        print(text, flush=True)
        with open(self.folder / "vision_variants.txt", "a") as file:
            file.write(text + "\n")

    def attempt(self, name: str, function):
        if time.perf_counter() > self.end:
            self.say(f"{name}: no time was left")
            return None
        try:
            with torch.no_grad():
                value = function()
        except Exception as error:
            value = f"failed: {type(error).__name__}: {str(error)[:300]}"
            (self.folder / "vision_variants.errors.txt").open("a").write(f"{name}\n{traceback.format_exc()}\n")
        self.result[name] = value
        (self.folder / "vision_variants.json").write_text(json.dumps(self.result, indent=1) + "\n")
        self.say(f"{name}: {value}")
        return value


def captured(function):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return graph, result


def device_ms(function, repeats: int) -> float:
    """Median milliseconds of calls one behind the other, on the device."""
    for _ in range(2):
        function()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        function()
        event.record()
    torch.cuda.synchronize()
    return round(statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events)), 4)


def wall_ms(function, repeats: int = 8) -> float:
    """Median milliseconds of calls, each waited for."""
    found = []
    for _ in range(3 + repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        found.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(found[3:]), 3)


def error(value: torch.Tensor, expected: torch.Tensor) -> float:
    value, expected = value.double(), expected.double()
    return round(float((value - expected).norm() / expected.norm()), 6)


# ways of the tower ---------------------------------------------------------------------------------------------------


def with_parts(*names: str, backend=None):
    """The plain tower with some parts of the fast one."""
    parts = {name: staticmethod(getattr(TowerKernels, name)) for name in names if name in ("add_and_norm", "widen")}
    if "own projections" in names:
        parts["project"] = staticmethod(separate)
    if "own patches" in names:
        parts["embed"] = staticmethod(lambda embeddings, pixels: embeddings(pixels))
    if backend is not None:

        def attend(attention, joined):
            with sdpa_kernel(backend):
                return PlainTowerOps.attend(attention, joined)

        parts["attend"] = staticmethod(attend)
    return type("Ops", (PlainTowerOps,), parts)


def separate(attention, entered):
    return torch.cat([part(entered) for part in (attention.q_proj, attention.k_proj, attention.v_proj)], dim=-1)


class OwnAttention(TowerKernels):
    """Three products and no joined tensor, as the tower's own."""

    project = staticmethod(lambda attention, entered: entered)

    @staticmethod
    def attend(attention, entered):
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        heads = [part(entered).unflatten(2, (-1, attention.head_dim)).transpose(1, 2) for part in parts]
        attended = torch.nn.functional.scaled_dot_product_attention(*heads, scale=attention.scale)
        return attended.transpose(1, 2).flatten(2)


WAYS = {
    "plain parts": with_parts(),
    "own patches": with_parts("own patches"),
    "+ gelu": with_parts("widen"),
    "+ norm": with_parts("add_and_norm"),
    "all": TowerKernels,
    "all, q k v apart": OwnAttention,
    "all, cudnn": with_parts("widen", "add_and_norm", backend=SDPBackend.CUDNN_ATTENTION),
    "all, flash": with_parts("widen", "add_and_norm", backend=SDPBackend.FLASH_ATTENTION),
    "all, efficient": with_parts("widen", "add_and_norm", backend=SDPBackend.EFFICIENT_ATTENTION),
}


def features_of(model, ops):
    """Of pixels, as `frame_tokens` makes them."""
    if ops is None:
        return lambda pixels: model.frame_tokens(pixels).pooler_output
    return lambda pixels: model.tokens_of(*run(model.vision_tower, pixels, ops))


def towers(log: Log, model, counts: list[int]) -> None:
    pixels = torch.randn(max(counts), 3, 384, 384, device="cuda").bfloat16()
    model.vision_tower.float()
    expected = features_of(model, None)(pixels[:2].float())
    model.vision_tower.bfloat16()
    for count in counts:
        for name, ops in {"as it is": None, **WAYS}.items():
            if count not in (1, 30) and name not in ("as it is", "all", "all, cudnn"):
                continue

            def measure(ops=ops, count=count):
                graph, result = captured(functools.partial(features_of(model, ops), pixels[:count]))
                graph.replay()
                off = error(result[:2], expected[: min(2, count)])
                ms = device_ms(graph.replay, 40 if count < 4 else 12)
                return f"{ms} ms, {0.3813 * count / ms:.0f} TFLOP/s, off by {off}"

            log.attempt(f"tower, {count} frames, {name}", measure)
            torch.cuda.empty_cache()


def parts(log: Log, model, count: int) -> None:
    """Each part of one layer by itself, in a graph of 10 times: microseconds, and TFLOP/s of products."""
    core = getattr(model.vision_tower, "vision_model", model.vision_tower)
    layer, attention, mlp = core.encoder.layers[0], core.encoder.layers[0].self_attn, core.encoder.layers[0].mlp
    x = torch.randn(count, 576, 1024, device="cuda").bfloat16()
    wide, joined = (torch.randn(count, 576, size, device="cuda").bfloat16() for size in (4096, 3072))
    pixels = torch.randn(count, 3, 384, 384, device="cuda").bfloat16()
    rows = count * 576

    def backend(which):
        def call():
            with sdpa_kernel(which):
                return PlainTowerOps.attend(attention, joined)

        return call

    calls = {
        "q, k, v apart": (lambda: [p(x) for p in (attention.q_proj, attention.k_proj, attention.v_proj)], 3 * 1024**2),
        "q, k, v joined": (lambda: PlainTowerOps.project(attention, x), 3 * 1024**2),
        "out_proj": (lambda: attention.out_proj(x), 1024**2),
        "fc1": (lambda: mlp.fc1(x), 4 * 1024**2),
        "fc1 + gelu, plain": (lambda: PlainTowerOps.widen(mlp, x), 4 * 1024**2),
        "fc1 + gelu, fused": (lambda: TowerKernels.widen(mlp, x), 4 * 1024**2),
        "fc2": (lambda: mlp.fc2(wide), 4 * 1024**2),
        "attention": (lambda: PlainTowerOps.attend(attention, joined), 2 * 576 * 1024),
        "attention, cudnn": (backend(SDPBackend.CUDNN_ATTENTION), 2 * 576 * 1024),
        "attention, flash": (backend(SDPBackend.FLASH_ATTENTION), 2 * 576 * 1024),
        "attention, efficient": (backend(SDPBackend.EFFICIENT_ATTENTION), 2 * 576 * 1024),
        "add, norm, plain": (lambda: PlainTowerOps.add_and_norm(x, x, layer.layer_norm1), 0),
        "add, norm, fused": (lambda: TowerKernels.add_and_norm(x, x, layer.layer_norm1), 0),
        "patches, own": (lambda: core.embeddings(pixels), 768 * 1024),
        "patches, product": (lambda: PlainTowerOps.embed(core.embeddings, pixels), 768 * 1024),
        "head": (lambda: core.head(x), 0),
        "tokens": (lambda: model.tokens_of(x, x[:, 0]), 0),
    }
    for name, (call, macs) in calls.items():

        def measure(call=call, macs=macs):
            graph, _ = captured(lambda: [call() for _ in range(10)] and None)
            us = 100 * device_ms(graph.replay, 6)
            return f"{us:.1f} us" + (f", {2e-6 * macs * rows / us:.0f} TFLOP/s" if macs else "")

        log.attempt(f"part, {count} frames, {name}", measure)

    def tiles():
        found, own = {}, (kernels.ROWS, kernels.WARPS)
        for kernels.ROWS, kernels.WARPS in ((1, 2), (1, 4), (1, 8), (2, 4), (4, 4), (4, 8)):
            graph, _ = captured(lambda: [calls["add, norm, fused"][0]() for _ in range(10)] and None)
            found[f"{kernels.ROWS} rows, {kernels.WARPS} warps"] = round(100 * device_ms(graph.replay, 6), 1)
        kernels.ROWS, kernels.WARPS = own
        return found

    log.attempt(f"part, {count} frames, add, norm, fused: tiles in us", tiles)


def gelu() -> str:
    """Of which kind the fused activation is."""
    x, w, b = (torch.randn(size, device="cuda") for size in ((256, 64), (128, 64), (128,)))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        made = torch._addmm_activation(b.to(dtype), x.to(dtype), w.to(dtype).t(), use_gelu=True).double()
        exact = torch.addmm(b.to(dtype).double(), x.to(dtype).double(), w.to(dtype).double().t())
        for kind in ("tanh", "none"):
            off = (torch.nn.functional.gelu(exact, approximate=kind) - made).abs().max()
            found.append(f"{dtype} against {kind} {float(off):.2e}")
    return ", ".join(found)


def table(model, ops, count: int) -> dict:
    pixels = torch.randn(count, 3, 384, 384, device="cuda").bfloat16()
    call = functools.partial(features_of(model, ops), pixels)
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    rows = [(round(e.self_device_time_total), e.count, e.key[:80]) for e in profiler.key_averages()]
    return {name: f"{micros} us in {times}" for micros, times, name in sorted(rows, reverse=True)[:16] if micros}


# ways to it ----------------------------------------------------------------------------------------------------------


@functools.cache
def matrix(old: int, new: int, mode: str, device: str) -> torch.Tensor:
    """`[new, old]`: resizing is linear, so it is what resizing makes of the identity."""
    eye = torch.eye(old, device=device)[None, None]
    return torch.nn.functional.interpolate(eye, (new, old), mode=mode, antialias=True)[0, 0]


def resized(frames: torch.Tensor, dtype=torch.float32) -> torch.Tensor:
    """uint8 `[F, 3, H, W]`, as the processor makes pixels of them, by two products."""
    rows, columns = matrix(SIZE[0], 216, "bicubic", "cuda"), matrix(SIZE[1], 384, "bicubic", "cuda")
    made = frames.to(dtype, memory_format=torch.contiguous_format)
    made = (rows.to(dtype) @ made @ columns.to(dtype).T).float().clamp(0, 255)
    return torch.nn.functional.pad(made, (0, 0, 84, 84)) * (2 / 255) - 1


def resized_last(frames: torch.Tensor, dtype=torch.float32) -> torch.Tensor:
    """The same, rows first, of frames whose channels come last in memory."""
    rows, columns = matrix(SIZE[0], 216, "bicubic", "cuda"), matrix(SIZE[1], 384, "bicubic", "cuda")
    made = rows.to(dtype) @ frames.movedim(1, -1).flatten(2).to(dtype)
    made = made.unflatten(2, (SIZE[1], 3)).permute(0, 3, 1, 2).contiguous() @ columns.to(dtype).T
    return torch.nn.functional.pad(made.float().clamp(0, 255), (0, 0, 84, 84)) * (2 / 255) - 1


def before_the_tower(log: Log, count: int) -> None:
    processor = VideoLLMMoDVideoProcessor()
    host = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8))
    host = host.movedim(-1, 1)
    there = host.cuda()
    log.attempt(f"upload, {count} frames, pageable", lambda: f"{wall_ms(lambda: host.to('cuda'))} ms")
    pinned = torch.empty_like(host, pin_memory=True)

    def through_pinned():
        pinned.copy_(host)
        return pinned.to("cuda", non_blocking=True)

    log.attempt(f"upload, {count} frames, copied to pinned", lambda: f"{wall_ms(through_pinned)} ms")
    log.attempt(f"upload, {count} frames, pinned", lambda: f"{wall_ms(lambda: pinned.to('cuda'))} ms")
    log.attempt(f"copy to pinned, {count} frames", lambda: f"{wall_ms(lambda: pinned.copy_(host))} ms")
    log.attempt(f"to_pixels, {count} frames, GPU", lambda: f"{wall_ms(lambda: processor.to_pixels(there))} ms")
    expected = processor.to_pixels(there)
    ways = {"products": resized, "products, rows first": resized_last}
    for name, way in ways.items():
        for dtype in (torch.float32, torch.float16, torch.bfloat16):

            def measure(way=way, dtype=dtype):
                off = float((way(there, dtype) - expected).abs().max())
                return f"{wall_ms(lambda: way(there, dtype))} ms, off by {off:.2e} at most"

            log.attempt(f"to_pixels, {count} frames, {name}, {dtype}", measure)
    rows, columns = (functools.partial(matrix, *x, "bicubic", "cuda") for x in ((720, 216), (1280, 384)))
    log.attempt("making the matrices", lambda: f"{wall_ms(lambda: (matrix.cache_clear(), rows(), columns()))} ms")


def whole(log: Log, model, count: int) -> None:
    """From frames on the host to features."""
    host = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8))
    host, graphs = host.movedim(-1, 1), {}
    processor, copying = VideoLLMMoDVideoProcessor(), torch.cuda.Stream()
    pinned = torch.empty_like(host, pin_memory=True)

    def tower(pixels, ops):
        size = (len(pixels), ops)
        if size not in graphs:
            own = pixels.bfloat16()
            graphs[size] = (*captured(functools.partial(features_of(model, ops), own)), own)
        graph, result, own = graphs[size]
        own.copy_(pixels)
        graph.replay()
        return result.clone()

    def in_turn(ops, prepare):
        return tower(prepare(host.to("cuda")), ops)

    def overlapped(sizes, way):
        done, features = 0, []
        current = torch.cuda.current_stream()
        for size in sizes:
            with torch.cuda.stream(copying):
                if way == "pinned":
                    pinned[done : done + size].copy_(host[done : done + size])
                    frames = pinned[done : done + size].to("cuda", non_blocking=True)
                else:
                    frames = host[done : done + size].to("cuda")
            current.wait_stream(copying)
            frames.record_stream(current)
            features.append(tower(resized(frames), TowerKernels))
            done += size
        return torch.cat(features)

    log.attempt(
        f"whole, {count} frames, as it is", lambda: f"{wall_ms(lambda: in_turn(None, processor.to_pixels))} ms"
    )
    log.attempt(
        f"whole, {count} frames, fast tower and products, in turn",
        lambda: f"{wall_ms(lambda: in_turn(TowerKernels, resized))} ms",
    )
    cuts = {"all": [count]}
    if count == 30:
        cuts |= {
            "15 and 15": [15, 15],
            "8 and 22": [8, 22],
            "10, 20": [10, 20],
            "3 of 10": [10] * 3,
            "5 of 6": [6] * 5,
        }
    for name, sizes in cuts.items():
        for way in ("pageable", "pinned"):
            log.attempt(
                f"whole, {count} frames, overlapped, {name}, {way}",
                lambda s=sizes, w=way: f"{wall_ms(lambda: overlapped(s, w))} ms",
            )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args(argv)
    log = Log(args.out, args.seconds)
    model = random_model("middle", "cuda").eval().model
    log.say(f"the model is there: {torch.cuda.get_device_name()}, plain SigLIP: {is_plain_siglip(model.vision_tower)}")
    log.attempt("gelu", gelu)
    with contextlib.suppress(Exception):
        towers(log, model, [30, 1])
    parts(log, model, 30)
    for count in (30, 1):
        before_the_tower(log, count)
        whole(log, model, count)
    with contextlib.suppress(Exception):
        towers(log, model, [8, 10, 15, 22])
    for name, ops in (("as it is", None), ("all", TowerKernels)):
        log.attempt(f"kernels, 30 frames, {name}", lambda ops=ops: table(model, ops, 30))
    parts(log, model, 1)
    log.say("done")


if __name__ == "__main__":
    main()
