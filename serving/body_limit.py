"""Refuses a request with a larger body than the limit, before all of it has arrived; or whose body stops arriving."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError

PART_SECONDS = 30.0  # for the next part of a body


class BodyLimit:
    """ASGI middleware. limit (`int`): bytes of a request's body."""

    def __init__(self, app: ASGIApp, limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = dict(scope.get("headers", ())).get(b"content-length", b"")
        received = int(length) if length.isdigit() else 0
        stated, whole = bool(received), False

        async def counted() -> Message:
            nonlocal received, whole
            try:
                message = await asyncio.wait_for(receive(), None if whole else PART_SECONDS)
            except TimeoutError:
                raise ApiError(
                    "request_timeout", f"nothing of the body came for {PART_SECONDS:g} seconds", 408
                ) from None
            whole = not message.get("more_body", False)
            if not stated:
                received += len(message.get("body", b""))
            if received > self.limit:
                raise ApiError("request_too_large", f"the body has more than {self.limit} bytes, the limit", 413)
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)


__all__ = ["BodyLimit"]
