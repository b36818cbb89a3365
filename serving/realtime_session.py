"""One session of the realtime protocol, whatever carries its messages: requests in, numbered events out.

It turns a client's requests into work for a stream of the engine, and what comes out of the stream into events.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from secrets import token_hex
from time import monotonic
from typing import Any, Literal

from ..streaming import StreamingSession
from .engine import Engine
from .errors import SERVER, ApiError, too_many
from .event_log import EventLog
from .events import (
    FrameAppend,
    FrameCommit,
    Item,
    ItemCreate,
    ResponseCancel,
    ResponseCreate,
    ResponseOptions,
    SessionOptions,
    SessionUpdate,
    error_event,
    read_event,
    user_item,
)
from .images import decode_image, split_message
from .limits import FrameRate, Limits
from .metrics import Metrics
from .outputs import Began, Busy, Changed, Closed, Failed, Output, Piece, Said, Watched
from .response import Response
from .stream import Stream

CLOSED = ("session_closed", "the session is closed")
# what work of a stream is named with, each with what is needed of it later
FRAME, ANSWER, CHANGE, MARK = "frame", "answer", "change", "mark"


class RealtimeSession:
    """
    Args:
        session_id, owner (`str`): its id, and who may use it.
        engine (`Engine`), limits (`Limits`), metrics (`Metrics`).
        decoders (`Executor`): where images are decoded.
        log (`EventLog`): takes the events.
        name (`str`): of the model.

    Attributes:
        stream (`Stream`): of the engine, once `open` has returned.
        last_time (`float`, *optional*): of the last frame that was accepted.
        on_fatal (`Callable`): is called with the error when the stream has failed for good, and returns what to await;
            it closes the session by default.
    """

    def __init__(
        self,
        session_id: str,
        owner: str,
        engine: Engine,
        limits: Limits,
        metrics: Metrics,
        decoders: Executor,
        log: EventLog,
        name: str,
    ):
        self.id, self.owner, self.log, self.name = session_id, owner, log, name
        self.engine, self.limits, self.metrics, self.decoders = engine, limits, metrics, decoders
        self.last_time: float | None = None
        self.watched_time: float | None = None
        self.dropped = 0
        self.touched = monotonic()
        self.closed = False
        self.refusing: ApiError | None = None  # why nothing more is accepted
        self._forking = False
        self.notice: ApiError | None = None  # why it was closed
        self.is_kept = False  # also without a connection, until it is deleted or idle
        self.is_behind = False  # restored from before a crash, and its client has not come back for it
        self.connection: Any = None  # the newest one
        self.stream: Stream
        self.on_fatal: Callable[[ApiError], Any] = self.close
        self._instructions: str | None = None
        self._rate = FrameRate(limits.frames_per_second)
        self.shared_rate: FrameRate | None = None  # of all sessions of its owner
        self._usual_tokens: int | None = None  # the limit of a response, while one with a limit of its own is spoken
        self._texts: list[str] = []  # of items, for the next question
        self._asked_texts: list[str] = []  # of items, in the question that is asked
        self._marks: set[asyncio.Future] = set()
        self._asked: Response | None = None  # a response that a client asked for, until it is done
        self._response: Response | None = None  # the one that is being generated
        self._answers: dict[str, asyncio.Future] = {}  # response id -> its last event
        self._last_item: str | None = None
        self._tasks: set[asyncio.Task] = set()

    async def open(self, make: Callable[[], StreamingSession]) -> None:
        """Join the engine. Raises as `Engine.open`."""
        self.stream = await self.engine.open(self._receive, make)
        session = self.stream.pooled.session
        self.last_time = self.watched_time = session.time
        self._instructions, self._most_tokens = session.query, session.max_new_tokens
        self.metrics.opened()

    @property
    def is_working(self) -> bool:
        """Whether something that was asked of it is not done yet."""
        return self._forking or self.stream.has_work

    # Requests.

    async def receive(self, message: str | bytes) -> None:
        """A message of a client. What is wrong with it becomes an `error` event."""
        self.touched = monotonic()
        event_id = None
        try:
            if isinstance(message, bytes):
                time, image = split_message(message)
                await self.append(image, time)
                return
            event, event_id, wrong = read_event(message)
            if wrong is not None:
                raise wrong
            self._check_open()
            await self._handle(event)
        except ApiError as error:
            self.refuse(error, event_id)
        except Busy as error:
            self.refuse(too_many(error), event_id)
        except Closed:
            self.refuse(ApiError(*CLOSED, status=410), event_id)

    async def _handle(self, event: Any) -> None:
        if isinstance(event, FrameAppend):
            await self.append(event.image_url, event.timestamp, event.event_id)
        elif isinstance(event, FrameCommit):
            self.start(self._commit(event.event_id))
        elif isinstance(event, ItemCreate):
            await self.add_item(event.item)
        elif isinstance(event, ResponseCreate):
            self.respond(event.response)
        elif isinstance(event, ResponseCancel):
            self.cancel(event.response_id)
        elif isinstance(event, SessionUpdate):
            self.update(event.session, event.event_id)

    def refuse(self, error: ApiError, event_id: str | None = None) -> None:
        self.metrics.refused(error.code)
        self.log.add(error_event(error, event_id))

    async def append(self, image: bytes | str, time: float | None = None, event_id: str | None = None) -> float:
        """Add a frame to the stream: the bytes of an image, or a data URL. Returns its time.

        Raises:
            `ApiError`: for an image or a time that is not valid, or too many frames.
        """
        self._check_open()
        self._rate.take()
        if self.shared_rate is not None:
            self.shared_rate.take()
        self._check_time(time)
        decoding = asyncio.get_running_loop().run_in_executor(
            self.decoders, decode_image, image, self.limits.image_pixels
        )
        pixels = await decoding
        self._check_open()  # again: the session may be closing meanwhile
        time = self._check_time(time)  # again: others may have added frames
        self.last_time = time
        self.metrics.received()
        self.touched = monotonic()
        for ref, reason in self.stream.push(pixels, time, (FRAME, time, event_id)):
            self._drop(ref, reason)
        return time

    def _check_open(self) -> None:
        if self.refusing is not None:
            raise self.refusing

    async def room(self) -> None:
        """Wait until a frame fits without dropping another one."""
        while not self.closed and self.stream.waiting >= self.limits.waiting_frames:
            await self.log.grown()

    def _drop(self, ref: tuple, reason: str) -> None:
        self.dropped += 1
        self.metrics.dropped(reason)
        self._acknowledge(ref, "dropped", reason)

    def _check_time(self, time: float | None) -> float:
        if time is None:
            step = 1 / self.engine.processor.video_processor.fps
            return 0.0 if self.last_time is None else self.last_time + step
        self.limits.check_time(time, self.last_time)
        return time

    async def commit(self) -> None:
        """Wait until every frame that was added before was watched or dropped. Raises `Closed`."""
        await self.stream.call()

    async def _commit(self, event_id: str | None) -> None:
        await self.commit()
        self._acknowledge((FRAME, self.last_time, event_id), "committed")

    async def add_item(self, item: Item) -> None:
        """Add what a user said or showed. Text becomes part of the next question, a system's text an instruction, and
        an image a frame. Raises `ApiError`."""
        texts = list(self._texts) if item.role == "user" else []
        for part in item.content:
            if part.type == "input_text":
                self.limits.check_text("text", part.text or "")
                texts.append(part.text or "")
                self.limits.check_text("text", "\n".join(texts))
            elif not part.image_url:
                raise ApiError("missing_image", "`image_url` must be a data URL", param="item.content")
            elif item.role == "system":
                raise ApiError("invalid_item", "a system's item can hold text only", param="item.content")
        shown = user_item(item, item.id or f"item_{token_hex(12)}")
        for part in item.content:
            if part.type == "input_image":
                await self.append(part.image_url or "")
            elif item.role == "system":
                self._change(SessionOptions(instructions=part.text), None, is_update=False)
            else:
                self._texts.append(part.text or "")
        self._show(shown)

    def _show(self, item: dict) -> None:
        place = {"previous_item_id": self._last_item, "item": item}
        self._last_item = item["id"]
        self.log.add({"type": "conversation.item.added", **place})
        self.log.add({"type": "conversation.item.done", **place})

    def respond(self, options: ResponseOptions | None = None) -> str:
        """Ask what the items since the last question say. Returns the response's id.

        Raises:
            `ApiError`: if there is nothing to answer, or a question is being answered.
        """
        options = options or ResponseOptions()
        check_modalities(options.output_modalities)
        if options.conversation not in (None, "auto"):
            message = "`conversation` must be auto: a question beside the stream is a fork of it"
            raise ApiError("unsupported_option", message, param="response.conversation")
        if options.input:
            message = "`input` must be empty: the question is what the items since the last one say"
            raise ApiError("unsupported_option", message, param="response.input")
        check_tools(options.tools, "response.tools")
        self._check_tokens(options.max_output_tokens, "response.max_output_tokens")
        self._check_nothing_asked()
        texts = [*([options.instructions] if options.instructions else []), *self._texts]
        if not texts:
            message = "there is no question: create an item with input_text first"
            raise ApiError("no_question", message)
        self.limits.check_text("question", "\n".join(texts))
        return self._ask(texts, options.metadata or {}, options.max_output_tokens)

    def _ask(self, texts: list[str], metadata: dict, most_tokens: int | Literal["inf"] | None = None) -> str:
        response = Response(self.log.add, {**metadata, "kind": "answer"})
        if most_tokens is None:
            self.stream.ask("\n".join(texts), (ANSWER, response.id))
        else:
            self._ask_briefly("\n".join(texts), response, most_tokens)
        self._texts, self._asked_texts, self._asked = [], self._texts, response
        return response.id

    def _ask_briefly(self, question: str, response: Response, given: int | Literal["inf"]) -> None:
        """Ask with another limit of tokens, which holds for this response alone."""

        def limit(session: StreamingSession) -> None:
            self._usual_tokens = session.max_new_tokens
            session.max_new_tokens = self._most_tokens if given == "inf" else given

        self.stream.change(limit, (CHANGE, None, False))
        try:
            self.stream.ask(question, (ANSWER, response.id))
        finally:
            self.stream.change(self._restore_tokens, (CHANGE, None, False))

    def _restore_tokens(self, session: StreamingSession) -> None:
        if self._usual_tokens is not None:
            session.max_new_tokens, self._usual_tokens = self._usual_tokens, None

    def _check_tokens(self, tokens: int | Literal["inf"] | None, param: str) -> None:
        if isinstance(tokens, int) and not 1 <= tokens <= self._most_tokens:
            message = f"`max_output_tokens` must be in 1 to {self._most_tokens}, got {tokens}"
            raise ApiError("invalid_option", message, param=param)

    def _check_nothing_asked(self) -> None:
        if self._asked is not None:
            message = f"{self._asked.id} is not done yet; wait for its response.done, or cancel it"
            raise ApiError("conversation_already_has_active_response", message, 409)

    async def ask(self, question: str) -> dict:
        """Ask, and wait for the answer: the object `response` of its `response.done`. Raises `ApiError`, `Closed`."""
        self.touched = monotonic()
        self._check_open()
        self._check_nothing_asked()
        self.limits.check_text("question", question)
        response_id = self._ask([*self._texts, question], {})
        self._asked.item = Item(role="user", content=[{"type": "input_text", "text": question}])  # type: ignore
        answer = self._answers[response_id] = asyncio.get_running_loop().create_future()
        return (await answer)["response"]

    async def fork_and_ask(self, question: str) -> dict:
        """Ask a copy of the stream, after all that was sent before. The stream itself never knows.

        Returns:
            `{"question", "text", "time"}`.

        Raises:
            `ApiError`, `Closed`, and as `Engine.open`.
        """
        self.touched = monotonic()
        self.limits.check_text("question", question)
        answer: asyncio.Future = asyncio.get_running_loop().create_future()

        def receive(output: Output) -> None:
            if isinstance(output, Said) and not answer.done():
                answer.set_result({"question": question, "text": output.event.text, "time": output.event.time})
            elif isinstance(output, Failed) and not answer.done():
                answer.set_exception(ApiError("fork_failed", output.message, 500, SERVER))

        if self._forking:
            raise ApiError("fork_in_progress", "another fork of this session is being asked", 409)
        self._forking = True
        try:
            fork = await self.stream.fork(receive)
            try:
                fork.ask(question, (ANSWER, None))
                return await answer
            finally:
                await fork.close()
        finally:
            self._forking = False

    def cancel(self, response_id: str | None = None) -> None:
        """End a response: the one with this id, or whichever is in progress. Raises `ApiError` if there is none."""
        active = [each for each in (self._response, self._asked) if each is not None]
        found = next((each for each in active if response_id in (None, each.id)), None)
        if found is None:
            which = "no response" if response_id is None else f"no response {response_id}"
            raise ApiError("response_cancel_not_active", f"there is {which} in progress")
        if self.stream.cancel((ANSWER, found.id) if found is self._asked else None):
            self._end(found, "cancelled", "client_cancelled")

    def update(self, options: SessionOptions, event_id: str | None = None) -> None:
        """Change options from now on, and instructions after what was sent before. Raises `ApiError`."""
        check_modalities(options.output_modalities)
        check_tools(options.tools, "session.tools")
        self._check_tokens(options.max_output_tokens, "session.max_output_tokens")
        if options.instructions:
            self.limits.check_text("instructions", options.instructions)
        self._change(options, event_id, is_update=True)

    def _change(self, options: SessionOptions, event_id: str | None, is_update: bool) -> None:
        """Queue a change of the session; `session.updated` comes once an update is in effect."""

        def change(session: StreamingSession) -> None:
            if options.instructions:
                session.instruct(options.instructions)
                self._instructions = options.instructions
            if options.max_output_tokens is not None:
                given = options.max_output_tokens
                session.max_new_tokens = self._most_tokens if given == "inf" else given
            if options.speak_threshold is not None:
                session.speak_threshold = options.speak_threshold
            if "keep_ratio" in options.model_fields_set:
                self.stream.keep_ratio = options.keep_ratio

        self.stream.change(change, (CHANGE, event_id, is_update))

    def describe(self) -> dict:
        """The session as OpenAI's clients know it, with what is our own beside."""
        session = self.stream.pooled.session
        return {
            "type": "realtime",
            "object": "realtime.session",
            "id": self.id,
            "model": self.name,
            "instructions": self._instructions or "",
            "output_modalities": ["text"],
            "max_output_tokens": session.max_new_tokens,
            "speak_threshold": session.speak_threshold,
            "keep_ratio": self.engine.keep_ratio if self.stream.keep_ratio is None else self.stream.keep_ratio,
            "max_cached_frames": session.max_cached_frames,
            "max_message_bytes": self.limits.frame_bytes,
            "time": self.watched_time,
        }

    # What comes out of the stream.

    def _receive(self, output: Output) -> None:
        if isinstance(output, Piece):
            self._spoken(output.time).add(output.text)
        elif isinstance(output, Watched):
            self.watched_time = output.frame.time
            self._acknowledge(output.ref, "watched", silence=output.frame.silence_probability)
        elif isinstance(output, Began):
            if self._asked is not None and self._asked.id == output.ref[1]:
                if self._asked.item is not None:
                    self._show(user_item(self._asked.item, f"item_{token_hex(12)}"))
                self._begin(self._asked)
        elif isinstance(output, Said):
            self._said(output)
        elif isinstance(output, Changed):
            if output.ref[0] == MARK:
                self._marked(*output.ref[1:])
            elif output.ref[2]:
                self.log.add({"type": "session.updated", "session": self.describe()})
        elif isinstance(output, Failed):
            self._failed(output)

    def _spoken(self, time: float) -> Response:
        """The response that is being generated; a narration begins if there is none."""
        if self._response is None:
            self._begin(Response(self.log.add, {"kind": "narration", "time": str(time)}))
        assert self._response is not None
        return self._response

    def _said(self, said: Said) -> None:
        response = self._spoken(said.event.time)
        if said.hushed:
            reason = "session_closed" if self.closed else "client_cancelled"
            self._end(response, "cancelled", reason, usage=said.usage)
        elif not said.ended:
            self._end(response, "incomplete", "max_output_tokens", usage=said.usage)
        else:
            self._end(response, usage=said.usage)

    def _failed(self, failed: Failed) -> None:
        error = ApiError("server_error", failed.message or "the model failed", 500, SERVER)
        kind, event_id = failed.ref[0] if failed.ref else None, None
        if kind == MARK:
            _, future, taken, note = failed.ref
            self._marked(future, taken, note, OSError(failed.message))
            return
        if kind == FRAME:
            event_id = failed.ref[2]
            self._drop(failed.ref, "failed")
        elif kind == CHANGE:
            event_id = failed.ref[1]
            error = ApiError("invalid_instructions", failed.message, param="session.instructions")
        if self._response is not None and kind in (None, ANSWER):
            self._end(self._response, "failed", error=error.body())
        if self._asked is not None and (kind == ANSWER or failed.fatal):
            self._end(self._asked, "failed", error=error.body())
        if failed.fatal:
            self.start(self.on_fatal(error))
        else:
            self.refuse(error, event_id)

    def _begin(self, response: Response) -> None:
        response.metadata.setdefault("time", str(self.watched_time or 0.0))
        response.begin(self._last_item)
        self._last_item, self._response = response.item_id, response

    def _end(self, response: Response, status: str = "completed", reason=None, error=None, usage=None) -> None:
        response.metadata.setdefault("time", str(self.watched_time or 0.0))  # also of one that was never begun
        done = response.end(status, reason, error, usage)
        self._response = None if response is self._response else self._response
        self._asked = None if response is self._asked else self._asked
        answer = self._answers.pop(response.id, None)
        if answer is not None and not answer.done():
            answer.set_result(done)

    def _acknowledge(self, ref: tuple, status: str, reason: str | None = None, silence: float | None = None) -> None:
        _, time, event_id = ref
        self.log.add(
            {
                "type": "input_video_frame.acknowledged",
                "timestamp": time,
                "status": status,
                "reason": reason,
                "client_event_id": event_id,
                "silence_probability": silence,
                "waiting": self.stream.waiting,
                "dropped": self.dropped,
                "keep_ratio": self.engine.keep_ratio_of(self.stream),
            }
        )

    # What a store needs.

    async def mark(self, take: Callable[[StreamingSession], Any], note: Callable[[], Any]) -> tuple[Any, Any]:
        """The result of `take(session)`, called in the engine's thread after the work that waits now, and that of
        `note()`, called when the log holds all events up to there and none after.

        Raises:
            `OSError`: if `take` fails. `Closed`, `Busy`.
        """
        future: asyncio.Future = asyncio.get_running_loop().create_future()
        taken: list[Any] = []
        self.stream.change(lambda session: taken.append(take(session)), (MARK, future, taken, note))
        self._marks.add(future)
        try:
            return await future
        finally:
            self._marks.discard(future)

    @staticmethod
    def _marked(future: asyncio.Future, taken: list, note: Callable[[], Any], error: Exception | None = None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result((taken[0], note()))

    def notes(self) -> dict:
        """What to save beside the stream and the log. A question that waits is not in the stream yet: its texts are
        those of the next one."""
        waiting = self._asked_texts if self._asked is not None and not self._asked.begun else []
        own = {"dropped": self.dropped, "last_item": self._last_item, "is_behind": self.is_behind}
        return {**own, "keep_ratio": self.stream.keep_ratio, "texts": [*waiting, *self._texts]}

    def take_notes(self, notes: dict) -> None:
        self.dropped, self._texts, self._last_item = notes["dropped"], list(notes["texts"]), notes["last_item"]
        while len("\n".join(self._texts)) > self.limits.text_characters:  # which no question could have anymore
            del self._texts[0]
        self.is_behind, self.stream.keep_ratio = notes["is_behind"], notes.get("keep_ratio")  # older ones have none

    # Its end.

    def start(self, work) -> None:
        """Run a coroutine beside the messages that follow, until the session is closed."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Busy):
            self.refuse(too_many(error))
        elif error is not None and not isinstance(error, Closed):
            self.refuse(ApiError("server_error", str(error), 500, SERVER))

    async def close(
        self,
        notice: ApiError | None = None,
        finish: Callable[[StreamingSession], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        """Leave the engine, and end the log.

        Args:
            notice (`ApiError`, *optional*): why, as the last event.
            finish (`Callable`, *optional*): is called with the session when the log holds all events, such as to save
                it, and awaited. A stream that has failed is not finished.
        """
        if self.closed:
            return
        self.closed = True
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()
        has_failed = self.stream.closed
        try:
            try:
                await self.stream.close()
            finally:
                for response in (self._response, self._asked):
                    if response is not None:
                        self._end(response, "cancelled", "session_closed")
                for answer in self._answers.values():
                    answer.cancel()
                for mark in self._marks:
                    if not mark.done():
                        mark.set_exception(Closed("the session is closed"))
                if notice is not None:
                    self.notice = notice
                    self.refuse(notice)
            if finish is not None and not has_failed:
                self._restore_tokens(self.stream.pooled.session)  # which has left the engine
                await finish(self.stream.pooled.session)
        finally:
            self.log.close()


def check_modalities(modalities: list[str] | None) -> None:
    if modalities is not None and modalities != ["text"]:
        message = '`output_modalities` must be ["text"]: the model does not speak aloud'
        raise ApiError("unsupported_option", message, param="output_modalities")


def check_tools(tools: list | None, param: str) -> None:
    if tools:
        raise ApiError("unsupported_option", "`tools` must be empty: this model calls none", param=param)


__all__ = ["RealtimeSession"]
