"""Ego4D narrations: the official `narration.json`, `all_narrations_redacted.json`, and the refined form that
VideoLLM-online (arXiv 2406.11816) publishes.

Most videos were narrated by two people. Each pass becomes its own stream, because a single stream would say everything
twice.
"""

import re
from collections import defaultdict
from collections.abc import Iterator

from .annotations import Adapter, Request, Stream, narrated, need, seconds

INSTRUCTION = "Narrate in short what happens, as it happens. C wears the camera, other letters are other people."
REFINED_INSTRUCTION = "Narrate in short what happens, as it happens."
# the tag before the person who acts, with and without spaces: `#C C`, `# C C`, `#CC`, `#O A man X`, `#OThe lady`
TAG = re.compile(r"[#@]\s*(?:summary\b|c(?=c\b)|o(?=(?-i:[A-Z][a-z]))|[co]\b)", re.IGNORECASE)
UNSURE = re.compile(r"#\s*unsure\b", re.IGNORECASE)
SOMETHING = "something"


def clean(text: str) -> str:
    """`#C C picks up a cup` -> `C picks up a cup.`: removes tags, replaces `#unsure` by `something`, and ends the text
    with one full stop. Returns an empty string if fewer than two other words (a person and a verb) are left."""
    text = UNSURE.sub(f" {SOMETHING}", TAG.sub(" ", text)).replace("#", " ")
    text = " ".join(text.split()).strip(" .,;:-")
    if sum(word != SOMETHING for word in text.split()) < 2:
        return ""
    return f"{text[0].upper()}{text[1:]}."


def read(items: list, time: str, text: str, where: str, request: Request) -> list[tuple[float, str]]:
    """`(time, text)` of the narrations that can be read; `time` and `text` are the names of their fields."""
    narrations = []
    for index, item in enumerate(items):
        with request.skipping("narrations that cannot be read"):
            place = f"{where}[{index}]"
            narrations.append((seconds(item, time, place), need(item, text, str, place)))
    return narrations


def passes(uid: str, video: dict, request: Request) -> list[tuple[str, list[tuple[float, str]]]]:
    """`(instruction, [(time, text)])` of each pass over a video, in any of the three schemas."""
    if "narrations" in video:
        by_annotator: dict[str, list[tuple[float, str]]] = defaultdict(list)
        for index, item in enumerate(need(video, "narrations", list, uid)):
            with request.skipping("narrations that cannot be read"):
                place = f"{uid}.narrations[{index}]"
                time, text = seconds(item, "time", place), clean(need(item, "text", str, place))
                by_annotator[need(item, "_annotation_uid", str, place)].append((time, text))
        return [(INSTRUCTION, narrations) for narrations in by_annotator.values()]
    found, official = [], [name for name in sorted(video) if name.startswith("narration_pass_")]
    for name in official if official or "status" in video else video:
        with request.skipping("passes that cannot be read"):
            if official:
                items = need(need(video, name, dict, uid), "narrations", list, f"{uid}.{name}")
                said = read(items, "timestamp_sec", "narration_text", f"{uid}.{name}.narrations", request)
                found.append((INSTRUCTION, [(time, clean(text)) for time, text in said]))
            else:
                said = read(need(video, name, list, uid), "time", "text", f"{uid}.{name}", request)
                found.append((REFINED_INSTRUCTION, [(time, text.strip()) for time, text in said]))
    return found


def narration(annotations: dict, request: Request) -> Iterator[Stream]:
    """Each pass over each video with its narrations. A pass that repeats an earlier one word for word is left out."""
    request.check_split(annotations)
    if not isinstance(annotations, dict):
        raise ValueError(f"narrations must be a JSON object of videos, got a {type(annotations).__name__}")
    videos = need(annotations, "videos", dict, "the file") if "videos" in annotations else annotations
    for uid in videos:
        found, seen = [], []
        with request.skipping("videos that cannot be read"):
            found = passes(uid, need(videos, uid, dict, "videos"), request)
            if not found:
                request.leave_out("videos or passes without narrations", uid)
        for instruction, narrations in found:
            if narrations in seen:
                request.leave_out("passes that repeat another", uid)
                continue
            seen.append(narrations)
            yield from narrated((uid,), instruction, narrations, request)


TASKS: dict[str, Adapter] = {"narration": narration}
