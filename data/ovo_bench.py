"""OVO-Bench, `ovo_bench_new.json`: questions at a moment of a stream, about the past, the present and what comes.

Fields: `data/ovo_bench_new.json` of github.com/JoeLeelyf/OVO-Bench at c34093f. The prompts are those of its
`constant.py` and of `OVOBenchOffline.build_prompt` in `utils/OVOBench.py`; clips end at `ceil(realtime)`, as
`utils/chunk_videos.py` cuts them. Its pieces, `chunked_videos/ID.mp4` and `ID_N.mp4`, are beginnings of the same
videos. Many videos have a number as their name too, so a number says nothing without its folder.
"""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from .annotations import need, seconds
from .benchmark_items import Item, Poll
from .benchmark_sources import Entry, Source, objects, one_of, texts, video_names

BENCHMARK = "ovo-bench"
BACKWARD, REAL_TIME, FORWARD = "Backward Tracing", "Real-Time Visual Perception", "Forward Active Responding"
GROUPS = {
    **dict.fromkeys(("EPM", "ASI", "HLD"), BACKWARD),
    **dict.fromkeys(("OCR", "ACR", "ATR", "STU", "FPD", "OJR"), REAL_TIME),
    **dict.fromkeys(("REC", "SSR", "CRR"), FORWARD),
}
CHOICE = (
    "\nQuestion: {question}\nOptions:\n{options}\n\n"
    "Respond only with the letter corresponding to your chosen option (e.g., A, B, C). \n"
    "Do not include any additional text or explanation in your response.\n"
)
REPETITIONS = (
    "\nYou're watching a video in which people may perform a certain type of action repetively. \n"
    "The person performing this kind of action are referred to as 'they' in the following statement.\n"
    "You're task is to count how many times have different people in the video perform this kind of action in total.\n"
    "One complete motion counts as one. \nNow, answer the following question: {question}\n"
    "Provide your answer as a single number (e.g., 0, 1, 2, 3…) indicating the total count.\n"
    "Do not include any additional text or explanation in your response.\n"
)
STEP = (
    "\nYou're watching a tutorial video which contain a sequential of steps. \n"
    "The following is one step from the whole procedures: \n{step}\n"
    "Your task is to determine if the man or woman in the video is currently performing this step.\n"
    "Answer only with “Yes” or “No”.\nDo not include any additional text or explanation in your response.\n"
)
CLUE = (
    "\nYou're responsible of answering questions based on the video content. \n"
    "The following question are relevant to the latest frames, i.e. the end of the video.\n{question}\n"
    "Decide whether existing visual content, especially latest frames, i.e. frames that near the end of the video, "
    "provide enough information for answering the question.\n"
    "Answer only with “Yes” or “No”.\nDo not include any additional text or explanation in your response.\n"
)


def sources(entries: Iterable[Entry], path: Path) -> Iterator[Source]:
    for where, entry in entries:
        task = one_of(entry, "task", GROUPS, where)
        number = need(entry, "id", int, where)
        whole, name = video_names(entry, "video", where)
        names = (whole,) if name.isdecimal() else (whole, name)
        if GROUPS[task] == FORWARD:
            tests = objects(entry, "test_info", where)
            times = [seconds(test, "realtime", place) for place, test in tests]
            longest = times.index(max(times))
            item = partial(FORWARDS[task](entry, tests, where), times, task, str(number))
            yield Source((*names, f"{number}_{longest}"), max(times), item)
        else:
            time = seconds(entry, "realtime", where)
            yield Source((*names, f"chunked_videos/{number}"), time, choice(entry, where, time, task, str(number)))


def choice(entry: dict, where: str, time: float, task: str, name: str):
    options, answer = texts(entry, "options", where, at_least=2), need(entry, "gt", int, where)
    if not 0 <= answer < len(options):
        raise ValueError(f"'gt' of {where} must be the index of one of {len(options)} options, got {answer}")
    listed = "; ".join(f"{chr(65 + index)}. {option}" for index, option in enumerate(options)) + ";"
    text = CHOICE.format(question=need(entry, "question", str, where), options=listed)

    def make(video: str, duration: float) -> Item:
        poll = Poll(cut(time, duration), text)
        truth = {"answer": chr(65 + answer)}
        return Item(
            BENCHMARK, name, GROUPS[task], task, video, "choice", (poll,), poll, poll.time, truth, tuple(options)
        )

    return make


def cut(time: float, duration: float) -> float:
    """Where the clip of a question ends."""
    return min(float(math.ceil(time)), duration)


def forward(
    prompts: list[str],
    kind: str,
    asked: float,
    question: str,
    truth: dict,
    times: list[float],
    task: str,
    name: str,
    video: str,
    duration: float,
) -> Item:
    polls = tuple(Poll(cut(time, duration), text) for time, text in zip(times, prompts, strict=True))
    end = max(poll.time for poll in polls)
    stream = Poll(min(asked, end), question)
    return Item(BENCHMARK, name, FORWARD, task, video, kind, polls, stream, end, truth)


def repetitions(entry: dict, tests: list[tuple[str, dict]], where: str):
    question = f"How many times did they {need(entry, 'activity', str, where)}?"
    counts = [need(test, "count", int, place) for place, test in tests]
    prompts = [REPETITIONS.format(question=question)] * len(tests)
    return partial(forward, prompts, "count", 0.0, question, {"counts": counts})


def steps(entry: dict, tests: list[tuple[str, dict]], where: str):
    """The stream is asked once, in words of ours, to name each step when it begins."""
    names = [need(test, "step", str, place) for place, test in tests]
    question = "Name each step when it begins: " + "; ".join(dict.fromkeys(names)) + "."
    truth = {"steps": names, "types": types(tests)}
    return partial(forward, [STEP.format(step=name) for name in names], "yes-no", 0.0, question, truth)


def clues(entry: dict, tests: list[tuple[str, dict]], where: str):
    """The stream is asked the question itself; an answer means that there is enough to answer it."""
    question, asked = need(entry, "question", str, where), seconds(entry, "ask_time", where)
    truth = {
        "types": types(tests),
        "clue_time": seconds(entry, "clue_time", where),
        "answer": need(entry, "answer", str, where),
    }
    return partial(forward, [CLUE.format(question=question)] * len(tests), "yes-no", asked, question, truth)


def types(tests: list[tuple[str, dict]]) -> list[int]:
    found = [need(test, "type", int, place) for place, test in tests]
    for (place, _), value in zip(tests, found, strict=True):
        if value not in (0, 1):
            raise ValueError(f"'type' of {place} must be 0 or 1, got {value}")
    return found


FORWARDS = {"REC": repetitions, "SSR": steps, "CRR": clues}
