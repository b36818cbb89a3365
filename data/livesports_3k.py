"""LiveSports-3K-CC, `LiveSports-3K-CC-val.csv` or `-test.csv`: commentary on a part of a sports video.

Columns: the data set's card, and `evaluation/livesports3kcc/` of github.com/showlab/livecc at fdaa91e. The prompt is
that of `distributed_generate_livecc.py` and `distributed_generate_caption.py` there. A commentary is compared with
that of another model, `captions/GPT-4o.jsonl` there, by a judge that reads what the human said.
"""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from ..containers import shown
from .annotations import need
from .benchmark_items import Item, Poll
from .benchmark_sources import Entry, Source, video_names

BENCHMARK = "livesports-3k"
COMMENTARY = (
    "You are an expert video commentator providing real-time, insightful, and engaging commentary on visual content.\n"
)


def sources(entries: Iterable[Entry], path: Path, baseline: dict[str, str] | None = None) -> Iterator[Source]:
    """
    Args:
        baseline (`dict`, *optional*): id of an event -> the commentary to compare with, see `read_baseline`.
    """
    for where, row in entries:
        video, event = need(row, "video_id", str, where), need(row, "event_id", str, where)
        name = f"{video}_{event}"
        begin, end = number(row, "begin", where), number(row, "end", where)
        if not begin < end:
            raise ValueError(f"'end' of {where} must be after 'begin', {begin:g}, got {end:g}")
        if baseline is not None and name not in baseline:
            raise ValueError(f"{where}: the baseline has no commentary on the event {shown(name)}")
        truth = {"human": row.get("event_asr_text") or "", "baseline": (baseline or {}).get(name, "")}
        names = (*video_names(row, "video", where), video)
        sport = row.get("class") or "LiveSports-3K-CC"
        yield Source(names, end, partial(part, name, sport, prompt(row), begin, end, truth))


def number(row: dict, name: str, where: str) -> float:
    text = need(row, name, str, where)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{name!r} of {where} must be a number of seconds, got {shown(text)}")
    return value


def prompt(row: dict) -> str:
    text = COMMENTARY
    if title := row.get("event_title"):
        text += f'This is a video titled "{title}".\n'
    if before := row.get("preasr_text"):
        text += f"Here is previous commentary of the video:\n\n{before}\n\nPlease continue to comment the video."
    return text


def part(name: str, sport: str, text: str, begin: float, end: float, truth: dict, video: str, duration: float) -> Item:
    end = min(end, duration)
    begin = min(begin, end)
    polls, stream = (Poll(end, text, begin),), Poll(begin, text, begin)
    return Item(BENCHMARK, name, "LiveSports-3K-CC", sport, video, "narration", polls, stream, end, truth)


def read_baseline(entries: Iterable[Entry]) -> dict[str, str]:
    """Id of an event -> commentary, from JSON lines with `video_id`, `event_id` and `pred`."""
    return {
        f"{need(entry, 'video_id', str, where)}_{need(entry, 'event_id', (int, str), where)}": need(
            entry, "pred", str, where
        )
        for where, entry in entries
    }
