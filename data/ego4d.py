"""Ego4D narrations: the official `narration.json`, `all_narrations_redacted.json`, and the refined form that
VideoLLM-online (arXiv 2406.11816) publishes.

Two people narrated most videos. Each pass is a stream of its own: in one stream everything would be said twice.
"""

import re
from collections import defaultdict
from collections.abc import Iterator

from .annotations import NUMBER, Request, Stream, narrated, need

INSTRUCTION = "Narrate in short what happens, as it happens. C wears the camera, other letters are other people."
REFINED_INSTRUCTION = "Narrate in short what happens, as it happens."
TAG = re.compile(r"[#@](?:c|o|summary)\b", re.IGNORECASE)
UNSURE = re.compile(r"#unsure\b", re.IGNORECASE)


def clean(text: str) -> str:
    """`#C C picks up a cup` -> `C picks up a cup.`: tags go, unsure things become `something`, one full stop ends it.
    Empty if no two words are left, a person and a verb."""
    text = UNSURE.sub("something", TAG.sub(" ", text)).replace("#", " ")
    text = " ".join(text.split()).strip(" .,")
    return "" if " " not in text else f"{text[0].upper()}{text[1:]}."


def passes(uid: str, video, where: str) -> Iterator[tuple[str, list[tuple[float, str]]]]:
    """`(instruction, [(time, text)])` of each pass over a video, in any of the three schemas."""
    if "narrations" in video:
        of_annotator = defaultdict(list)
        for index, item in enumerate(need(video, "narrations", list, where)):
            place = f"{where}.narrations[{index}]"
            said = need(item, "time", NUMBER, place), clean(need(item, "text", str, place))
            of_annotator[need(item, "_annotation_uid", str, place)].append(said)
        yield from ((INSTRUCTION, narrations) for narrations in of_annotator.values())
    elif "status" in video or any(name.startswith("narration_pass_") for name in video):
        for name in sorted(name for name in video if name.startswith("narration_pass_")):
            items = need(need(video, name, dict, where), "narrations", list, f"{where}.{name}")
            places = [f"{where}.{name}.narrations[{index}]" for index in range(len(items))]
            yield (
                INSTRUCTION,
                [
                    (need(item, "timestamp_sec", NUMBER, place), clean(need(item, "narration_text", str, place)))
                    for item, place in zip(items, places, strict=True)
                ],
            )
    else:
        for name in video:
            items = need(video, name, list, where)
            places = [f"{where}.{name}[{index}]" for index in range(len(items))]
            yield (
                REFINED_INSTRUCTION,
                [
                    (need(item, "time", NUMBER, place), need(item, "text", str, place).strip())
                    for item, place in zip(items, places, strict=True)
                ],
            )


def narration(annotations: dict, request: Request) -> Iterator[Stream]:
    """Each pass over each video with its narrations; a pass that another repeats word for word is left out."""
    request.check_split(annotations)
    if not isinstance(annotations, dict):
        raise ValueError(f"narrations are an object of videos, got a {type(annotations).__name__}")
    videos = annotations.get("videos", annotations)
    for uid in videos:
        seen = []
        for instruction, narrations in passes(uid, need(videos, uid, dict, "videos"), uid):
            if narrations in seen:
                request.leave_out("passes that repeat another")
                continue
            seen.append(narrations)
            yield from narrated((uid,), instruction, narrations, request)


TASKS = {"narration": narration}
