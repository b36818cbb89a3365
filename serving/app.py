"""The web application: its routes, and how it starts and stops."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from time import time

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from . import chat, realtime, sessions
from .body_limit import BodyLimit
from .errors import INVALID, SERVER, ApiError, error_response, too_many
from .event_log import FellBehind
from .keys import Keys
from .metrics import CONTENT_TYPE
from .outputs import Busy, Closed
from .realtime import deny
from .registry import Registry
from .sessions import Owner


def build_app(registry: Registry, keys: Keys, origins: Sequence[str] = (), allow_urls: bool = False) -> FastAPI:
    """The application of a server.

    Args:
        registry (`Registry`): it is started and stopped with the application.
        keys (`Keys`): of its clients.
        origins (`Sequence[str]`): of pages of other sites that may use it in browsers, such as `https://example.org`;
            `*` for all.
        allow_urls (`bool`): fetch images and videos of chats from public http(s) addresses.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        registry.start()
        yield
        await registry.stop()
        app.state.chats.close()

    app = FastAPI(title="VideoLLM-MoD", summary="A video language model that watches streams.", lifespan=lifespan)
    app.state.registry, app.state.keys, app.state.origins = registry, keys, tuple(origins)
    app.state.chats = chat.Chats(registry, allow_urls)
    app.add_middleware(BodyLimit, limit=registry.limits.message_bytes, keys=keys)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    app.include_router(realtime.router)
    app.include_router(sessions.router)
    app.include_router(chat.router)
    created = int(time())

    @app.get("/health", tags=["server"])
    async def health() -> JSONResponse:
        """`ok`, or 503 while the server starts or stops."""
        if registry.stopping or not registry.engine.alive:
            return JSONResponse({"status": "stopping"}, 503)
        if registry.is_starting:
            progress = {"prepared": registry.prepared, "of": len(registry.preparations)}
            return JSONResponse({"status": "starting", **progress}, 503)
        return JSONResponse({"status": "ok", "model": registry.name, "sessions": len(registry.sessions)})

    @app.get("/metrics", tags=["server"])
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        num_bytes = 0
        with suppress(Closed):
            num_bytes = await registry.engine.cache_bytes()
        return Response(registry.metrics.text(num_bytes, len(asyncio.all_tasks())), media_type=CONTENT_TYPE)

    @app.get("/v1/models", tags=["server"])
    async def models(owner: Owner) -> dict:
        """The model of this server."""
        model = {"id": registry.name, "object": "model", "created": created, "owned_by": "videollm-mod"}
        return {"object": "list", "data": [{**model, "video": registry.describe_model()}]}

    @app.get("/v1/models/{name}", tags=["server"])
    async def model(owner: Owner, name: str) -> dict:
        """The model, by its name."""
        found = (await models(owner))["data"][0]
        if name != found["id"]:
            raise ApiError("model_not_found", f"the model of this server is {found['id']}", 404, param="model")
        return found

    add_error_handlers(app)
    return app


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error as an `ApiError`, and count it."""

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        request.app.state.registry.metrics.refused(error.code)
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(ValidationError)
    async def not_valid(request: Request, error: RequestValidationError | ValidationError) -> JSONResponse:
        first = error.errors()[0]
        names = first["loc"]
        if names[:1] == ("body",) and len(names) > 1 and isinstance(names[1], str):
            names = names[1:]  # as in OpenAI's API, a field is named from the body on
        where = ".".join(map(str, names))[:200] or "body"
        if where == "body" and "json" not in request.headers.get("content-type", ""):
            message = "the body must be JSON, with the header Content-Type: application/json"
            return await refused(request, ApiError("invalid_request", message, param="body"))
        return await refused(request, ApiError("invalid_request", f"`{where}`: {first['msg']}"[:500], param=where))

    @app.exception_handler(WebSocketRequestValidationError)
    async def not_valid_socket(socket: WebSocket, error: WebSocketRequestValidationError) -> None:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:200]
        registry: Registry = socket.app.state.registry
        await deny(socket, registry.refused(ApiError("invalid_request", f"`{where}`: {first['msg']}", param=where)))

    @app.exception_handler(FellBehind)
    async def gone(request: Request, error: FellBehind) -> JSONResponse:
        return await refused(request, ApiError("events_not_kept", str(error), 410))

    @app.exception_handler(Closed)
    async def closed(request: Request, error: Closed) -> JSONResponse:
        return await refused(request, ApiError("session_closed", "the session is closed", 410))

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> JSONResponse:
        return await refused(request, too_many(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        kind = INVALID if error.status_code < 500 else SERVER
        return await refused(request, ApiError("http_error", str(error.detail), error.status_code, kind))


__all__ = ["build_app"]
