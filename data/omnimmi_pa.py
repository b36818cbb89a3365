"""OmniMMI, `proactive_alerting.json`: tell when something is seen.

Fields: `omnimmi/proactive_alerting.json` of github.com/OmniMMI/OmniMMI at 036d2ca. Its `online_inference` asks once
and streams all frames; it has no polls, so the wording of those here is ours.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from .annotations import need
from .benchmark_items import Item, Poll
from .benchmark_sources import Entry, Source, span, video_names

BENCHMARK = "omnimmi-pa"
NOW = "{question}\nIs this happening at the end of the video? Answer only yes or no."


def sources(entries: Iterable[Entry], path: Path) -> Iterator[Source]:
    for index, (where, entry) in enumerate(entries):
        names, question = video_names(entry, "video", where), need(entry, "question", str, where)
        answer = span(entry, "answer", where)
        yield Source(names, answer[0], partial(alert, f"{names[-1]}#{index}", question, answer))


def alert(name: str, question: str, answer: list[float], video: str, duration: float) -> Item:
    polls = tuple(Poll(float(time), NOW.format(question=question)) for time in range(1, int(duration) + 1))
    truth, stream = {"span": answer}, Poll(0.0, question)
    return Item(BENCHMARK, name, "OmniMMI", "Proactive Alerting", video, "alert", polls, stream, duration, truth)
