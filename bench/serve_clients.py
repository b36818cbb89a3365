"""Clients of `videollm-mod bench serve`: each process holds several sessions of a server, and sends them JPEGs.

A process reads one JSON object, `Job`, from its arguments. It prints `ready` once all its sessions are open, waits for
a line with the time to start at, of the system's monotonic clock, and prints what it saw as one line of JSON.

Nothing here imports torch, so that many clients start soon and take little memory.
"""

import asyncio
import dataclasses
import io
import json
import struct
import subprocess
import sys
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import numpy as np
from PIL import Image
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

HEADER = struct.Struct(">4sd")  # of a binary message: VMF1, and the frame's time in seconds
PICTURES = 8  # different ones, which the sessions send in turn
QUALITY = 90  # of the JPEGs
PATIENCE = 5.0  # seconds to wait for the last answers
OPENING = 8  # sessions of a process that are opened at the same time


def pictures(size: int, count: int = PICTURES) -> list[np.ndarray]:
    """Frames uint8 `[size, size, 3]` that compress as those of a camera do: soft shapes with a little noise."""
    random, frames = np.random.default_rng(0), []
    for _ in range(count):
        shapes = Image.fromarray(random.integers(0, 256, (size // 24 + 1, size // 24 + 1, 3), dtype=np.uint8))
        soft = np.asarray(shapes.resize((size, size), Image.Resampling.BICUBIC), np.float32)
        frames.append((soft + random.normal(0, 4, soft.shape)).clip(0, 255).astype(np.uint8))
    return frames


def jpeg(frame: np.ndarray) -> bytes:
    Image.fromarray(frame).save(file := io.BytesIO(), "jpeg", quality=QUALITY)
    return file.getvalue()


@dataclass(frozen=True)
class Job:
    """What the sessions of one process do.

    Args:
        url (`str`): of the server.
        sessions (`list[int]`): their numbers, among those of all processes.
        size (`int`): of the pictures, in pixels.
        fps (`float`): frames a second of a session, and the distance of their times.
        frames (`int`): to send of each session.
        in_flight (`int`, *optional*): send at once until so many frames are not answered; if omitted, send each frame
            when it is due, as a camera does.
        before (`int`): frames to send as fast as possible before that.
    """

    url: str
    sessions: list[int]
    size: int
    fps: float
    frames: int
    in_flight: int | None = None
    before: int = 0


@dataclass
class Seen:
    """What a client saw of one frame; times are of the monotonic clock.

    Args:
        due (`float`): when a camera would have had it, or else when it was sent.
        sent (`float`): when it was given to the socket.
        decided (`float`, *optional*): when its acknowledgement came, or the narration after it began.
        spoken (`float`, *optional*): when the first piece of the narration after it came.
        status (`str`, *optional*): of its acknowledgement.
        keep_ratio (`float`, *optional*): of its acknowledgement.
    """

    due: float
    sent: float
    decided: float | None = None
    spoken: float | None = None
    status: str | None = None
    keep_ratio: float | None = None


@dataclass
class Client:
    """One session."""

    job: Job
    number: int
    socket: ClientConnection
    frames: dict[float, Seen] = field(default_factory=dict)  # by their times in the stream
    errors: list[str] = field(default_factory=list)
    _narrations: dict[str, Seen] = field(default_factory=dict)  # by the ids of responses
    _next: float = 0.0
    _open: int = 0  # frames that are not answered
    _answered: asyncio.Event = field(default_factory=asyncio.Event)

    async def begin(self) -> None:
        """Learn from the description of the session which time comes next."""
        created = json.loads(await asyncio.wait_for(self.socket.recv(), 60))
        time = created["session"]["time"]
        self._next = 0.0 if time is None else time + 1 / self.job.fps

    async def send(self, image: bytes, due: float | None = None) -> None:
        now = monotonic()
        time, self._next = self._next, self._next + 1 / self.job.fps
        self.frames[time] = Seen(now if due is None else due, now)
        self._open += 1
        await self.socket.send(HEADER.pack(b"VMF1", time) + image)

    async def send_when_due(self, images: list[bytes], start: float) -> None:
        """As a camera: the frames of the sessions are spread over the time between two frames."""
        start += np.random.default_rng(self.number).uniform() / self.job.fps
        for index in range(self.job.frames):
            due = start + index / self.job.fps
            await asyncio.sleep(max(0.0, due - monotonic()))
            await self.send(images[(self.number + index) % len(images)], due)

    async def send_at_once(self, images: list[bytes], count: int, in_flight: int) -> None:
        for index in range(count):
            while self._open >= in_flight:
                self._answered.clear()
                await asyncio.wait_for(self._answered.wait(), 60)
            await self.send(images[(self.number + index) % len(images)])

    async def receive(self) -> None:
        with suppress(WebSocketException):
            async for message in self.socket:
                self.take(json.loads(message), monotonic())
        if self._open:
            self.errors.append(f"the connection was closed: {self.socket.close_reason or self.socket.close_code}")
        self._open = 0
        self._answered.set()

    def take(self, event: dict, now: float) -> None:
        kind = event["type"]
        if kind == "input_video_frame.acknowledged":
            seen = self.frames[event["timestamp"]]
            seen.decided = seen.decided or now
            seen.status, seen.keep_ratio = event["status"], event["keep_ratio"]
            self._open -= 1
            self._answered.set()
        elif kind == "response.created":
            seen = self.frames[float(event["response"]["metadata"]["time"])]
            seen.decided = seen.decided or now
            self._narrations[event["response"]["id"]] = seen
        elif kind == "response.output_text.delta":
            seen = self._narrations[event["response_id"]]
            seen.spoken = seen.spoken or now
        elif kind == "error":
            self.errors.append(event["error"]["message"])

    async def finish(self, end: float) -> None:
        """Wait for the last answers."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, end - monotonic())):
                while self._open:
                    self._answered.clear()
                    await self._answered.wait()


async def play(job: Job) -> dict:
    images = [jpeg(frame) for frame in pictures(job.size)]
    address = job.url.replace("http", "ws", 1) + "/v1/realtime"
    opening = asyncio.Semaphore(OPENING)
    async with AsyncExitStack() as stack:

        async def open_one(number: int) -> Client:
            async with opening:
                socket = await stack.enter_async_context(connect(address, max_size=None, compression=None))
                client = Client(job, number, socket)
                await client.begin()
                return client

        clients = await asyncio.gather(*map(open_one, job.sessions))
        receiving = [asyncio.create_task(client.receive()) for client in clients]
        if job.before:
            await asyncio.gather(*(client.send_at_once(images, job.before, 8) for client in clients))
            await asyncio.gather(*(client.finish(monotonic() + 600) for client in clients))
        for client in clients:
            client.frames.clear()
        print("ready", flush=True)
        start = float(await asyncio.to_thread(sys.stdin.readline))
        await asyncio.sleep(max(0.0, start - monotonic()))
        if job.in_flight is None:
            await asyncio.gather(*(client.send_when_due(images, start) for client in clients))
        else:
            await asyncio.gather(*(client.send_at_once(images, job.frames, job.in_flight) for client in clients))
        end = monotonic() + PATIENCE
        await asyncio.gather(*(client.finish(end) for client in clients))
        for task in receiving:
            task.cancel()
        return {
            "frames": [[dataclasses.astuple(seen) for seen in client.frames.values()] for client in clients],
            "errors": [error for client in clients for error in client.errors],
        }


class Clients:
    """Client processes, as the benchmark uses them: made, they open their sessions; then they can be started.

    Args:
        processes (`int`): among which the sessions are divided.
        sessions (`int`): of all of them.
        options: of `Job`.

    Raises:
        `ChildProcessError`: if a session could not be opened.
    """

    def __init__(self, processes: int, sessions: int, **options):
        processes = min(processes, sessions)
        jobs = [Job(sessions=list(range(first, sessions, processes)), **options) for first in range(processes)]
        command = [sys.executable, "-m", __name__]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._processes: list[Any] = [
            subprocess.Popen([*command, json.dumps(dataclasses.asdict(job))], **pipes) for job in jobs
        ]
        try:
            for process in self._processes:
                line = process.stdout.readline()
                if line != "ready\n":
                    raise ChildProcessError(json.loads(line)["error"] if line else "a client process has failed")
        except BaseException:
            self.stop()
            raise

    def start(self, wait: float = 0.3) -> float:
        """Let all sessions start together; returns when, of the monotonic clock."""
        start = monotonic() + wait
        for process in self._processes:
            process.stdin.write(f"{start}\n")
            process.stdin.flush()
        return start

    def results(self) -> tuple[list[list[Seen]], list[str]]:
        """What each session saw of its frames, and all errors. Waits for the end."""
        try:
            found = [
                json.loads(process.stdout.readline() or '{"error": "a client failed"}') for process in self._processes
            ]
        finally:
            self.stop()
        errors = [error for part in found for error in part.get("errors", [part.get("error")])]
        return [[Seen(*seen) for seen in frames] for part in found for frames in part.get("frames", ())], errors

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


def main() -> None:
    try:
        found = asyncio.run(play(Job(**json.loads(sys.argv[1]))))
    except (OSError, WebSocketException, TimeoutError) as error:
        found = {"error": refusal(error)}
    print(json.dumps(found), flush=True)


def refusal(error: Exception) -> str:
    """The message in a server's refusal of a WebSocket, or else the error itself."""
    response = getattr(error, "response", None)
    try:
        return json.loads(response.body)["error"]["message"]  # type: ignore[union-attr]
    except (AttributeError, TypeError, ValueError, KeyError):
        return str(error) or type(error).__name__


if __name__ == "__main__":
    main()
