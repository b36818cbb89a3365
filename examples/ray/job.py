"""Runs a command of `videollm-mod` on several workers of a Ray cluster, as `accelerate launch` does on one machine.

    python examples/ray/job.py --workers 2 -- extract streams.jsonl --model DIR --output FOLDER
    python examples/ray/job.py --workers 2 --gpus 1 -- evaluate --model DIR --data step.jsonl --task step --json a.json

The videos are split over the workers, which must all see the files. `extract` and `evaluate` keep what is done. So
when a worker dies, all are started again and continue from there, and so does the same command later.
"""

import argparse
import os
import socket
import sys

import ray
from ray.util import get_node_ip_address


class Worker:
    """One process of the command."""

    def address(self) -> tuple[str, int]:
        """Where the workers can meet, on this machine."""
        with socket.socket() as free:
            free.bind(("", 0))
            return get_node_ip_address(), free.getsockname()[1]

    def run(self, command: list[str], rank: int, count: int, address: tuple[str, int], folder: str) -> int:
        os.chdir(folder)
        # what `torchrun` sets; Ray shows each worker only the GPUs that are its own
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": address[0], "MASTER_PORT": str(address[1])}
        from videollm_mod.commands.cli import main

        return main(command)


def attempt(command: list[str], workers: int, cpus: float, gpus: float) -> int:
    """Run the command once. Raises `ray.exceptions.RayError` if a worker dies."""
    worker = ray.remote(Worker).options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD")
    started = [worker.remote() for _ in range(workers)]
    try:
        address = ray.get(started[0].address.remote())
        places = [(rank, workers, address, os.getcwd()) for rank in range(workers)]
        running = [each.run.remote(command, *place) for each, place in zip(started, places, strict=True)]
        codes = []
        while running:  # whichever ends first: the others would wait for one that has died
            ended, running = ray.wait(running)
            codes += ray.get(ended)
            if codes[-1]:
                break
        return max(codes)
    finally:
        for each in started:
            ray.kill(each)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cpus", type=float, default=1, help="of one worker")
    parser.add_argument("--gpus", type=float, default=0, help="of one worker")
    parser.add_argument("--attempts", type=int, default=3, help="how often workers may die")
    parser.add_argument("command", nargs="+", help="after --: a command of videollm-mod and its options")
    options = parser.parse_args()
    ray.init()
    for left in reversed(range(options.attempts)):
        try:
            return attempt(options.command, options.workers, options.cpus, options.gpus)
        except ray.exceptions.RayError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"a worker has died: {reason}; {left} more attempts", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
