"""What one client may use of the server. Everything beyond is refused with an error that names the limit."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from time import monotonic

from ..containers import MAX_PIXELS, is_number, shown
from .errors import RATE, ApiError


@dataclass(frozen=True)
class Limits:
    """
    Args:
        sessions (`int`): open at the same time.
        message_bytes (`int`): of one message or request.
        socket_bytes (`int`): of one message of a WebSocket, where that is less, as behind a proxy.
        frames_per_second (`float`): of one session; a burst of as many as two seconds hold is allowed.
        waiting_frames (`int`): of one session, before its oldest ones are dropped.
        image_pixels (`int`): of one image.
        text_characters (`int`): of one question or instruction.
        idle_seconds (`float`): without a message, after which a session is closed.
        kept_events (`int`): of one session, for readers that come back or fall behind.
        chats (`int`): answered at the same time.
        chat_frames (`int`): images and frames of videos of one chat.

    Raises:
        `ValueError`: for a number that is not above 0.
    """

    sessions: int = 64
    message_bytes: int = 8 * 2**20
    socket_bytes: int = 2**40
    frames_per_second: float = 30.0
    waiting_frames: int = 16
    image_pixels: int = MAX_PIXELS
    text_characters: int = 8192
    idle_seconds: float = 600.0
    kept_events: int = 1024
    chats: int = 8
    chat_frames: int = 512

    def __post_init__(self):
        for each in fields(self):
            value = getattr(self, each.name)
            if not is_number(value) or not 0 < value < math.inf:
                raise ValueError(f"`{each.name}` must be a finite number > 0, got {shown(value)}")

    @property
    def frame_bytes(self) -> int:
        """Of one message of a WebSocket."""
        return min(self.message_bytes, self.socket_bytes)

    def check_text(self, name: str, text: str) -> None:
        """Raise `ApiError` for a text that is empty, too long, or not valid Unicode."""
        if not text.strip():
            raise ApiError("empty_text", f"`{name}` must not be empty", param=name)
        if len(text) > self.text_characters:
            message = f"`{name}` has {len(text)} characters, the limit is {self.text_characters}"
            raise ApiError("text_too_long", message, param=name)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ApiError("invalid_text", f"`{name}` holds half of a surrogate pair", param=name) from None

    def check_time(self, time: float, last: float | None) -> None:
        """Raise `ApiError` for a frame's time that is not finite, or before that of the last frame."""
        if not math.isfinite(time):
            raise ApiError("invalid_timestamp", f"`timestamp` must be finite, got {time}", param="timestamp")
        if last is not None and time < last:
            message = f"`timestamp` must not go back, got {time} after {last}"
            raise ApiError("timestamp_goes_back", message, param="timestamp")


class FrameRate:
    """Counts frames against a limit. whose (`str`): of whom it is the limit; clock (`Callable`): seconds."""

    def __init__(self, limit: float, clock: Callable[[], float] = monotonic, whose: str = "a session"):
        self.limit, self.burst, self._clock, self.whose = limit, max(1.0, 2 * limit), clock, whose
        self._free, self._then = self.burst, clock()

    def take(self) -> None:
        """Count a frame. Raises `ApiError` if it comes too early."""
        now = self._clock()
        self._free = min(self.burst, self._free + (now - self._then) * self.limit)
        self._then = now
        if self._free < 1:
            message = f"frames come faster than {self.limit:g} a second, the limit of {self.whose}; it is ignored"
            raise ApiError("frame_rate_exceeded", message, 429, RATE)
        self._free -= 1


__all__ = ["FrameRate", "Limits"]
