"""A `videollm-mod serve` in the place of a model of the Space's own: each stream of a visitor is a session there.

What needs the model itself cannot be shown: which patches a layer keeps, what they cost, and a dense model beside it.
"""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from ..speaking import StreamEvent, WatchedFrame
from .lane import Controls, Request, Seen
from .models import INSTRUCTION, KNOWN_QUESTIONS, QUESTIONS, Models

if TYPE_CHECKING:
    from ..client.events import Event

ANSWER_SECONDS = 30.0  # in which a server must answer a request
PATIENCE_SECONDS = 30.0  # for which a lost connection is made again
REPLY_SECONDS = 0.3  # in which most decisions come
NAP_SECONDS = 0.01


class RemoteModels:
    """
    What `Models` is for a model of its own.

    Args:
        url (`str`): of the server, such as `http://localhost:8000`.
        key (`str`, *optional*): if it needs one.

    Raises:
        `ImportError`: without the client's packages.
        `ValueError`, `OSError`: if no server answers there, or it refuses the key.
    """

    is_remote = True

    def __init__(self, url: str, key: str | None = None):
        try:
            import websockets  # noqa: F401
        except ImportError:
            raise ImportError("--server needs the client: pip install 'videollm-mod[client]'") from None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"the address of the server must begin with http:// or https://, got {url!r}")
        self.url, self.key, self.host = url, key, parts.netloc.rpartition("@")[2]
        model = self._ask_model()
        known = model.get("video") or {}
        self.name, domain = str(model.get("id", "VideoLLM-MoD")), known.get("domain")
        self.config = SimpleNamespace(domain=domain)
        self.fps, self.max_frames = float(known.get("fps", 2.0)), 1
        self.rules = {"trained": float(known.get("speak_threshold", 0.725))}
        self.instruction = known.get("instruction") or INSTRUCTION
        self.questions = KNOWN_QUESTIONS.get(str(domain), QUESTIONS)

    def _ask_model(self) -> dict:
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        address = self.url.rstrip("/").removesuffix("/v1") + "/v1/models"
        try:
            answer = httpx.get(address, headers=headers, timeout=ANSWER_SECONDS)
            found = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise OSError(f"no videollm-mod serve answers at {self.url}: {error or type(error).__name__}") from error
        if answer.status_code != 200:
            told = (found.get("error") if isinstance(found, dict) else None) or {}
            raise ValueError(f"{self.url} refuses: {told.get('message', f'HTTP {answer.status_code}')}")
        return found["data"][0]

    def describe(self) -> dict:
        """As `Models.describe`, without layers and patches."""
        return {
            "name": self.name,
            "domain": self.config.domain,
            "rules": self.rules,
            "instruction": self.instruction,
            "questions": self.questions,
            "fps": self.fps,
            "grid": [1, 1],
            "class_token": False,
            "fit": "stretch",
            "tokens": 1,
            "layers": 0,
            "routed_layers": [],
            "keep_ratio": 1.0,
            "max_frames": self.max_frames,
            "parameters": 0,
            "device": "server",
            "server": self.host,
        }


class RemoteLane:
    """
    What `Lane` is for a model of its own. Frames are on their way until the server acknowledges them, so results come
    later than the request: `collect` takes those that have come.

    Args:
        models (`RemoteModels`), controls (`Controls`), instruction (`str`, *optional*): how the stream opens.

    Raises:
        `ValueError`: if the server refuses.
    """

    def __init__(self, models: RemoteModels, controls: Controls, instruction: str | None):
        from ..client.sync import connect

        self.seen: list[Seen] = []
        self.events: list[StreamEvent] = []
        self.problem: str | None = None
        self.left_out = 0  # pictures that found no room on the way to the server
        self._dropped = self._waiting = 0
        self._keep_ratio: float | None = None
        self._sent: dict[float, float] = {}  # time of a frame on its way -> when it was sent
        self._last = float("-inf")
        self._silence: dict[float, float] = {}
        self._on_piece: Callable[[str], None] | None = None
        self._threshold, self._lock = controls.threshold, threading.Lock()
        options = {"instructions": instruction or None, "speak_threshold": controls.threshold}
        with refusals():
            self._stream = connect(models.url, key=models.key, patience=PATIENCE_SECONDS, **options)

    @property
    def settled(self) -> bool:
        """Nothing is on its way."""
        return not self._sent or self.problem is not None

    def state(self) -> dict:
        """What the page shows of the server."""
        return {
            "waiting": len(self._sent),
            "waiting_there": self._waiting,
            "dropped": self._dropped,
            "left_out": self.left_out,
            "keep_ratio": self._keep_ratio,
        }

    def run(self, request: Request, on_piece: Callable[[str], None] | None = None) -> Request:
        """Send frames, or ask and wait for the answer. Raises `ValueError` if the server refuses."""
        with refusals():
            if request.controls.threshold != self._threshold and request.controls.threshold is not None:
                self._threshold = request.controls.threshold
                self._stream.update(speak_threshold=self._threshold)
            if request.question is not None:
                self._on_piece = on_piece
                try:
                    self._stream.ask(request.question)
                finally:
                    self._on_piece = None
            else:
                assert request.images is not None
                for image, moment in zip(request.images, request.times, strict=True):
                    self._send(image, moment, request.wait)
        end = time.monotonic() + REPLY_SECONDS
        self.collect()
        while not self.settled and time.monotonic() < end:
            self.rest()
            self.collect()
        return request

    def _send(self, image, moment: float, wait: bool) -> None:
        if moment <= self._last:
            return  # the same picture again
        with self._lock:
            self._sent[moment] = time.monotonic()
        if self._stream.push(image, moment, wait=wait):
            self._last = moment
        else:
            self.left_out += 1
            with self._lock:
                self._sent.pop(moment, None)

    def collect(self) -> None:
        """Take what has come from the server."""
        from ..client import ClientError

        with self._lock:
            if self.problem is not None:
                return
            try:
                for event in self._stream.events():
                    self._take(event)
            except ClientError as error:
                self.problem = sentence(error)

    def _take(self, event: "Event") -> None:
        from ..client import Dropped, Said, Saying, Watched

        if isinstance(event, Watched):
            spent = 1000 * (time.monotonic() - self._sent.pop(event.time, time.monotonic()))
            self._waiting, self._dropped, self._keep_ratio = event.waiting, event.dropped, event.keep_ratio
            silence = 1.0 if event.silence_probability is None else event.silence_probability
            self.seen.append(Seen(WatchedFrame(event.time, silence, ()), None, spent))
        elif isinstance(event, Dropped):
            self._sent.pop(event.time, None)
            self._dropped += 1
        elif isinstance(event, Said):
            self.events.append(StreamEvent(event.time, event.kind, event.text, event.question))
        elif isinstance(event, Saying) and event.kind == "answer" and self._on_piece is not None:
            self._on_piece(event.text)

    def rest(self) -> None:
        """Wait a moment for results."""
        time.sleep(NAP_SECONDS)

    def close(self) -> None:
        """Leave the server; what has come stays."""
        self._stream.__exit__()


class refusals:
    """Turns errors of the client into sentences for visitors."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> None:
        from ..client import ClientError

        if isinstance(error, ClientError):
            raise ValueError(sentence(error)) from error


def sentence(error: Exception) -> str:
    """For visitors, who need not know the server's address."""
    from ..client import Unreachable

    if isinstance(error, Unreachable):
        return "The server that runs the model cannot be reached. Please try again later."
    text = str(error)
    return f"The server says: {text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


AnyModels = Models | RemoteModels

__all__ = ["AnyModels", "RemoteLane", "RemoteModels"]
