"""The ingress of a cluster: routes each request to the replica that has its session, and passes messages on.

It holds no state that a client would miss: when it dies, clients connect to another one and continue.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from secrets import token_hex
from typing import Any
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry, Metric, generate_latest
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from .body_limit import BodyLimit
from .errors import SERVER, ApiError, error_response
from .exchange import ReplicaLost, Replicas, new_session_id, shared
from .keys import Keys
from .metrics import CONTENT_TYPE

SESSIONS = "/v1/streaming/sessions"
IN_PATH = re.compile(rf"{SESSIONS}/([^/]+)")
# why the ingress closes a connection
MOVED = 1012, "the session moves to another replica; connect again"
TOO_LARGE = 1009, "the message is larger than the limit"
TOO_MUCH = 1008, "messages come faster than they are read"
MOVE_SECONDS = 15.0  # for the former replica of a session to close its connection
MOST_AT_ONCE = 64  # messages that travel together
MOST_WAITING = 8  # messages of the largest size that one connection may have waiting


class Ingress:
    """An ASGI application.

    Args:
        replicas (`Replicas`): that answer.
        message_bytes (`int`): limit of one request; the replicas check everything else.
        socket_bytes (`int`): limit of one message of a WebSocket.
        keys (`Keys`): one of which a request with a body needs.
        origins (`Sequence[str]`): see `build_app`; they may read what the ingress itself answers.
    """

    def __init__(
        self, replicas: Replicas, message_bytes: int, socket_bytes: int, keys: Keys, origins: Sequence[str] = ()
    ):
        self.replicas, self.socket_bytes, self.origins = replicas, socket_bytes, list(origins)
        self._limited = BodyLimit(self._request, message_bytes, keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
            return
        answer = self._connect if scope["type"] == "websocket" else self._limited
        try:
            await answer(scope, receive, send)
        except ApiError as error:
            await self._answer(error_response(error), scope, receive, send)

    async def _answer(self, response: Response, scope: Scope, receive: Receive, send: Send) -> None:
        """Send an answer of its own. Those of replicas have the headers for other sites already."""
        await CORSMiddleware(response, allow_origins=self.origins)(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        own: dict[str, Callable[[], Coroutine[Any, Any, Response]]]
        own = {"/health": self._health, "/metrics": self._metrics}
        if scope["path"] in own:
            await self._answer(await own[scope["path"]](), scope, receive, send)
            return
        body, is_complete = bytearray(), False
        while not is_complete:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            is_complete = not message.get("more_body", False)
        new = new_session_id()
        key = session_of(scope, bytes(body)) or new
        answer = self.replicas.exchange(key, shared(scope, new), bytes(body), token_hex(12))
        await first_of(pass_on(answer, send), until_gone(receive))

    async def _connect(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        new, connection = new_session_id(), token_hex(12)
        key = session_of(scope) or new
        answer = self.replicas.exchange(key, shared(scope, new), b"", connection)
        accepted, incoming = asyncio.Event(), Incoming(receive, self.socket_bytes)

        async def send_noted(message: Message) -> None:
            await send(message)
            if message["type"] == "websocket.accept":
                accepted.set()

        async def deliver() -> tuple[int, str] | None:
            await accepted.wait()
            while True:
                batch = await incoming.take()
                if not await self.replicas.deliver(key, connection, batch):
                    await self.replicas.ask_all("give_up", key)  # its last events come before it closes the connection
                    await asyncio.sleep(MOVE_SECONDS)
                    return MOVED
                if batch[-1]["type"] == "websocket.disconnect":
                    return None

        try:
            why = await first_of(pass_on(answer, send_noted), deliver(), incoming.read())
        except (ReplicaLost, ApiError):
            if not accepted.is_set():
                raise
            why = MOVED
        if why is not None:
            with suppress(Exception):  # the client has gone too
                await send({"type": "websocket.close", "code": why[0], "reason": why[1]})

    async def _health(self) -> Response:
        replicas = await self.replicas.ask_all("health")
        well = [each for each in replicas if each is not None]
        if not well:
            return JSONResponse({"status": "no replica is ready"}, 503)
        sessions = sum(each["sessions"] for each in well)
        return JSONResponse({"status": "ok", "model": well[0]["model"], "sessions": sessions, "replicas": len(well)})

    async def _metrics(self) -> Response:
        return Response(merged(await self.replicas.ask_all("metrics")), media_type=CONTENT_TYPE)


class Incoming:
    """What a client sends over a WebSocket. It is read ahead, so that messages travel together when they come fast."""

    def __init__(self, receive: Receive, limit: int):
        self.receive, self.limit = receive, limit
        self._messages: list[Message] = []
        self._bytes = 0
        self._more = asyncio.Event()

    async def read(self) -> tuple[int, str]:
        """Read until the client sends too much; returns how to close the connection then."""
        while True:
            message = await self.receive()
            self._bytes += size_of(message)
            if size_of(message) > self.limit:
                return TOO_LARGE
            if self._bytes > MOST_WAITING * self.limit:
                return TOO_MUCH
            self._messages.append(message)
            self._more.set()
            if message["type"] == "websocket.disconnect":
                await asyncio.Event().wait()  # the rest is still to be delivered

    async def take(self) -> list[Message]:
        """The messages that wait, or the next one."""
        await self._more.wait()
        batch, self._messages = self._messages[:MOST_AT_ONCE], self._messages[MOST_AT_ONCE:]
        if not self._messages:
            self._more.clear()
        self._bytes -= sum(map(size_of, batch))
        return batch


def size_of(message: Message) -> int:
    return len(message.get("bytes") or message.get("text") or b"")


async def live(receive: Receive, send: Send) -> None:
    """Say that the application is up, and later down; it has nothing to set up."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def pass_on(answer: AsyncGenerator[Message, None], send: Send) -> None:
    """Send the messages of a replica.

    Raises:
        `ApiError`: if it is lost before the first one. `ReplicaLost`: later, so that the connection is cut.
    """
    begun = False
    async with aclosing(answer):
        try:
            async for message in answer:
                await send(message)
                begun = True
        except ReplicaLost as error:
            if begun:
                raise
            text = f"the replica has gone: {error}; try again"
            raise ApiError("replica_lost", text[:500], 503, SERVER) from error


async def until_gone(receive: Receive) -> None:
    """Wait until a client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def first_of(*works: Coroutine[Any, Any, Any]) -> Any:
    """The result of what ends first; the others are cancelled. If several end at once, that of the first of them."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task in done).result()
    finally:
        await cancel(*tasks)


async def cancel(*tasks: asyncio.Future) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def session_of(scope: Scope, body: bytes = b"") -> str | None:
    """The id of the session that a request names, if any."""
    if scope["type"] == "websocket":
        return parse_qs(scope.get("query_string", b"").decode("latin-1")).get("session_id", [None])[0]
    if found := IN_PATH.match(scope["path"]):
        return found[1]
    if scope["path"].rstrip("/") == SESSIONS and body:
        with suppress(ValueError):  # which the replica refuses
            options = json.loads(body)
            named = options.get("session_id") if isinstance(options, dict) else None
            return named if isinstance(named, str) else None
    return None


def merged(answers: list[tuple[str, list[Metric]]]) -> bytes:
    """The metrics of all replicas in Prometheus' format, with the label `replica`. answers: names and metrics."""
    families: dict[str, Metric] = {}
    for replica, metrics in answers:
        for metric in metrics:
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                family.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)

    class Merged:
        def collect(self):
            return families.values()

    registry = CollectorRegistry()
    registry.register(Merged())
    return generate_latest(registry)


__all__ = ["Ingress"]
