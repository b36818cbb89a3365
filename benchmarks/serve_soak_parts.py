"""The parts that the connections of `serve_soak` play. Each is a coroutine that takes the crowd and random numbers."""

import asyncio
import base64
import io
import json
import random
import socket
import struct
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import httpx
from PIL import Image
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ..data.world import world_stream

PATIENCE = 120.0  # seconds for anything that should come; the machine may be busy
IN_FLIGHT = 4  # frames that were sent, and not acknowledged
QUESTION = "How many objects are there?"
FULL = ("session_limit_exceeded", "chat_limit_exceeded", "key_session_limit_exceeded")


class Full(Exception):
    """The server has no room now, as it should say."""


class Script:
    """A session that behaves well: frames of a scene, and a question after them.

    Attributes:
        expected (`list`): its events if it is alone, see `plain`.
    """

    def __init__(self, seed: int, count: int = 10):
        images = world_stream(seed=seed).frames(fps=2.0)[:count]
        self.frames = [(jpeg(image), index / 2) for index, image in enumerate(images)]
        self.expected: list = []


def jpeg(image) -> bytes:
    Image.fromarray(image).save(file := io.BytesIO(), "jpeg", quality=90)
    return file.getvalue()


def data_url(content: bytes, kind: str = "image/jpeg") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def plain(events: list[dict]) -> list:
    """What came out of the model, and was done with frames, without ids and numbers that depend on other sessions."""
    lines: list = []
    for event in events:
        if event["type"] == "input_video_frame.acknowledged":
            lines.append((event["timestamp"], event["status"]))
        elif event["type"] == "response.output_text.done":
            lines.append(event["text"])
        elif event["type"] == "response.done":
            response = event["response"]
            lines.append((response["status"], response["metadata"]["kind"], response["metadata"]["time"]))
    return lines


class Player:
    """A WebSocket of one session, whose events are checked: they are numbered without a gap, and each response goes
    from its beginning to its end, its pieces being the whole text."""

    def __init__(self, crowd: "Crowd", socket: ClientConnection, last: int = 0):
        self.crowd, self.socket, self.last = crowd, socket, last
        self.events: list[dict] = []
        self.texts: dict[str, str] = {}  # of responses that are not done

    async def send(self, kind: str, **fields) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def frame(self, content: bytes, time: float) -> None:
        await self.socket.send(struct.pack(">4sd", b"VMF1", time) + content)

    async def ask(self) -> None:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]}
        await self.send("conversation.item.create", item=item)
        await self.send("response.create")

    async def next(self) -> dict:
        event = json.loads(await asyncio.wait_for(self.socket.recv(), PATIENCE))
        self.events.append(event)
        check, kind = self.crowd.check, event["type"]
        check(event["sequence"] == self.last + 1, "order", f"{kind} does not follow the event before it")
        self.last = event["sequence"]
        if kind == "error":
            self.crowd.errors[event["error"]["code"]] += 1
        elif kind == "response.created":
            self.texts[event["response"]["id"]] = ""
        elif kind == "response.output_text.delta":
            self.texts[event["response_id"]] += event["delta"]
        elif kind == "response.output_text.done":
            check(self.texts[event["response_id"]] == event["text"], "order", "the pieces are not the text")
        elif kind == "response.done":
            check(self.texts.pop(event["response"]["id"], None) is not None, "order", "a response ended twice")
        return event

    async def until(self, kind: str, **fields) -> dict:
        while True:
            event = await self.next()
            if event["type"] == kind and all(event.get(name) == value for name, value in fields.items()):
                return event

    async def answer(self) -> dict:
        while True:
            response = (await self.until("response.done"))["response"]
            if response["metadata"]["kind"] == "answer":
                is_fine = response["status"] in ("completed", "cancelled", "incomplete")
                why = response["status_details"]
                self.crowd.check(is_fine, "order", f"an answer is {response['status']}: {why}")
                return response

    async def watch(self, frames: list[tuple[bytes, float]], pause: Callable[[], float]) -> None:
        """Send frames, few at a time, until all are acknowledged."""
        left = 0
        for content, time in frames:
            await self.frame(content, time)
            left += 1
            while left >= IN_FLIGHT:
                await self.until("input_video_frame.acknowledged")
                left -= 1
            await asyncio.sleep(pause())
        for _ in range(left):
            await self.until("input_video_frame.acknowledged")


class Crowd:
    """All who connect, and what they have seen.

    Args:
        url (`str`): of the server. keys (`tuple[str, str]`): of those who behave, and of the others.
        pace (`float`): by which the seconds are multiplied for which they do nothing, or stall.
    """

    def __init__(self, url: str, keys: tuple[str, str], pace: float = 1.0):
        self.url, self.keys, self.pace, self.going = url, keys, pace, True
        self.address = (urlsplit(url).hostname, urlsplit(url).port)
        self.scripts: list[Script] = []
        self.done: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.problems: Counter[tuple[str, str]] = Counter()
        self.exact = self.exact_events = 0

    def check(self, holds: bool, where: str, what: str) -> None:
        if not holds:
            self.problems[where, what[:300]] += 1

    @asynccontextmanager
    async def player(self, key: str, query: str = "", last: int = 0, **options):
        headers = {"Authorization": f"Bearer {key}"}
        url = self.url.replace("http", "ws", 1) + "/v1/realtime" + query
        options = {"max_size": None, "open_timeout": PATIENCE, "ping_interval": None, **options}
        try:
            socket = await connect(url, additional_headers=headers, **options)
        except InvalidStatus as error:
            self.full(json.loads(error.response.body)["error"]["code"])
            raise
        try:
            yield Player(self, socket, last)
        finally:
            await socket.close()

    def http(self, key: str) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=PATIENCE)

    def full(self, code: str) -> None:
        if code in FULL:
            raise Full(code)

    def good(self, answer: httpx.Response) -> dict:
        """The content of an answer that must not be an error."""
        content = answer.json()
        if answer.status_code >= 400:
            self.full(content["error"]["code"])
            raise AssertionError(f"{answer.request.url.path} answered {answer.status_code}: {content}")
        return content

    def refused(self, answer: httpx.Response, status: int, code: str) -> None:
        got = answer.json().get("error", {})
        self.errors[got.get("code")] += 1
        seen = (answer.status_code, got.get("code"))
        self.check(seen == (status, code), "HTTP", f"{answer.request.url.path} answered {seen}, not {(status, code)}")

    async def learn(self, script: Script) -> None:
        """What a session gets alone."""
        script.expected = plain(await follow(self, script, lambda: 0.0))

    async def play(self, name: str, rng: random.Random) -> None:
        try:
            await PARTS[name](self, rng)
            self.done[name] += 1
        except Full as full:
            self.errors[str(full)] += 1
            await asyncio.sleep(1)
        except Exception as error:
            self.going = self.going and not isinstance(error, ConnectionRefusedError)
            self.check(False, name, f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.2)


# Those who behave.


async def follow(crowd: Crowd, script: Script, pause: Callable[[], float]) -> list[dict]:
    async with crowd.player(crowd.keys[0]) as mine:
        await mine.send("session.update", session={"instructions": "Narrate the scene."})
        await mine.watch(script.frames, pause)
        await mine.ask()
        answer = await mine.answer()
        crowd.check(answer["status"] == "completed", "behave", f"an answer is {answer['status_details']}")
        return mine.events


async def behave(crowd: Crowd, rng: random.Random) -> None:
    """A session, which must get the events that it gets alone."""
    script, pause = rng.choice(crowd.scripts), crowd.pace * rng.uniform(0, 0.5)
    got = plain(await follow(crowd, script, lambda: pause))
    crowd.check(got == script.expected, "behave", "the events are not those that the session gets alone")
    crowd.exact += got == script.expected
    crowd.exact_events += len(got)


async def come_back(crowd: Crowd, rng: random.Random) -> None:
    """The same, but the connection breaks after some frames, and the session is continued."""
    script, cut = rng.choice(crowd.scripts), rng.randint(1, 9)
    async with crowd.player(crowd.keys[0]) as mine:
        session = (await mine.until("session.created"))["session"]["id"]
        await mine.send("session.update", session={"instructions": "Narrate the scene."})
        await mine.watch(script.frames[:cut], lambda: 0.0)
        events, last = mine.events, mine.last
        if rng.random() < 0.7:
            mine.socket.transport.abort()
    await asyncio.sleep(crowd.pace * rng.choice([0, 0, 1, 5]))
    async with crowd.player(crowd.keys[0], f"?session_id={session}&after={last}", last) as mine:
        time = (await mine.until("session.updated"))["session"]["time"]
        crowd.check(time == script.frames[cut - 1][1], "come_back", f"the last frame was {cut - 1}, not {time}")
        await mine.watch(script.frames[cut:], lambda: 0.0)
        await mine.ask()
        await mine.answer()
        got = plain(events + mine.events)
    crowd.check(got == script.expected, "come_back", "the events are not those that the session gets alone")
    crowd.exact += got == script.expected
    crowd.exact_events += len(got)


async def over_http(crowd: Crowd, rng: random.Random) -> None:
    """The same over HTTP, with its events as SSE, and a fork that leaves no trace."""
    script = rng.choice(crowd.scripts)
    async with crowd.http(crowd.keys[0]) as http:
        options = {"instructions": "Narrate the scene."}
        made = crowd.good(await http.post("/v1/streaming/sessions", json=options))["id"]
        here = f"/v1/streaming/sessions/{made}"
        reading = asyncio.create_task(sent_events(crowd, here))
        try:
            for start in range(0, len(script.frames), 5):
                frames = [{"image_url": data_url(f), "timestamp": t} for f, t in script.frames[start : start + 5]]
                crowd.good(await http.post(f"{here}/frames", json={"frames": frames}))
                crowd.good(await http.post(f"{here}/commit"))
            fork = crowd.good(await http.post(f"{here}/fork", json={"question": QUESTION}))["text"]
            answer = crowd.good(await http.post(f"{here}/ask", json={"question": QUESTION}))["text"]
            crowd.check(fork == answer, "over_http", "a fork answers something else")
            crowd.refused(await http.post(f"{here}/cancel"), 400, "response_cancel_not_active")
        finally:
            crowd.good(await http.delete(here))
        got = plain(await reading)
    crowd.check(got == script.expected, "over_http", "the events are not those that the session gets alone")
    crowd.exact += got == script.expected
    crowd.exact_events += len(got)


async def sent_events(crowd: Crowd, path: str) -> list[dict]:
    events = []
    async with crowd.http(crowd.keys[0]) as http, http.stream("GET", f"{path}/events") as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line[6:]))
    crowd.check([each["sequence"] for each in events] == list(range(1, len(events) + 1)), "over_http", "a gap")
    return events


async def chat(crowd: Crowd, rng: random.Random) -> None:
    """A chat about an image, streamed or not; some hang up."""
    image = {"type": "image_url", "image_url": {"url": data_url(rng.choice(crowd.scripts).frames[3][0])}}
    text = {"type": "text", "text": QUESTION}
    body = {"model": "any", "messages": [{"role": "user", "content": [image, text]}]}
    hang_up = rng.random() < 0.3
    async with crowd.http(crowd.keys[0]) as http:
        if rng.random() < 0.5:
            with suppress(httpx.TimeoutException if hang_up else ()):
                timeout = rng.uniform(0.05, 0.5) if hang_up else PATIENCE
                answer = crowd.good(await http.post("/v1/chat/completions", json=body, timeout=timeout))
                crowd.check(bool(answer["choices"][0]["message"]["content"]), "chat", "no text")
            return
        async with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
            if answer.status_code >= 400:
                await answer.aread()
                crowd.good(answer)
            lines = []
            async for line in answer.aiter_lines():
                lines.append(line)
                if hang_up and len(lines) > 4:
                    return
            crowd.check(lines[-2:] == ["data: [DONE]", ""], "chat", f"it ends with {lines[-2:]}")


async def cancel(crowd: Crowd, rng: random.Random) -> None:
    """Questions that are cancelled at some point: each response ends once."""
    script = rng.choice(crowd.scripts)
    async with crowd.player(crowd.keys[0]) as mine:
        await mine.watch(script.frames[:2], lambda: 0.0)
        for _ in range(rng.randint(1, 4)):
            await mine.ask()
            if rng.random() < 0.6:
                await mine.until("response.created")
            if rng.random() < 0.5:
                await mine.until("response.output_text.delta")
            await mine.send("response.cancel")
            ended = await mine.answer()
            crowd.check(ended["status"] in ("cancelled", "completed"), "cancel", f"the answer is {ended['status']}")
            await mine.send("input_video_frame.commit")  # after it, an error for a response that was done already
            await mine.until("input_video_frame.acknowledged", status="committed")
        crowd.check(not mine.texts, "cancel", "a response has no end")


# Those who do not.

APPEND = '{"type": "input_video_frame.append", "image_url": '
ITEM = '{"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": '
WRONG = {
    "not json": "invalid_json",
    "\x00": "invalid_json",
    "[" * 50_000: "invalid_json",
    '{"type": "response.create", "n": ' + "1" * 5000 + "}": "invalid_json",
    "[]": "invalid_event",
    "null": "invalid_event",
    "{}": "unknown_event",
    '{"type": null}': "unknown_event",
    '{"type": {"type": "response.create"}}': "unknown_event",
    '{"type": "input_audio_buffer.append", "audio": ""}': "unknown_event",
    '{"type": "response.cancel"}': "response_cancel_not_active",
    '{"type": "response.cancel", "response_id": 7}': "invalid_event",
    '{"type": "response.create"}': "no_question",
    '{"type": "response.create", "response": []}': "invalid_event",
    '{"type": "response.create", "response": {"output_modalities": ["audio"]}}': "unsupported_option",
    '{"type": "session.update"}': "invalid_event",
    '{"type": "session.update", "session": {"tools": [{}]}}': "unsupported_option",
    '{"type": "session.update", "session": {"speak_threshold": NaN}}': "invalid_event",
    '{"type": "session.update", "session": {"speak_threshold": 2}}': "invalid_event",
    '{"type": "session.update", "session": {"instructions": "' + "x" * 10_000 + '"}}': "text_too_long",
    '{"type": "session.update", "session": {"instructions": "\\ud800"}}': "invalid_text",
    '{"type": "session.update", "session": {"max_output_tokens": 1e9}}': "invalid_option",
    APPEND + '"http://127.0.0.1:9/x.png"}': "invalid_image_url",
    APPEND + '"data:image/svg+xml;base64,PHN2Zz4="}': "invalid_image_url",
    APPEND + '"data:image/png;base64,QUJD"}': "invalid_image",
    APPEND + '"data:image/png;base64,Q"}': "invalid_image_url",
    APPEND + "7}": "invalid_event",
    APPEND + '"data:image/png;base64,QUJD", "timestamp": 1e999}': "invalid_timestamp",
    ITEM + "[]}}": "invalid_event",
    ITEM + '[{"type": "input_audio", "audio": ""}]}}': "invalid_event",
    ITEM + '[{"type": "input_text", "text": " "}]}}': "empty_text",
    ITEM + '[{"type": "input_image"}]}}': "missing_image",
}


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few hundred bytes that says it has 3.6 thousand million pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**5))) + chunk(b"IEND", b"")


def wrong_messages(rng: random.Random, image: bytes) -> list[tuple[str | bytes, str]]:
    time = struct.pack(">4sd", b"VMF1", 1.0)
    given: list[tuple[str | bytes, str]] = [*WRONG.items()]
    given += [(time + bomb(), "image_too_large"), (time + image[:-200], "invalid_image")]
    given += [(time + rng.randbytes(500), "invalid_image"), (rng.randbytes(30), "invalid_frame_message")]
    given += [
        (struct.pack(">4sd", b"VMF1", float("nan")) + image, "invalid_timestamp"),
        (b"", "invalid_frame_message"),
    ]
    return given


async def garbage(crowd: Crowd, rng: random.Random) -> None:
    """Each thing that is wrong is answered by one error, and the session goes on."""
    image = rng.choice(crowd.scripts).frames[0][0]
    chosen = rng.sample(wrong_messages(rng, image), 12)
    async with crowd.player(crowd.keys[1]) as mine:
        for message, code in chosen:
            await mine.socket.send(message)
            got = (await mine.until("error"))["error"]
            crowd.check(got["code"] == code, "garbage", f"{message[:60]!r} is {got['code']}, not {code}")
            crowd.check(0 < len(got["message"]) < 600, "garbage", f"a message of {len(got['message'])} characters")
        await mine.frame(image, 2.0)
        await mine.until("input_video_frame.acknowledged", status="watched")
        told = sum(event["type"] == "error" for event in mine.events)
        crowd.check(told == len(chosen), "garbage", f"{told} errors for {len(chosen)} wrong messages")


async def oversize(crowd: Crowd, rng: random.Random) -> None:
    """A message over the limit ends the connection; a body over the limit is refused."""
    if rng.random() < 0.5:
        async with crowd.player(crowd.keys[1]) as mine:
            await mine.until("session.created")
            with suppress(ConnectionClosed):
                await mine.socket.send("x" * (2**20 + 1))
            with suppress(ConnectionClosed):
                while True:
                    await mine.next()
            # the rest of a message that is not read anymore may reset the connection
            code = mine.socket.close_code
            crowd.check(code in (1009, 1006), "oversize", f"the connection was closed with {code}")
    else:
        async with crowd.http(crowd.keys[1]) as http:
            try:
                answer = await http.post("/v1/streaming/sessions", content=b"x" * (2**20 + 1))
            except httpx.TransportError:
                return
            crowd.refused(answer, 413, "request_too_large")


async def intrude(crowd: Crowd, rng: random.Random) -> None:
    """Wrong keys, sessions of others, addresses that are not there, bodies that are no JSON."""
    wrong = rng.choice(["", "x" * 30, crowd.keys[0][:-1]])
    try:
        async with crowd.player(wrong):
            crowd.check(False, "intrude", "a wrong key is taken")
    except InvalidStatus as error:
        crowd.check(error.response.status_code == 401, "intrude", f"answered {error.response.status_code}")
    async with crowd.http(crowd.keys[0]) as mine, crowd.http(crowd.keys[1]) as other:
        session = crowd.good(await mine.post("/v1/streaming/sessions"))["id"]
        here = f"/v1/streaming/sessions/{session}"
        try:
            crowd.refused(await other.get(here), 404, "session_not_found")
            crowd.refused(await other.delete(here), 404, "session_not_found")
            crowd.refused(await mine.get("/v1/streaming/sessions/sess_" + "a" * 24), 404, "session_not_found")
            crowd.refused(await mine.post("/v1/chat/completions", content="{"), 400, "invalid_request")
            crowd.refused(await mine.post("/v1/chat/completions", json={"model": 1}), 400, "invalid_request")
            crowd.refused(await mine.post(f"{here}/frames", content="x"), 415, "unsupported_media_type")
            crowd.refused(await mine.post(f"{here}/ask", json={"question": 7}), 400, "invalid_request")
            crowd.refused(await mine.post(f"{here}/ask", json={"question": ""}), 400, "empty_text")
            crowd.refused(await mine.get("/v1/nothing"), 404, "http_error")
        finally:
            crowd.good(await mine.delete(here))


async def stall(crowd: Crowd, rng: random.Random) -> None:
    """Sends, and stops reading; then goes without a word."""
    image = rng.choice(crowd.scripts).frames[0][0]
    async with crowd.player(crowd.keys[1], max_queue=1) as mine:
        with suppress(ConnectionClosed, TimeoutError):
            async with asyncio.timeout(crowd.pace * rng.uniform(2, 8)):
                while True:
                    await mine.socket.send('{"type": "x", "event_id": "' + "y" * 500 + '"}')
                    if rng.random() < 0.01:
                        await mine.frame(image, 0.0)
        await asyncio.sleep(crowd.pace * rng.uniform(0, 10))
        mine.socket.transport.abort()


async def leave(crowd: Crowd, rng: random.Random) -> None:
    """Comes and goes, in the middle of whatever it has begun."""
    script = rng.choice(crowd.scripts)
    async with crowd.player(crowd.keys[1]) as mine:
        for content, time in script.frames[: rng.randint(0, 4)]:
            await mine.frame(content, time)
        if rng.random() < 0.5:
            await mine.ask()
        if rng.random() < 0.5:
            with suppress(ConnectionClosed):
                await mine.next()
        if rng.random() < 0.5:
            mine.socket.transport.abort()


async def vanish(crowd: Crowd, rng: random.Random) -> None:
    """Opens a connection, and is gone in the middle of a handshake, a message, a request or an answer."""
    head = f"Host: soak\r\nAuthorization: Bearer {rng.choice([*crowd.keys, 'wrong'])}\r\n"
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    upgrade += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    body = json.dumps({"model": "any", "messages": [{"role": "user", "content": QUESTION}], "stream": True})
    handshake = f"GET /v1/realtime HTTP/1.1\r\n{head}{upgrade}".encode()
    begun = rng.choice(
        [
            (handshake[:-9], False),
            (handshake, False),
            (handshake, True),
            (handshake + b"\x82\xfe\xff\xff" + bytes(100), True),  # the beginning of a large message
            (b"POST /v1/streaming/sessions HTTP/1.1\r\n" + head.encode() + b"Content-Length: 50\r\n\r\n{", False),
            (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\n" + head.encode()
             + f"Content-Length: {len(body)}\r\n\r\n{body}".encode(), rng.random() < 0.5),
            (rng.randbytes(200), True),
            (b"", False),
        ]
    )  # fmt: skip
    reader, writer = await asyncio.open_connection(*crowd.address)
    writer.write(begun[0])
    with suppress(OSError, TimeoutError):
        await writer.drain()
        if begun[1]:
            await asyncio.wait_for(reader.read(1), 5)
        await asyncio.sleep(crowd.pace * rng.choice([0, 0, 0.01, 1]))
    if rng.random() < 0.5:  # closed without a farewell: the other side gets a reset
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def linger(crowd: Crowd, rng: random.Random) -> None:
    """Opens a connection and says little or nothing, until the server has enough of it."""
    half = f"POST /v1/streaming/sessions HTTP/1.1\r\nHost: soak\r\nAuthorization: Bearer {crowd.keys[1]}\r\n"
    half += "Content-Length: 9\r\n\r\n{"
    begun = rng.choice([b"", b"GET /v1/models HTTP/1.1\r\nHost: so", half.encode()])
    reader, writer = await asyncio.open_connection(*crowd.address)
    try:
        writer.write(begun)
        with suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), PATIENCE)
    finally:
        writer.transport.abort()


Part = Callable[[Crowd, random.Random], Awaitable[None]]
WEIGHTS: dict[Part, int] = {
    behave: 10, come_back: 6, over_http: 5, chat: 4, cancel: 4, garbage: 4, oversize: 2, intrude: 2, stall: 2,
    leave: 5, vanish: 6, linger: 1,
}  # fmt: skip
PARTS: dict[str, Part] = {part.__name__: part for part in WEIGHTS}
CHANCES: list[int] = list(WEIGHTS.values())

__all__ = ["CHANCES", "PARTS", "Crowd", "Player", "Script"]
