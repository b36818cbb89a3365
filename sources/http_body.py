"""The body of an HTTP answer of unknown length. FFmpeg cannot tell its end from a broken connection, and releases of
FFmpeg differ in which of the two they assume."""

import base64
from http.client import HTTPException
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from ..containers import source_name


class HttpBody:
    """A file that is read once. It is empty after the end that HTTP defines: the last chunk, or a closed connection.

    Args:
        address (`str`): `http://` or `https://`, with or without a user and password.
        timeout (`float`): seconds in which the server must send something.

    Raises:
        `OSError`: if the server sends nothing, or the connection breaks.
    """

    def __init__(self, address: str, timeout: float):
        self.name, parts = source_name(address), urlsplit(address)
        user, at, host = parts.netloc.rpartition("@")
        request = Request(parts._replace(netloc=host, fragment="").geturl(), headers={"User-Agent": "videollm-mod"})
        if at:  # for this server only, not for one that it redirects to
            login = base64.b64encode(unquote(user).encode()).decode("ascii")
            request.add_unredirected_header("Authorization", f"Basic {login}")
        try:
            self._response, self._broken = urlopen(request, timeout=timeout), False
        except (OSError, ValueError, HTTPException):
            raise OSError(f"cannot open {self.name}") from None  # the original error may show parts of the address

    def read(self, size: int) -> bytes:
        if self._broken:  # FFmpeg tries again, although PyAV has the error already
            return b""
        try:
            return self._response.read1(size)
        except (OSError, HTTPException) as error:
            self._broken = True
            raise OSError(f"cannot read {self.name}: the connection broke off") from error


__all__ = ["HttpBody"]
