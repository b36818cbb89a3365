"""Fifty connections that treat a server as the public would: they come, ask, cancel, send garbage, stall and vanish.

    python -m videollm_mod.benchmarks.serve_soak --seconds 600 --connections 50

`videollm-mod serve` runs in a process of its own with the bundled model. Each connection plays one part after another
(`serve_soak_parts.py`), chosen at random with a seed. Some of the parts behave well, and must get exactly the events
that the same session gets alone. Everything that is wrong must be answered by one clear error. Clients that are
stopped (SIGSTOP) leave connections half open, which the server has to find. Before and after the run nobody is
connected: then the server must hold no session, and as many threads, files and tasks as before. Its memory must not
grow from the second to the last third of the run.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx

from ..bench.record import RESULTS, ROOT, commit, summarise, surroundings, write_result
from .serve_soak_parts import CHANCES, PARTS, Crowd, Script

KEYS = ("a-key-for-those-who-behave", "a-key-for-those-who-do-not")
LIMITS = {"--max-sessions": 96, "--max-message-bytes": 2**20, "--idle-seconds": 60, "--max-waiting-frames": 16}
SAMPLE_SECONDS = 2.0
REST_SECONDS = 240.0  # for the server to close what others have left, once they are gone
STOPPED = 3  # client processes that are stopped, one after another; each holds several connections
STOPPED_SECONDS = 100.0  # within which the server has to notice
GROWTH = 1.1  # memory at most, of the last third of a run to the second third
PAGE = os.sysconf("SC_PAGE_SIZE")
# what the server's process may say: our own notes, and that HTTP which is none was refused
EXPECTED = re.compile(r"(WARNING:\s+(Invalid HTTP request received|Unsupported upgrade request)|note: ).*")


class Watched:
    """The server's process, seen from outside. process (`Popen`); url (`str`): of the server."""

    def __init__(self, process: subprocess.Popen, url: str):
        self.process, self.http = process, httpx.AsyncClient(base_url=url, timeout=60)
        self.began = time.monotonic()

    async def sample(self) -> dict:
        """What the server holds now."""
        folder = Path(f"/proc/{self.process.pid}")
        pages = int((folder / "statm").read_text().split()[1])
        threads = next(line for line in (folder / "status").read_text().splitlines() if line.startswith("Threads"))
        lines = (await self.http.get("/metrics")).text.splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {
            "second": round(time.monotonic() - self.began, 1),
            "rss_bytes": pages * PAGE,
            "threads": int(threads.split()[1]),
            "files": len(list((folder / "fd").iterdir())),
            **{name: int(float(values[f"videollm_mod_{name}"])) for name in ("sessions", "tasks", "cache_bytes")},
        }

    async def rest(self, like: dict | None = None) -> dict:
        """What the server holds after all clients have left. Waits until no value is above that in `like`, but not
        longer than `REST_SECONDS`."""
        await self.http.aclose()  # its connection is one of the files
        end = time.monotonic() + REST_SECONDS
        while True:
            async with httpx.AsyncClient(base_url=str(self.http.base_url), timeout=60) as self.http:
                sample = await self.sample()
            small = sample["sessions"] == 0 and all(sample[name] <= like[name] for name in like or ())
            if small or time.monotonic() > end:
                self.http = httpx.AsyncClient(base_url=str(self.http.base_url), timeout=60)
                return sample
            await asyncio.sleep(1)


@contextlib.contextmanager
def server(folder: Path):
    """The command in a process of its own, on a free port of this machine: the process, and its address."""
    (folder / "keys").write_text("\n".join(KEYS))
    command = [sys.executable, "-m", "videollm_mod.commands.cli", "serve", "--model", str(ROOT), "--port", "0"]
    command += ["--keys", str(folder / "keys"), "--store", str(folder / "sessions")]
    command += [str(part) for pair in LIMITS.items() for part in pair]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("serving on"):
            raise RuntimeError(f"the server did not start:\n{(folder / 'server.log').read_text()}")
        yield process, line.split()[-1]
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()


# A client that opens a WebSocket, events over HTTP and half a request, and is stopped then. When it goes on, it tells
# which of the connections the server has closed.
HALF_OPEN = """
import json, os, signal, socket, sys
host, port, key, session = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
head = "Host: soak\\r\\nAuthorization: Bearer " + key + "\\r\\n"
upgrade = "Connection: Upgrade\\r\\nUpgrade: websocket\\r\\nSec-WebSocket-Version: 13\\r\\n"
upgrade += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n"
requests = {
    "websocket": "GET /v1/realtime HTTP/1.1\\r\\n" + head + upgrade + "\\r\\n",
    "events": "GET /v1/streaming/sessions/" + session + "/events HTTP/1.1\\r\\n" + head + "\\r\\n",
    "half a body": "POST /v1/streaming/sessions HTTP/1.1\\r\\n" + head + "Content-Length: 99\\r\\n\\r\\n{",
    "half a header": "GET /v1/models HTTP/1.1\\r\\nHost: so",
    "nothing": "",
}
sockets = {}
for name, text in requests.items():
    sockets[name] = socket.create_connection((host, port))
    sockets[name].sendall(text.encode())
for name in ("websocket", "events"):
    sockets[name].recv(1)
print("ready", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
open_still = []
for name, each in sockets.items():
    each.settimeout(3)
    try:
        while each.recv(65536):
            pass
    except TimeoutError:
        open_still.append(name)
    except OSError:
        pass
print(json.dumps(open_still), flush=True)
"""


async def half_open(crowd: Crowd, url: str, seconds: float) -> None:
    """Clients that are stopped for `seconds`, in which the server should notice."""
    host, port = url.removeprefix("http://").split(":")
    async with crowd.http(KEYS[1]) as http:
        session = (await http.post("/v1/streaming/sessions")).json()["id"]
    command = [sys.executable, "-c", HALF_OPEN, host, port, KEYS[1], session]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        await asyncio.sleep(seconds)
        process.send_signal(signal.SIGCONT)
        left = json.loads(await process.stdout.readline())
        crowd.check(not left, "half open", f"still open after {seconds:g} s: {', '.join(left)}")
        crowd.done["half open"] += 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def play(crowd: Crowd, rng: random.Random, end: float) -> None:
    """One connection: one part after another."""
    while time.monotonic() < end and crowd.going:
        await crowd.play(rng.choices(list(PARTS), CHANCES)[0], rng)


async def storm(watched: Watched, crowd: Crowd, args, seconds: float, with_stopped: bool) -> list[dict]:
    """All connections for some time; returns what was seen of the server meanwhile."""
    end = time.monotonic() + seconds
    rngs = [random.Random(f"soak/{args.seed}/{seconds}/{number}") for number in range(args.connections)]
    tasks = [asyncio.create_task(play(crowd, rng, end)) for rng in rngs]
    if with_stopped:
        tasks += [asyncio.create_task(half_open(crowd, args.url, 100)) for _ in range(STOPPED)]
    samples = []
    while not all(task.done() for task in tasks):
        samples.append(await watched.sample())
        samples[-1]["playing"] = sum(not task.done() for task in tasks)
        await asyncio.sleep(SAMPLE_SECONDS)
    for task in tasks:
        task.result()
    return samples


def growth(samples: list[dict], name: str) -> float:
    """The median of the last third to that of the second third, in which nothing is new anymore."""
    third = max(1, len(samples) // 3)
    parts = samples[third : 2 * third] or samples, samples[-third:]
    middle, last = (statistics.median(sample[name] for sample in part) for part in parts)
    return last / max(1, middle)


async def run(args, process: subprocess.Popen, url: str) -> dict:
    args.url = url
    crowd, watched = Crowd(url, KEYS), Watched(process, url)
    crowd.scripts = [Script(seed) for seed in range(40, 46)]
    for script in crowd.scripts:
        await crowd.learn(script)
    warm = await storm(watched, crowd, args, args.warm_up, with_stopped=False)
    before = await watched.rest()
    crowd.done.clear()
    samples = await storm(watched, crowd, args, args.seconds, with_stopped=args.seconds > STOPPED_SECONDS)
    watched_names = ("threads", "files", "tasks")
    after = await watched.rest({name: before[name] for name in watched_names})
    for name in watched_names:
        crowd.check(after[name] <= before[name], "growth", f"{name}: {before[name]} before, {after[name]} after")
    crowd.check(after["sessions"] == 0, "growth", f"{after['sessions']} sessions are left")
    ratio = growth(samples, "rss_bytes")
    crowd.check(ratio <= GROWTH, "growth", f"memory grew by {ratio:.3f} from the second to the last third")
    return {
        "before": before,
        "after": after,
        "memory_growth": round(ratio, 4),
        "parts": dict(crowd.done),
        "errors": dict(crowd.errors),
        "exact_sessions": crowd.exact,
        "exact_events": crowd.exact_events,
        "problems": [f"{where}: {what} ({count})" for (where, what), count in crowd.problems.items()],
        "samples": warm + samples,
    }


def plot(samples: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = {
        "rss_bytes": "memory, MiB",
        "sessions": "sessions",
        "tasks": "tasks",
        "files": "files",
        "threads": "threads",
    }
    figure, axes = pyplot.subplots(len(names), sharex=True, figsize=(8, 8), layout="constrained")
    for axis, (name, label) in zip(axes, names.items(), strict=True):
        scale = 2**20 if name == "rss_bytes" else 1
        axis.plot([each["second"] for each in samples], [each[name] / scale for each in samples], linewidth=1)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def unexpected(log: str) -> list[str]:
    """Lines of the server's standard error that should not be there."""
    return [line for line in log.splitlines() if line.strip() and not EXPECTED.fullmatch(line.strip())]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--warm-up", type=float, default=60.0)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "serve_soak.json")
    args = parser.parse_args(argv)
    command = "python -m videollm_mod.benchmarks.serve_soak"
    command += f" --seconds {args.seconds:g} --connections {args.connections}"
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name, server(Path(name)) as (process, url):
        result = asyncio.run(run(args, process, url))
        result["log"] = Counter(unexpected((Path(name) / "server.log").read_text()))
    problems = [*result["problems"], *(f"the server's log: {line} ({count})" for line, count in result["log"].items())]
    measured = {
        "command": command,
        "commit": commit(),
        "limits": LIMITS,
        "load_of_the_machine_before": load,
        **surroundings("uvicorn"),
    }
    if args.output.parent == RESULTS:
        write_result(args.output.stem, {**measured, **result})
        if args.seconds >= 600 and not problems:
            summarise(
                "serve_soak_exact_sessions", result["exact_sessions"], "benchmarks/results/serve_soak.json", command
            )
    else:
        args.output.write_text(json.dumps({**measured, **result}, indent=1))
    plot(result["samples"], args.output.with_suffix(".png"))
    shown = {name: value for name, value in result.items() if name not in ("samples", "problems", "log")}
    print(json.dumps(shown, indent=1))
    if problems:
        raise SystemExit("\n".join(["failed:", *problems[:60]]))


if __name__ == "__main__":
    main()
