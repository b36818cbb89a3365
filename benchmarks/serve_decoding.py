"""What the engine's thread loses while images are decoded: in threads, as the server does, or in processes.

    python -m videollm_mod.benchmarks.serve_decoding

The engine is synthetic: it only launches, as on a GPU, with calls of numpy that are too small to release the
interpreter. Beside it come `--fps` JPEGs of 384 pixels a second, as of 8 clients. Threads call `decode_image`.
Processes get the bytes over a pipe, from a thread each, and write pixels into shared memory, from which the thread
copies them.
Each way runs in turns of `--seconds`, and the engine's calls are compared with those of the turn with nothing beside.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from queue import SimpleQueue

import numpy as np

from ..bench.record import commit, surroundings, write_result
from ..data.world import world_stream
from ..serving.images import decode_image
from .serve_resume import jpeg

SIDE = 384
WAYS = ("nothing", "threads", "processes")


def work(connection: Connection, name: str) -> None:
    """Of a process: decode what comes into the shared memory."""
    memory = SharedMemory(name)
    try:
        while content := connection.recv_bytes():
            pixels = decode_image(content)
            np.ndarray(pixels.shape, np.uint8, memory.buf)[:] = pixels
            connection.send(pixels.shape)
    finally:
        memory.close()


class Processes:
    """Decodes in processes, each with a thread that waits for it."""

    def __init__(self, count: int):
        context = multiprocessing.get_context("spawn")
        self.idle: SimpleQueue = SimpleQueue()
        self.threads, self.workers = ThreadPoolExecutor(count), []
        for _ in range(count):
            memory = SharedMemory(create=True, size=SIDE * SIDE * 3)
            own, other = context.Pipe()
            process = context.Process(target=work, args=(other, memory.name), daemon=True)
            process.start()
            self.workers.append((process, own, memory))
            self.idle.put((own, memory))

    def submit(self, content: bytes) -> Future:
        return self.threads.submit(self._decode, content)

    def _decode(self, content: bytes) -> np.ndarray:
        own, memory = self.idle.get()
        try:
            own.send_bytes(content)
            return np.ndarray(own.recv(), np.uint8, memory.buf).copy()
        finally:
            self.idle.put((own, memory))

    def close(self) -> None:
        self.threads.shutdown()
        for process, own, memory in self.workers:
            own.send_bytes(b"")
            process.join()
            memory.close()
            memory.unlink()


def launch(seconds: float) -> tuple[int, float]:
    """The engine: how many calls it made, and the seconds of CPU time that they took."""
    small, count = np.ones(4), 0
    cpu, end = time.thread_time(), time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(50):
            small = np.add(small, 1.0)
        count += 50
    return count, time.thread_time() - cpu


def turn(submit: Callable[[bytes], Future] | None, images: list[bytes], fps: float, seconds: float) -> dict:
    stopping, decoded = threading.Event(), []

    def feed() -> None:
        due = time.monotonic()
        while not stopping.is_set():
            decoded.append(submit(images[len(decoded) % len(images)]))  # type: ignore[misc]
            due += 1 / fps
            stopping.wait(max(0.0, due - time.monotonic()))

    feeding = threading.Thread(target=feed)
    if submit is not None:
        feeding.start()
    calls, cpu = launch(seconds)
    done = sum(future.done() for future in decoded)
    stopping.set()
    if submit is not None:
        feeding.join()
    for future in decoded:
        future.result()
    return {"calls_per_second": round(calls / seconds), "cpu_share": round(cpu / seconds, 3), "decoded": done}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fps", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn")
    parser.add_argument("--turns", type=int, default=15, help="of each way")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    images = [jpeg(image) for image in world_stream(seed=8700).frames(fps=2.0, height=SIDE)[:16]]
    threads, processes = ThreadPoolExecutor(args.workers), Processes(args.workers)
    ways: dict[str, Callable | None] = {
        "nothing": None,
        "threads": lambda content: threads.submit(decode_image, content),
        "processes": processes.submit,
    }
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    for number in range(args.turns):
        for way in WAYS[number % 3 :] + WAYS[: number % 3]:
            found[way].append(turn(ways[way], images, args.fps, args.seconds))
    processes.close()
    left = {
        way: round(
            statistics.median(
                one["calls_per_second"] / base["calls_per_second"]
                for one, base in zip(found[way], found["nothing"], strict=True)
            ),
            3,
        )
        for way in WAYS
    }
    done = {way: sum(one["decoded"] for one in found[way]) for way in WAYS}
    total = args.turns * args.seconds
    lost = {way: round((1 - left[way]) / (done[way] / total), 5) for way in WAYS if done[way]}
    command = f"python -m videollm_mod.benchmarks.serve_decoding --fps {args.fps:g} --workers {args.workers}"
    result = {"command": command, "commit": commit(), **surroundings("numpy", "pillow"), **vars(args)}
    result |= {"load_of_the_machine_before": load, "bytes_of_a_jpeg": len(images[0]), "engine_keeps": left}
    result |= {"decoded": done, "engine_loses_per_frame_a_second": lost, "turns_of_each": found}
    write_result("serve_decoding", result)
    print(json.dumps({"engine_keeps": left, "decoded": done, "engine_loses_per_frame_a_second": lost}))


if __name__ == "__main__":
    main()
