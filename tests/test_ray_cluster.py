"""Two replicas on two Ray nodes of this machine: whatever dies or moves, each client gets each event exactly once.

`make test-ray` runs this file in an environment with Ray.
"""

import asyncio
import base64
import contextlib
import io
import math
import os
import re
import signal
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from secrets import token_hex
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from websockets.exceptions import ConnectionClosed

# Ray reads these when it is imported, and would otherwise write a token to the home folder
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
os.environ["RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "1"  # of ten, to wait less
ray = pytest.importorskip("ray", reason="needs Ray, which is large: make test-ray")

from comparing import PROBABILITY, assert_near  # noqa: E402
from fresh_process import ROOT  # noqa: E402
from ray import serve  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from running_servers import client, frames_of, serving  # noqa: E402
from waiting import PATIENCE, until  # noqa: E402

from videollm_mod.client import Dropped, Problem, Refused, Resumed, Said, Watched, connect  # noqa: E402
from videollm_mod.commands.serve import ServeOptions, app, cluster_app  # noqa: E402
from videollm_mod.memory import frames_in_context  # noqa: E402
from videollm_mod.serving.keys import Keys  # noqa: E402
from videollm_mod.serving.ray_app import follow_waiting  # noqa: E402

pytestmark = pytest.mark.ray

KEY = "a-key-for-tests-0123456789"
NAME = f"test-{os.getpid()}"  # of the application, and so part of the names of its processes
SEEDS, FRAMES = (60, 61, 62), 16
QUESTION = "How many objects are there?"


class Nodes:
    """A head and one more node, and the application on them."""

    def __init__(self, saved: Path):
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self.other = self.cluster.add_node(num_cpus=1)
        ray.init(address=self.cluster.address, log_to_driver=False, configure_logging=False)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.saved = f"http://127.0.0.1:{port}", saved
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})

    def run(self, replicas: int = 2, **options) -> None:
        """Deploy the application, or another version of it."""
        own = {"max_fps": 1e6, "max_waiting_frames": 256, "device": "cpu", "name": "nano"}
        own |= {"max_message_bytes": 64 * 2**20, **options}
        chosen = ServeOptions(ray=True, replicas=replicas, saved=str(self.saved), **own)
        serve.run(cluster_app(chosen, Keys([KEY])), name=NAME)

    def health(self) -> dict:
        return httpx.get(f"{self.url}/health", timeout=PATIENCE).json()

    def has(self, replicas: int) -> bool:
        return self.health().get("replicas") == replicas

    def stop(self) -> None:
        serve.shutdown()
        ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    nodes = Nodes(tmp_path_factory.mktemp("sessions"))
    try:
        nodes.run()
        yield nodes
    finally:
        nodes.stop()


def processes(deployment: str) -> list[int]:
    """Of a deployment of the application."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text()
        except OSError:  # it has just ended
            continue
        if command.startswith(f"ray::ServeReplica:{NAME}:{deployment}"):
            found.append(int(folder.name))
    return sorted(found)


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


class Streams:
    """One client per seed: each pushes frames, asks a question, and pushes the rest."""

    def __init__(self, url: str):
        self.url, self.events = url, {seed: [] for seed in SEEDS}
        self.sessions: dict[int, str] = {}
        self.half, self.go_on = asyncio.Event(), asyncio.Event()

    async def play(self, seed: int) -> None:
        async with connect(self.url, key=KEY, instructions="Narrate the scene.", patience=PATIENCE) as stream:
            reading = asyncio.create_task(self._read(stream, seed))
            frames = frames_of(seed, FRAMES)
            for index, (image, time) in enumerate(frames):
                await stream.push(image, time)
                if index == FRAMES // 2:
                    self.sessions[seed] = stream.session["id"]
                    if len(self.sessions) == len(SEEDS):
                        self.half.set()
                    await self.go_on.wait()
                if index == FRAMES - 4:
                    await stream.ask(QUESTION)
            await stream.finish()
            await reading

    async def _read(self, stream, seed: int) -> None:
        async for event in stream:
            self.events[seed].append(event)

    def results(self) -> dict[int, list]:
        """What each client was told, without what says that something went wrong."""
        assert not [e for events in self.events.values() for e in events if isinstance(e, Dropped | Problem)]
        return {
            seed: [
                (type(each).__name__, each.time, getattr(each, "text", ""))
                for kind in (Watched, Said)
                for each in events
                if isinstance(each, kind)
            ]
            for seed, events in self.events.items()
        }

    @property
    def resumed(self) -> int:
        return sum(isinstance(event, Resumed) for events in self.events.values() for event in events)


def play(url: str, disturb=lambda streams: None) -> Streams:
    """Run all clients. `disturb` is called, in another thread, when each has pushed half of its frames: the last of
    them are on their way."""

    async def run() -> Streams:
        streams = Streams(url)
        playing = [asyncio.create_task(streams.play(seed)) for seed in SEEDS]
        halfway = asyncio.create_task(streams.half.wait())
        await asyncio.wait([*playing, halfway], return_when=asyncio.FIRST_COMPLETED)
        disturbing = asyncio.create_task(asyncio.to_thread(disturb, streams))
        streams.go_on.set()
        await asyncio.gather(*playing, disturbing)
        return streams

    return asyncio.run(run())


@pytest.fixture(scope="module")
def alone(checkpoint) -> dict[int, list]:
    """What a server of one process says."""
    with serving(checkpoint, keys=(KEY,)) as server:
        return play(server.url).results()


def test_two_replicas_say_what_one_server_says(nodes, alone):
    streams = play(nodes.url)
    assert streams.results() == alone and streams.resumed == 0


def noise(mib: int) -> bytes:
    """A PNG of a little more than so many MiB."""
    side = math.ceil((mib * 2**20 / 3) ** 0.5)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "png", compress_level=0)
    return file.getvalue()


def test_what_rays_proxy_takes(nodes):
    """16 MiB of a WebSocket message, and as much of a request as the server allows."""

    async def run() -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        async with client(nodes.url, additional_headers=headers) as mine:
            await mine.socket.send(struct.pack(">4sd", b"VMF1", 0.0) + noise(12))
            assert (await mine.until("input_video_frame.acknowledged"))["status"] == "watched"
            with pytest.raises(ConnectionClosed):
                await mine.socket.send(struct.pack(">4sd", b"VMF1", 1.0) + noise(20))
                await mine.until("never")
            assert mine.socket.close_code == 1009
        async with connect(nodes.url, key=KEY, patience=PATIENCE) as stream:
            with pytest.raises(Refused, match="the server takes 16777216: send a smaller image"):
                await stream.push(noise(20), 0.0)
            await stream.push(noise(1), 0.0)
            await stream.finish()
            assert [event.time for event in stream.pending() if isinstance(event, Watched)] == [0.0]

    asyncio.run(run())
    clip = (ROOT / "media" / "world.mp4").read_bytes()
    for mib, status in ((40, 200), (60, 413)):  # of the file, to which base64 adds a third
        padding = mib * 2**20 - len(clip)
        url = b"data:video/mp4;base64," + base64.b64encode(
            clip + struct.pack(">I4s", padding, b"free").ljust(padding, b"\0")
        )
        content = [{"type": "video_url", "video_url": {"url": url.decode()}}, {"type": "text", "text": QUESTION}]
        asked = {"model": "nano", "max_tokens": 4, "messages": [{"role": "user", "content": content}]}
        headers = {"Authorization": f"Bearer {KEY}"}
        answer = httpx.post(f"{nodes.url}/v1/chat/completions", json=asked, headers=headers, timeout=PATIENCE)
        assert answer.status_code == status, answer.text[:500]
        if status == 413:
            assert answer.json()["error"]["code"] == "request_too_large"


def test_a_killed_replica_is_replaced_and_its_sessions_go_on(nodes, alone):
    before = processes("Replica")
    streams = play(nodes.url, lambda _: kill(before[0]))
    assert streams.results() == alone
    until(lambda: nodes.has(2), "the new replica")
    assert len({*processes("Replica")} - {*before}) == 1


def test_a_killed_ingress_is_as_if_the_server_came_back(nodes, alone):
    before = processes("Ingress")
    streams = play(nodes.url, lambda _: kill(*before))
    assert streams.results() == alone and streams.resumed >= len(SEEDS)
    until(lambda: not {*processes("Ingress")} & {*before} and len(processes("Ingress")) == len(before))


def test_draining_moves_sessions(nodes, alone):
    streams = play(nodes.url, lambda _: nodes.run(replicas=1))
    assert streams.results() == alone
    until(lambda: len(processes("Replica")) == 1 and nodes.has(1), "one replica")
    streams = play(nodes.url, lambda _: nodes.run(replicas=2))
    assert streams.results() == alone
    until(lambda: len(processes("Replica")) == 2 and nodes.has(2), "two replicas")


def test_another_version_takes_the_sessions_over(nodes, alone):
    before = processes("Replica")
    streams = play(nodes.url, lambda _: nodes.run(name="nano-2"))
    assert streams.results() == alone
    until(lambda: not {*processes("Replica")} & {*before}, "the end of the old replicas")
    assert nodes.health()["model"] == "nano-2"


def test_a_killed_node_takes_its_replicas_with_it(nodes, alone):
    streams = play(nodes.url, lambda _: nodes.cluster.remove_node(nodes.other, allow_graceful=False))
    assert streams.results() == alone
    nodes.other = nodes.cluster.add_node(num_cpus=1)
    until(lambda: nodes.has(2), "two replicas")


def test_options_come_from_serve_run(nodes):
    arguments = {
        "model": str(ROOT),
        "store": str(nodes.saved),
        "max_sessions": 3,
        "allow_urls": True,
        "load_in_4bit": False,
    }
    made = app(arguments)
    assert made is not None
    with pytest.raises(ValueError, match="--ray needs --store"):
        app({})
    with pytest.raises(ValueError, match="unrecognized arguments: --colour"):
        app({"colour": "red"})


def test_limits_are_those_of_one_replica(nodes):
    async def run() -> None:
        with pytest.raises(Exception, match="401"):
            async with client(nodes.url):
                pass

    asyncio.run(run())
    metrics = httpx.get(f"{nodes.url}/metrics", timeout=PATIENCE).text
    names = {*re.findall(r'videollm_mod_sessions\{replica="(\w+)"\}', metrics)}
    assert len(names) == 2


async def work_and_rest(url: str, seed: int, busy: Callable[[int], bool], rest: Callable[[], Awaitable]) -> list:
    """The events of a client that sends frames as fast as they are watched, then none for a while, and then a few. It
    hears no narrations: those of hundreds of frames hang on roundings."""
    images = [image for image, _ in frames_of(seed, FRAMES)]
    async with connect(url, key=KEY, speak_threshold=0.0, patience=PATIENCE) as stream:
        count = 0
        while busy(count):
            await stream.push(images[count % FRAMES], count / 2)
            count += 1
        await rest()
        for index in range(count, count + 4):
            await stream.push(images[index % FRAMES], index / 2)
        await stream.ask(QUESTION)
        await stream.finish()
        return stream.pending()


def watched(events: list) -> list[float | None]:
    """P(silence) of each frame, which comes once."""
    assert not [event for event in events if isinstance(event, Dropped | Problem)]
    frames = [event for event in events if isinstance(event, Watched)]
    assert [frame.time for frame in frames] == [index / 2 for index in range(len(frames))]
    return [frame.silence_probability for frame in frames]


def places_of_sessions(url: str) -> list[str]:
    """The replicas that have sessions."""
    metrics = httpx.get(f"{url}/metrics", timeout=PATIENCE).text
    found = re.findall(r'^videollm_mod_sessions\{replica="(\w+)"\} (\S+)', metrics, re.MULTILINE)
    return [name for name, count in found if float(count)]


def test_waiting_frames_start_a_replica_and_quiet_stops_it(nodes, checkpoint):
    nodes.run(replicas=1, max_replicas=2, scale_up_seconds=1, scale_down_seconds=5)
    until(lambda: len(processes("Replica")) == 1 and nodes.has(1), "one replica")

    async def scale() -> tuple[list[list], list]:
        async with contextlib.AsyncExitStack() as stack:
            grown = asyncio.create_task(asyncio.to_thread(until, lambda: nodes.has(2), "a second replica"))
            others = []

            async def spread() -> None:
                """Open sessions until both replicas have one, so that some have to move when one is stopped."""
                await grown
                while len(await asyncio.to_thread(places_of_sessions, nodes.url)) < 2:
                    others.append(await stack.enter_async_context(connect(nodes.url, key=KEY, patience=PATIENCE)))
                    await others[-1].push(frames_of(99, 1)[0][0], 0.0)

            async def rest() -> None:
                await spreading
                await asyncio.to_thread(until, lambda: nodes.has(1), "one replica again")

            spreading = asyncio.create_task(spread())
            working = (work_and_rest(nodes.url, seed, lambda _: not spreading.done(), rest) for seed in SEEDS)
            events = await asyncio.gather(*working)
            for other in others:
                await other.finish()
            return events, [other.pending() for other in others]

    events, others = asyncio.run(scale())
    assert [event for own in (*events, *others) for event in own if isinstance(event, Resumed)]
    found = [watched(own) for own in events]
    assert [len(watched(own)) for own in others] == [1] * len(others)
    assert all(sum(isinstance(event, Said) for event in own) == 1 for own in events)  # the answers

    async def at_once() -> None:
        pass

    async def alone(url: str) -> list[list]:
        each = [(seed, len(own) - 4) for seed, own in zip(SEEDS, found, strict=True)]
        again = (work_and_rest(url, seed, lambda n, count=count: n < count, at_once) for seed, count in each)
        return await asyncio.gather(*again)

    remembered = {"max_cached_frames": frames_in_context(checkpoint[0].config)}  # as the command has it
    with serving(checkpoint, keys=(KEY,), options=remembered) as server:
        for own, expected in zip(found, asyncio.run(alone(server.url)), strict=True):
            assert_near(torch.tensor(own), torch.tensor(watched(expected)), PROBABILITY)


def test_replicas_follow_the_frames_that_wait():
    def replicas(current: int, *waiting: float) -> float:
        metrics = {"waiting": dict(enumerate(waiting))}
        return follow_waiting(SimpleNamespace(current_num_replicas=current, aggregated_metrics=metrics))[0]

    assert [replicas(1, 3.0), replicas(1, 5.0), replicas(2, 10.0, 7.0)] == [1, 2, 5]
    assert [replicas(2, 1.5, 1.0), replicas(2, 1.0, 0.5), replicas(1, 0.0)] == [2, 1, 0]
    assert follow_waiting(SimpleNamespace(current_num_replicas=2, aggregated_metrics=None))[0] == 1
