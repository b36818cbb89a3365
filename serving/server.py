"""Runs the application with uvicorn, until it is interrupted or terminated."""

import logging
import os
import socket

import uvicorn
import websockets  # noqa: F401  # without it, uvicorn serves no WebSockets
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from .app import build_app
from .engine import Engine
from .keys import Keys
from .limits import Limits
from .metrics import Metrics
from .registry import CLEAN_SECONDS, Registry
from .store import SessionStore
from .warm_up import check_options, preparations

PING_SECONDS = 20.0  # between pings, and for their answer: a half-open connection is closed after that
REQUEST_SECONDS = 30.0  # for the head of a request, after which a connection without one is closed
KEEP_SECONDS = 75  # between two requests of a connection; clients keep theirs for less, so that none is just closed
SLOW_STOP_SECONDS = 5  # for connections that do not close by themselves when the server stops


class PatientProtocol(H11Protocol):
    """HTTP as uvicorn speaks it. A connection on which no request arrives is closed; uvicorn would keep it forever."""

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._look_again(True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._looking.cancel()
        super().connection_lost(exc)

    def _look_again(self, lacked_request: bool) -> None:
        self._looking = self.loop.call_later(REQUEST_SECONDS, self._look, lacked_request, self.cycle)

    def _look(self, lacked_request: bool, newest) -> None:
        """lacked_request: at the last look the head of a request had begun or was due; newest: the request then."""
        if self.transport.is_closing() or self.transport.get_protocol() is not self:  # now a WebSocket
            return
        is_done = self.cycle is None or self.cycle.response_complete
        lacks_request = is_done and self.timeout_keep_alive_task is None  # otherwise uvicorn closes it
        if lacks_request and lacked_request and newest is self.cycle:
            self.transport.abort()
        else:
            self._look_again(lacks_request)


def is_of_the_server(record: logging.LogRecord) -> bool:
    """Whether a line belongs into the log. uvicorn closes the connection of a client that sends text which is not
    UTF-8, and logs a traceback for it, so that clients could fill the log."""
    return "Invalid UTF-8" not in record.getMessage()


class Server(uvicorn.Server):
    """A uvicorn server that finishes the work of all sessions, saves them and tells their clients, before it closes
    their connections."""

    def __init__(self, app: FastAPI, max_message_bytes: int, log_level: str = "warning"):
        config = uvicorn.Config(
            app,
            http=PatientProtocol,
            log_level=log_level,
            ws_max_size=max_message_bytes,
            ws_ping_interval=PING_SECONDS,
            ws_ping_timeout=PING_SECONDS,
            ws_per_message_deflate=False,  # images are compressed already
            timeout_keep_alive=KEEP_SECONDS,
            timeout_graceful_shutdown=SLOW_STOP_SECONDS,
        )
        super().__init__(config)
        logging.getLogger("uvicorn.error").addFilter(is_of_the_server)  # which uvicorn has just set up
        self.app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.app.state.registry.stop()
        await super().shutdown(sockets)


def make_app(
    model,
    processor,
    name: str,
    limits: Limits,
    keys: Keys,
    *,
    options: dict | None = None,
    keep_ratio_range: tuple[float, float] | None = None,
    max_cached_bytes: int | None = None,
    saved: str | os.PathLike | None = None,
    save_seconds: float = 5.0,
    lease_seconds: float = 15.0,
    keep_seconds: float = 7 * 86400.0,
    owner: str | None = None,
    origins: tuple[str, ...] = (),
    allow_urls: bool = False,
) -> FastAPI:
    """The application for a model.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`), processor (`VideoLLMMoDProcessor`), name (`str`): of the model.
        limits (`Limits`), keys (`Keys`).
        options (`dict`): of new sessions, for `StreamingSession`.
        keep_ratio_range, max_cached_bytes: see `Engine`.
        saved (`str`, *optional*): folder or URL where sessions are saved, for all servers that share it.
        save_seconds, keep_seconds: see `Registry`.
        lease_seconds, owner: see `SessionStore`.
        origins, allow_urls: see `build_app`.

    Raises:
        `ValueError`: for an argument out of range. `OSError`: if the store cannot be reached.
    """
    metrics = Metrics()
    engine = Engine(model, processor, metrics, keep_ratio_range, max_cached_bytes, limits.waiting_frames)
    store = None
    if saved is not None:
        store = SessionStore(os.fspath(saved), owner, lease_seconds)
        store.fingerprint(model)  # no session waits for it later
        store.remove_abandoned(keep_seconds, CLEAN_SECONDS)  # a store that cannot be reached is an error now
    options = options or {}
    check_options(model, processor, options)  # wrong ones are an error now
    registry = Registry(engine, limits, metrics, name, options, store, keys, save_seconds, keep_seconds)
    registry.preparations = preparations(model, processor, options, engine.control.levels, limits.sessions)
    return build_app(registry, keys, origins, allow_urls)


__all__ = ["Server", "make_app"]
