"""What the server counts, for Prometheus."""

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

LATENCIES = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 4.0, 8.0)  # seconds


class Metrics:
    """The metrics of one server, in a registry of their own. Any thread may count."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry, "namespace": "videollm_mod"}
        self._received = Counter("frames_received", "Frames that clients have sent.", **own)
        self._watched = Counter("frames_watched", "Frames that the model has watched.", **own)
        self._dropped = Counter("frames_dropped", "Frames that were not watched, and why.", ["reason"], **own)
        self._latency = Histogram(
            "frame_seconds", "From a frame in the queue to the model's decision.", buckets=LATENCIES, **own
        )
        self._said = Counter("replies", "Narrations and answers.", ["kind"], **own)
        self._tokens = Counter("tokens", "Tokens that the model has read, vision and text.", **own)
        self._errors = Counter("errors", "Requests and events that were refused, and why.", ["code"], **own)
        self._slow = Counter("slow_readers", "Connections closed because they read too slowly.", **own)
        self._opened = Counter("sessions_opened", "Sessions that were opened, new or restored.", **own)
        self._sessions = Gauge("sessions", "Open sessions.", **own)
        self._waiting = Gauge("frames_waiting", "Frames that wait for the model.", **own)
        self._tasks = Gauge("tasks", "Tasks of the event loop: each connection has a few.", **own)
        self._bytes = Gauge("cache_bytes", "Size of the caches of all sessions.", **own)
        self._ratio = Gauge("keep_ratio", "Share of vision tokens that routed layers keep.", **own)

    def received(self) -> None:
        self._received.inc()

    def watched(self, seconds: float) -> None:
        self._watched.inc()
        self._latency.observe(seconds)

    def dropped(self, reason: str) -> None:
        self._dropped.labels(reason).inc()

    def said(self, kind: str) -> None:
        self._said.labels(kind).inc()

    def read(self, tokens: int) -> None:
        self._tokens.inc(tokens)

    def refused(self, code: str) -> None:
        self._errors.labels(code).inc()

    def slow_reader(self) -> None:
        self._slow.inc()

    def opened(self) -> None:
        self._opened.inc()

    def watch(self, engine) -> None:
        """Read the state of an engine whenever the metrics are asked for."""
        self._sessions.set_function(lambda: len(engine.streams))
        self._waiting.set_function(lambda: sum(stream.waiting for stream in list(engine.streams)))
        self._ratio.set_function(lambda: engine.keep_ratio)

    def text(self, cache_bytes: int, tasks: int) -> bytes:
        """In Prometheus' format, of the type `CONTENT_TYPE`. cache_bytes: of all sessions; tasks: that run."""
        self._bytes.set(cache_bytes)
        self._tasks.set(tasks)
        return generate_latest(self.registry)

    def families(self, cache_bytes: int) -> list[Metric]:
        """The same as objects, which can be sent to another process."""
        self._bytes.set(cache_bytes)
        return list(self.registry.collect())


__all__ = ["CONTENT_TYPE", "Metrics"]
