"""What breaks servers: wrong keys, garbage, bombs, wrong times, slow readers, and clients that vanish."""

import asyncio
import contextlib
import itertools
import json
import logging
import socket
import struct
import zlib
from functools import partial
from urllib.parse import urlsplit

import httpx
import pytest
from local_cluster import cluster
from plain_http import web
from running_servers import client, data_url, frames_of, metric, png, serving
from waiting import PATIENCE, until
from websockets.exceptions import ConnectionClosed, InvalidStatus

from videollm_mod.serving import body_limit, realtime
from videollm_mod.serving import server as server_module
from videollm_mod.serving.errors import ApiError
from videollm_mod.serving.images import decode_image
from videollm_mod.serving.keys import Keys
from videollm_mod.serving.limits import FrameRate, Limits

KEY, OTHER = "a-key-for-tests-0123456789", "another-key-for-tests-01234"
IMAGE, _ = frames_of(60, 1)[0]


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


@pytest.fixture(scope="module")
def server(checkpoint):
    limits = {"sessions": 3, "message_bytes": 200_000, "text_characters": 100, "image_pixels": 10**6}
    with serving(checkpoint, (KEY, OTHER), limits) as running:
        yield running


def bearer(key: str = KEY) -> dict:
    return {"additional_headers": {"Authorization": f"Bearer {key}"}}


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 3.6 thousand million pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10**5))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


async def refused(url: str, **options) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as caught:
        async with client(url, **options):
            pass
    response = caught.value.response
    return response.status_code, json.loads(response.body)["error"]["code"]


def test_a_key_is_needed_before_the_upgrade(server):
    async def run():
        assert await refused(server.url) == (401, "missing_api_key")
        assert await refused(server.url, **bearer("wrong-key-0123456789")) == (401, "invalid_api_key")
        evil = {"origin": "https://evil.example", **bearer()}
        assert await refused(server.url, **evil) == (403, "origin_not_allowed")
        for query in ("?after=abc", "?after=1e9"):
            assert await refused(server.url, query=query, **bearer()) == (400, "invalid_request")
        protocols = ["realtime", f"openai-insecure-api-key.{OTHER}"]
        async with client(server.url, subprotocols=protocols) as mine:
            assert mine.socket.subprotocol == "realtime"
            assert (await mine.next())["type"] == "session.created"

    asyncio.run(run())
    answer = web.get(f"{server.url}/v1/models")
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert web.get(f"{server.url}/health").json()["status"] == "ok"


WRONG = {
    "not json": "invalid_json",
    "[" * 100_000: "invalid_json",
    "[]": "invalid_event",
    "{}": "unknown_event",
    '{"type": ["x"]}': "unknown_event",
    '{"type": "input_audio_buffer.append", "audio": ""}': "unknown_event",
    '{"type": "response.cancel"}': "response_cancel_not_active",
    '{"type": "response.create"}': "no_question",
    '{"type": "response.create", "response": {"output_modalities": ["audio"]}}': "unsupported_option",
    '{"type": "session.update", "session": {"tools": [{}]}}': "unsupported_option",
    '{"type": "session.update", "session": {"speak_threshold": NaN}}': "invalid_event",
    '{"type": "session.update", "session": {"instructions": "' + "x" * 101 + '"}}': "text_too_long",
    '{"type": "session.update", "session": {"instructions": "\\ud800"}}': "invalid_text",
    '{"type": "session.update", "session": {"max_output_tokens": 0}}': "invalid_option",
    '{"type": "input_video_frame.append", "image_url": "http://x/y.png"}': "invalid_image_url",
    '{"type": "input_video_frame.append", "image_url": "data:image/png;base64,QUJD"}': "invalid_image",
    '{"type": "input_video_frame.append", "image_url": "data:image/png;base64,Q"}': "invalid_image_url",
    '{"type": "input_video_frame.append", "timestamp": 1}': "invalid_event",
    '{"type": "conversation.item.create", "item": {"role": "assistant", "content": []}}': "invalid_event",
}


def test_whatever_is_sent_gets_its_error_and_the_session_goes_on(server):
    append = {"type": "input_video_frame.append", "image_url": data_url(IMAGE)}

    async def run():
        async with client(server.url, **bearer()) as mine:
            for text, code in WRONG.items():
                await mine.socket.send(text)
                assert (await mine.until("error"))["error"]["code"] == code, text[:100]
            for time, code in ((float("nan"), "invalid_timestamp"), (float("inf"), "invalid_timestamp")):
                await mine.frame(IMAGE, time)
                assert (await mine.until("error"))["error"]["code"] == code
            await mine.socket.send(b"VMF2" + bytes(100))
            assert (await mine.until("error"))["error"]["code"] == "invalid_frame_message"
            await mine.frame(IMAGE, 2.0)
            await mine.until("input_video_frame.acknowledged", timestamp=2.0)
            await mine.socket.send(json.dumps({**append, "timestamp": 1.5, "event_id": "mine"}))
            error = (await mine.until("error"))["error"]
            assert (error["code"], error["event_id"]) == ("timestamp_goes_back", "mine")
            await mine.socket.send(json.dumps(append))  # after the last one
            done = await mine.until("input_video_frame.acknowledged")
            assert (done["timestamp"], done["status"], done["dropped"]) == (2.5, "watched", 0)

    asyncio.run(run())


def test_bombs_are_refused_before_they_are_decoded(server):
    gif = b"GIF89a" + bytes(99)
    for content, code in ((bomb(), "image_too_large"), (png(IMAGE)[:-40], "invalid_image"), (gif, "invalid_image")):
        with pytest.raises(ApiError) as caught:
            decode_image(content)
        assert caught.value.code == code

    async def run():
        async with client(server.url, **bearer()) as mine:
            await mine.socket.send(struct.pack(">4sd", b"VMF1", 0.0) + bomb())
            error = (await mine.until("error"))["error"]
            assert error["code"] == "image_too_large" and "than 1000000 pixels" in error["message"]

    asyncio.run(run())


def test_too_large_messages_close_the_connection(server):
    async def run():
        async with client(server.url, **bearer()) as mine:
            await mine.until("session.created")
            await mine.socket.send("x" * 200_001)
            with pytest.raises(ConnectionClosed) as caught:
                await mine.next()
            assert caught.value.rcvd.code == 1009

    asyncio.run(run())
    headers = {"Authorization": f"Bearer {KEY}"}
    for body in ("x" * 200_001, iter([b"x" * 200_001])):
        answer = web.post(f"{server.url}/v1/streaming/sessions", content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("through", ["server", "ingress"])
def test_a_body_is_not_kept_before_its_key_and_its_size_are_known(checkpoint, server, through):
    """The rest of these never comes. Parts of a chunked body count, whatever its header says."""
    parts = b"30d41\r\n" + b"x" * 200_001 + b"\r\n"
    sized, chunked = b"Content-Length: 200001\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n" + parts
    bodies, paths = (sized, chunked, b"Content-Length: 5\r\n" + chunked), ("streaming/sessions", "chat/completions")

    async def ask(url: str, path: str, headers: str, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        head = f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}"
        writer.write(head.encode() + body)
        line = await asyncio.wait_for(reader.readline(), PATIENCE)
        writer.close()
        return line

    async def run():
        async with contextlib.AsyncExitStack() as stack:
            url = server.url
            if through == "ingress":
                one = cluster(checkpoint, 1, (KEY,), {"message_bytes": 200_000})
                url = (await stack.enter_async_context(one)).url
            for path, body in itertools.product(paths, bodies):
                for key, status in (("", b" 401 "), ("wrong-key-0123456789", b" 401 "), (KEY, b" 413 ")):
                    headers = f"Authorization: Bearer {key}\r\n" if key else ""
                    assert status in await ask(url, path, headers, body)

    asyncio.run(run())


def test_a_refused_text_leaves_nothing_behind(server):
    """Its item is refused as a whole, and the next question is asked without it."""

    def item(role: str, *texts: str) -> dict:
        return {"role": role, "content": [{"type": "input_text", "text": text} for text in texts]}

    async def run():
        async with client(server.url, **bearer()) as mine:
            await mine.send("conversation.item.create", item=item("user", "y" * 60))
            for wrong in (item("user", "x" * 50), item("user", "a", "x" * 101), item("system", *["x" * 20] * 9)):
                await mine.send("conversation.item.create", item=wrong)
                assert (await mine.until("error"))["error"]["code"] == "text_too_long"
            await mine.send("conversation.item.create", item=item("user", "z" * 30))
            await mine.send("response.create")
            await mine.until("response.done")
            return [event["item"] for event in mine.events if event["type"] == "conversation.item.done"]

    shown = [each["content"][0]["text"] for each in asyncio.run(run()) if each["role"] != "assistant"]
    assert shown == ["y" * 60, "z" * 30]


def test_refusals_and_connections_without_a_request_end_quietly(checkpoint, monkeypatch, caplog):
    """No request, half a request, and half a body are not waited for, and text that is not UTF-8 is not taken; and
    nothing of it is the server's fault."""

    async def send_no_text(url: str) -> int:
        async with client(url, **bearer()) as mine:
            await mine.next()
            await mine.socket.send(b"\xff{", text=True)
            with pytest.raises(ConnectionClosed) as closed:
                await mine.until("never")
            return closed.value.rcvd.code

    with serving(checkpoint, (KEY,)) as running:
        logging.getLogger("uvicorn").addHandler(caplog.handler)  # which passes nothing on
        address = running.listening.getsockname()
        assert asyncio.run(send_no_text(running.url)) == 1007
        assert asyncio.run(refused(running.url)) == (401, "missing_api_key")
        with monkeypatch.context() as patch, socket.create_connection(address, timeout=PATIENCE) as opened:
            patch.setattr(body_limit, "PART_SECONDS", 0.05)
            head = f"POST /v1/streaming/sessions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
            opened.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{{".encode())
            running.server.config.timeout_keep_alive = 10 * PATIENCE
            assert b" 408 " in opened.recv(1000)
            while opened.recv(1000):  # until the server ends the connection
                pass
        monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.05)
        for begun in (b"", b"GET /health HTTP/1.1\r\nHost: x"):
            with socket.create_connection(address, timeout=PATIENCE) as opened, contextlib.suppress(ConnectionError):
                opened.sendall(begun)
                assert opened.recv(1) == b""
    logging.getLogger("uvicorn").removeHandler(caplog.handler)
    assert not caplog.records


def test_a_connection_that_is_used_stays(checkpoint, monkeypatch):
    looks, look = [], server_module.PatientProtocol._look
    monkeypatch.setattr(server_module.PatientProtocol, "_look", lambda *given: (looks.append(1), look(*given)))
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.05)
    limits = httpx.Limits(keepalive_expiry=PATIENCE)
    with serving(checkpoint) as running, httpx.Client(base_url=running.url, timeout=PATIENCE, limits=limits) as http:

        def from_where() -> tuple | None:
            with contextlib.suppress(httpx.TransportError):  # a first request that comes too late
                return http.get("/health").extensions["network_stream"].get_extra_info("client_addr")

        until(from_where, "an answer")
        first, before = from_where(), len(looks)
        until(lambda: len(looks) > before + 2, "looks at the connection")
        assert from_where() == first is not None


def test_a_client_that_returns_at_the_last_moment_keeps_its_session(checkpoint):
    async def run(registry):
        session = await registry.open("anyone")
        old, new = (realtime.Connection(None, session) for _ in range(2))
        session.connection = old
        leaving = asyncio.create_task(realtime.leave(old, registry))
        session.connection = new
        await leaving
        assert registry.sessions == {session.id: session}
        await realtime.leave(new, registry)
        assert not registry.sessions

    with serving(checkpoint) as running:
        asyncio.run_coroutine_threadsafe(run(running.registry), running.registry.engine._loop).result(PATIENCE)


def test_sessions_are_limited_and_leave_nothing_behind(server):
    """Clients that come, ask and vanish in the middle: when all are gone, so is everything of theirs."""
    registry = server.registry

    async def vanish(number: int) -> None:
        async with client(server.url, **bearer()) as mine:
            await mine.until("session.created")
            await mine.ask("How many objects are there?")
            for image, time in frames_of(60, 1 + number % 3):
                await mine.frame(image, time)
            if number % 2:
                await mine.until("response.created")
            mine.socket.transport.abort()

    async def run():
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(client(server.url, **bearer()))
            assert await refused(server.url, **bearer()) == (429, "session_limit_exceeded")

    until_empty(server)
    asyncio.run(run())
    for round in range(0, 24, 3):
        until_empty(server)
        asyncio.run(asyncio.wait_for(all_of(vanish, range(round, round + 3)), PATIENCE))
    until_empty(server)
    assert not registry.engine.streams and not registry.engine.pool.streams and not registry.engine.waiting_bytes


async def all_of(work, numbers) -> None:
    await asyncio.gather(*(work(number) for number in numbers), return_exceptions=True)


def until_empty(server) -> None:
    until(lambda: not server.registry.sessions and not server.registry._changing, "the end of all sessions")


def test_one_client_never_sees_the_stream_of_another(server):
    mine, theirs = ({"Authorization": f"Bearer {key}"} for key in (KEY, OTHER))
    sessions = f"{server.url}/v1/streaming/sessions"
    made = web.post(sessions, headers=mine).json()["id"]
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/commit"), ("DELETE", "")):
        answer = web.request(method, f"{sessions}/{made}{path}", headers=theirs)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "session_not_found")
    query = f"?session_id={made}"
    with pytest.raises(InvalidStatus, match="404"):
        asyncio.run(connected(server.url, query, OTHER))
    asyncio.run(connected(server.url, query, KEY))
    assert web.delete(f"{sessions}/{made}", headers=mine).json()["deleted"]


async def connected(url: str, query: str, key: str) -> None:
    async with client(url, query, **bearer(key)) as mine:
        await mine.until("session.created")


def test_a_slow_reader_is_closed_and_the_others_are_not(checkpoint):
    with serving(checkpoint, limits={"kept_events": 64}) as running:
        asyncio.run(asyncio.wait_for(read_slowly(running.url), PATIENCE))


async def read_slowly(url: str) -> None:
    async with client(url) as quick, client(url, max_queue=1) as slow:
        await slow.until("session.created")
        garbage = json.dumps({"type": "x" * 100, "event_id": "y" * 500})
        while not metric(url, "videollm_mod_slow_readers_total"):
            for _ in range(2000):  # each is answered by an event, until the sockets are full
                await slow.socket.send(garbage)
        with pytest.raises(ConnectionClosed):
            while True:
                await slow.next()
        assert slow.socket.close_code in (4008, 1006)
        await quick.frame(IMAGE, 0.0)
        assert (await quick.until("input_video_frame.acknowledged"))["status"] == "watched"


def test_keys_come_from_the_environment_and_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDEOLLM_MOD_API_KEYS", f"{KEY}, {OTHER}")
    (tmp_path / "keys").write_text("# of the cameras\nthird-key-0123456789\n")
    keys = Keys.load(tmp_path / "keys")
    owners = {keys.owner(f"Bearer {key}") for key in (KEY, OTHER, "third-key-0123456789")}
    assert len(owners) == 3 and not any(key in owner for owner in owners for key in (KEY, OTHER))
    with pytest.raises(ValueError, match="at least 16 printable"):
        Keys(["short"])
    (tmp_path / "keys").write_text("# none\n")
    with pytest.raises(ValueError, match="holds no key"):
        Keys.load(tmp_path / "keys")


def test_frames_may_come_in_bursts_but_not_faster_on_average():
    now = [0.0]
    rate = FrameRate(2.0, lambda: now[0])
    for _ in range(4):
        rate.take()
    with pytest.raises(ApiError, match="faster than 2 a second"):
        rate.take()
    now[0] = 0.5
    rate.take()
    with pytest.raises(ApiError):
        rate.take()


def test_a_key_may_have_limits_of_its_own(checkpoint, monkeypatch):
    """On a clock that stands still, or a slow machine would send its frames slowly enough."""
    few = "a-key-with-few-0123456789"
    monkeypatch.setattr("videollm_mod.serving.keys.FrameRate", partial(FrameRate, clock=lambda: 0.0))
    with serving(checkpoint, (f"{few} sessions=2 fps=2", OTHER)) as running:

        async def run():
            async with client(running.url, **bearer(few)) as first, client(running.url, **bearer(few)) as second:
                assert await refused(running.url, **bearer(few)) == (429, "key_session_limit_exceeded")
                for index, mine in enumerate((first, second, first, second, first)):
                    await mine.frame(IMAGE, index / 2)
                    last = await mine.until("input_video_frame.acknowledged" if index < 4 else "error")
                assert (
                    last["error"]["code"] == "frame_rate_exceeded" and "limit of this key" in last["error"]["message"]
                )
                async with client(running.url, **bearer(OTHER)) as other:
                    for index in range(6):
                        await other.frame(IMAGE, index / 2)
                        await other.until("input_video_frame.acknowledged")

        asyncio.run(run())
        until_empty(running)
        asyncio.run(connected(running.url, "", few))


@pytest.mark.parametrize("words", ["sessions=0", "fps=fast", "frames=2", "sessions", "fps=nan"])
def test_limits_of_a_key_are_checked(words):
    with pytest.raises(ValueError, match="sessions=N and fps=N"):
        Keys([f"{KEY} {words}"])


def test_limits_must_be_above_zero():
    with pytest.raises(ValueError, match="`sessions` must be a finite number > 0, got 0"):
        Limits(sessions=0)
