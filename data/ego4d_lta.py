"""Ego4D long-term anticipation, `fho_lta_{train,val,test_unannotated}.json`: 8 actions are seen, the next 20 wanted.

Source of the numbers: Ego4D (arXiv 2110.07058), section on forecasting.
"""

from collections import defaultdict
from collections.abc import Iterator

from .annotations import NUMBER, Request, Stream, need, numbered, part, segment_stream

OBSERVED, FUTURE = 8, 20
INSTRUCTION = (
    f"You will see {OBSERVED} actions. Which {FUTURE} actions come next? Answer with a numbered list, a verb and a "
    "noun each, and nothing else."
)
# Names in the taxonomy that only what stands in their brackets tells apart, as a planter and a cooking pot.
AMBIGUOUS = ("bat", "chip", "nut", "pot")


def word_of(name: str) -> str:
    """`take_(pick,_grab,_get)` -> `take`; `nut_(food)` stays apart from `nut_(tool)`: `nut (food)`."""
    head = name.split("(")[0].replace("_", " ").strip()
    return name.replace("_", " ").strip() if head in AMBIGUOUS else head


def lta(annotations: dict, request: Request) -> Iterator[Stream]:
    """Of each clip every run of 8 actions that 20 follow; of clips without labels the last 8, unanswered."""
    request.check_split(annotations)
    clips = defaultdict(list)
    for index, action in enumerate(need(annotations, "clips", list, "the file")):
        where = f"clips[{index}]"
        for name in ("video_uid", "clip_uid"):
            need(action, name, str, where)
        for name in ("clip_parent_start_sec", "action_idx"):
            need(action, name, NUMBER, where)
        part(action, where, "action_clip_start_sec", "action_clip_end_sec")
        labels = ["verb" in action, "noun" in action]
        if any(labels):
            need(action, "verb", str, where), need(action, "noun", str, where)
        clips[action["video_uid"], action["clip_uid"]].append(action)
    for (video, _), actions in clips.items():
        actions.sort(key=lambda action: action["action_idx"])
        labelled = all("verb" in action for action in actions)
        needed = OBSERVED + (FUTURE if labelled else 0)
        if len(actions) < needed:
            request.leave_out(f"clips of fewer than {needed} actions")
            continue
        for first in range(len(actions) - needed + 1) if labelled else [len(actions) - OBSERVED]:
            seen, future = actions[first : first + OBSERVED], actions[first + OBSERVED : first + needed]
            start = min(action["clip_parent_start_sec"] + action["action_clip_start_sec"] for action in seen)
            end = max(action["clip_parent_start_sec"] + action["action_clip_end_sec"] for action in seen)
            texts = [f"{word_of(action['verb'])} {word_of(action['noun'])}" for action in future]
            yield segment_stream((video,), start, end, INSTRUCTION, numbered(texts) if labelled else None)


TASKS = {"lta": lta}
