"""OVO-Bench: letters, counts, and whether there is enough to answer.

The official definition is `OVOBenchOfflineScore` in `utils/OVOBenchScore.py` of github.com/JoeLeelyf/OVO-Bench at
c34093f:

- a choice is right if the right letter is anywhere in the answer, so `Black.` is right for B (`get_score`);
- a count is right if all digits of the answer, joined, are the count, so `1 or 2` is 12 (`get_score_REC`);
- a yes or no is right if `Yes` or `No`, spelt so, is anywhere in the answer, or if the answer is `Y` or `N`
  (`get_score_SSR_CRR` and `calculate_score_forward`);
- a task is the mean of its polls, a group the mean of its tasks, and the total the mean of the three groups (`score`).

Strictly, an answer must consist of its letter or its option, one number, yes or no.

In a stream, a count is the last thing said by the time of a poll, a step is being done if the last thing said names
it, and there is enough to answer once something was said since the question; strictly, not before the clue.
"""

import re

from ...data.benchmark_items import Item
from .asked_in_order import AskedInOrder, of_hits, texts_of
from .outcome import Outcome, PollOrStream
from .reading import apart, macro, plain, since, strict_letter, strict_number, strict_yes


class OvoBench(AskedInOrder):
    def score(self, item: Item, outcome: Outcome, protocol: PollOrStream) -> dict:
        if item.kind == "choice":
            texts = texts_of(outcome, 1) if protocol == "poll" else [first_said(outcome, item.stream.time)]
            return choice(texts[0], item)
        if protocol == "stream":
            return STREAMS[item.task](item, outcome.said)
        if item.kind == "count":
            return counts(texts_of(outcome, len(item.polls)), item.truth["counts"])
        return yes_no(texts_of(outcome, len(item.polls)), item.truth["types"])

    def summarise(self, items: list[Item], scores: list[dict]) -> dict:
        return apart(items, scores, macro)


def first_said(outcome: Outcome, time: float) -> str | None:
    said = since(outcome.said, time)
    return said[0]["text"] if said else None


def choice(text: str | None, item: Item) -> dict:
    answer = item.truth["answer"]
    return of_hits(
        [float(text is not None and answer in text)],
        [float(text is not None and strict_letter(text, item.options) == answer)],
    )


def counts(texts: list[str | None], truth: list[int]) -> dict:
    pairs = list(zip(texts, truth, strict=True))
    return of_hits(
        [float(text is not None and "".join(re.findall(r"\d+", text)) == str(count)) for text, count in pairs],
        [float(text is not None and strict_number(text) == count) for text, count in pairs],
    )


def yes_no(texts: list[str | None], types: list[int]) -> dict:
    pairs = list(zip(texts, types, strict=True))
    words = (("No", "N"), ("Yes", "Y"))
    return of_hits(
        [float(text is not None and (words[kind][0] in text or text == words[kind][1])) for text, kind in pairs],
        [float(text is not None and strict_yes(text) == bool(kind)) for text, kind in pairs],
    )


def stream_counts(item: Item, said: list[dict]) -> dict:
    heard = [since(said, item.stream.time, poll.time) for poll in item.polls]
    return counts([each[-1]["text"] if each else None for each in heard], item.truth["counts"])


def stream_steps(item: Item, said: list[dict]) -> dict:
    official, strict = [], []
    for poll, step, kind in zip(item.polls, item.truth["steps"], item.truth["types"], strict=True):
        heard = since(said, item.stream.time, poll.time)
        last = plain(heard[-1]["text"]) if heard else ""
        official.append(float((plain(step) in last) == bool(kind)))
        strict.append(float((plain(step) == last) == bool(kind)))
    return of_hits(official, strict)


def stream_clues(item: Item, said: list[dict]) -> dict:
    heard, clue = since(said, item.stream.time), item.truth["clue_time"]
    first = heard[0]["time"] if heard else float("inf")
    pairs = list(zip(item.polls, item.truth["types"], strict=True))
    official = [float((first <= poll.time) == bool(kind)) for poll, kind in pairs]
    return of_hits(
        official, [float(hit and (not kind or first >= clue)) for hit, (_, kind) in zip(official, pairs, strict=True)]
    )


STREAMS = {"REC": stream_counts, "SSR": stream_steps, "CRR": stream_clues}
