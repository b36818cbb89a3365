"""Sessions over plain HTTP, `/v1/streaming/sessions`, for clients without WebSockets. Events are sent as SSE."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Header, Request
from fastapi.responses import StreamingResponse
from pydantic import AliasChoices, BaseModel, Field

from .errors import SERVER, ApiError
from .event_log import FellBehind
from .events import SessionOptions, error_event
from .exchange import NEW_SESSION
from .realtime_session import RealtimeSession

ALIVE_SECONDS = 15.0  # between two comments that keep a silent stream of events open
IMAGES = ("image/jpeg", "image/png", "image/webp")


async def owner_of(request: Request, authorization: Annotated[str | None, Header()] = None) -> str:
    return request.app.state.keys.owner(authorization)


Owner = Annotated[str, Depends(owner_of)]


async def session_of(request: Request, session_id: str, owner: Owner) -> RealtimeSession:
    """An open session, or a saved one, which goes on here."""
    session = await request.app.state.registry.find(owner, session_id)
    if session.connection is None and not session.is_kept:  # it was opened for this request
        session.is_kept = True
        session.log.add({"type": "session.updated", "session": session.describe()})
    return session


Found = Annotated[RealtimeSession, Depends(session_of)]


async def continued(session: Found) -> RealtimeSession:
    """A session whose client knows where it goes on. A frame sent in ignorance of a crash would leave a gap."""
    if session.is_behind:
        message = "the session goes on from before a crash; continue it with its session_id, and send what came after"
        raise ApiError("session_restored", message, 409)
    return session


Session = Annotated[RealtimeSession, Depends(continued)]
router = APIRouter(prefix="/v1/streaming/sessions", tags=["sessions"])


class NewSession(SessionOptions):
    """Options of a new session; or the id of a saved one, which is continued."""

    session_id: str | None = None


class Frame(BaseModel):
    image_url: str = Field(validation_alias=AliasChoices("image_url", "image"), description="a data URL")
    timestamp: float | None = Field(default=None, description="seconds; after the last frame if omitted")


class Frames(BaseModel):
    frames: list[Frame] = Field(min_length=1, max_length=256)


class Question(BaseModel):
    question: str


@router.post("", status_code=201)
async def create(request: Request, owner: Owner, options: Annotated[NewSession | None, Body()] = None) -> dict:
    """Open a session."""
    options, registry = options or NewSession(), request.app.state.registry
    is_new = options.session_id is None
    session = await (
        registry.open(owner, request.scope.get(NEW_SESSION)) if is_new else registry.find(owner, options.session_id)
    )
    session.is_kept, session.is_behind = True, False
    session.log.add({"type": "session.created" if is_new else "session.updated", "session": session.describe()})
    try:
        if options.model_fields_set - {"session_id", "type"}:
            session.update(options)
    except ApiError:
        if is_new:
            await registry.close(session, forget=True)
        raise
    return {**session.describe(), **state_of(session)}


@router.get("/{session_id}")
async def describe(session: Found) -> dict:
    """What is known of a session."""
    return {**session.describe(), **state_of(session)}


@router.post("/{session_id}/frames", status_code=202)
async def frames(request: Request, session: Session, timestamp: float | None = None) -> dict:
    """Add frames: JSON with data URLs, which wait for room, or the bytes of one image with `?timestamp=`. They are
    watched after the answer to this request; `input_video_frame.acknowledged` tells of each."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await request.body()
    if kind in IMAGES:
        times = [await session.append(body, timestamp)]
    elif kind == "application/json":
        given = Frames.model_validate_json(body)
        times = []
        for frame in given.frames:
            await session.room()
            times.append(await session.append(frame.image_url, frame.timestamp))
    else:
        message = f"the content type must be application/json or one of {', '.join(IMAGES)}"
        raise ApiError("unsupported_media_type", message, 415)
    return {"timestamps": times, **state_of(session)}


@router.post("/{session_id}/commit")
async def commit(session: Session) -> dict:
    """Wait until every frame that was added before was watched or dropped."""
    await session.commit()
    return state_of(session)


@router.post("/{session_id}/ask")
async def ask(session: Session, question: Question) -> dict:
    """Ask about the stream, and wait for the answer. Both become part of the stream."""
    response = await session.ask(question.question)
    text = "".join(part["text"] for item in response["output"] for part in item["content"])
    return {"question": question.question, "text": text, "time": response["metadata"]["time"], "response": response}


@router.post("/{session_id}/fork")
async def fork(session: Session, question: Question) -> dict:
    """Ask what would be answered now. The stream goes on as if nobody had asked."""
    try:
        return await session.fork_and_ask(question.question)
    except RuntimeError as error:  # the pool has no room
        raise ApiError("no_memory", str(error), 503, SERVER) from error


@router.post("/{session_id}/cancel")
async def cancel(session: Session) -> dict:
    """End the response that is in progress."""
    session.cancel()
    return state_of(session)


@router.delete("/{session_id}")
async def delete(request: Request, session_id: str, owner: Owner) -> dict:
    """Close a session, and delete what was saved of it."""
    await request.app.state.registry.delete(owner, session_id)
    return {"id": session_id, "object": "streaming.session.deleted", "deleted": True}


@router.get("/{session_id}/events", response_class=StreamingResponse)
async def events(
    session: Found, after: int | None = None, last_event_id: Annotated[int | None, Header()] = None
) -> StreamingResponse:
    """Server-sent events after number `after`, or after `Last-Event-ID`, or all that are kept, until the session is
    closed."""
    # who has left half of a connection open would otherwise keep it until the next request is due
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "Connection": "close"}
    given = after if last_event_id is None else last_event_id
    start = session.log.forgotten if given is None else min(max(0, given), session.log.last)
    session.log.after(start)  # raises before the answer begins
    return StreamingResponse(sent_events(session, start), media_type="text/event-stream", headers=headers)


async def sent_events(session: RealtimeSession, after: int) -> AsyncIterator[str]:
    following = session.log.follow(after)
    coming = asyncio.ensure_future(anext(following))
    try:
        while True:
            done, _ = await asyncio.wait([coming], timeout=ALIVE_SECONDS)
            if not done:
                yield ": still here\n\n"
                continue
            try:
                number, event = coming.result()
            except StopAsyncIteration:
                return
            except FellBehind as behind:
                session.metrics.slow_reader()
                gone = error_event(ApiError("slow_reader", f"events were read too slowly: {behind}"))
                yield f"event: error\ndata: {json.dumps(gone)}\n\n"
                return
            yield f"id: {number}\ndata: {event}\n\n"
            coming = asyncio.ensure_future(anext(following))
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        await following.aclose()


def state_of(session: RealtimeSession) -> dict:
    return {
        "id": session.id,
        "waiting": session.stream.waiting,
        "dropped": session.dropped,
        "keep_ratio": session.engine.keep_ratio_of(session.stream),
        "last_event": session.log.last,
    }


__all__ = ["router"]
