"""Ego4D Goal-Step: `goalstep_{train,val}.json`, and the chat that VideoLLM-online (arXiv 2406.11816) made from it."""

from collections.abc import Iterator

from .annotations import Adapter, Request, Stream, need, seconds, turn

INSTRUCTION = "Tell me each step as it begins."
CHAT_SYSTEM = "You see what the user sees, and help with what they do as it happens."


def narration(annotations: dict, request: Request) -> Iterator[Stream]:
    """Each video with its steps, each narrated when it starts. Substeps are not narrated."""
    request.check_split(annotations)
    for index, video in enumerate(need(annotations, "videos", list, "the file")):
        where, turns = f"videos[{index}]", []
        with request.skipping("videos that cannot be read"):
            uid, steps = need(video, "video_uid", str, where), need(video, "segments", list, where)
            for number, step in enumerate(steps):
                with request.skipping("steps that cannot be read"):
                    place = f"{where}.segments[{number}]"
                    start, text = (
                        seconds(step, "start_time", place),
                        need(step, "step_description", str, place).strip(),
                    )
                    turns.append(turn(start, "assistant", text or need(step, "step_category", str, place)))
            if not turns:
                request.leave_out("videos without steps", uid)
        if turns:
            turns.sort(key=lambda item: item["time"])
            yield Stream((uid,), [turn(0.0, "user", INSTRUCTION), *turns])


def chat(annotations: list, request: Request) -> Iterator[Stream]:
    """`goalstep_livechat_trainval_filtered_21k.json`: one stream per conversation; a video may have several."""
    request.check_split(annotations)
    if not isinstance(annotations, list):
        raise ValueError(f"chat annotations must be a list of conversations, got a {type(annotations).__name__}")
    for index, item in enumerate(annotations):
        where, turns = f"[{index}]", []
        with request.skipping("conversations that cannot be read"):
            uid, messages = need(item, "video_uid", str, where), need(item, "conversation", list, where)
            for number, message in enumerate(messages):
                with request.skipping("turns that cannot be read"):
                    place = f"{where}.conversation[{number}]"
                    role, content = need(message, "role", str, place), need(message, "content", str, place).strip()
                    if role not in ("user", "assistant"):
                        raise ValueError(f"the role of {place} must be user or assistant, got {role!r}")
                    if content:
                        turns.append(turn(seconds(message, "time", place), role, content))
                    else:
                        request.leave_out("turns without text", place)
            if not turns:
                request.leave_out("conversations without turns", f"{where} of {uid}")
        if turns:
            turns.sort(key=lambda message: message["time"])
            yield Stream((uid,), [turn(0.0, "system", CHAT_SYSTEM), *turns])


TASKS: dict[str, Adapter] = {"narration": narration, "chat": chat}
