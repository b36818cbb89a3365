"""Ego4D long-term anticipation, `fho_lta_{train,val,test_unannotated}.json`: predict 20 actions after seeing 8.

Source of the numbers: Ego4D (arXiv 2110.07058), section on forecasting.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator

from .annotations import Adapter, Request, Stream, need, numbered, part, seconds, segment_stream

OBSERVED, FUTURE = 8, 20
INSTRUCTION = (
    f"You will see {OBSERVED} actions. Which {FUTURE} actions come next? Answer with a numbered list, a verb and a "
    "noun each, and nothing else."
)
# Names that need their bracket to be unique in the taxonomy, such as the pot of a plant and the pot for cooking.
AMBIGUOUS = ("bat", "chip", "nut", "pot")


def word_of(name: str) -> str:
    """`take_(pick,_grab,_get)` -> `take`, but `nut_(food)` -> `nut (food)`, since there is also `nut_(tool)`."""
    head = name.split("(")[0].replace("_", " ").strip()
    return name.replace("_", " ").strip() if head in AMBIGUOUS else head


def lta(annotations: dict, request: Request) -> Iterator[Stream]:
    """One stream for every run of 8 actions that 20 more follow. Clips of the test set are left out, since their
    future actions are not published, and so are clips with an action that cannot be read."""
    request.check_split(annotations)
    clips: dict[tuple[str, str], list[tuple[float, float, float, str]]] = defaultdict(list)
    annotated: Counter[tuple[str, str]] = Counter()
    for index, item in enumerate(need(annotations, "clips", list, "the file")):
        with request.skipping("actions that cannot be read, or have no labels"):
            where = f"clips[{index}]"
            clip = need(item, "video_uid", str, where), need(item, "clip_uid", str, where)
            annotated[clip] += 1
            offset = seconds(item, "clip_parent_start_sec", where)
            start, end = part(item, where, "action_clip_start_sec", "action_clip_end_sec")
            text = " ".join(word_of(need(item, name, str, where)) for name in ("verb", "noun"))
            clips[clip].append((seconds(item, "action_idx", where), offset + start, offset + end, text))
    for clip, count in annotated.items():
        video, name = clip
        if len(clips[clip]) < count:
            request.leave_out("clips with unreadable or unlabelled actions", name)
            continue
        if count < OBSERVED + FUTURE:
            request.leave_out(f"clips with fewer than {OBSERVED + FUTURE} actions", name)
            continue
        _, starts, ends, texts = zip(*sorted(clips[clip], key=lambda action: action[0]), strict=True)
        for first in range(count - OBSERVED - FUTURE + 1):
            now = first + OBSERVED
            answer = numbered(texts[now : now + FUTURE])
            yield segment_stream((video,), min(starts[first:now]), max(ends[first:now]), INSTRUCTION, answer)


TASKS: dict[str, Adapter] = {"lta": lta}
