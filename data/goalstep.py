"""Ego4D Goal-Step: `goalstep_{train,val}.json`, and the chat that VideoLLM-online (arXiv 2406.11816) made from it."""

from collections.abc import Iterator

from .annotations import NUMBER, Request, Stream, need, turn

INSTRUCTION = "Tell me each step as it begins."
CHAT_SYSTEM = "You see what the user sees, and help with what they do as it happens."


def narration(annotations: dict, request: Request) -> Iterator[Stream]:
    """Each video with its steps, told when they start; substeps are not told."""
    request.check_split(annotations)
    for index, video in enumerate(need(annotations, "videos", list, "the file")):
        where = f"videos[{index}]"
        uid = need(video, "video_uid", str, where)
        turns = []
        for number, step in enumerate(need(video, "segments", list, where)):
            place = f"{where}.segments[{number}]"
            start = need(step, "start_time", NUMBER, place)
            text = need(step, "step_description", str, place).strip()
            turns.append(turn(start, "assistant", text or need(step, "step_category", str, place)))
        if not turns:
            request.leave_out("videos without steps")
            continue
        turns.sort(key=lambda item: item["time"])
        yield Stream((uid,), [turn(0.0, "user", INSTRUCTION), *turns])


def chat(annotations: list, request: Request) -> Iterator[Stream]:
    """`goalstep_livechat_trainval_filtered_21k.json`: a conversation a video, and several a video."""
    request.check_split(annotations)
    if not isinstance(annotations, list):
        raise ValueError(f"chat annotations are a list of conversations, got a {type(annotations).__name__}")
    for index, item in enumerate(annotations):
        uid = need(item, "video_uid", str, f"[{index}]")
        turns = []
        for number, message in enumerate(need(item, "conversation", list, f"[{index}]")):
            place = f"[{index}].conversation[{number}]"
            role, content = need(message, "role", str, place), need(message, "content", str, place).strip()
            if role not in ("user", "assistant"):
                raise ValueError(f"the role of {place} must be user or assistant, got {role!r}")
            if content:
                turns.append(turn(need(message, "time", NUMBER, place), role, content))
            else:
                request.leave_out("turns without text")
        turns.sort(key=lambda message: message["time"])
        if turns:
            yield Stream((uid,), [turn(0.0, "system", CHAT_SYSTEM), *turns])
        else:
            request.leave_out("conversations without turns")


TASKS = {"narration": narration, "chat": chat}
