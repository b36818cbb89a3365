"""How long a killed server interrupts its clients, and whether any event is lost or doubled.

    python -m videollm_mod.benchmarks.serve_resume

Two processes of `videollm-mod serve` with the bundled checkpoint share a store on this machine. Clients stream to one
of them, over WebSockets and over HTTP. Again and again it is killed by SIGKILL at a random moment, the clients come
back to the other one, and a new one is started. `resume_s` is the time from the kill to the first new event of each
client. In the end, the events of each client are compared with those of an undisturbed session with the same frames.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable

import httpx
from PIL import Image

from ..bench.record import commit, summarise, surroundings, write_result
from ..client import Said, Watched, connect
from ..data.world import world_stream

INSTRUCTIONS, QUESTION = "Narrate the scene.", "How many objects are there?"
ASK_EVERY = 25  # frames
ALONE_FPS = 12.0  # frames a second of a session that nobody disturbs
GONE = (httpx.TransportError, httpx.HTTPStatusError)


class Switch:
    """Passes connections on to a server.

    Attributes:
        target (`str`): address of the server, `http://HOST:PORT`.
    """

    def __init__(self, target: str):
        self.target = target
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> "Switch":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """As when a network goes away: neither side says goodbye."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers = set()

    async def _accept(self, reader, writer) -> None:
        host, port = self.target.removeprefix("http://").split(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        with contextlib.suppress(asyncio.CancelledError):  # at the end
            await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))

    async def _pass(self, reader, writer) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()
        self._writers.discard(writer)


class Process:
    """A server."""

    def __init__(self, store: str, arguments: list[str]):
        command = [sys.executable, "-m", "videollm_mod.commands.cli", "serve", "--port", "0", "--store", store]
        self.process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)

    async def url(self) -> str:
        """Its address, once it answers."""
        assert self.process.stdout is not None
        return (await asyncio.to_thread(self.process.stdout.readline)).split()[-1]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class Viewer:
    """A client that streams frames of the world, and now and then asks.

    Attributes:
        told (`list`): when, and what, as `(kind, time or question)` and the text.
    """

    def __init__(self, seed: int, fps: float):
        self.seed, self.fps = seed, fps
        self.told: list[tuple[float, tuple[str, object], str]] = []
        self.stopping = asyncio.Event()
        images = world_stream(seed=seed).frames(fps=2.0)
        self._images = [jpeg(image) for image in images]

    def image(self, index: int) -> bytes:
        return self._images[index % len(self._images)]

    def tell(self, kind: str, what: object, text: str = "") -> None:
        self.told.append((time.monotonic(), (kind, what), text))

    def more(self, index: int, count: int | None) -> bool:
        return not self.stopping.is_set() if count is None else index < count

    async def run(self, url: str, count: int | None = None) -> int:
        """Stream so many frames, or until it is told to stop. Returns how many were sent."""
        raise NotImplementedError


class SocketViewer(Viewer):
    """Over a WebSocket, with the Python client."""

    async def run(self, url: str, count: int | None = None) -> int:
        index = 0
        async with connect(url, instructions=INSTRUCTIONS) as stream:
            reading = asyncio.create_task(self._read(stream))
            while self.more(index, count):
                await stream.push(self.image(index), index / 2)
                index += 1
                if index % ASK_EVERY == 0:
                    await stream.ask(f"{QUESTION} {index}")
                await asyncio.sleep(1 / self.fps)
            await stream.finish()
            await reading
        return index

    async def _read(self, stream) -> None:
        async for event in stream:
            if isinstance(event, Watched):
                self.tell("watched", event.time)
            elif isinstance(event, Said):
                self.tell(event.kind, event.question or event.time, event.text)


class HttpViewer(Viewer):
    """Over HTTP and server-sent events, as `docs/how-to/serving.md` tells those without the Python client."""

    async def run(self, url: str, count: int | None = None) -> int:
        self._seen: set[tuple[str, object]] = set()
        self._answered: dict[str, int] = {}  # question -> number of the event that ends its answer
        self._session, self._question, self._last = "", "", 0
        async with httpx.AsyncClient(base_url=f"{url}/v1/streaming", timeout=None) as http:
            while True:
                opened = await self._open(http)
                reading = asyncio.create_task(self._read(http))
                try:
                    await self._until(reading, lambda last=opened["last_event"]: self._last >= last)
                    index = await self._send(http, opened["time"], count)
                    await self._until(
                        reading, lambda index=index: all(("watched", at / 2) in self._seen for at in range(index))
                    )
                    return index
                except GONE:
                    continue
                finally:
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)

    async def _open(self, http) -> dict:
        """Begin or continue."""
        while True:
            own = {"session_id": self._session} if self._session else {"instructions": INSTRUCTIONS}
            try:
                answer = await http.post("/sessions", json=own)
                if answer.status_code == 404:
                    self._session, self._last, self._answered = "", 0, {}
                    continue
                answer.raise_for_status()
                self._session = answer.json()["id"]
                return answer.json()
            except GONE:
                await asyncio.sleep(0.1)

    async def _send(self, http, time: float | None, count: int | None) -> int:
        """Send the frames after a time, and the questions that are not answered."""
        index = 0 if time is None else round(2 * time) + 1
        while True:
            question = f"{QUESTION} {index}"
            if index and index % ASK_EVERY == 0 and question not in self._answered:
                (await http.post(f"/sessions/{self._session}/ask", json={"question": question})).raise_for_status()
            if not self.more(index, count):
                break
            url = "data:image/jpeg;base64," + base64.b64encode(self.image(index)).decode()
            frame = {"image_url": url, "timestamp": index / 2}
            (await http.post(f"/sessions/{self._session}/frames", json={"frames": [frame]})).raise_for_status()
            index += 1
            await asyncio.sleep(1 / self.fps)
        (await http.post(f"/sessions/{self._session}/commit")).raise_for_status()
        return index

    async def _until(self, reading: asyncio.Task, condition: Callable[[], bool]) -> None:
        while not condition():
            if reading.done():
                raise httpx.ReadError("the events have ended")
            await asyncio.sleep(0.02)

    async def _read(self, http) -> None:
        async with http.stream("GET", f"/sessions/{self._session}/events?after={self._last}") as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    self._take(json.loads(line[6:]))

    def _take(self, event: dict) -> None:
        kind, self._last = event["type"], event["sequence"]
        if "restored_after" in event.get("session", {}):
            valid = event["session"]["restored_after"]
            self._answered = {what: at for what, at in self._answered.items() if at <= valid}
        elif kind == "input_video_frame.acknowledged" and event["status"] == "watched":
            self._tell("watched", event["timestamp"])
        elif kind == "conversation.item.added" and event["item"]["role"] == "user":
            self._question = event["item"]["content"][0]["text"]
        elif kind == "response.done" and event["response"]["status"] == "completed":
            response, about = event["response"], event["response"]["metadata"]
            text = "".join(part["text"] for item in response["output"] for part in item["content"])
            if about["kind"] == "answer":
                self._answered[self._question] = self._last
                self._tell("answer", self._question, text)
            elif ("watched", float(about["time"])) not in self._seen:
                self._tell("narration", float(about["time"]), text)

    def _tell(self, kind: str, what: object, text: str = "") -> None:
        """Tell what is not known yet."""
        if (kind, what) not in self._seen:
            self._seen.add((kind, what))
            self.tell(kind, what, text)


def jpeg(image) -> bytes:
    Image.fromarray(image).save(file := io.BytesIO(), "jpeg", quality=90)
    return file.getvalue()


def viewers(seed: int, count: int, fps: float) -> list[Viewer]:
    return [(HttpViewer if index % 2 else SocketViewer)(seed + index, fps) for index in range(count)]


async def measure(kills: int, clients: int, fps: float, seed: int, arguments: list[str], pause: float = 8.0) -> dict:
    """Kill servers under clients; returns what came of it. pause: seconds before a kill, at most."""
    chance, resumed, own = random.Random(seed), [], viewers(seed, clients, fps)
    with tempfile.TemporaryDirectory() as store:
        servers = [Process(store, arguments) for _ in range(2)]
        try:
            urls = [await server.url() for server in servers]
            async with Switch(urls[0]) as switch:
                running = [asyncio.create_task(viewer.run(switch.url)) for viewer in own]
                for _ in range(kills):
                    await new_events(own, running)
                    await asyncio.sleep(chance.uniform(0, pause))
                    killed = time.monotonic()
                    servers[0].process.kill()
                    switch.target = urls[1]
                    servers[0].kill()
                    resumed += [at - killed for at in await new_events(own, running)]
                    servers = [servers[1], Process(store, arguments)]
                    urls = [urls[1], await servers[1].url()]
                for viewer in own:
                    viewer.stopping.set()
                counts = await asyncio.gather(*running)
                alone = viewers(seed, clients, ALONE_FPS)
                await asyncio.gather(
                    *(viewer.run(switch.url, count) for viewer, count in zip(alone, counts, strict=True))
                )
        finally:
            for server in servers:
                server.kill()
    return {
        "resume_s": resumed,
        "frames": counts,
        "clients": [compare(*pair) for pair in zip(own, alone, strict=True)],
    }


async def new_events(own: list[Viewer], running: list[asyncio.Task]) -> list[float]:
    """Wait until each client has been told of something more; when it was."""
    before = [len(viewer.told) for viewer in own]
    while any(len(viewer.told) == count for viewer, count in zip(own, before, strict=True)):
        for task in running:
            if task.done():
                task.result()
        await asyncio.sleep(0.005)
    return [viewer.told[count][0] for viewer, count in zip(own, before, strict=True)]


def compare(viewer: Viewer, alone: Viewer) -> dict:
    """Events that are missing, that came more than once or never in an undisturbed session, and that differ."""
    found, expected = (Counter(what for _, what, _ in each.told) for each in (viewer, alone))
    texts, expected_texts = ({what: text for _, what, text in each.told} for each in (viewer, alone))
    differing = [what for what in texts.keys() & expected_texts.keys() if texts[what] != expected_texts[what]]
    return {
        "events": len(viewer.told),
        "lost": sorted(map(str, (expected - found).elements())),
        "doubled": sorted(map(str, (found - expected).elements())),
        "differing": sorted(map(str, differing)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--clients", type=int, default=4, help="half of them over WebSockets, half over HTTP")
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second of each client")
    parser.add_argument("--seed", type=int, default=7600)
    args = parser.parse_args()
    begun, load = time.monotonic(), os.getloadavg()[0]
    found = asyncio.run(measure(args.kills, args.clients, args.fps, args.seed, []))
    resumed = sorted(found["resume_s"])
    figures = {
        "serve_resume_s": round(statistics.median(resumed), 3),
        "serve_lost_events": sum(len(client["lost"]) for client in found["clients"]),
        "serve_doubled_events": sum(len(client["doubled"]) for client in found["clients"]),
    }
    command = f"python -m videollm_mod.benchmarks.serve_resume --kills {args.kills} --clients {args.clients}"
    sizes = {name: getattr(args, name) for name in ("kills", "clients", "fps", "seed")}
    result = {"command": command, "commit": commit(), **surroundings("uvicorn", "fastapi"), **sizes, **figures}
    result |= {"load_of_the_machine_before": load}
    result |= {"resume_s_longest": resumed[-1], "seconds": round(time.monotonic() - begun)}
    result |= {"resume_s": found["resume_s"], "frames": found["frames"], "of_each_client": found["clients"]}
    path = write_result("serve_resume", result)
    for name, value in figures.items():
        summarise(name, value, f"benchmarks/results/{path.name}", command)
    print(json.dumps(figures), resumed[-1], [client["differing"] for client in found["clients"]], flush=True)


if __name__ == "__main__":
    main()
