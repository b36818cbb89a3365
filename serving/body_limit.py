"""Refuses a request with a larger body than the limit, before all of it has arrived."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError


class BodyLimit:
    """ASGI middleware. limit (`int`): bytes of a request's body."""

    def __init__(self, app: ASGIApp, limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = dict(scope.get("headers", ())).get(b"content-length", b"")
        received = int(length) if length.isdigit() else 0
        stated = bool(received)

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if not stated:
                received += len(message.get("body", b""))
            if received > self.limit:
                raise ApiError("request_too_large", f"the body has more than {self.limit} bytes, the limit", 413)
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)


__all__ = ["BodyLimit"]
