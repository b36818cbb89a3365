"""A client of `videollm-mod serve`: sends frames of a camera or a recording, and gives what the model says of them.

It needs `pip install videollm-mod[client]`, and imports neither torch nor transformers.
"""

from .errors import ClientError, Refused, SessionLost, Unreachable
from .events import Dropped, Event, Problem, Resumed, Said, Saying, Watched
from .stream import Stream, connect

__all__ = [
    "ClientError",
    "Dropped",
    "Event",
    "Problem",
    "Refused",
    "Resumed",
    "Said",
    "Saying",
    "SessionLost",
    "Stream",
    "Unreachable",
    "Watched",
    "connect",
]
