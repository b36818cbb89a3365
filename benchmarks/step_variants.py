"""On this GPU: whether each operation of a static step is right, and how long a step takes. `step_tiles` chooses the
tiles of its products.

    python -m videollm_mod.benchmarks.step_variants --geometry llama3-8b --seconds 280 --output FOLDER

Each result is written at once (`step_variants.json`, `step_variants.txt`). A failure is noted and the rest continues,
and nothing is started after the time is up. Weights are random, since only their size matters.
"""

import argparse
import functools
import json
import time
import traceback
from pathlib import Path

import torch

from .. import static_kernels
from ..bench.filled import filled_cache
from ..bench.geometries import NAMES, VIDEO
from ..bench.record import surroundings
from ..bench.streams import random_model
from ..bench.traffic import bytes_of_weights
from ..cache import MoDCache
from ..static_graphs import StaticLanguageModel
from ..static_step import PlainOps, Shape, StaticStep

SEPARATOR, START = 4, 5


class Log:
    """The results so far, on the screen and in two files."""

    def __init__(self, folder: Path, seconds: float):
        self.folder, self.end = folder, time.perf_counter() + seconds
        self.begin = time.perf_counter()
        self.result = {"command": "python -m videollm_mod.benchmarks.step_variants", **surroundings("triton")}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "step_variants.txt").write_text("")

    def say(self, text: str) -> None:
        text = f"[{time.perf_counter() - self.begin:6.1f}] {text}"
        print(text, flush=True)
        with open(self.folder / "step_variants.txt", "a") as file:
            file.write(text + "\n")

    def keep(self, name: str, value) -> None:
        self.result[name] = value
        (self.folder / "step_variants.json").write_text(json.dumps(self.result, indent=1) + "\n")
        self.say(f"{name}: {value}")

    def attempt(self, name: str, function, needs: float = 5.0):
        if time.perf_counter() + needs > self.end:
            self.keep(name, "no time left")
            return None
        try:
            value = function()
        except Exception as error:
            self.keep(name, f"failed: {type(error).__name__}: {str(error)[:400]}")
            self.say(traceback.format_exc(limit=6))
            return None
        self.keep(name, value)
        return value


def error(value: torch.Tensor, expected: torch.Tensor) -> float:
    value, expected = value.double(), expected.double()
    return round(float((value - expected).norm() / expected.norm()), 6)


def check_parts(model, kernels, frames: int) -> dict:
    return {**check_layer(model, kernels, frames, True), **check_layer(model, kernels, frames, False)}


def check_layer(model, kernels, frames: int, routed: bool) -> dict:
    """Each operation compared with plain torch: its relative errors, or what went wrong."""
    text, device, dtype = model.config.text_config, model.device, model.dtype
    tokens = frames * (model.config.num_frame_tokens + 1)
    shape = Shape(frames, tokens, 2, "residual", "learned", False, text.routed_layers)
    number = text.routed_layers[0] if routed else 0
    layer = model.model.language_model.layers[number]
    steps, caches = {}, {}
    for name, part in (("plain", PlainOps), ("fast", kernels)):
        torch.manual_seed(1)
        caches[name] = filled_cache(model, 20)
        steps[name] = StaticStep(model, shape, part)
        steps[name].prepare([caches[name]], [[SEPARATOR] * frames], None)
    base = caches["plain"].seen_tokens
    torch.manual_seed(2)
    x = torch.randn(tokens, text.hidden_size, device=device, dtype=dtype)
    for step in steps.values():
        step.x.copy_(x)
    positions = base + torch.arange(tokens, device=device)[None]
    rotary = [part[0] for part in model.model.language_model.rotary_emb(x[None], positions)]
    held = {"plain": [caches["plain"].layers[number]], "fast": steps["fast"].table[number]}
    found = {}
    for name, (run, result) in operations(model, layer, steps["plain"], rotary, base, routed).items():
        try:
            outputs = []
            with torch.no_grad():
                for own, step in steps.items():
                    run(step, held[own])
                    outputs.append([part.clone() for part in result(step, caches[own].layers[number])])
                copy_buffers(steps["plain"], steps["fast"])
                errors = [error(fast, plain) for plain, fast in zip(*outputs, strict=True)]
            torch.cuda.synchronize()
        except Exception as problem:
            errors = f"{type(problem).__name__}: {str(problem)[:300]}"
        found[f"{name}{' routed' if routed else ''}"] = errors
    return found


def copy_buffers(plain: StaticStep, fast: StaticStep) -> None:
    """Give both steps the same buffers, so that each operation has the same inputs."""
    for name, value in vars(plain).items():
        if isinstance(value, torch.Tensor) and name not in ("control", "table", "ids"):
            getattr(fast, name).copy_(value)


def operations(model, layer, step: StaticStep, rotary, base: int, routed: bool) -> dict:
    """For each operation of a layer in its order: how a step runs it on a cache, and its results in step and cache."""
    shape = step.shape
    slots = step.slots if routed else shape.tokens
    index = (lambda step: step.index) if routed else (lambda step: None)
    scale = (lambda step: step.scale) if routed else (lambda step: None)

    def buffer(layer_cache, name):
        growing = layer_cache.growing[name]
        return growing.buffer.narrow(growing.dim, 0, layer_cache.get_seq_length() + slots)

    route = (
        lambda s, m: s.ops.route(
            s.x, layer, (shape.frames, shape.tokens // shape.frames - 1, shape.num_kept), s.index, s.scale,
            s.scores[0], s.kept[0], shape.gate, shape.force_last,
        ),
        lambda s, c: (s.scores[0], s.kept[0], s.index, s.scale),
    )  # fmt: skip
    return {
        **({"route": route} if routed else {}),
        "qkv": (
            lambda s, m: s.ops.project_qkv(s.x, index(s), layer, rotary, s.queries[:slots], m, [base], [slots]),
            lambda s, c: (s.queries[:slots], buffer(c, "keys"), buffer(c, "values"), buffer(c, "positions")),
        ),
        "attend": (
            lambda s, m: s.ops.attend(s.queries[:slots], layer, m, [slots], s.attended[:slots]),
            lambda s, c: (s.attended[:slots],),
        ),
        "out": (
            lambda s, m: s.ops.project_out(s.attended[:slots], layer, s.x, index(s), s.residual[:slots]),
            lambda s, c: (s.residual[:slots],),
        ),
        "mlp_up": (
            lambda s, m: s.ops.mlp_up(s.residual[:slots], layer, s.intermediate[:slots]),
            lambda s, c: (s.intermediate[:slots],),
        ),
        "mlp_down": (
            lambda s, m: s.ops.mlp_down(s.intermediate[:slots], layer, s.residual[:slots], s.x, index(s), scale(s)),
            lambda s, c: (s.x,),
        ),
        "lm_head": (lambda s, m: s.ops.lm_head(s.x, s.rows, model, s.logits), lambda s, c: (s.logits,)),
    }


def check_stream(dtype: torch.dtype, **options) -> dict:
    """A stream of frames, words and blocks in static steps, with and without graphs, compared with the model.

    In bfloat16 nearly equal scores may be ordered either way, so all tokens are kept there."""
    if dtype == torch.bfloat16:
        options = {"mod_keep_ratio": 1.0, **options}
    model = random_model("middle", "cuda", dtype=dtype, **options).eval()
    fast, per_frame = StaticLanguageModel(model), model.config.num_frame_tokens
    cache, expected, worst = MoDCache(model.config), MoDCache(model.config), 0.0
    torch.manual_seed(3)
    with torch.no_grad():
        for turn, frames in enumerate([1, 0, 1, 1, 1, 15, 15, 15, 0, 0, 4, 100]):
            ids = [7, 8, 9, START] if frames else torch.randint(7, 500, (1 if turn == 9 else 20,)).tolist()
            features = None
            if frames:
                ids = (ids if turn % 3 == 0 else [SEPARATOR]) + [VIDEO] * per_frame
                ids += ([SEPARATOR] + [VIDEO] * per_frame) * (frames - 1)
                size = (frames, per_frame, model.config.vision_config.hidden_size)
                features = torch.randn(size, device=model.device, dtype=dtype)
            inputs = {} if features is None else {"video_features": features}
            output = model(
                input_ids=torch.tensor([ids], device=model.device),
                cache=expected,
                logits_to_keep=1,
                **inputs,
            )
            logits, _, _ = fast.feed(cache, ids, features, None)
            worst = max(worst, error(logits[-1], output.logits[0, -1]))
    keys = max(error(a.keys, b.keys) for a, b in zip(cache.layers, expected.layers, strict=True))
    same = all(torch.equal(a.positions, b.positions) for a, b in zip(cache.layers, expected.layers, strict=True))
    graphs = len(fast._graphs.keys)
    return {"logits": worst, "keys": keys, "positions": same, "graphs": graphs, "failed": fast.why_not}


def device_times(function, repeats: int) -> list[float]:
    """Milliseconds of single calls, timed on the device, in ascending order."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in events:
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in events)


def milliseconds(function, repeats: int) -> dict:
    """p50 and p95 of single calls, timed on the device."""
    for _ in range(3):
        function()
    times = device_times(function, repeats)
    return {"p50": round(times[len(times) // 2], 4), "p95": round(times[int(0.95 * len(times))], 4)}


def captured(function):
    """One call of the function as a graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        function()
    return graph


def prepared(model, kernels, frames_held: int, frames: int = 1, tokens: int = 1) -> StaticStep:
    """A step on a stream that holds `frames_held` frames. With frames = 0, a step of `tokens` of text."""
    text, per_frame = model.config.text_config, model.config.num_frame_tokens
    routed = text.routed_layers if text.vision_routing == "mod" else ()
    shape = Shape(frames, frames * (per_frame + 1), 2, "residual", "learned", False, routed)
    if not frames:
        shape = Shape(0, tokens, 0, "residual", "learned", False, ())
    step = StaticStep(model, shape, kernels)
    step.prepare([filled_cache(model, frames_held)], [[SEPARATOR] * (frames or tokens)], None)
    return step


def time_step(model, kernels, held: int, frames: int = 1, tokens: int = 1, repeats: int = 60) -> dict:
    step = prepared(model, kernels, held, frames, tokens)
    graph = captured(step.forward)
    found = milliseconds(graph.replay, repeats)
    del graph, step
    torch.cuda.empty_cache()
    return found


def time_eager(model, held: int, repeats: int = 10) -> dict:
    """The model without static steps; every call starts at the same length."""
    cache, per_frame = filled_cache(model, held), model.config.num_frame_tokens
    ids = torch.tensor([[SEPARATOR] + [VIDEO] * per_frame], device="cuda")
    features = torch.randn(1, per_frame, model.config.vision_config.hidden_size, device="cuda", dtype=model.dtype)

    @torch.no_grad()
    def call():
        model(input_ids=ids, video_features=features, cache=cache, logits_to_keep=1)

    return milliseconds(call, repeats)


def attention_of(step: StaticStep, layers, slots: int) -> None:
    for layer in layers:
        static_kernels.Kernels.attend(step.queries[:slots], layer, step.table[0], [slots], step.attended[:slots])


def sweep_attention(model, held: int) -> dict:
    """Microseconds per layer of attention for a frame, and for its kept tokens. The keys are those of one layer; those
    of few frames stay in the GPU's cache."""
    step, found = prepared(model, static_kernels.Kernels, held), {}
    layers = model.model.language_model.layers
    for slots in (step.shape.tokens, 3):
        for splits in (16, 32, 64):
            for keys in ((64, 4, 3), (64, 4, 2), (32, 4, 4), (128, 8, 2)):
                static_kernels.SPLITS, static_kernels.KEYS_AT_ONCE = splits, keys
                name = f"{slots} slots, {splits} splits, {keys}"
                try:
                    graph = captured(functools.partial(attention_of, step, layers, slots))
                    found[name] = round(milliseconds(graph.replay, 10)["p50"] * 1000 / len(layers), 2)
                except Exception as problem:
                    found[name] = str(problem)[:80]
    # the best for a whole frame, which takes longer
    own = {k: v for k, v in found.items() if isinstance(v, float) and k.startswith(f"{step.shape.tokens} ")}
    best = min(own, key=own.get)
    static_kernels.SPLITS = int(best.split(", ")[1].split()[0])
    static_kernels.KEYS_AT_ONCE = tuple(int(x) for x in best[best.index("(") + 1 : -1].split(", "))
    return {"best": best, **dict(sorted(found.items(), key=lambda item: str(item[1])))}


def kernel_table(model, held: int) -> dict:
    """Microseconds of each kernel of a step."""
    step = prepared(model, static_kernels.Kernels, held)
    with torch.no_grad():
        step.forward()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            step.forward()
            torch.cuda.synchronize()
    rows = [
        (round(event.self_device_time_total), event.count, event.key[:70])
        for event in profiler.key_averages()
        if getattr(event, "self_device_time_total", 0)
    ]
    return {name: f"{micros} us in {count}" for micros, count, name in sorted(rows, reverse=True)[:20]}


def bandwidth() -> dict:
    """Terabytes per second: copied (read and written), and read only."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.numel() / milliseconds(lambda: target.copy_(source), 10)["p50"] * 1e3
    numbers = source.view(torch.int32)
    read = source.numel() / milliseconds(lambda: numbers.amax(), 10)["p50"] * 1e3
    return {"copy_TB_s": round(copied / 1e12, 3), "read_TB_s": round(read / 1e12, 3)}


def bytes_of_step(model, held: int) -> int:
    """Bytes that a frame has to read: weights, keys and values."""
    text = model.config.text_config
    routed = len(text.routed_layers) if text.vision_routing == "mod" else 0
    per_frame = model.config.num_frame_tokens + 1
    tokens = held * ((text.num_hidden_layers - routed) * per_frame + routed * 3)
    return bytes_of_weights(model) + tokens * 2 * text.num_key_value_heads * text.head_dim * model.dtype.itemsize


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", choices=NAMES, default="llama3-8b")
    parser.add_argument("--seconds", type=float, default=280)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    log = Log(args.output, args.seconds)
    log.attempt("bandwidth", bandwidth)
    check(log)
    measure(log, args.geometry)
    log.say("done")


def check(log: Log) -> None:
    """Compare operations and streams with plain torch."""
    model = random_model("middle", "cuda").eval()
    for frames, kernels in (
        (1, static_kernels.Kernels),
        (4, static_kernels.Kernels),
        (15, static_kernels.CublasKernels),
    ):
        parts = functools.partial(check_parts, model, kernels, frames)
        log.attempt(f"parts, {frames} frames, {kernels.__name__}", parts)
    for dtype, options in ((torch.bfloat16, {}), (torch.bfloat16, {"vision_routing": "full"}), (torch.float32, {})):
        log.attempt(f"stream {dtype} {options}", functools.partial(check_stream, dtype, **options), 20)


def measure(log: Log, geometry: str) -> None:
    """Time steps and their kernels, and choose tiles."""
    torch.cuda.empty_cache()
    model = random_model(geometry, "cuda").eval()
    log.say("the model is built")
    text = model.config.text_config
    ways = {"mod": "mod", "dense": "full"}

    def each(name: str, function, helds=(100, 600, 3000)) -> None:
        for held in helds:
            for way, routing in ways.items():
                text.vision_routing = routing
                log.attempt(f"{name}, {way}, {held} frames", lambda h=held: function(h))
        text.vision_routing = "mod"

    each("step before tuning", lambda held: time_step(model, static_kernels.Kernels, held), (600,))
    each("step, cuBLAS", lambda held: time_step(model, static_kernels.CublasKernels, held), (600,))
    log.attempt("attention at 3000 frames", lambda: sweep_attention(model, 3000), 20)
    each("step", lambda held: time_step(model, static_kernels.Kernels, held))
    for held in (100, 600, 3000):
        for way, routing in ways.items():
            text.vision_routing = routing
            found = log.result.get(f"step, {way}, {held} frames")
            if isinstance(found, dict):
                rate = bytes_of_step(model, held) / found["p50"] * 1e3 / 1e12
                share = rate / log.result["bandwidth"]["read_TB_s"]
                log.keep(f"read, {way}, {held} frames", f"{rate:.3f} TB/s, {100 * share:.0f}% of the bandwidth")
    text.vision_routing = "mod"
    log.attempt("kernels, mod, 600 frames", lambda: kernel_table(model, 600))
    log.attempt("kernels, mod, 3000 frames", lambda: kernel_table(model, 3000))
    each(
        "step, cuBLAS, tuned attention", lambda held: time_step(model, static_kernels.CublasKernels, held), (600, 3000)
    )
    log.attempt("one token, 3000 frames", lambda: time_step(model, static_kernels.Kernels, 3000, frames=0, tokens=1))
    log.attempt("32 tokens, 3000 frames", lambda: time_step(model, static_kernels.Kernels, 3000, frames=0, tokens=32))
    for frames in (15, 30):
        log.attempt(f"{frames} frames a step", lambda f=frames: time_step(model, static_kernels.CublasKernels, 600, f))
    each("model without static steps", lambda held: time_eager(model, held), (600,))
    pixels = torch.randn(30, 3, 384, 384, device="cuda", dtype=torch.bfloat16)
    for count in (1, 15, 30):

        def vision(count=count):
            graph = captured(lambda: model.model.frame_tokens(pixels[:count]))
            return milliseconds(graph.replay, 10)

        log.attempt(f"vision tower, {count} frames", vision)


if __name__ == "__main__":
    main()
