"""What comes out of a stream of the engine. `ref` is what the caller has named the work with."""

from dataclasses import dataclass
from typing import Any

from ..speaking import StreamEvent, WatchedFrame


class Closed(Exception):
    """The stream, or the engine, was closed before it came to this."""


class Busy(Exception):
    """Too much work waits already."""


@dataclass(frozen=True)
class Watched:
    """A frame was watched. `event` of the frame holds what was said about it."""

    ref: Any
    frame: WatchedFrame
    keep_ratio: float


@dataclass(frozen=True)
class Began:
    """The model begins to answer a question."""

    ref: Any


@dataclass(frozen=True)
class Piece:
    """A piece of the text of an answer or narration, and the time of the frame before it."""

    text: str
    time: float


@dataclass(frozen=True)
class Said:
    """A narration (`ref` is None) or an answer is complete, or was hushed, or cut off at the limit of new tokens (the
    model has not `ended` it). `usage`: see `Usage.take`."""

    ref: Any
    event: StreamEvent
    hushed: bool
    ended: bool
    usage: dict


@dataclass(frozen=True)
class Changed:
    """Options or instructions are in effect."""

    ref: Any


@dataclass(frozen=True)
class Failed:
    """Work failed. A reply that was being generated is void. `fatal`: the stream is closed."""

    ref: Any
    message: str
    fatal: bool = False


Output = Watched | Began | Piece | Said | Changed | Failed

__all__ = ["Began", "Busy", "Changed", "Closed", "Failed", "Output", "Piece", "Said", "Watched"]
