"""A response of the realtime protocol: the events from its beginning to its end."""

from collections.abc import Callable
from secrets import token_hex

from .events import Item, message_item


class Response:
    """
    What the model says, as events. `begin` is called once, then `add` for each piece, and `end` once.

    Args:
        send (`Callable`): takes each event.
        metadata (`dict[str, str]`): of the response, such as `{"kind": "narration", "time": "3.5"}`.
    """

    def __init__(self, send: Callable[[dict], object], metadata: dict[str, str]):
        self.id, self.item_id = f"resp_{token_hex(12)}", f"item_{token_hex(12)}"
        self.metadata, self.text = metadata, ""
        self._send, self._previous = send, None  # type: Callable[[dict], object], str | None
        self.begun = False
        self.item: Item | None = None  # of the user, to be shown when the response begins

    def begin(self, previous: str | None) -> None:
        """previous: id of the item before."""
        self.begun, self._previous = True, previous
        item = message_item(self.item_id, "assistant", [], "in_progress")
        self._send({"type": "response.created", "response": self._as_dict("in_progress", [])})
        self._send({"type": "response.output_item.added", **self._place(), "item": item})
        self._send({"type": "conversation.item.added", "previous_item_id": previous, "item": item})
        part = {"type": "text", "text": ""}
        self._send({"type": "response.content_part.added", **self._part_place(), "part": part})

    def add(self, piece: str) -> None:
        self.text += piece
        self._send({"type": "response.output_text.delta", **self._part_place(), "delta": piece})

    def end(
        self,
        status: str = "completed",
        reason: str | None = None,
        error: dict | None = None,
        usage: dict | None = None,
    ) -> dict:
        """status: `completed`, `incomplete` or `cancelled` (for a `reason`), or `failed` (with an `error`). usage: of
        tokens, if they were counted. Returns the last event."""
        details = {"type": status, "reason": reason, "error": error}
        content = [{"type": "output_text", "text": self.text}]
        item = message_item(self.item_id, "assistant", content, "completed" if status == "completed" else "incomplete")
        if self.begun:
            part = {"type": "text", "text": self.text}
            self._send({"type": "response.output_text.done", **self._part_place(), "text": self.text})
            self._send({"type": "response.content_part.done", **self._part_place(), "part": part})
            self._send({"type": "conversation.item.done", "previous_item_id": self._previous, "item": item})
            self._send({"type": "response.output_item.done", **self._place(), "item": item})
        else:  # it was withdrawn before the model came to it
            self._send({"type": "response.created", "response": self._as_dict("in_progress", [])})
        done = self._as_dict(status, [item] if self.begun else [])
        done["status_details"] = None if status == "completed" else details
        done["usage"] = usage
        event = {"type": "response.done", "response": done}
        self._send(event)
        return event

    def _place(self) -> dict:
        return {"response_id": self.id, "output_index": 0}

    def _part_place(self) -> dict:
        return {**self._place(), "item_id": self.item_id, "content_index": 0}

    def _as_dict(self, status: str, output: list[dict]) -> dict:
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": status,
            "status_details": None,
            "output": output,
            "output_modalities": ["text"],
            "metadata": self.metadata,
            "usage": None,
        }


__all__ = ["Response"]
