"""On this GPU: the fastest tiles of each product of a static step, for weights of one kind.

    python -m videollm_mod.benchmarks.step_tiles --weights fp8

Each product runs in a CUDA graph over so many weights that the cache of the GPU does not hold them, for all tokens of
a frame and for the slots of a routed layer. With `--step`, whole steps then choose among the three fastest tiles of
each product, since a kernel starts while the one before it is at work, and say how far kernels should fetch ahead.
Kernels are compiled by several processes first.
"""

import argparse
import ast
import math
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from .. import weights as stored_weights
from ..bench.geometries import NAMES, WEIGHTS, config_values
from ..bench.record import commit, surroundings, write
from ..bench.streams import random_model
from ..bench.weights import BITS, quantise, quantised
from ..configuration_videollm_mod import VideoLLMMoDConfig
from ..static_kernels import Kernels
from .step_variants import device_times, kernel_table, time_step

READ = 400e6  # bytes of distinct weights, several times what an H200's cache holds
SLOTS = (11, 3)  # of all layers, and of routed ones, which read their tokens by an index
HELD = 600  # frames, in whole steps
REPEATS = 20  # of a product
AHEAD = (0, 4, 8, 16, 32)  # as `weights.LINES`
CANDIDATES = {  # as `weights.TILES`
    16: (
        (64, 128, 1, 4, 6), (64, 128, 1, 4, 4), (64, 256, 1, 4, 4), (64, 256, 2, 4, 4), (64, 128, 2, 4, 6),
        (128, 128, 1, 4, 4), (128, 128, 2, 4, 4), (32, 256, 1, 4, 4),
    ),
    8: (
        (64, 128, 1, 4, 4), (64, 128, 1, 4, 6), (64, 128, 1, 4, 8), (64, 256, 1, 4, 4), (64, 256, 1, 4, 6),
        (64, 512, 1, 4, 3), (128, 128, 1, 4, 4), (128, 128, 1, 4, 5), (128, 256, 1, 4, 4), (32, 256, 1, 4, 6),
        (64, 128, 2, 4, 6), (64, 256, 2, 4, 4), (128, 128, 2, 4, 5), (128, 128, 4, 4, 6), (128, 256, 4, 4, 4),
    ),
    4: (
        (32, 256, 1, 2, 4), (32, 256, 2, 2, 4), (32, 256, 4, 2, 4), (32, 256, 1, 2, 3), (32, 128, 1, 2, 6),
        (32, 128, 4, 2, 6), (64, 256, 1, 4, 3), (64, 256, 1, 4, 4), (64, 256, 2, 4, 4), (64, 256, 4, 4, 3),
        (64, 128, 1, 4, 6), (128, 256, 2, 8, 3),
    ),
}  # fmt: skip


class Products:
    """Random weights of a geometry, and a call of each product."""

    def __init__(self, geometry: str, weights: str, read: float = READ):
        text = VideoLLMMoDConfig(**config_values(geometry)).text_config
        self.text, self.weights, self.read = text, weights, read
        self.x = torch.randn(max(SLOTS), text.hidden_size, device="cuda", dtype=torch.bfloat16)
        self.residual = torch.randn_like(self.x)
        self.intermediate = torch.randn(max(SLOTS), text.intermediate_size, device="cuda", dtype=torch.bfloat16)
        size = max(SLOTS), text.num_attention_heads, text.head_dim
        self.queries = torch.zeros(size, device="cuda", dtype=torch.bfloat16)
        self.logits = torch.zeros(1, text.vocab_size, device="cuda", dtype=torch.bfloat16)
        buffer = torch.zeros(64 * text.num_key_value_heads * text.head_dim, device="cuda", dtype=torch.bfloat16)
        self.kept = buffer, torch.zeros(64, device="cuda", dtype=torch.long)
        places = [buffer.data_ptr(), buffer.data_ptr(), self.kept[1].data_ptr(), 0, 64, 0, max(SLOTS), 0]
        self.table = torch.tensor([places], device="cuda")
        self.index = torch.arange(min(SLOTS), device="cuda")
        self.scale = torch.ones(2, min(SLOTS), device="cuda")
        self.norm = SimpleNamespace(weight=torch.ones_like(self.x[0]), variance_epsilon=1e-5)
        self.rotary = [torch.randn(max(SLOTS), text.head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(2)]

    def calls(self, name: str) -> tuple[list[Callable[[int], None]], int]:
        """One call for each set of weights, which takes a number of slots; and the bytes of a set."""
        text, own = self.text, {"qkv": self._qkv, "out": self._out, "mlp_up": self._up, "mlp_down": self._down}
        width, inner = text.hidden_size, text.intermediate_size
        heads, groups = (n * text.head_dim for n in (text.num_attention_heads, text.num_key_value_heads))
        sizes = {
            "qkv": [(heads, width), (groups, width), (groups, width)], "out": [(width, heads)],
            "mlp_up": [(inner, width)] * 2, "mlp_down": [(width, inner)], "lm_head": [(text.vocab_size, width)],
        }[name]  # fmt: skip
        per_set = int(sum(map(math.prod, sizes)) * BITS[self.weights] / 8)
        sets = [[self._linear(*size) for size in sizes] for _ in range(max(1, math.ceil(self.read / per_set)))]
        return [own.get(name, self._head)(*linears) for linears in sets], per_set

    def _linear(self, rows: int, columns: int) -> nn.Linear:
        linear = nn.Linear(columns, rows, bias=False, device="cuda", dtype=torch.bfloat16)
        return quantised(linear, self.weights)

    def _slots(self, slots: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Index and scale of a step."""
        return (self.index, self.scale) if slots == min(SLOTS) else (None, None)

    def _qkv(self, q, k, v):
        attention = SimpleNamespace(q_proj=q, k_proj=k, v_proj=v, config=SimpleNamespace(qk_norm=False))
        layer = SimpleNamespace(self_attn=attention, input_layernorm=self.norm)
        return lambda n: Kernels.project_qkv(
            self.x, self._slots(n)[0], layer, self.rotary, self.queries[:n], self.table, [0], [n]
        )

    def _out(self, o):
        layer, x = SimpleNamespace(self_attn=SimpleNamespace(o_proj=o)), self.x
        return lambda n: Kernels.project_out(
            self.queries[:n].flatten(1), layer, x, self._slots(n)[0], self.residual[:n]
        )

    def _up(self, gate, up):
        mlp = SimpleNamespace(gate_proj=gate, up_proj=up, down_proj=gate)  # of which only the kind counts
        layer = SimpleNamespace(mlp=mlp, post_attention_layernorm=self.norm)
        return lambda n: Kernels.mlp_up(self.x[:n], layer, self.intermediate[:n])

    def _down(self, down):
        layer, x = SimpleNamespace(mlp=SimpleNamespace(down_proj=down)), self.x
        return lambda n: Kernels.mlp_down(self.intermediate[:n], layer, self.residual[:n], x, *self._slots(n))

    def _head(self, head):
        language = SimpleNamespace(norm=self.norm)
        model = SimpleNamespace(model=SimpleNamespace(language_model=language), lm_head=head)
        rows = torch.zeros(1, device="cuda", dtype=torch.long)
        return lambda n: Kernels.lm_head(self.x, rows, model, self.logits)


def compile_one(task: tuple) -> None:
    """Leave the kernels of some tiles in Triton's cache."""
    geometry, weights, name, tile = task
    use(name, weights, tile)
    try:
        for slots in SLOTS:
            Products(geometry, weights, 0).calls(name)[0][0](slots)
    except Exception as error:
        print(name, tile, type(error).__name__, str(error)[:200], flush=True)


def use(name: str, weights: str, tile: tuple) -> None:
    stored_weights.TILES[name][BITS[weights]] = tile


def captured(calls: list[Callable[[int], None]], slots: int) -> torch.cuda.CUDAGraph:
    for call in calls:  # kernels are compiled, and counters made, outside of the graph
        call(slots)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        for call in calls:
            call(slots)
    return graph


def measure_steps(geometry: str, weights: str, fastest: dict[str, list[tuple]], end: float) -> dict:
    """ms of whole steps, by what was changed, and of their kernels. The best tiles stay set."""
    model, found = random_model(geometry, "cuda").eval(), {}
    quantise(model, weights)

    def timed(name: str) -> float:
        found[name] = time_step(model, Kernels, HELD)["p50"]
        print(name, found[name], flush=True)
        return found[name]

    for name, tiles in fastest.items():
        use(name, weights, tiles[0])
    for name, tiles in fastest.items():
        times = []
        for tile in tiles:
            if time.perf_counter() < end:
                use(name, weights, tile)
                times.append((timed(f"{name} {tile}"), tile))
        if times:
            use(name, weights, min(times)[1])
    for lines in AHEAD:
        if time.perf_counter() < end:
            stored_weights.LINES = lines
            timed(f"fetch {lines} lines ahead")
    stored_weights.LINES = 0  # where they overlap, times of kernels tell nothing
    found["kernels, one by one"] = kernel_table(model, HELD)
    print(found["kernels, one by one"], flush=True)
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", choices=NAMES, default="llama3-8b")
    parser.add_argument("--weights", choices=WEIGHTS, default="fp8")
    parser.add_argument("--products", nargs="+", choices=tuple(stored_weights.TILES), default=None)
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    end, own = time.perf_counter() + args.seconds, CANDIDATES[BITS[args.weights]]
    names = args.products or [name for name in stored_weights.TILES if args.weights == "fp8" or name != "lm_head"]
    tasks = [(args.geometry, args.weights, name, tile) for name in names for tile in own]
    with multiprocessing.get_context("spawn").Pool(min(16, len(tasks))) as pool:
        pool.map(compile_one, tasks, chunksize=1)
    print(f"compiled, {end - time.perf_counter():.0f} s left", flush=True)
    command = f"python -m videollm_mod.benchmarks.step_tiles --weights {args.weights}" + " --step" * args.step
    result = {"command": command, "commit": commit(), **surroundings("triton"), "weights": args.weights}
    result |= {"geometry": args.geometry, "slots": SLOTS, "products": {}}
    products = Products(args.geometry, args.weights)
    for name in names:
        calls, size = products.calls(name)
        found, layers = result["products"].setdefault(name, {}), 1 if name == "lm_head" else 32
        for tile in own:
            if time.perf_counter() > end:
                break
            use(name, args.weights, tile)
            try:
                times = [
                    device_times(captured(calls, slots).replay, REPEATS)[REPEATS // 2] / len(calls) for slots in SLOTS
                ]
            except Exception as error:
                print(name, tile, type(error).__name__, str(error)[:200], flush=True)
                continue
            found[str(tile)] = {
                "ms_a_frame": [round(layers * own, 4) for own in times],
                "gb_per_s": [round(size / own / 1e6) for own in times],
            }
            print(name, tile, found[str(tile)], flush=True)
        best = min(found, key=lambda tile: sum(found[tile]["ms_a_frame"]), default=None)
        print(f"best of {name}: {best}", found.get(best), flush=True)
        write(args.json, result)
        del calls
    if args.step:
        fastest = {
            name: sorted(map(ast.literal_eval, tiles), key=lambda tile: sum(tiles[str(tile)]["ms_a_frame"]))[:3]
            for name, tiles in result["products"].items()
            if tiles
        }
        del products
        torch.cuda.empty_cache()
        result["step_ms"] = measure_steps(args.geometry, args.weights, fastest, end + args.seconds)
        result["tiles"] = {name: stored_weights.TILES[name][BITS[args.weights]] for name in names}
        write(args.json, result)


if __name__ == "__main__":
    main()
