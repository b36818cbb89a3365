"""StreamingBench, `questions_real.json`, `questions_omni.json`, `questions_sqa.json` and `questions_proactive.json`.

Fields: `src/data/` of github.com/THUNLP-MT/StreamingBench at 8929923. The prompts and the times of polls are those of
`StreamingBenchEval`, `StreamingBenchSQAEval` and `StreamingBenchProactiveEval` in `src/benchmark/`: at most four
options are shown, even where a question of the file has more, and a sequential question is asked with the right
answers to those before it.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..containers import shown
from .annotations import need
from .benchmark_items import Item, Poll
from .benchmark_sources import Entry, Source, clock, objects, one_of, texts, video_names

BENCHMARK = "streamingbench"
FILES = ("questions_real.json", "questions_omni.json", "questions_sqa.json", "questions_proactive.json")
REAL_TIME, OMNI, CONTEXT = "Real-Time Visual Understanding", "Omni-Source Understanding", "Contextual Understanding"
SEQUENTIAL, PROACTIVE = "Sequential Question Answering", "Proactive Output"
GROUPS = {
    **dict.fromkeys(
        (
            "Object Recognition",
            "Causal Reasoning",
            "Clips Summarize",
            "Attribute Recognition",
            "Event Understanding",
            "Text-Rich Understanding",
            "Prospective Reasoning",
            "Spatial Understanding",
            "Action Recognition",
            "Counting",
        ),
        REAL_TIME,
    ),
    **dict.fromkeys(
        ("Emotion Recognition", "Scene Understanding", "Source Discrimination", "Multimodal Alignment"), OMNI
    ),
    **dict.fromkeys(
        ("Misleading Context Understanding", "Anomaly Context Understanding", SEQUENTIAL, PROACTIVE), CONTEXT
    ),
}
SHOWN = 4  # options in a prompt
AFTER = 4.0  # seconds after the truth at which the official script stops asking
LETTERS = "Respond with only the letter (A, B, C, or D) of the correct option."
CHOICE = (
    "You are an advanced video question-answering AI assistant. You have been provided with some frames from the "
    "video and a multiple-choice question related to the video. Your task is to carefully analyze the video and "
    f"provide the best answer to question, choosing from the four options provided. {LETTERS}\n\n"
    "Question: {}\n\nOptions:\n{}\n{}\n{}\n{}\n\nThe best option is:"
)
IN_SEQUENCE = (
    "You are an advanced video question-answering AI assistant. You have been provided with a video and a "
    "multiple-choice question related to the video. Your task is to carefully analyze the video and the provided "
    f"context to answer the question, choosing from the four options provided. {LETTERS}\n\n"
    "{}\n\nHere is the question. Answer it and don't confuse it with the previous conversation.\n"
    "Question: {}\n\nOptions:\n{}\n{}\n{}\n{}\n\nThe best option is:"
)
CONTEXT_BEGINS = (
    "Here are the contextual information related to the video. Please answer the questions based on the contextual "
    "information: "
)
ALERT = (
    "You are an advanced image question-answering AI assistant. You have been provided with images and a question "
    "related to the images. Your task is to carefully analyze the images and provide the answer to the question. You "
    "need to carefully confirm whether the images content meet the conditions of the question, and then output the "
    "correct content.\n\nQuestion: {}\n\nThe answer is:\n"
)


@dataclass(frozen=True)
class Asked:
    """A question, the names of the video it is about, its time, and where it stands in the file."""

    videos: tuple[str, str]
    time: float
    task: str
    question: dict
    where: str


def sources(entries: Iterable[Entry], path: Path) -> Iterator[Source]:
    sequences = [list(questions(place, value)) for place, value in entries]
    alerts: dict[str, list[float]] = {}
    for asked in (asked for sequence in sequences for asked in sequence if asked.task == PROACTIVE):
        alerts.setdefault(asked.videos[-1], []).append(asked.time)
    for sequence in sequences:
        context = ""
        for asked in sequence:
            name = f"{asked.videos[-1]}@{asked.question['time_stamp']}"
            if asked.task == PROACTIVE:
                yield proactive(asked, name, alerts[asked.videos[-1]])
            else:
                yield choice(asked, name, context)
                context = (context or CONTEXT_BEGINS) + in_words(asked)


def questions(place: str, value: object) -> Iterator[Asked]:
    """The questions of an entry; of a list of entries, which the file of sequential questions has, in order."""
    for index, entry in enumerate(value if isinstance(value, list) else [value]):
        where = f"{place}[{index}]" if isinstance(value, list) else place
        videos = video_names(entry, "video_path", where)
        for spot, question in objects(entry, "questions", where):
            task, time = one_of(question, "task_type", GROUPS, spot), clock(question, "time_stamp", spot)
            yield Asked(videos, time, task, question, spot)


def listed(question: dict, where: str) -> list[str]:
    """The options as the prompt shows them."""
    options = texts(question, "options", where, at_least=SHOWN)[:SHOWN]
    if options[0].startswith("A."):
        return options
    return [f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True)]


def in_words(asked: Asked) -> str:
    """A question and its right answer, as later questions of its sequence are told."""
    options = ", ".join(listed(asked.question, asked.where))
    return (
        f"At timestamp {asked.question['time_stamp']}, the following question and answer occurred: Question: "
        f"{asked.question['question']}; Options: {options}; Answer: {asked.question['answer']}; "
    )


def choice(asked: Asked, name: str, context: str) -> Source:
    options, answer = listed(asked.question, asked.where), one_of(asked.question, "answer", "ABCD", asked.where)
    question, group = need(asked.question, "question", str, asked.where), GROUPS[asked.task]
    sequential = asked.task == SEQUENTIAL
    text = IN_SEQUENCE.format(context, question, *options) if sequential else CHOICE.format(question, *options)
    bare = tuple(re.sub(r"^[A-D]\.\s*", "", option) for option in options)

    def make(video: str, duration: float) -> Item:
        poll, truth = Poll(min(asked.time, duration), text), {"answer": answer}
        return Item(
            BENCHMARK,
            name,
            group,
            asked.task,
            video,
            "choice",
            (poll,),
            poll,
            poll.time,
            truth,
            bare,
            needs_sound=group == OMNI,
        )

    return Source(asked.videos, asked.time, make)


def proactive(asked: Asked, name: str, alerts: list[float]) -> Source:
    question, where = asked.question, asked.where
    truth, text = clock(question, "ground_truth_time_stamp", where), need(question, "question", str, where)
    output = need(question, "ground_truth_output", str, where)
    if not output.strip():
        raise ValueError(f"'ground_truth_output' of {where} is empty, got {shown(output)}")
    ready = ALERT.format(f'{text} Is it the right time to output "{output}"? You can only answer yes or no.')

    def make(video: str, duration: float) -> Item:
        """Polled each second; the stream goes on to the next question of its video, or to its end."""
        begin = min(asked.time, duration)
        seconds = range(1, int(truth + AFTER - asked.time) + 1)
        polls = tuple(Poll(asked.time + second, ready, begin) for second in seconds)
        end = min([duration, *(time for time in alerts if time > max(truth, asked.time))])
        facts = {"time": truth, "output": output, "then_ask": ALERT.format(text)}
        stream = Poll(begin, text, begin)
        return Item(BENCHMARK, name, GROUPS[PROACTIVE], PROACTIVE, video, "alert", polls, stream, end, facts)

    return Source(asked.videos, truth, make)
