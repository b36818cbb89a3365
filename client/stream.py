"""A stream of frames to a server, and of events back, over a connection that is made again when it breaks."""

import asyncio
import json
import math
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from time import monotonic
from typing import Any
from urllib.parse import urlencode, urlsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from .errors import ClientError, Refused, SessionLost, Unreachable, refusal
from .events import Dropped, Event, Problem, Resumed, Said, Saying, Watched
from .images import encode
from .sent import Ask, Frame, SentLog, Update

OPEN_SECONDS = 60.0  # for an answer to an attempt to connect; a server listens before it has loaded its model
LONGEST_PAUSE = 5.0  # seconds between two attempts to connect again
OPTIONS = ("instructions", "speak_threshold", "max_output_tokens", "keep_ratio")
IDLE = 4010  # and other codes with which a server closes a connection
FINAL = {1000: "session_closed", 1009: "message_too_large", 1011: "stream_failed", 4009: "session_taken_over"}
# errors after which a request may be sent again
CLOSING = ("server_stopping", "session_moved", "session_closed", "session_idle")
BUSY = (409, 429, 502, 503, 504)  # HTTP answers after which the server may still take the session


class Stream:
    """One stream; make it with `connect`. It is an asynchronous iterator over its events.

    Attributes:
        session (`dict`): the server's description of the session.
    """

    def __init__(self, url: str, key: str | None, options: dict, in_flight: int, keep_bytes: int, patience: float):
        self.url = address(url)
        self.session: dict = {}
        self._key, self._options, self._in_flight, self._patience = key, options, in_flight, patience
        self._sent = SentLog(keep_bytes)
        self._inbox: deque[Event] = deque()
        self._more = asyncio.Event()
        self._pushing = asyncio.Lock()
        self._numbers = count(1)
        self._last = 0  # number of the last event
        self._time = -math.inf  # of the last frame
        self._ready = self._closed = False
        self._complete = True
        self._barrier = ""
        self._spoken: dict[str, tuple[dict, str]] = {}  # response id -> its metadata, and the text so far
        self._socket: ClientConnection | None = None
        self._error: ClientError | None = None
        self._notice = ""
        self._task: asyncio.Task | None = None

    async def __aenter__(self) -> "Stream":
        socket = await self._dial("")
        self._ready = True  # nothing is to be caught up with
        self._task = asyncio.create_task(self._run(socket))
        try:
            await self._until(lambda: bool(self.session))
            if any(value is not None for value in self._options.values()):
                await self.update(**self._options)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_) -> None:
        await self.close()

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Event:
        while not self._inbox:
            if self._closed:
                raise StopAsyncIteration
            await self._wait()
        return self._inbox.popleft()

    # What a user does.

    async def push(self, image: Any, time: float, wait: bool = True) -> bool:
        """Send a frame.

        Args:
            image: uint8 `[H, W, 3]` in RGB, an image of PIL, or the bytes of a JPEG, PNG or WebP.
            time (`float`): in seconds; must be after that of the frame before.
            wait (`bool`): while too many frames are on their way, wait; otherwise do without this one.

        Returns:
            Whether it is sent.

        Raises:
            `ValueError`: for an image or a time that is not valid. `Refused`: for a frame that is larger than the
            server takes; the stream goes on. `ClientError`: if the stream has ended.
        """
        async with self._pushing:
            time = float(time)
            if not self._time < time < math.inf:
                raise ValueError(f"`time` must be finite and after that of the last frame, got {time}")
            self._check_open()
            if not wait and not self._has_room():
                return False
            url = await asyncio.to_thread(encode, image)
            await self._until(self._has_room)
            name = self._name("frame")
            message = {"type": "input_video_frame.append", "event_id": name, "image_url": url, "timestamp": time}
            self._check_size(message)
            self._time = time
            self._sent.add(Frame(name, [message], time=time))
            self._wake()
            return True

    async def ask(self, question: str) -> Said:
        """Ask about the frames so far, and wait for the answer, which also comes as an event.

        Raises:
            `Refused`: if the server refuses the question. `ClientError`: if the stream ends before the answer.
        """
        name = self._name("ask")
        response = {"instructions": question, "metadata": {"ask": name}}
        request = Ask(name, [{"type": "response.create", "event_id": name, "response": response}], question=question)
        self._add(request)
        await self._until(lambda: request.told)
        if request.error is not None:
            raise request.error
        assert request.answer is not None
        return request.answer

    async def update(
        self,
        *,
        instructions: str | None = None,
        speak_threshold: float | None = None,
        max_output_tokens: int | None = None,
        keep_ratio: float | None = None,
    ) -> None:
        """Change what the session does with the frames from here on.

        Args:
            instructions (`str`, *optional*): what the model is told.
            speak_threshold (`float`, *optional*): it speaks when P(silence) is below this.
            max_output_tokens (`int`, *optional*): of one narration or answer.
            keep_ratio (`float`, *optional*): share of vision tokens that routed layers keep, in (0, 1]. Under load the
                server may keep fewer.

        Raises:
            as `ask`.
        """
        given = (instructions, speak_threshold, max_output_tokens, keep_ratio)
        options = {name: value for name, value in zip(OPTIONS, given, strict=True) if value is not None}
        name = self._name("update")
        change = {"type": "session.update", "event_id": name, "session": options}
        request = Update(name, [change, {"type": "input_video_frame.commit", "event_id": name}], options=options)
        self._add(request)
        await self._until(lambda: request.told)
        if request.error is not None:
            raise request.error

    async def cancel(self) -> None:
        """End the answer or the narration in progress."""
        for request in self._sent.open():
            if isinstance(request, Ask) and request.sent:
                request.withdrawn = True
        if self._socket is not None:
            with suppress(ConnectionClosed):  # if it is lost, nothing is in progress anymore
                await self._socket.send(json.dumps({"type": "response.cancel"}))

    async def finish(self) -> None:
        """Wait until everything was watched or answered, and close the stream. Its last events can still be read.

        Raises:
            `ClientError`: if the stream ends before that.
        """
        await self._until(lambda: next(self._sent.open(), None) is None)
        await self.close()

    async def close(self) -> None:
        """Close the stream without waiting."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._wake()

    def pending(self) -> list[Event]:
        """The events that have come since, without waiting. Raises `ClientError` if there is none and the stream has
        failed."""
        events = list(self._inbox)
        self._inbox.clear()
        if not events and self._error is not None:
            raise self._error
        return events

    # Waiting.

    def _name(self, kind: str) -> str:
        return f"{kind}_{next(self._numbers)}"

    def _add(self, request: Ask | Update) -> None:
        self._check_open()
        self._sent.add(request)
        self._wake()

    def _check_size(self, message: dict) -> None:
        size, limit = len(json.dumps(message)), self.session.get("max_message_bytes", math.inf)
        if size > limit:
            text = f"the message with the frame has {size} bytes, the server takes {limit}: send a smaller image"
            raise Refused("message_too_large", text)

    def _has_room(self) -> bool:
        return sum(isinstance(request, Frame) for request in self._sent.open()) < self._in_flight

    def _wake(self) -> None:
        self._more.set()
        self._more = asyncio.Event()

    def _check_open(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise ClientError("the stream is closed")

    async def _wait(self) -> None:
        """Wait until something has happened. Raises `ClientError` if the stream has ended."""
        self._check_open()
        await self._more.wait()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._wait()

    # The connection.

    async def _dial(self, query: str) -> ClientConnection:
        headers = None if self._key is None else {"Authorization": f"Bearer {self._key}"}
        try:
            return await open_socket(
                self.url + query,
                additional_headers=headers,
                max_size=None,
                compression=None,
                open_timeout=OPEN_SECONDS,
            )
        except InvalidStatus as error:
            raise refusal(error) from None
        except (OSError, InvalidHandshake) as error:  # TimeoutError is an OSError
            raise Unreachable(f"cannot reach {self.url}: {error or type(error).__name__}") from error

    async def _run(self, socket: ClientConnection) -> None:
        """Exchange messages until the stream is closed or fails."""
        try:
            while True:
                await self._exchange(socket)
                socket = await self._come_back(socket)
        except ClientError as error:
            self._error = error
        except Exception as error:
            self._error = ClientError(f"the server sent what no server sends: {error!r}")
            self._error.__cause__ = error
        finally:
            self._socket = None
            self._wake()

    async def _exchange(self, socket: ClientConnection) -> None:
        """Send and receive until the connection ends."""
        self._socket, self._notice = socket, ""
        async with socket:
            sending = asyncio.create_task(self._send(socket))
            try:
                async for message in socket:
                    self._take(json.loads(message))
                    self._wake()
            except ConnectionClosed:
                pass
            finally:
                self._socket = None
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    async def _come_back(self, socket: ClientConnection) -> ClientConnection:
        """Connect again. Raises `ClientError` if that is no use, or takes too long."""
        code, reason = socket.close_code or 1006, socket.close_reason or ""
        if code in FINAL and "ping timeout" not in reason:
            raise Refused(FINAL[code], self._notice or reason or FINAL[code].replace("_", " "), code)
        if code == IDLE:  # comes back when there is something to send
            await self._until(lambda: next(self._sent.open(), None) is not None)
        self._ready = False
        end, pause = monotonic() + self._patience, 0.1
        why: ClientError = Unreachable(self._notice or reason or "the connection was lost")
        while True:
            query = "?" + urlencode({"session_id": self.session["id"], "after": self._last}) if self.session else ""
            try:
                again = await self._dial(query)
                self._barrier = self._name("resume")
                await again.send(json.dumps({"type": "input_video_frame.commit", "event_id": self._barrier}))
                return again
            except Refused as error:
                if error.code == "session_not_found" and self.session:
                    self._begin_anew()
                    continue
                if error.code == "events_not_kept":
                    raise SessionLost(str(error)) from None
                if error.status not in BUSY:
                    raise
                why = error
            except Unreachable as error:
                why = error
            except ConnectionClosed:
                pass
            if monotonic() > end:
                raise Unreachable(f"{why}; given up after {self._patience:g} seconds") from None
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _begin_anew(self) -> None:
        if not self._sent.go_back(0, None):
            message = f"the server has lost session {self.session['id']}, and its first frames are not kept here"
            raise SessionLost(message)
        self.session, self._last = {}, 0
        self._spoken.clear()

    async def _send(self, socket: ClientConnection) -> None:
        while True:
            await self._until(lambda: self._ready and self._next() is not None)
            request = self._next()
            assert request is not None
            request.sent = True
            for message in request.messages:
                await socket.send(json.dumps(message))

    def _next(self) -> Frame | Ask | Update | None:
        """What is to be sent now, if anything."""
        frames, asking = 0, False
        for request in self._sent.open():
            if not request.sent:
                fits = frames < self._in_flight if isinstance(request, Frame) else not asking
                return request if fits else None  # type: ignore[return-value]
            frames += isinstance(request, Frame)
            asking |= isinstance(request, Ask)
        return None

    # Events.

    def _take(self, event: dict) -> None:
        kind, sequence = event["type"], event["sequence"]
        self._last = sequence
        if kind in ("session.created", "session.updated"):
            self.session = event["session"]
            if "restored_after" in self.session:  # the server continues from before
                self._complete &= self._sent.go_back(self.session["restored_after"], self.session["time"])
                self._spoken.clear()
        elif kind == "input_video_frame.acknowledged":
            self._acknowledged(event, sequence)
        elif kind == "response.created":
            self._spoken[event["response"]["id"]] = (event["response"]["metadata"], "")
        elif kind == "response.output_text.delta":
            self._delta(event)
        elif kind == "response.done":
            self._done(event["response"], sequence)
        elif kind == "error":
            self._refused(event["error"], sequence)

    def _acknowledged(self, event: dict, sequence: int) -> None:
        name, status = event["client_event_id"], event["status"]
        if name == self._barrier and name:
            sent_again = self._sent.reconnected(self.session, sequence)
            self._inbox.append(Resumed(self.session["time"], sent_again, self._complete))
            self._barrier, self._ready, self._complete = "", True, True
            return
        request = self._sent.get(name)
        if request is None or request.settled_at is not None:
            return
        is_news, request.settled_at, request.told = not request.told, sequence, True
        if isinstance(request, Frame) and is_news:
            request.dropped = status == "dropped"
            if request.dropped:
                self._inbox.append(Dropped(request.time, event["reason"]))
            else:
                shown = ("silence_probability", "waiting", "dropped", "keep_ratio")
                self._inbox.append(Watched(request.time, *(event[name] for name in shown)))

    def _whose(self, metadata: dict) -> Ask | Frame | None:
        """What a response is about: the question that it answers, or the frame that it narrates."""
        if metadata["kind"] == "narration":
            return self._sent.frame_at(float(metadata["time"]))
        found = self._sent.get(metadata.get("ask"))
        return found if isinstance(found, Ask) else None

    def _delta(self, event: dict) -> None:
        metadata, text = self._spoken[event["response_id"]]
        self._spoken[event["response_id"]] = metadata, text + event["delta"]
        about = self._whose(metadata)
        if not knows(about):
            question = about.question if isinstance(about, Ask) else None
            saying = Saying(metadata["kind"], float(metadata["time"]), text + event["delta"], question)
            self._inbox.append(saying)

    def _done(self, response: dict, sequence: int) -> None:
        self._spoken.pop(response["id"], None)
        metadata, about = response["metadata"], self._whose(response["metadata"])
        reason = (response["status_details"] or {}).get("reason")
        if isinstance(about, Ask) and reason == "session_closed" and not about.withdrawn:
            return  # the server has closed the session in between: the question is asked again
        question, is_known = about.question if isinstance(about, Ask) else None, knows(about)
        text = "".join(part["text"] for item in response["output"] for part in item["content"])
        said = Said(metadata["kind"], float(metadata.get("time", 0)), text, question, response["status"])
        if isinstance(about, Frame):
            about.narrated = True
        elif about is not None:
            about.settled_at, about.told, about.answer = sequence, True, about.answer or said
        if not is_known:
            self._inbox.append(said)

    def _refused(self, error: dict, sequence: int) -> None:
        code, message, request = error["code"], error["message"], self._sent.get(error.get("event_id"))
        if code in CLOSING:
            self._notice = message
        elif request is None:
            self._inbox.append(Problem(code, message))
        elif request.settled_at is None:
            is_news, request.settled_at, request.told = not request.told, sequence, True
            if isinstance(request, Frame):
                request.dropped = True
                if is_news:
                    self._inbox.append(Dropped(request.time, code, message))
            elif isinstance(request, Ask | Update) and is_news:
                request.error = Refused(code, message)


def knows(about: Ask | Frame | None) -> bool:
    """Whether the user has had what is said about it."""
    return about is not None and (about.told or (isinstance(about, Frame) and about.narrated))


def address(url: str) -> str:
    """The address of the WebSocket: `http` and `https` are taken as `ws` and `wss`, and the path may be left out."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    if scheme not in ("ws", "wss") or not parts.netloc:
        raise ValueError(f"the address must begin with http://, https://, ws:// or wss://, got {url!r}")
    path = parts.path.rstrip("/")
    if not path.endswith("/realtime"):
        path = path.removesuffix("/v1") + "/v1/realtime"
    return f"{scheme}://{parts.netloc}{path}"


def connect(
    url: str,
    *,
    key: str | None = None,
    instructions: str | None = None,
    speak_threshold: float | None = None,
    max_output_tokens: int | None = None,
    keep_ratio: float | None = None,
    in_flight: int = 8,
    keep_bytes: int = 64 * 2**20,
    patience: float = 300.0,
) -> Stream:
    """A stream to a server: `async with connect(url) as stream`.

    Args:
        url (`str`): of the server, such as `http://localhost:8000`.
        key (`str`, *optional*): if the server needs one.
        instructions, speak_threshold, max_output_tokens, keep_ratio: see `Stream.update`.
        in_flight (`int`): frames that may be on their way or wait at the server; `push` waits for room.
        keep_bytes (`int`): of frames that are kept, in case the server loses its latest state.
        patience (`float`): seconds for which a lost connection is made again.

    Raises:
        `ValueError`: for an address that is none.
        `Unreachable`, when the block is entered: if nothing answers.
        `Refused`, when the block is entered: such as for a wrong key, or a server that is full.
    """
    options = dict(zip(OPTIONS, (instructions, speak_threshold, max_output_tokens, keep_ratio), strict=True))
    return Stream(url, key, options, in_flight, keep_bytes, patience)


__all__ = ["Stream", "connect"]
