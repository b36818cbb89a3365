"""The WebSocket `/v1/realtime`: one connection, one session.

`?session_id=ID&after=N` continues an open or a saved session after its event `N`. If another connection still reads
it, that one is closed.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from .errors import FORBIDDEN, ApiError, error_response
from .event_log import FellBehind
from .exchange import NEW_SESSION
from .keys import PROTOCOL
from .realtime_session import RealtimeSession
from .registry import Registry

# why the server closes a connection
DONE, FAILED, SLOW, REPLACED = 1000, 1011, 4008, 4009
TOO_SLOW = (SLOW, "events are read too slowly")
# of a session that was closed
NOTICES = {"server_stopping": 1012, "session_moved": 1012, "session_idle": 4010, "server_error": FAILED}
CLOSE_SECONDS = 10.0  # for a client that reads slowly to take the close frame

router = APIRouter()


@router.websocket("/v1/realtime")
async def realtime(socket: WebSocket, session_id: str | None = None, after: int | None = None):
    state = socket.app.state
    protocols = socket.scope.get("subprotocols", [])
    try:
        check_origin(socket, state.origins)
        owner = state.keys.owner(socket.headers.get("authorization"), protocols)
        registry: Registry = state.registry
        new_id = socket.scope.get(NEW_SESSION)
        session = await (registry.open(owner, new_id) if session_id is None else registry.find(owner, session_id))
        start = session.log.last if after is None else min(max(0, after), session.log.last)
        session.log.after(start)  # raises if not all of them are kept
    except ApiError as error:
        state.registry.metrics.refused(error.code)
        await deny(socket, error)
        return
    except FellBehind as error:
        await deny(socket, ApiError("events_not_kept", str(error), 410))
        if session.connection is None and not session.is_kept:  # it was opened for this
            await registry.close(session)
        return
    connection = Connection(socket, session)
    try:
        await socket.accept(subprotocol=PROTOCOL if PROTOCOL in protocols else None)
        kind = "session.created" if after is None else "session.updated"
        session.is_behind = False
        session.log.add({"type": kind, "session": session.describe()})
        await connection.serve(start)
    finally:
        await asyncio.shield(leave(connection, registry))


async def leave(connection: "Connection", registry: Registry) -> None:
    """Close the session of a connection that has ended, unless another one has taken over. It may do so until here."""
    session = connection.session
    if connection.is_last and not session.is_kept:
        await registry.close(session)


async def deny(socket: WebSocket, error: ApiError) -> None:
    """Answer the handshake with an error, unless the client has gone."""
    with suppress(WebSocketDisconnect):
        await socket.send_denial_response(error_response(error))
    await asyncio.sleep(0)  # uvicorn takes notice of its own answer only now, and complains if there is none


def check_origin(socket: WebSocket, allowed: Sequence[str]) -> None:
    """Refuse other sites' pages: a browser tells where a page is from, and lets any page open a WebSocket."""
    origin = socket.headers.get("origin")
    if origin is None or "*" in allowed or origin in allowed:
        return
    if urlsplit(origin).netloc != socket.headers.get("host"):
        raise ApiError("origin_not_allowed", f"pages of {origin[:200]} may not connect", 403, FORBIDDEN)


class Connection:
    """A WebSocket that reads and feeds a session. The newest connection of a session replaces the others."""

    def __init__(self, socket: WebSocket, session: RealtimeSession):
        self.socket, self.session = socket, session
        self.replaced, self.behind = asyncio.Event(), asyncio.Event()
        if session.connection is not None:
            session.connection.replaced.set()
        session.connection = self

    @property
    def is_last(self) -> bool:
        return self.session.connection is self

    async def serve(self, after: int) -> None:
        """Pass messages on until either side ends."""
        ends = (self._receive(), self._send(after), self._fall_behind(), self._be_replaced())
        tasks = [asyncio.create_task(end) for end in ends]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            code, why = next((task.result() for task in tasks if task in done and not task.exception()), (FAILED, ""))
            if code == SLOW:
                self.session.metrics.slow_reader()
            if code is not None:
                await self._close(code, why)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self) -> tuple[int | None, str]:
        while True:
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                return None, ""
            content = message.get("text")
            await self.session.receive(message.get("bytes") or b"" if content is None else content)

    async def _send(self, after: int) -> tuple[int | None, str]:
        try:
            async for _, event in self.session.log.follow(after, self.behind):
                await self.socket.send_text(event)
        except FellBehind:
            return TOO_SLOW
        except (WebSocketDisconnect, RuntimeError):
            return None, ""
        notice = self.session.notice
        return (DONE, "") if notice is None else (NOTICES.get(notice.code, DONE), notice.message[:100])

    async def _fall_behind(self) -> tuple[int | None, str]:
        await self.behind.wait()
        return TOO_SLOW

    async def _be_replaced(self) -> tuple[int | None, str]:
        await self.replaced.wait()
        return REPLACED, "another connection continues the session"

    async def _close(self, code: int, why: str) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.socket.close(code, why)
        except (TimeoutError, WebSocketDisconnect, RuntimeError):
            pass  # gone, or still not reading


__all__ = ["router"]
