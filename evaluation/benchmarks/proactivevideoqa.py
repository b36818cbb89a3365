"""ProactiveVideoQA: PAUC, the area under the quality of what was said, over the time in which to say it.

The official code could not be read. The definition is that of arXiv 2507.09313, with the constants of
`vlmeval/dataset/proactive_videoqa.py` of github.com/MCG-NJU/VideoChat3 at 189754e, which states to be a port of the
official `pauc/judge_llm_scores_openai.py`. For each answer that is due in `reply_timespan`:

- what was said in that time is judged each time that something new was said, all of it together: 0, 1 or 2
  (`JUDGE_INSTRUCTION`, 1 to 3 there); a sentence that was said before in that time is not judged again;
- a verdict after the end of `related_timespan` that is lower than the last one before it is dropped;
- the score is a step function of time from 0.5, before anything was said, to the last verdict, and PAUC its area,
  divided by that of the best score at once (`_area_under_line_ratio`). With omega, times count as (1 - omega) of what
  they were: 0 is all for speed, 1 for content, and 0.5 is reported;
- nothing said in time is 0.25 (`_stat_metric`), so silence scores 25 %;
- the result is the mean over all answers of all questions.

Strictly, the score begins at 0, so silence scores nothing, and what is said while nothing is due is counted.
"""

import re
from collections.abc import Iterator

from ...data.benchmark_items import Item, Poll
from .asked_in_order import AskedInOrder
from .outcome import Outcome, PollOrStream
from .reading import apart, mean, micro, per_cent, since

BEST = 2
# name of a reading -> the score before anything was said, and omega
READINGS = {"official": (0.5, 0.5), "strict": (0.0, 0.5), "omega_0": (0.5, 0.0), "omega_1": (0.5, 1.0)}
INSTRUCTION = (
    "You are an evaluator for a video question answering system. Your task is to rate whether the predicted answer "
    "covers the key points of the ground truth answer. Use the following scale to assign a score:\n"
    "- 3: Mostly covered; the predicted answer covers all key information in the ground truth answer, though it may "
    "have minor inaccuracies or rephrases.\n"
    "- 2: Partially covered; the predicted answer has some correct information, but also contains significant "
    "inaccuracies or missing key points.\n"
    "- 1: Incorrect; the predicted answer may be related to the ground truth answer, but most of the information is "
    "missing, or the predicted answer is not relevant to the question or in very poor quality.\n\n"
    "Output the score only, do not add more explanations."
)


class ProactiveVideoQA(AskedInOrder):
    max_new_tokens = 256

    def next_poll(self, item: Item, answers: list[dict]) -> Poll | None:
        """Each piece is asked whether it answers the question, and after a yes, how."""
        place, ready = position(answers)
        if place >= len(item.polls):
            return None
        poll = item.polls[place]
        return Poll(poll.time, item.truth["then_ask"][place], poll.since) if ready else poll

    def judge_prompts(self, item: Item, outcome: Outcome) -> list[dict]:
        """Also `system`, the judge's instruction, and what it compares, `truth` and `said`."""
        prompts = {}  # of what is said at the same time, the last counts
        for index, answer in enumerate(item.truth["answers"]):
            said: list[str] = []
            for one in since(replies(outcome), *answer["reply"]):
                if one["text"] in said:
                    continue
                said.append(one["text"])
                text = (
                    f"Question: {item.truth['question']}\nGround Truth Answer: {answer['content']}\n"
                    f"Predicted Answer: {' '.join(said)}"
                )
                name = f"{index}={one['time']}"
                facts = {"truth": answer["content"], "said": " ".join(said)}
                prompts[name] = {"name": name, "system": INSTRUCTION, "prompt": text} | facts
        return list(prompts.values())

    def read_verdict(self, name: str, text: str) -> float:
        """0 to 2, from the last of 1, 2 and 3 that stands alone."""
        found = re.findall(r"(?<![0-9])[123](?![0-9])", text)
        if not found:
            raise ValueError(f"no score from 1 to 3 in {text!r}")
        return float(found[-1]) - 1

    def score(self, item: Item, outcome: Outcome, protocol: PollOrStream) -> dict:
        verdicts = {verdict["name"]: verdict["value"] for verdict in outcome.verdicts}
        names = {prompt["name"] for prompt in self.judge_prompts(item, outcome)}
        result: dict = {f"{reading}_hits": [] for reading in READINGS}
        for index, answer in enumerate(item.truth["answers"]):
            asked = sorted((float(name.partition("=")[2]), name) for name in names if name.startswith(f"{index}="))
            waiting = any(name not in verdicts for _, name in asked)
            steps = [(time, verdicts[name]) for time, name in asked if verdicts.get(name) is not None]
            for reading, (start, omega) in READINGS.items():
                value = None if waiting else pauc(steps, answer["reply"], answer["related"][1], start, omega)
                result[f"{reading}_hits"].append(value)
        for reading in READINGS:
            known = [value for value in result[f"{reading}_hits"] if value is not None]
            result[reading] = sum(known) / len(known) if known else None
        spans = [answer["reply"] for answer in item.truth["answers"]]
        said = replies(outcome)
        in_vain = [one for one in said if not any(start <= one["time"] <= end for start, end in spans)]
        return result | {"said": len(said), "said_in_vain": len(in_vain)}

    def summarise(self, items: list[Item], scores: list[dict]) -> dict:
        pending = sum(value is None for score in scores for value in score["official_hits"])
        said, in_vain = (sum(score[name] for score in scores) for name in ("said", "said_in_vain"))
        result = apart(items, scores, micro) | {"waiting for a judge": pending, "said": said, "said in vain": in_vain}
        for omega in ("omega_0", "omega_1"):
            known = [value for score in scores for value in score[f"{omega}_hits"] if value is not None]
            result[omega] = per_cent(mean(known))
        return result


def position(answers: list[dict]) -> tuple[int, bool]:
    """The number of pieces that are done, and whether the next one was found to answer the question."""
    place, ready = 0, False
    for answer in answers:
        ready = not ready and "yes" in answer["text"].lower()
        place += not ready
    return place, ready


def answered(answers: list[dict]) -> Iterator[dict]:
    """The answers to the question itself, of polls that were found to answer it."""
    ready = False
    for answer in answers:
        if ready and answer["text"]:
            yield answer
        ready = not ready and "yes" in answer["text"].lower()


def replies(outcome: Outcome) -> list[dict]:
    return outcome.said or list(answered(outcome.answers))


def pauc(
    steps: list[tuple[float, float]], reply: list[float], related_end: float, start: float, omega: float
) -> float:
    """
    Args:
        steps: time and verdict (0 to 2) of what was said in `reply`, in order.
        reply: start and end of the time in which to say it, seconds.
        related_end: end of what it is about.
        start: the score before anything was said.
        omega: how much less a late reply costs, 0 to 1.
    """
    if len(steps) > 1:
        before = [value for time, value in steps if time <= related_end]
        last = before[-1] if before else 0
        steps = [(time, value) for time, value in steps if time <= related_end or value >= last]
    if not steps:
        return start / BEST
    area, at, score, length = 0.0, 0.0, start, reply[1] - reply[0]
    for time, value in steps:
        now = (time - reply[0]) * (1 - omega)
        area, at, score = area + (now - at) * score, now, value
    return (area + (length - at) * score) / (length * BEST)
