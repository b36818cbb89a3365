"""ProactiveVideoQA, `anno.json` in `EGO/`, `TV/`, `VAD/` and `WEB/`: questions whose answers come one by one.

Fields: `anno.json` of github.com/jxb1st/proactivevideoqa-viewer at 76de1d1, a part of the published files, and
`vlmeval/dataset/proactive_videoqa.py` of github.com/MCG-NJU/VideoChat3 at 189754e. The polls are those of the
baselines of github.com/yellow-binary-tree/ProactiveVideoQA (`inference.py` with `baselines/internvl_2d5.py`; read
without their commit): each piece of three seconds, first whether it answers the question, and if so, how.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..containers import shown
from .annotations import need, seconds
from .benchmark_items import Item, Poll
from .benchmark_sources import Entry, Source, objects, span, video_names

BENCHMARK = "proactivevideoqa"
FILES = ("EGO/anno.json", "TV/anno.json", "VAD/anno.json", "WEB/anno.json")
TASKS = ("WEB", "EGO", "TV", "VAD")
PIECE = 3  # seconds between polls, `video_chunk_sec`
ONLY = "Only reply with Yes or No.\n{question}"
ANSWERABLE = f"Is the following question answerable by the video? {ONLY}"
ANSWERABLE_WITH = f"{{subtitles}}\nIs the following question answerable by the video and subtitles? {ONLY}"
ANSWER = (
    "{subtitles}{question}\nYour answers can only contain video content. Do not add your own speculation or "
    "judgement. Do not add timestamps or frame numbers in your answer."
)


def sources(entries: Iterable[Entry], path: Path) -> Iterator[Source]:
    for where, entry in entries:
        yield source(entry, where, task_of(entry, path))


def task_of(entry: dict, path: Path) -> str:
    """The set of an annotation: the name of its folder, or else what only one set has."""
    if path.resolve().parent.name in TASKS:
        return path.resolve().parent.name
    answers = entry.get("answer") if isinstance(entry, dict) else None
    first = answers[0] if isinstance(answers, list) and answers and isinstance(answers[0], dict) else {}
    if isinstance(entry, dict) and "frame" in entry:
        return "TV"
    return "EGO" if "type" in first else "VAD" if "num_captions" in first else "WEB"


def source(entry: dict, where: str, task: str) -> Source:
    name, videos = need(entry, "question_id", str, where), video_names(entry, "video", where)
    turns = [
        (seconds(turn, "time", place), need(turn, "content", str, place))
        for place, turn in objects(entry, "conversation", where)
    ]
    answers = []
    for place, answer in objects(entry, "answer", where):
        reply = span(answer, "reply_timespan", place)
        if reply[0] == reply[1]:
            raise ValueError(f"'reply_timespan' of {place} must not be empty, got {shown(reply)}")
        related = span(answer, "related_timespan", place) if "related_timespan" in answer else reply
        answers.append({"content": need(answer, "content", str, place), "reply": reply, "related": related})
    (asked, question), subtitles = turns[0], turns[1:]
    last = answers[-1]["reply"][1]

    def make(path: str, duration: float) -> Item:
        polls, then_ask = [], []
        for start in range(0, int(duration), PIECE):
            if start > last:
                break
            end = min(duration, float(start + PIECE))
            said = "".join(f"{text}\n" for time, text in subtitles if start < time <= end)
            text = (ANSWERABLE_WITH if said else ANSWERABLE).format(subtitles=said, question=question)
            polls.append(Poll(end, text, float(start)))
            then_ask.append(ANSWER.format(subtitles=said and f"{said}\n", question=question))
        end = float(max(1, min(int(duration), math.ceil(min(duration, last)))))
        truth = {"question": question, "answers": answers, "then_ask": then_ask}
        stream = Poll(min(asked, end), question)
        sound = bool(subtitles)  # what is said comes as subtitles, which a stream of frames does not have
        return Item(
            BENCHMARK, name, "ProactiveVideoQA", task, path, "open", tuple(polls), stream, end, truth, (), sound
        )

    return Source(videos, last, make)
