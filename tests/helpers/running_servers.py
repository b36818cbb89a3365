"""Servers for tests of `videollm-mod serve`: in this process and in another one, and clients."""

import asyncio
import base64
import contextlib
import io
import json
import os
import struct
import sys
import threading
from collections.abc import AsyncIterator, Iterator

import numpy as np
from fork_server import ForkedProcess
from PIL import Image
from plain_http import web
from waiting import PATIENCE, until
from websockets.asyncio.client import ClientConnection, connect

from videollm_mod.data.world import world_stream
from videollm_mod.serving.keys import Keys
from videollm_mod.serving.limits import Limits
from videollm_mod.serving.listening import listen
from videollm_mod.serving.server import Server, make_app

# `videollm-mod`, whose server finishes what waits when it is stopped, however long the machine stands still
PATIENT = f"""
from videollm_mod.commands import cli
from videollm_mod.serving import registry, server
registry.SETTLE_SECONDS = server.SLOW_STOP_SECONDS = server.PING_SECONDS = {PATIENCE}
raise SystemExit(cli.main())
"""


class Running:
    """A server in a thread of this process."""

    def __init__(self, app):
        self.app, self.listening = app, listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.server = Server(app, app.state.registry.limits.message_bytes)
        self.server.config.ws_ping_interval = None  # a machine may stand still for longer than a ping is waited for
        self.thread = threading.Thread(target=self.server.run, args=([self.listening],), daemon=True)
        self.thread.start()
        until(lambda: self.server.started, "the server")

    @property
    def registry(self):
        return self.app.state.registry

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def serving(checkpoint, keys: tuple[str, ...] = (), limits: dict | None = None, **options) -> Iterator[Running]:
    """Run a server on a model of this process. limits: of `Limits`; options: of `make_app`."""
    own = {"frames_per_second": 1e6, "waiting_frames": 256, **(limits or {})}
    running = Running(make_app(*checkpoint, "nano", Limits(**own), Keys(keys), **options))
    try:
        until(lambda: not running.registry.is_starting, "the server being ready")
        yield running
    finally:
        running.stop()


@contextlib.contextmanager
def serving_elsewhere(*arguments: str, **environment: str) -> Iterator[tuple[str, ForkedProcess]]:
    """Run the command `videollm-mod serve` in another process: its address, and the process."""
    given = [sys.executable, "-c", PATIENT, "serve", "--port", "0", *arguments]
    process = ForkedProcess(given, env={**os.environ, **environment})
    try:
        line = process.stdout.readline()
        if not line.startswith("serving on http"):
            process.kill()
            raise AssertionError(process.communicate()[1])
        yield line.split()[-1], process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def held(running: Running):
    """Keep the engine's thread busy."""
    go, there = threading.Event(), threading.Event()
    engine = running.registry.engine
    asyncio.run_coroutine_threadsafe(engine.call(lambda: (there.set(), go.wait())), engine._loop)
    until(there.is_set)
    try:
        yield
    finally:
        go.set()


class Client:
    """A plain WebSocket client of one session."""

    def __init__(self, socket: ClientConnection):
        self.socket, self.events = socket, []

    async def send(self, kind: str, **fields) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def frame(self, image: np.ndarray, time: float) -> None:
        await self.socket.send(struct.pack(">4sd", b"VMF1", time) + png(image))

    async def ask(self, question: str) -> None:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": question}]}
        await self.send("conversation.item.create", item=item)
        await self.send("response.create")

    async def next(self) -> dict:
        event = json.loads(await asyncio.wait_for(self.socket.recv(), PATIENCE))
        self.events.append(event)
        return event

    async def until(self, kind: str, **fields) -> dict:
        """The next event of this kind with these fields."""
        while True:
            event = await self.next()
            if event["type"] == kind and all(event.get(name) == value for name, value in fields.items()):
                return event


@contextlib.asynccontextmanager
async def client(url: str, query: str = "", **options) -> AsyncIterator[Client]:
    """A connected client, after `session.created`."""
    options = {"max_size": None, "open_timeout": PATIENCE, "ping_interval": None, **options}
    async with connect(url.replace("http", "ws", 1) + "/v1/realtime" + query, **options) as socket:
        yield Client(socket)


def png(image: np.ndarray) -> bytes:
    Image.fromarray(image).save(file := io.BytesIO(), "png")
    return file.getvalue()


def data_url(image: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def frames_of(seed: int, count: int, fps: float = 2.0) -> list[tuple[np.ndarray, float]]:
    """Frames of the world with their times."""
    frames = world_stream(seed=seed).frames(fps=fps)
    return [(frame, index / fps) for index, frame in enumerate(frames[:count])]


def plain(events: list[dict]) -> list:
    """What came out of the model, without ids and what depends on other sessions. When user items come depends
    on how fast the user is."""
    kept = ("type", "delta", "text", "timestamp", "status")
    lines = []
    for event in events:
        if event.get("item", {}).get("role") == "user":
            continue
        line = {name: event[name] for name in kept if name in event}
        if "response" in event:
            line |= {name: event["response"][name] for name in ("status", "metadata")}
        lines.append(line)
    return lines


def metric(url: str, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = web.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)
