"""A cluster in this process, without Ray: an ingress, replicas, and a table that places sessions."""

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator

import uvicorn
from running_servers import listen

from videollm_mod.serving.exchange import ReplicaLost
from videollm_mod.serving.keys import Keys
from videollm_mod.serving.limits import Limits
from videollm_mod.serving.ray_ingress import Ingress
from videollm_mod.serving.ray_replica import Replica
from videollm_mod.serving.server import make_app


class LocalReplicas:
    """`Replicas` of this event loop. A session is at `placed[id]`, replica 0 by default; `lost` ones do not answer."""

    def __init__(self, replicas: list[Replica]):
        self.replicas, self.placed, self.lost = replicas, {}, set()
        self.delivered: list[dict] = []

    def _at(self, key: str) -> Replica:
        place = self.placed.get(key, 0)
        if place in self.lost:
            raise ReplicaLost(f"replica {place} is dead")
        return self.replicas[place]

    async def exchange(self, key, scope, body, connection):
        replica = self._at(key)
        async with contextlib.aclosing(replica.exchange(scope, body, connection)) as answer:
            while True:
                following = asyncio.ensure_future(anext(answer))
                following.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
                while not following.done():
                    await asyncio.wait([following], timeout=0.05)
                    if self.replicas.index(replica) in self.lost:
                        following.cancel()
                        await asyncio.gather(following, return_exceptions=True)
                        raise ReplicaLost("it has died")
                try:
                    yield following.result()
                except StopAsyncIteration:
                    return

    async def deliver(self, key, connection, messages):
        self.delivered += messages
        return await self._at(key).deliver(connection, messages)

    async def ask_all(self, method, *arguments):
        there = [replica for place, replica in enumerate(self.replicas) if place not in self.lost]
        return [await self._ask(getattr(replica, method), *arguments) for replica in there]

    @staticmethod
    async def _ask(method, *arguments):
        answer = method(*arguments)
        return await answer if asyncio.iscoroutine(answer) else answer


class LocalCluster:
    def __init__(self, url: str, replicas: LocalReplicas):
        self.url, self.replicas = url, replicas

    def registry(self, place: int):
        return self.replicas.replicas[place].registry

    def sessions(self, place: int) -> dict:
        return self.registry(place).sessions


@contextlib.asynccontextmanager
async def cluster(checkpoint, count: int = 2, keys=(), limits: dict | None = None, **options) -> AsyncIterator:
    """Run replicas, each on its own copy of a model, and an ingress on a free port. options: of `make_app`."""
    own = Limits(**{"frames_per_second": 1e6, "waiting_frames": 256, **(limits or {})})
    local = LocalReplicas([])

    async def place(session_id: str) -> str:
        return str(local.placed.get(session_id, 0))

    for index in range(count):
        app = make_app(*copy.deepcopy(checkpoint), "nano", own, Keys(keys), **options)
        local.replicas.append(Replica(app, str(index), place))
    listening = listen("127.0.0.1", 0)
    ingress = Ingress(local, own.message_bytes, own.frame_bytes, Keys(keys), options.get("origins", ()))
    server = uvicorn.Server(uvicorn.Config(ingress, log_level="critical", ws_max_size=2**26, ws_ping_interval=None))
    server.install_signal_handlers = lambda: None
    for replica in local.replicas:
        await replica.start()
    serving = asyncio.create_task(server.serve([listening]))
    try:
        yield LocalCluster(f"http://127.0.0.1:{listening.getsockname()[1]}", local)
    finally:
        server.should_exit = True
        for replica in local.replicas:
            await replica.stop()
        await serving
