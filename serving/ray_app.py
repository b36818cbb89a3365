"""The deployments of a cluster: an ingress that routes sessions, and replicas that hold a model each.

The routing is Ray Serve's own. `ConsistentHashRouter` of `ray.serve.experimental` sends all calls with the same
`session_id` to the same replica, and `num_fallback_replicas=0` keeps others from stepping in while that one is busy.
"""

import asyncio
import logging
import math
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from threading import Event
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy, RequestRouterConfig
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from ray.util import list_named_actors
from starlette.types import Message, Scope

from .exchange import ReplicaLost
from .keys import Keys
from .ray_ingress import Ingress
from .ray_replica import Replica

NAME, INGRESS, REPLICA = "videollm-mod", "Ingress", "Replica"  # of the application and its deployments
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
CHECK_SECONDS = 0.5  # between two looks whether a process lives; one that has died is replaced then
ANSWER_SECONDS = 5.0  # for all replicas to answer an ingress
PLACE_SECONDS = 3.0  # to learn where a session is routed; there is no replica if it takes longer
STOP_SECONDS = 60.0  # for a replica to finish its work, and to save its sessions
WAITING_FRAMES = 4.0  # of one replica, on average, that more replicas are started for
INGRESSES = 2  # so that clients can come back at once when one has died
CALLS = 4  # that one session or chat may have in progress


class RayReplicas:
    """`Replicas` behind a handle of their deployment."""

    def __init__(self, handle: DeploymentHandle):
        self.handle = handle

    async def exchange(self, key: str, scope: Scope, body: bytes, connection: str) -> AsyncGenerator[Message, None]:
        answer = self.handle.options(session_id=key, stream=True).exchange.remote(scope, body, connection)
        try:
            async for message in answer:
                yield message
        except (RayError, RayServeException) as error:
            raise ReplicaLost(first_line(error)) from error
        finally:
            answer.cancel()

    async def deliver(self, key: str, connection: str, messages: list[Message]) -> bool:
        try:
            return await self.handle.options(session_id=key).deliver.remote(connection, messages)
        except (RayError, RayServeException) as error:
            raise ReplicaLost(first_line(error)) from error

    async def ask_all(self, method: str, *arguments: Any) -> list[Any]:
        answers: list[Any] = []
        with suppress(TimeoutError, RayError, RayServeException):
            asked = self.handle.broadcast(method, *arguments)
            answers = await asked.results_async(timeout_s=ANSWER_SECONDS, return_exceptions=True)
        return [answer for answer in answers if not isinstance(answer, BaseException)]


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class IngressDeployment:
    """See `Ingress`."""

    def __init__(
        self, replicas: DeploymentHandle, message_bytes: int, socket_bytes: int, keys: Keys, origins: tuple[str, ...]
    ):
        self._ingress = Ingress(RayReplicas(replicas), message_bytes, socket_bytes, keys, origins)

    def __serve_build_asgi_app__(self) -> Ingress:
        return self._ingress


class ReplicaDeployment:
    """See `Replica`. make (`Callable`): makes the application; is called with the name of this process."""

    async def __init__(self, make: Callable[[str], FastAPI]):  # type: ignore[misc]  # which Ray awaits
        context = serve.get_replica_context()
        self._handle = serve.get_deployment_handle(context.deployment, context.app_name)
        app = await asyncio.to_thread(make, ray.get_runtime_context().get_actor_name() or context.replica_tag)
        self._replica = Replica(app, context.replica_tag, self._place)
        app.state.registry.take_over = self._take_over
        await self._replica.start()

    async def _place(self, session_id: str) -> str:
        try:
            async with asyncio.timeout(PLACE_SECONDS):
                async with self._handle.options(session_id=session_id).choose_replica() as chosen:
                    return chosen.replica_id
        except (TimeoutError, RayError, RayServeException):
            return ""

    async def _take_over(self, session_id: str, owner: str) -> bool:
        """Whether the owner of a session is dead. Otherwise it is asked to give the session up."""
        alive = await asyncio.to_thread(list_named_actors, all_namespaces=True)
        if owner not in {actor["name"] for actor in alive}:
            return True
        with suppress(TimeoutError, RayError, RayServeException):
            asked = self._handle.broadcast("give_up", session_id)
            await asked.results_async(timeout_s=ANSWER_SECONDS, return_exceptions=True)
        return False

    async def exchange(self, scope: Scope, body: bytes, connection: str) -> AsyncGenerator[Message, None]:
        async with aclosing(self._replica.exchange(scope, body, connection)) as answer:
            async for message in answer:
                yield message

    async def deliver(self, connection: str, messages: list[Message]) -> bool:
        return await self._replica.deliver(connection, messages)

    async def give_up(self, session_id: str) -> None:
        await self._replica.give_up(session_id)

    async def health(self) -> dict | None:
        return self._replica.health()

    async def metrics(self) -> tuple[str, list]:
        return await self._replica.metrics()

    async def check_health(self) -> None:
        """Ray replaces the replica if this raises."""
        registry = self._replica.registry
        if not registry.engine.alive and not registry.stopping:
            raise RuntimeError("the engine has failed")

    def record_autoscaling_stats(self) -> dict[str, float]:
        return {"waiting": float(self._replica.waiting)}

    async def stop(self) -> None:
        await self._replica.stop()

    async def __del__(self) -> None:
        await self._replica.stop()


def follow_waiting(context: AutoscalingContext) -> tuple[float, dict]:
    """An autoscaling policy: so many replicas that `WAITING_FRAMES` wait at each of them; one less while fewer than a
    quarter of these wait."""
    current, metrics = context.current_num_replicas, (context.aggregated_metrics or {}).get("waiting", {})
    wanted = sum(metrics.values()) / WAITING_FRAMES
    if wanted > current:
        return math.ceil(wanted), {}
    return (current - 1 if wanted < current / 4 else current), {}


def application(
    make: Callable[[str], FastAPI],
    *,
    message_bytes: int,
    socket_bytes: int,
    keys: Keys,
    calls: int,
    replicas: int = 1,
    max_replicas: int | None = None,
    delays: tuple[float, float] = (30.0, 600.0),
    resources: dict[str, float] | None = None,
    origins: tuple[str, ...] = (),
) -> serve.Application:
    """The application to run.

    Args:
        make (`Callable`): makes the application of one replica, in its process.
        message_bytes (`int`): limit of one request.
        socket_bytes (`int`): limit of one message of a WebSocket.
        keys (`Keys`): one of which a request with a body needs.
        calls (`int`): sessions and chats of one replica.
        replicas (`int`): how many; the least, if there may be more.
        max_replicas (`int`, *optional*): start more when frames wait, up to so many.
        delays (`tuple[float, float]`): seconds of load before one is started, and of quiet before one is stopped.
        resources (`dict`, *optional*): of one replica, such as `{"num_cpus": 1, "num_gpus": 1}`.
        origins (`tuple[str, ...]`): see `build_app`.
    """
    count: dict[str, Any] = {"num_replicas": replicas}
    if max_replicas is not None and max_replicas > replicas:
        policy = AutoscalingPolicy(policy_function=follow_waiting)
        scaling = AutoscalingConfig(
            min_replicas=replicas,
            max_replicas=max_replicas,
            upscale_delay_s=delays[0],
            downscale_delay_s=delays[1],
            policy=policy,
        )
        count = {"autoscaling_config": scaling}
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)  # there is a call for each batch of frames
    replica = serve.deployment(
        name=REPLICA,
        ray_actor_options=resources or {},
        max_ongoing_requests=CALLS * calls + 64,
        graceful_shutdown_timeout_s=STOP_SECONDS,
        health_check_period_s=CHECK_SECONDS,
        logging_config=quiet,
        request_router_config=RequestRouterConfig(
            request_router_class=ROUTER, request_router_kwargs={"num_fallback_replicas": 0}
        ),
        **count,
    )(ReplicaDeployment)
    ingress = serve.deployment(
        name=INGRESS,
        num_replicas=INGRESSES,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=100_000,
        graceful_shutdown_timeout_s=5.0,
        health_check_period_s=CHECK_SECONDS,
        logging_config=quiet,
    )(serve.ingress()(IngressDeployment))
    return ingress.bind(replica.bind(make), message_bytes, socket_bytes, keys, origins)


def has_gpus() -> bool:
    """Whether the cluster to which this process is connected has GPUs."""
    return ray.cluster_resources().get("GPU", 0) > 0


def serve_until_stopped(
    make: Callable[[], serve.Application], host: str, port: int, ready: Callable[[], None]
) -> None:
    """Run an application until this process is interrupted or terminated.

    Args:
        make (`Callable`): makes the application, once this process is connected to a cluster.
        host (`str`), port (`int`): where each machine listens.
        ready (`Callable`): is called when clients can connect.
    """
    terminate = signal.getsignal(signal.SIGTERM)
    with suppress(KeyboardInterrupt, SystemExit):
        ray.init(logging_level=logging.WARNING)
        signal.signal(signal.SIGTERM, terminate)  # with Ray's own handler it would end this process at once
        try:
            serve.start(http_options={"host": host, "port": port})
            serve.run(make(), name=NAME)
            ready()
            Event().wait()
        finally:
            stop_replicas(NAME)
            serve.delete(NAME)
            ray.shutdown()


def stop_replicas(name: str) -> None:
    """Save the sessions of an application, and tell their clients, before it is deleted."""
    with suppress(TimeoutError, RayError, RayServeException):
        stopped = serve.get_deployment_handle(REPLICA, name).broadcast("stop")
        stopped.results(timeout_s=STOP_SECONDS, return_exceptions=True)


__all__ = ["application", "has_gpus", "serve_until_stopped", "stop_replicas"]
