"""Errors that clients are told: as an `error` event of a session, or as the answer to an HTTP request."""

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

INVALID, FORBIDDEN, RATE, SERVER = (
    "invalid_request_error",
    "authentication_error",
    "rate_limit_error",
    "server_error",
)
MOVED = ("session_moved", "another server continues the session; connect again", 503, SERVER)  # of an `ApiError`


class ApiError(HTTPException):
    """
    Args:
        code (`str`): names the error for programs.
        message (`str`): says what is wrong, and what would be right.
        status (`int`): of an HTTP answer.
        type (`str`): as OpenAI's API names kinds of errors.
        param (`str`, *optional*): the field that is wrong.
    """

    def __init__(self, code: str, message: str, status: int = 400, type: str = INVALID, param: str | None = None):
        super().__init__(status, message)
        self.code, self.message, self.status, self.type, self.param = code, message, status, type, param

    def body(self, event_id: str | None = None) -> dict:
        """The object `error` of an event or an answer; `event_id` is that of the client's event."""
        error = {"type": self.type, "code": self.code, "message": self.message, "param": self.param}
        return error if event_id is None else {**error, "event_id": event_id}


def error_response(error: ApiError) -> JSONResponse:
    """As OpenAI's API answers every error: `{"error": {"type", "code", "message", "param"}}`."""
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
    if error.status == 408:  # the rest of the request may still come, or never
        headers = {"Connection": "close"}
    return JSONResponse({"error": error.body()}, error.status, headers)


def too_many(error: Exception) -> ApiError:
    """For `Busy` of a stream."""
    return ApiError("too_many_requests", str(error), 429, RATE)


__all__ = ["FORBIDDEN", "INVALID", "MOVED", "RATE", "SERVER", "ApiError", "error_response", "too_many"]
