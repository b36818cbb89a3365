"""What comes out of a stream."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Watched:
    """The model has watched a frame.

    Attributes:
        time (`float`): of the frame, in seconds.
        silence_probability (`float`, *optional*): that it had nothing to say.
        waiting (`int`): frames of this stream that wait at the server.
        dropped (`int`): frames of this stream that the server has dropped so far.
        keep_ratio (`float`): share of vision tokens that routed layers keep; falls under load.
    """

    time: float
    silence_probability: float | None
    waiting: int
    dropped: int
    keep_ratio: float


@dataclass(frozen=True)
class Dropped:
    """The model will not watch a frame.

    Attributes:
        time (`float`): of the frame, in seconds.
        reason (`str`): `"overload"`, `"memory"` or `"failed"`, or the code of the error with which it was refused.
        message (`str`): of that error; otherwise empty.
    """

    time: float
    reason: str
    message: str = ""


@dataclass(frozen=True)
class Saying:
    """A narration or an answer that is being written. `text` is all of it so far; see `Said`."""

    kind: str
    time: float
    text: str
    question: str | None = None


@dataclass(frozen=True)
class Said:
    """A narration or an answer.

    Attributes:
        kind (`str`): `"narration"` or `"answer"`.
        time (`float`): of the newest frame that it is about, in seconds.
        text (`str`).
        question (`str`, *optional*): that is answered.
        status (`str`): `"completed"`, or `"incomplete"` (cut off at the limit of tokens), `"cancelled"` or `"failed"`
            before its end.
    """

    kind: str
    time: float
    text: str
    question: str | None = None
    status: str = "completed"


@dataclass(frozen=True)
class Resumed:
    """The connection was lost, and the session continues.

    Attributes:
        time (`float`, *optional*): of the last frame that the server has kept; None if it begins anew.
        sent_again (`int`): frames that are sent once more.
        complete (`bool`): False if frames after `time` are missing, since the client does not keep them anymore.
    """

    time: float | None
    sent_again: int
    complete: bool


@dataclass(frozen=True)
class Problem:
    """The server reports an error that belongs to no frame and no request that waits; the stream goes on."""

    code: str
    message: str


Event = Watched | Dropped | Saying | Said | Resumed | Problem

__all__ = ["Dropped", "Event", "Problem", "Resumed", "Said", "Saying", "Watched"]
