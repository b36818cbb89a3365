"""What ends a stream, or a request of it."""

import json

from websockets.exceptions import InvalidStatus


class ClientError(Exception):
    """Any error of the client."""


class Unreachable(ClientError):
    """Nothing answers at the address, or nothing that serves a model."""


class Refused(ClientError):
    """The server refuses the connection or a request.

    Attributes:
        code (`str`): names the error for programs, such as `"invalid_api_key"`.
        status (`int`): of the HTTP answer, or the code with which the connection was closed; 0 for a request.
    """

    def __init__(self, code: str, message: str, status: int = 0):
        super().__init__(message)
        self.code, self.status = code, status


class SessionLost(ClientError):
    """The server has lost the session, and this client does not hold everything from its beginning anymore."""


def refusal(error: InvalidStatus) -> ClientError:
    """What the server says when it denies a connection. A proxy before it answers in its own words when the server
    has just gone."""
    status = error.response.status_code
    try:
        body = json.loads(error.response.body or b"")["error"]
        return Refused(str(body["code"]), str(body["message"]), status)
    except (ValueError, KeyError, TypeError):
        if status >= 500:
            return Unreachable(f"no server answers, only a proxy before it, with HTTP {status}")
        return Refused("http_error", f"the server answers with HTTP {status}; is it videollm-mod serve?", status)


__all__ = ["ClientError", "Refused", "SessionLost", "Unreachable", "refusal"]
