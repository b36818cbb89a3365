"""How long a killed replica of a Ray cluster interrupts its clients, and whether any event is lost or doubled.

    python -m videollm_mod.benchmarks.serve_ray_kill

`videollm-mod serve --ray` runs replicas of the bundled checkpoint on this machine, and clients stream to them. Again
and again one replica is killed by SIGKILL. `resume_s` is the time from there to the first new event of each client
whose session was on it, and `replace_s` the time until a new replica answers. Then the hash gives the new replica some
of the sessions, which lose nothing: `move_s` is the time between the last event of such a session before it moves and
the first one after. A client counts the frames that it was told of: each has to come once.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

from ..bench.record import commit, summarise, surroundings, write_result
from ..client import Dropped, Resumed, Said, Watched, connect
from ..data.world import world_stream

PROCESS = "ray::ServeReplica:videollm-mod:Replica"  # how Ray names the process of a replica
SETTLE_SECONDS = 5.0  # after a new replica answers, before the next kill


def replicas() -> set[int]:
    """The processes of all replicas on this machine."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(PROCESS.encode()):
                found.add(int(folder.name))
        except OSError:
            continue  # it has just ended
    return found


class Viewer:
    """A client that streams until it is told to stop."""

    def __init__(self, url: str, seed: int, fps: float):
        self.url, self.seed, self.fps = url, seed, fps
        self.sent: list[float] = []
        self.told: list[tuple[float, object]] = []  # when, and what
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        images = world_stream(seed=self.seed).frames(fps=self.fps)
        async with connect(self.url, instructions="Narrate the scene.") as stream:
            reading = asyncio.create_task(self._read(stream))
            while not self.stopping.is_set():
                self.sent.append(len(self.sent) / self.fps)
                await stream.push(images[len(self.sent) % len(images)], self.sent[-1])
                await asyncio.sleep(1 / self.fps)
            await stream.finish()
            await reading

    async def _read(self, stream) -> None:
        async for event in stream:
            self.told.append((time.monotonic(), event))

    def pauses(self, killed: float) -> Iterator[tuple[str, float]]:
        """How long this client was interrupted after a kill, in seconds, each with what it was: `"resume"` from the
        kill on, if the session went with the replica, or `"move"`, if it went on and moved later."""
        last = None  # new event since the kill
        resumed = False
        for at, event in self.told:
            if at <= killed:
                continue
            if isinstance(event, Resumed):
                resumed = True
            elif isinstance(event, Watched | Said):
                if resumed:
                    yield ("resume", at - killed) if last is None else ("move", at - last)
                resumed, last = False, at

    @property
    def counts(self) -> Counter:
        """How often each frame was told of."""
        return Counter(event.time for _, event in self.told if isinstance(event, Watched | Dropped))


def ready(url: str, count: int) -> bool:
    try:
        with urlopen(f"{url}/health", timeout=10) as answer:
            return json.load(answer)["replicas"] == count
    except OSError:
        return False


async def kill_one(url: str, count: int, viewers: list[Viewer]) -> dict:
    """Kill a replica, and wait until another one has taken its place and all clients have come back."""
    before = replicas()
    killed, victim = time.monotonic(), random.choice(sorted(before))
    os.kill(victim, signal.SIGKILL)
    while not (replicas() - before and await asyncio.to_thread(ready, url, count)):
        await asyncio.sleep(0.1)
    replace = time.monotonic() - killed
    await asyncio.sleep(SETTLE_SECONDS)
    pauses = [pause for viewer in viewers for pause in viewer.pauses(killed)]
    found = {kind: [round(seconds, 3) for name, seconds in pauses if name == kind] for kind in ("resume", "move")}
    print(f"replaced after {replace:.1f} s; pauses {found}", flush=True)
    return {"replace_s": round(replace, 2), **{f"{kind}_s": seconds for kind, seconds in found.items()}}


async def measure(url: str, args) -> tuple[list[dict], list[Viewer]]:
    viewers = [Viewer(url, seed, args.fps) for seed in range(args.clients)]
    running = [asyncio.create_task(viewer.run()) for viewer in viewers]
    await asyncio.sleep(SETTLE_SECONDS)
    kills = [await kill_one(url, args.replicas, viewers) for _ in range(args.kills)]
    for viewer in viewers:
        viewer.stopping.set()
    await asyncio.gather(*running)
    return kills, viewers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second of one client")
    parser.add_argument("--kills", type=int, default=10)
    args = parser.parse_args()
    load = {"load_of_the_machine_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        options = ["--replicas", str(args.replicas), "--store", folder, "--device", "cpu", "--port", "0"]
        command = [sys.executable, "-m", "videollm_mod.commands.cli", "serve", "--ray", *options]
        environment = {**os.environ, "RAY_worker_niceness": "0"}  # that of the clients, on the same cores
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        try:
            assert server.stdout is not None
            url = next(line for line in server.stdout if line.startswith("serving on ")).split()[-1]
            kills, viewers = asyncio.run(measure(url, args))
        finally:
            server.terminate()
            server.wait()
    resume, move = ([seconds for kill in kills for seconds in kill[name]] for name in ("resume_s", "move_s"))
    figures = {
        "resume_s": round(statistics.median(resume), 3),
        "resume_s_slowest": max(resume),
        "move_s": round(statistics.median(move), 3),
        "move_s_slowest": max(move),
        "replace_s": statistics.median(kill["replace_s"] for kill in kills),
        "frames": sum(len(viewer.sent) for viewer in viewers),
        "lost_events": sum(len(set(viewer.sent) - set(viewer.counts)) for viewer in viewers),
        "doubled_events": sum(count - 1 for viewer in viewers for count in viewer.counts.values()),
        "dropped_frames": sum(isinstance(event, Dropped) for viewer in viewers for _, event in viewer.told),
    }
    print(figures, flush=True)
    line = f"python -m videollm_mod.benchmarks.serve_ray_kill --kills {args.kills}"
    result = {
        "command": line,
        "commit": commit(),
        **surroundings("ray"),
        **load,
        **vars(args),
        **figures,
        "kills": kills,
    }
    path = write_result("serve_ray_kill", result)
    for name in ("resume_s", "lost_events", "doubled_events"):
        summarise(f"serve_ray_{name}", figures[name], f"benchmarks/results/{path.name}", line)


if __name__ == "__main__":
    main()
