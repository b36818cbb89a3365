"""One replica of a cluster: a model, its engine and its sessions, and the application that answers for them.

Nothing here imports Ray; `ray_app` makes a deployment of it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

from fastapi import FastAPI
from prometheus_client import Metric

from .errors import MOVED, ApiError
from .exchange import Exchanges
from .outputs import Busy, Closed

if TYPE_CHECKING:
    from .registry import Registry

WATCH_SECONDS = 0.5  # between two looks whether a session is still routed to this replica
SETTLE_SECONDS = 10.0  # for what a session is doing when it moves


class Replica:
    """
    Args:
        app (`FastAPI`): as `app.build_app` makes it.
        name (`str`): of this replica, different from that of all others.
        place (`Callable`): is called with a session's id, and returns the name of the replica to which it is routed.
    """

    def __init__(self, app: FastAPI, name: str, place: Callable[[str], Awaitable[str]]):
        self.registry: Registry = app.state.registry
        self.name, self.place = name, place
        self._app, self._exchanges, self._lifespan = app, Exchanges(app), AsyncExitStack()
        self._watching: asyncio.Task | None = None
        self._moving: dict[str, asyncio.Future] = {}  # sessions that are being given up
        self.exchange, self.deliver = self._exchanges.exchange, self._exchanges.deliver

    async def start(self) -> None:
        await self._lifespan.enter_async_context(self._app.router.lifespan_context(self._app))
        await self.registry.ready.wait()
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Save all sessions, tell their clients, and end the engine."""
        if self._watching is not None:
            self._watching.cancel()
        await self._lifespan.aclose()

    async def give_up(self, session_id: str) -> None:
        """Finish the work of a session, if it is here, save it and close it, so that another replica can open it. Once
        begun, this goes on also when the one who asks has gone."""
        if session_id not in self._moving:
            self._moving[session_id] = asyncio.ensure_future(self._give_up(session_id))
            self._moving[session_id].add_done_callback(lambda _: self._moving.pop(session_id))
        await asyncio.shield(self._moving[session_id])

    async def _give_up(self, session_id: str) -> None:
        session = self.registry.sessions.get(session_id)
        if session is None:
            return
        session.refusing = ApiError(*MOVED)
        with suppress(TimeoutError, Closed, Busy):
            async with asyncio.timeout(SETTLE_SECONDS):
                await session.stream.call()
        await self.registry.close(session, session.refusing)

    async def _watch(self) -> None:
        """Give up the sessions that are routed elsewhere: replicas came or went, or this one is being drained. One
        session a time is looked at, and all of them once one has moved."""
        index = 0
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            ids = sorted(self.registry.sessions)
            if ids and await self.place(ids[(index := index + 1) % len(ids)]) != self.name:
                await asyncio.gather(*(self._give_up_if_moved(session_id) for session_id in ids))

    async def _give_up_if_moved(self, session_id: str) -> None:
        if await self.place(session_id) != self.name:
            await self.give_up(session_id)

    # What an ingress asks all replicas.

    def health(self) -> dict | None:
        """None while the replica stops."""
        registry = self.registry
        if registry.stopping or not registry.engine.alive:
            return None
        return {"model": registry.name, "sessions": len(registry.sessions)}

    async def metrics(self) -> tuple[str, list[Metric]]:
        num_bytes = 0
        with suppress(Closed):
            num_bytes = await self.registry.engine.cache_bytes()
        return self.name, self.registry.metrics.families(num_bytes)

    @property
    def waiting(self) -> int:
        """Frames of all sessions that wait for the model."""
        return sum(stream.waiting for stream in list(self.registry.engine.streams))


__all__ = ["Replica"]
