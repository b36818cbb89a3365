"""A batch of streams on one replica and on two of one machine: frames per second of the whole batch.

    python -m videollm_mod.benchmarks.replicas

A replica is a process with a GPU of its own, a model and a pool, as those of a server on several GPUs are. The batch
is watched by one replica, and then half by each of two, in turns. Weights and frames are random, which does not change
what a frame costs. The ways are those of `benchmarks/pool.py`: `live`, frame by frame, and `backlog`, in blocks.
"""

import argparse
import multiprocessing
import os
import shlex
import sys
from itertools import product
from statistics import median

import torch

from ..bench.geometries import NAMES
from ..bench.record import commit, summarise, surroundings, write_result
from ..bench.watching import build
from .pool import watch

REPLICAS = (1, 2)
SPAWN = multiprocessing.get_context("spawn")


def work(pipe, barrier, args) -> None:
    """A replica: watches as many streams as it is asked to, and answers with the seconds that it took."""
    model, processor = build(args.geometry, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    while (task := pipe.recv()) is not None:
        way, count, together = task
        pipe.send(watch(model, processor, way, count, args, ready=barrier.wait if together else lambda: None)[0])


def start(barrier, args) -> tuple[list, list]:
    """The processes of the replicas, each of which sees one GPU, and the pipes to them."""
    processes, pipes, visible = [], [], os.environ.get("CUDA_VISIBLE_DEVICES")
    for number in range(max(REPLICAS)):
        pipe, other = SPAWN.Pipe()
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number) if visible is None else visible.split(",")[number]
        process = SPAWN.Process(target=work, args=(other, barrier, args), daemon=True)
        process.start()
        other.close()  # so that the end of the process ends `recv`
        processes.append(process)
        pipes.append(pipe)
    del os.environ["CUDA_VISIBLE_DEVICES"]
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    return processes, pipes


def seconds_of(pipes, way: str, streams: int) -> float:
    """That the slowest of these replicas takes for its share of the batch."""
    for pipe in pipes:
        pipe.send((way, streams // len(pipes), len(pipes) > 1))
    return max(pipe.recv() for pipe in pipes)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--geometry", default="llama3-8b", choices=NAMES)
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 16], help="of a batch")
    parser.add_argument("--before", type=int, default=160, help="frames in each cache when the clock starts")
    parser.add_argument("--frames", type=int, default=24, help="timed frames of each stream")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(argv)
    machine = surroundings()
    barrier = SPAWN.Barrier(max(REPLICAS))
    processes, pipes = start(barrier, args)
    batches = []
    for streams, way in product(args.streams, ("live", "backlog")):
        rates: dict[int, list[float]] = {count: [] for count in REPLICAS}
        for turn in range(args.repeats + 1):
            for count in REPLICAS:
                seconds = seconds_of(pipes[:count], way, streams)
                rates[count] += [round(streams * args.frames / seconds, 2)] * (turn > 0)  # the first warms up
        speedup = round(median(rates[2]) / median(rates[1]), 3)
        own = {str(count): found for count, found in rates.items()}
        batches.append({"streams": streams, "way": way, "frames_per_second": own, "speedup": speedup})
        print(batches[-1], flush=True)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    command = shlex.join(
        ["python", "-m", "videollm_mod.benchmarks.replicas", *(sys.argv[1:] if argv is None else argv)]
    )
    sizes = {name: getattr(args, name) for name in ("geometry", "before", "frames")}
    path = write_result("replicas", {"command": command, "commit": commit(), **machine, **sizes, "batches": batches})
    summarise("pool_two_replicas", batches[0]["speedup"], f"benchmarks/results/{path.name}", command)


if __name__ == "__main__":
    main()
