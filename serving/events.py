"""The events of the realtime protocol: what clients send, checked, and what the server sends.

They are named as in OpenAI's Realtime API where they mean the same. `input_video_frame.*` are our own.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, Field, TypeAdapter, ValidationError

from .errors import ApiError

Name = Annotated[str, Field(max_length=512)]


class ClientEvent(BaseModel):
    event_id: Name | None = None


class SessionOptions(BaseModel):
    """What a client may set; other fields of OpenAI's sessions, such as `audio`, have no meaning here."""

    type: Literal["realtime"] | None = None
    instructions: str | None = None
    output_modalities: list[str] | None = None
    max_output_tokens: int | Literal["inf"] | None = None
    tools: list[Any] | None = None
    speak_threshold: float | None = Field(default=None, ge=0, le=1)
    keep_ratio: float | None = Field(default=None, gt=0, le=1)  # null: the server's own again


class SessionUpdate(ClientEvent):
    type: Literal["session.update"]
    session: SessionOptions


class Content(BaseModel):
    type: Literal["input_text", "input_image"]
    text: str | None = None
    image_url: str | None = None


class Item(BaseModel):
    type: Literal["message"] = "message"
    id: Name | None = None
    role: Literal["user", "system"]
    content: list[Content] = Field(min_length=1, max_length=64)


class ItemCreate(ClientEvent):
    type: Literal["conversation.item.create"]
    item: Item


class ResponseOptions(BaseModel):
    instructions: str | None = None
    conversation: str | None = None
    output_modalities: list[str] | None = None
    max_output_tokens: int | Literal["inf"] | None = None
    input: list[Any] | None = None
    tools: list[Any] | None = None
    metadata: dict[Annotated[str, Field(max_length=64)], Name] | None = Field(default=None, max_length=16)


class ResponseCreate(ClientEvent):
    type: Literal["response.create"]
    response: ResponseOptions | None = None


class ResponseCancel(ClientEvent):
    type: Literal["response.cancel"]
    response_id: Name | None = None


class FrameAppend(ClientEvent):
    type: Literal["input_video_frame.append"]
    image_url: str = Field(validation_alias=AliasChoices("image_url", "image"))
    timestamp: float | None = None


class FrameCommit(ClientEvent):
    type: Literal["input_video_frame.commit"]


AnyEvent = SessionUpdate | ItemCreate | ResponseCreate | ResponseCancel | FrameAppend | FrameCommit
KNOWN: dict[str, TypeAdapter] = {
    kind.model_fields["type"].annotation.__args__[0]: TypeAdapter(kind)  # type: ignore[union-attr]
    for kind in AnyEvent.__args__  # type: ignore[attr-defined]
}


def read_event(text: str) -> tuple[AnyEvent | None, str | None, ApiError | None]:
    """A client's event from JSON.

    Returns:
        The event, or None if it is not valid; its `event_id`, if it has one; and what is wrong with it.
    """
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return None, None, ApiError("invalid_json", "the message is not JSON")
    if not isinstance(given, dict):
        return None, None, ApiError("invalid_event", "an event must be a JSON object with a `type`")
    event_id = given.get("event_id")
    event_id = event_id[:512] if isinstance(event_id, str) else None
    kind = given.get("type")
    if not isinstance(kind, str) or kind not in KNOWN:
        message = f"`type` must be one of {', '.join(KNOWN)}"
        return None, event_id, ApiError("unknown_event", message, param="type")
    try:
        return KNOWN[kind].validate_python(given), event_id, None
    except (ValidationError, RecursionError) as error:
        return None, event_id, invalid(error)


def invalid(error: Exception) -> ApiError:
    """The first thing that is wrong, without the value, which may be long."""
    if not isinstance(error, ValidationError):
        return ApiError("invalid_event", "the event is nested too deeply")
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:200]
    return ApiError("invalid_event", f"`{where}`: {first['msg']}"[:500], param=where)


def error_event(error: ApiError, event_id: str | None = None) -> dict:
    return {"type": "error", "error": error.body(event_id)}


def user_item(item: Item, item_id: str) -> dict:
    """An item as the server returns it, without the bytes of images."""
    content = [
        {"type": part.type, **({"text": part.text} if part.type == "input_text" else {})} for part in item.content
    ]
    return message_item(item_id, item.role, content, "completed")


def message_item(item_id: str, role: str, content: list[dict], status: str) -> dict:
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "message",
        "status": status,
        "role": role,
        "content": content,
    }


__all__ = [
    "ClientEvent",
    "FrameAppend",
    "FrameCommit",
    "Item",
    "ItemCreate",
    "ResponseCancel",
    "ResponseCreate",
    "SessionOptions",
    "SessionUpdate",
    "error_event",
    "message_item",
    "read_event",
    "user_item",
]
