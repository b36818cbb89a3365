"""`POST /v1/chat/completions`, as in OpenAI's API: a recorded conversation with images and videos is answered once,
beside the live streams."""

import asyncio
import base64
import binascii
import copy
import io
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from secrets import token_hex
from threading import Event, Lock
from time import monotonic, time
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.types import Receive, Scope, Send
from transformers import GenerationConfig

from ..containers import MediaLimits
from ..decoding import iter_video_frames
from .chat_session import ChatSession, Prompt
from .errors import RATE, SERVER, ApiError
from .fetching import FETCH_SECONDS, fetch
from .images import decode_image
from .outputs import Closed, Failed, Output, Piece
from .registry import STOPPING, Registry
from .sessions import Owner
from .stream import Stream

PREPARERS = 2  # threads that decode and encode conversations
MEDIA_BYTES = 2**31  # of the decoded images and videos of one chat
DECODE_SECONDS = 60.0  # for one video
LOWEST_TEMPERATURE = 1e-4  # below it the most probable token is as good as certain, and numbers overflow
# files that hold their frames themselves: a playlist would make the server open the addresses and files in it
CONTAINERS = {"format_whitelist": "mov,matroska,avi,mpegts,mpeg,ogg,flv,gif", "protocol_whitelist": "none"}
VIDEO_URL = re.compile(r"data:video/[\w.+-]+;base64,", re.IGNORECASE)
UNUSED = {"user", "safety_identifier", "metadata", "prompt_cache_key", "service_tier"}  # do not change an answer
# other fields of OpenAI's API, with the values that mean what this server does
PLAIN: dict[str, tuple] = {
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True,),
    "top_logprobs": (0,),
}


class Address(BaseModel):
    url: str = Field(description="a data URL; http(s) only if the server allows it")


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: Address


class VideoPart(BaseModel):
    type: Literal["video_url"]
    video_url: Address


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: list[Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]]

    @field_validator("content", mode="before")
    @classmethod
    def as_parts(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """A conversation, and how to answer it. Without `temperature` the most probable tokens are taken."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    n: int | None = 1

    @property
    def stops(self) -> list[str]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in given if text]

    @property
    def generation_config(self) -> GenerationConfig | None:
        if self.temperature is None or self.temperature < LOWEST_TEMPERATURE:
            return None
        top_p = 1.0 if self.top_p is None else self.top_p
        return GenerationConfig(do_sample=True, temperature=self.temperature, top_p=top_p, top_k=0)

    def check(self) -> None:
        """Raise `ApiError` for what this server does not do."""
        if self.n not in (None, 1):
            raise unsupported("n", "`n` must be 1: one answer is given")
        if len(self.stops) > 4:
            raise unsupported("stop", f"`stop` may hold at most 4 texts, got {len(self.stops)}")
        for name, value in (self.model_extra or {}).items():
            is_plain = value in (None, False, "", [], {}) or value in PLAIN.get(name, ())
            if name not in UNUSED and not is_plain:
                raise unsupported(name, f"`{name[:80]}` is not supported")


def unsupported(name: str, message: str) -> ApiError:
    return ApiError("unsupported_parameter", message, param=name[:80])


class Stops:
    """Ends a text before the first of some texts. What may be the beginning of one is held back."""

    def __init__(self, texts: list[str]):
        self.texts, self.found, self._held = texts, False, ""

    def add(self, piece: str) -> str:
        """What can be shown after another piece."""
        self._held += piece
        at = min((index for text in self.texts if (index := self._held.find(text)) >= 0), default=None)
        if at is not None:
            self.found, shown, self._held = True, self._held[:at], ""
            return shown
        keep = max((length for text in self.texts for length in begins(text, self._held)), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def rest(self) -> str:
        """What was held back, at the end of the text."""
        rest, self._held = self._held, ""
        return rest


def begins(text: str, held: str) -> list[int]:
    """How many characters at the end of `held` are the beginning of `text`."""
    return [length for length in range(1, min(len(text), len(held) + 1)) if held.endswith(text[:length])]


class Media:
    """Decodes the images and videos of one chat, within limits of all of them together."""

    def __init__(self, registry: Registry, processor, cancelled: Event):
        self.limits, self.fps, self.cancelled = registry.limits, processor.video_processor.fps, cancelled
        self.frames = self.num_bytes = 0

    def image(self, content: str | bytes) -> np.ndarray:
        """uint8 `[H, W, 3]`."""
        return self._counted(decode_image(content, self.limits.image_pixels))

    def video(self, content: str | bytes) -> tuple[np.ndarray, dict]:
        """Frames, uint8 `[F, H, W, 3]`, and their metadata as in transformers."""
        if isinstance(content, str):
            content = bytes_of_video(content)
        frames, deadline = [], monotonic() + DECODE_SECONDS
        limits = MediaLimits(pixels=self.limits.image_pixels, num_bytes=MEDIA_BYTES)
        try:
            for frame, _ in iter_video_frames(Named(content), self.fps, limits=limits, options=CONTAINERS):
                frames.append(self._counted(frame))
                if self.cancelled.is_set() or monotonic() > deadline:
                    message = f"a video takes longer than {DECODE_SECONDS:g} seconds to decode"
                    raise ApiError("video_too_slow", message, param="video_url")
        except (OSError, ValueError) as error:
            raise ApiError("invalid_video", str(error), param="video_url") from None
        count = len(frames)
        metadata = {"total_num_frames": count, "fps": self.fps, "frames_indices": list(range(count))}
        return np.stack(frames), {**metadata, "duration": count / self.fps}

    def _counted(self, image: np.ndarray) -> np.ndarray:
        self.frames, self.num_bytes = self.frames + 1, self.num_bytes + image.nbytes
        if self.frames > self.limits.chat_frames:
            message = f"the chat has more than {self.limits.chat_frames} images and frames, the limit of one chat"
            raise ApiError("too_many_frames", message, param="messages")
        if self.num_bytes > MEDIA_BYTES:
            message = f"the images and frames of the chat take more than {MEDIA_BYTES} bytes, the limit of one chat"
            raise ApiError("media_too_large", message, 413, param="messages")
        return image


class Named(io.BytesIO):
    """A file with a name for errors."""

    name = "the video"


def bytes_of_video(url: str) -> bytes:
    """The file in a data URL such as `data:video/mp4;base64,...`. Raises `ApiError`."""
    match = VIDEO_URL.match(url)
    if match is None:
        message = "a video must be a data URL that begins with data:video/mp4;base64, (or webm, or another type)"
        raise ApiError("invalid_video_url", message, param="video_url")
    try:
        return base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError("invalid_video_url", f"the data URL is not valid base64: {error}", param="video_url") from None


class Chats:
    """
    The chats of a server.

    Args:
        registry (`Registry`): whose engine answers them.
        allow_urls (`bool`): fetch images and videos from public http(s) addresses.
    """

    def __init__(self, registry: Registry, allow_urls: bool = False):
        self.registry, self.allow_urls = registry, allow_urls
        self.running: set[Answer] = set()
        self.closing: set[asyncio.Task] = set()
        self.threads = ThreadPoolExecutor(PREPARERS, "chat")
        self.processor = copy.deepcopy(registry.engine.processor)  # the engine's thread uses the other one
        self.lock = Lock()  # of the processor, which may not be used by two threads
        text = registry.engine.model.config.text_config
        self.context = text.max_position_embeddings
        self.max_characters = self.context * max(map(len, self.processor.tokenizer.get_vocab()))

    async def begin(self, request: ChatRequest) -> "Answer":
        """Begin to answer. `end` of the answer must be called.

        Raises:
            `ApiError`: for a request that cannot be answered.
        """
        request.check()
        self.check_text(request.messages)
        self.registry.check_open()
        if len(self.running) >= self.registry.limits.chats:
            message = f"{self.registry.limits.chats} chats are being answered, the limit; try again later"
            raise ApiError("chat_limit_exceeded", message, 429, RATE)
        answer = Answer(self, request)
        self.running.add(answer)
        try:
            await answer.begin()
        except BaseException:
            answer.end()
            raise
        return answer

    def check_text(self, messages: list[Message]) -> None:
        """Raise `ApiError` for so much text that it cannot fit. To encode it first would take long."""
        parts = (part for message in messages for part in message.content)
        count = sum(len(part.text) for part in parts if isinstance(part, TextPart))
        if count > self.max_characters:
            message = f"the messages have {count} characters, the model's context holds at most {self.max_characters}"
            raise ApiError("context_length_exceeded", message, param="messages")

    async def load(self, messages: list[Message]) -> list[list[str | bytes | None]]:
        """For each part what holds its image or video: a data URL, or what was fetched. The limits of a message and of
        the time are those of all addresses together."""
        left, deadline = self.registry.limits.message_bytes, monotonic() + FETCH_SECONDS
        loaded: list[list[str | bytes | None]] = []
        for message in messages:
            loaded.append([])
            for part in message.content:
                content: str | bytes | None = None
                if not isinstance(part, TextPart):
                    content = part.image_url.url if isinstance(part, ImagePart) else part.video_url.url
                    if content[:8].lower().startswith(("http://", "https://")):
                        self._check_urls_allowed(part.type)
                        content = await fetch(content, left, max(0.0, deadline - monotonic()))
                        left -= len(content)
                loaded[-1].append(content)
        return loaded

    def _check_urls_allowed(self, param: str) -> None:
        if not self.allow_urls:
            message = "this server fetches no addresses: give a data URL (--allow-urls allows public addresses)"
            raise ApiError("url_not_allowed", message, param=param)

    def prepare(self, messages: list[Message], contents: list[list[str | bytes | None]], cancelled: Event) -> Prompt:
        """The prompt of a conversation. Runs in a thread."""
        media, metadata = Media(self.registry, self.processor, cancelled), []
        conversation = []
        for index, (message, loaded) in enumerate(zip(messages, contents, strict=True)):
            blocks: list[dict] = []
            for part, content in zip(message.content, loaded, strict=True):
                if isinstance(part, TextPart):
                    self.registry.limits.check_text(f"messages[{index}]", part.text)
                    blocks.append({"type": "text", "text": part.text})
                elif content is not None and isinstance(part, ImagePart):
                    blocks.append({"type": "image", "image": media.image(content)})
                elif content is not None:
                    frames, known = media.video(content)
                    metadata.append(known)
                    blocks.append({"type": "video", "video": frames})
            conversation.append({"role": message.role.replace("developer", "system"), "content": blocks})
        try:
            with self.lock:
                inputs = self.processor.apply_chat_template(
                    conversation,
                    tokenize=True,
                    return_dict=True,
                    return_tensors="pt",
                    add_generation_prompt=True,
                    **({"video_metadata": metadata} if metadata else {}),
                )
        except ValueError as error:
            why = str(error).replace("conversation[", "messages[")
            raise ApiError("invalid_messages", why, param="messages") from None
        return Prompt.of(inputs)

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)


class Answer:
    """One chat that is being answered.

    Attributes:
        reason (`str`, *optional*): why the answer ended, `stop` or `length`; None before that.
    """

    def __init__(self, chats: Chats, request: ChatRequest):
        self.chats, self.request = chats, request
        self.id, self.created = f"chatcmpl-{token_hex(12)}", int(time())
        self.reason: str | None = None
        self.stops = Stops(request.stops)
        self._outputs: asyncio.Queue[Output | None] = asyncio.Queue()
        self._cancelled = Event()
        self._session: ChatSession | None = None
        self._opening: asyncio.Task[Stream] | None = None
        self._done: asyncio.Future | None = None

    async def begin(self) -> None:
        """Prepare the prompt, and queue it for the model."""
        chats, request, registry = self.chats, self.request, self.chats.registry
        engine, loop = registry.engine, asyncio.get_running_loop()
        contents = await chats.load(request.messages)
        prepare = partial(chats.prepare, request.messages, contents, self._cancelled)
        prompt = await loop.run_in_executor(chats.threads, prepare)
        limit = request.max_completion_tokens or request.max_tokens or registry.options.get("max_new_tokens") or 64
        if len(prompt.ids) + limit > chats.context:
            message = (
                f"the prompt has {len(prompt.ids)} tokens, and the answer may have {limit}: together they must be at "
                f"most {chats.context}, the context of the model"
            )
            raise ApiError("context_length_exceeded", message, param="messages")
        config, seed = request.generation_config, request.seed

        def make() -> ChatSession:
            self._session = ChatSession(engine.model, engine.processor, prompt, limit, config, seed)
            return self._session

        try:
            self._opening = asyncio.ensure_future(engine.open(self._outputs.put_nowait, make))
            stream = await asyncio.shield(self._opening)
            stream.ask("chat", self)
            self._done = asyncio.ensure_future(stream.call())
            self._done.add_done_callback(lambda _: self._outputs.put_nowait(None))
        except RuntimeError as error:  # the pool has no room
            raise ApiError("no_memory", str(error), 503, SERVER) from error
        except Closed:
            raise ApiError(*STOPPING) from None

    def end(self) -> None:
        """Free what the answer holds. The model stops at once if it is not complete."""
        self._cancelled.set()
        if self in self.chats.running:
            self.chats.running.discard(self)
            if self._opening is not None:
                task = asyncio.get_running_loop().create_task(self._close(self._opening))
                self.chats.closing.add(task)  # the event loop keeps only weak references
                task.add_done_callback(self.chats.closing.discard)

    async def _close(self, opening: asyncio.Task[Stream]) -> None:
        with suppress(Closed, RuntimeError, ValueError):
            await (await opening).close()
        if self._done is not None:
            await asyncio.gather(self._done, return_exceptions=True)

    async def pieces(self) -> AsyncIterator[str]:
        """The text, piece by piece. Raises `ApiError` if the model fails, or the server stops."""
        while (output := await self._outputs.get()) is not None:
            if isinstance(output, Failed):
                raise ApiError("generation_failed", output.message, 500, SERVER)
            if isinstance(output, Piece):
                if text := self.stops.add(output.text):
                    yield text
                if self.stops.found:
                    self.reason = "stop"
                    return
        assert self._done is not None and self._session is not None
        if self._done.exception() is not None:
            raise ApiError(*STOPPING)
        if text := self.stops.rest():
            yield text
        self.reason = "stop" if self._session.reply.ended else "length"

    @property
    def usage(self) -> dict:
        assert self._session is not None
        ids, completion = self._session.prompt.ids, self._session.completion_tokens
        config, prompt = self.chats.registry.engine.model.config, len(ids)
        images = ids.count(config.video_token_id) + ids.count(config.image_token_id)
        return {
            "prompt_tokens": prompt,
            "prompt_tokens_details": {
                "text_tokens": prompt - images,
                "image_tokens": images,
                "audio_tokens": 0,
                "cached_tokens": 0,
            },
            "completion_tokens": completion,
            "completion_tokens_details": {"text_tokens": completion, "audio_tokens": 0, "reasoning_tokens": 0},
            "total_tokens": prompt + completion,
        }

    def as_dict(self, kind: str, choices: list[dict], **fields) -> dict:
        name = self.chats.registry.name
        return {"id": self.id, "object": kind, "created": self.created, "model": name, "choices": choices, **fields}

    async def complete(self) -> dict:
        """The whole answer as one object."""
        text = "".join([piece async for piece in self.pieces()])
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.reason}
        return self.as_dict("chat.completion", [choice], usage=self.usage)

    async def events(self) -> AsyncIterator[str]:
        """The answer as server-sent events."""
        options = self.request.stream_options
        with_usage = options is not None and options.include_usage
        fields = {"usage": None} if with_usage else {}

        def chunk(delta: dict) -> str:
            choice = {
                "index": 0,
                "delta": delta,
                "logprobs": None,
                "finish_reason": self.reason if not delta else None,
            }
            return sent(self.as_dict("chat.completion.chunk", [choice], **fields))

        yield chunk({"role": "assistant", "content": ""})
        try:
            async for piece in self.pieces():
                yield chunk({"content": piece})
        except ApiError as error:
            yield sent({"error": error.body()})
            return
        yield chunk({})
        if with_usage:
            yield sent(self.as_dict("chat.completion.chunk", [], usage=self.usage))
        yield "data: [DONE]\n\n"


def sent(value: dict) -> str:
    return f"data: {json.dumps(value)}\n\n"


class AnswerEvents(StreamingResponse):
    """The events of an answer, which ends when all were sent, or when the client hangs up."""

    def __init__(self, answer: Answer):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(answer.events(), media_type="text/event-stream", headers=headers)
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.answer.end()


async def unless_gone(request: Request, work: Callable[[], Coroutine]) -> Any:
    """The result of `work`, which is cancelled when the client hangs up."""
    working, leaving = asyncio.ensure_future(work()), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError("client_closed_request", "the client has hung up", 499)
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


router = APIRouter(tags=["chat"])


@router.post("/v1/chat/completions")
async def completions(request: Request, owner: Owner, chat: ChatRequest) -> Any:
    """Answer a recorded conversation, with `stream` as server-sent events."""
    chats: Chats = request.app.state.chats
    answer = await unless_gone(request, partial(chats.begin, chat))
    if chat.stream:
        return AnswerEvents(answer)
    try:
        return await unless_gone(request, answer.complete)
    finally:
        answer.end()


__all__ = ["Chats", "router"]
