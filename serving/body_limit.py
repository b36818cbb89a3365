"""Refuses a request whose body is larger than the limit, before all of it has arrived; one whose body stops arriving;
and one whose body is sent without a right key, before anything of it is kept."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError
from .keys import Keys

PART_SECONDS = 30.0  # for the next part of a body


class BodyLimit:
    """ASGI middleware. limit (`int`): bytes of a request's body; keys (`Keys`): one of which a body needs."""

    def __init__(self, app: ASGIApp, limit: int, keys: Keys):
        self.app, self.limit, self.keys = app, limit, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        stated, received, whole = int(length) if length.isdecimal() else 0, 0, False
        needs_key = stated > 0 or "transfer-encoding" in headers

        async def counted() -> Message:
            nonlocal received, whole, needs_key
            if needs_key:
                self.keys.owner(headers.get("authorization"))
                needs_key = False
            try:
                message = await asyncio.wait_for(receive(), None if whole else PART_SECONDS)
            except TimeoutError:
                raise ApiError(
                    "request_timeout", f"nothing of the body came for {PART_SECONDS:g} seconds", 408
                ) from None
            whole = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if max(stated, received) > self.limit:  # what a chunked body states means nothing
                raise ApiError("request_too_large", f"the body has more than {self.limit} bytes, the limit", 413)
            return message

        await self.app(scope, counted, send)


__all__ = ["BodyLimit"]
