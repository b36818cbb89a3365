"""Carries the requests and connections of an ASGI application to another process, and its answers back.

This is the seam of a cluster. `app.build_app` makes one application for one model, and it does not know where its
clients are. A single process runs it behind uvicorn. In a cluster each replica runs it in `Exchanges`, and an
`Ingress` passes on what ASGI calls messages. Images stay bytes on the way.
"""

import asyncio
from collections.abc import AsyncGenerator
from secrets import token_urlsafe
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Scope

NEW_SESSION = "new_session_id"  # of a scope: the id of the session that the request may open
# what another process needs of a scope
SHARED = (
    *("type", "asgi", "http_version", "scheme", "method", "path", "raw_path", "query_string", "root_path", "headers"),
    *("client", "server", "subprotocols", "extensions"),
)


class ReplicaLost(Exception):
    """The replica has gone, or does not answer."""


class Replicas(Protocol):
    """The replicas of a cluster as an ingress sees them."""

    def exchange(self, key: str, scope: Scope, body: bytes, connection: str) -> AsyncGenerator[Message, None]:
        """Begin a request or a connection; what the application sends.

        Args:
            key (`str`): chooses the replica; the same one as long as there are the same replicas.
            scope (`Scope`): of the request, as `shared` returns it.
            body (`bytes`): of the request; empty for a WebSocket.
            connection (`str`): a name for `deliver`, different each time.

        Raises:
            `ReplicaLost`.
        """

    async def deliver(self, key: str, connection: str, messages: list[Message]) -> bool:
        """Pass on what a client sends over a WebSocket. Returns once the application has taken it, whether the replica
        of this key has the connection. Raises `ReplicaLost`."""

    async def ask_all(self, method: str, *arguments: Any) -> list[Any]:
        """What a method of all replicas returns, leaving out those that do not answer."""


def new_session_id() -> str:
    return f"sess_{token_urlsafe(18)}"


def shared(scope: Scope, new_session: str) -> Scope:
    """What another process needs of a scope. new_session (`str`): id of the session that the request may open."""
    found = {name: scope[name] for name in SHARED if name in scope}
    return {**found, NEW_SESSION: new_session}


class Exchanges:
    """The requests and connections of one replica. app (`ASGIApp`): answers them."""

    def __init__(self, app: ASGIApp):
        self.app = app
        self._running: dict[str, tuple[asyncio.Queue[Message], asyncio.Task]] = {}

    async def exchange(self, scope: Scope, body: bytes, connection: str) -> AsyncGenerator[Message, None]:
        """See `Replicas.exchange`. The client has gone when the generator is closed."""
        is_socket = scope["type"] == "websocket"
        coming: asyncio.Queue[Message] = asyncio.Queue()
        going: asyncio.Queue[Message | None] = asyncio.Queue()
        coming.put_nowait({"type": "websocket.connect"} if is_socket else {"type": "http.request", "body": body})

        async def receive() -> Message:
            message = await coming.get()
            coming.task_done()
            return message

        async def send(message: Message) -> None:
            going.put_nowait(message)

        answering = asyncio.ensure_future(self.app(scope, receive, send))
        answering.add_done_callback(lambda _: going.put_nowait(None))
        answering.add_done_callback(lambda _: self._running.pop(connection, None))
        self._running[connection] = coming, answering  # as in a single process, an answer ends by itself
        try:
            while (message := await going.get()) is not None:
                yield message
            answering.result()
        finally:
            coming.put_nowait(
                {"type": "websocket.disconnect", "code": 1006} if is_socket else {"type": "http.disconnect"}
            )

    async def deliver(self, connection: str, messages: list[Message]) -> bool:
        """See `Replicas.deliver`."""
        if connection not in self._running:
            return False
        coming, answering = self._running[connection]
        for message in messages:
            coming.put_nowait(message)
        taken = asyncio.ensure_future(coming.join())
        try:
            await asyncio.wait([taken, answering], return_when=asyncio.FIRST_COMPLETED)
        finally:
            taken.cancel()
        return True


__all__ = ["NEW_SESSION", "Exchanges", "ReplicaLost", "Replicas", "new_session_id", "shared"]
