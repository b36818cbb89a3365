"""What a web server sends without saying how long it is. FFmpeg does not tell its end from a connection that breaks
off before it, and its releases take either for the other."""

import base64
from http.client import HTTPException
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from ..containers import source_name


class HttpBody:
    """A file to be read once: at its end as HTTP has it, the last chunk or the server's hanging up, it is empty.

    Args:
        address (`str`): `http://` or `https://`, maybe with a user and password.
        timeout (`float`): seconds in which the server must say something.

    Raises:
        `OSError`: if it does not, or the connection breaks off.
    """

    def __init__(self, address: str, timeout: float):
        self.name, parts = source_name(address), urlsplit(address)
        user, at, host = parts.netloc.rpartition("@")
        request = Request(parts._replace(netloc=host, fragment="").geturl(), headers={"User-Agent": "videollm-mod"})
        if at:  # for this server only, wherever it redirects to
            login = base64.b64encode(unquote(user).encode()).decode("ascii")
            request.add_unredirected_header("Authorization", f"Basic {login}")
        try:
            self._response, self._broken = urlopen(request, timeout=timeout), False
        except (OSError, ValueError, HTTPException):
            raise OSError(f"cannot open {self.name}") from None  # some show parts of the address

    def read(self, size: int) -> bytes:
        if self._broken:  # FFmpeg tries again, though PyAV has the error
            return b""
        try:
            return self._response.read1(size)
        except (OSError, HTTPException) as error:
            self._broken = True
            raise OSError(f"cannot read {self.name}: the connection broke off") from error


__all__ = ["HttpBody"]
