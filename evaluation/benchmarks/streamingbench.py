"""StreamingBench: letters, and alerts within two seconds.

The official definition is `count` in `src/data/count.py` of github.com/THUNLP-MT/StreamingBench at 8929923:

- a choice is right if the first character of the answer is the right letter, so `As seen` is right for A and ` A` is
  wrong; an empty answer to a sequential question is not counted at all, and to another one it ends the script with
  an error, so here it is wrong;
- an alert counts by the last thing recorded: it is in time if that is at most two seconds before or after the truth,
  and right if the expected output is also a part of it (`time_correct`, `answer_correct`). The last thing recorded is
  the answer to the question, after the first poll whose answer has `yes` in it, or the last `no`
  (`StreamingBenchProactiveEval` in `src/benchmark/StreamingBenchProactive.py`);
- a task is the mean of its questions, and so is a group (`total`).

Strictly, an answer must consist of its letter or its option; an alert must be the expected output and nothing else, at
most two seconds after the truth and not before it, and in a stream nothing else may be said.

In a stream, the first thing said since the question is the answer; the official window is the same.
"""

from ...data.benchmark_items import Item, Poll
from .asked_in_order import AskedInOrder, texts_of
from .outcome import Outcome, PollOrStream
from .reading import apart, micro, plain, since, strict_letter

WINDOW = 2.0  # seconds
SEQUENTIAL = "Sequential Question Answering"


class StreamingBench(AskedInOrder):
    def next_poll(self, item: Item, answers: list[dict]) -> Poll | None:
        """An alert is polled until the first yes, and then asked what it is."""
        if item.kind != "alert":
            return super().next_poll(item, answers)
        ready = first_yes(answers)
        if ready is None:
            return super().next_poll(item, answers)
        if len(answers) > ready + 1:
            return None
        return Poll(item.polls[ready].time, item.truth["then_ask"], item.polls[ready].since)

    def score(self, item: Item, outcome: Outcome, protocol: PollOrStream) -> dict:
        if protocol == "stream":
            said = since(outcome.said, item.stream.time)
            if item.kind == "alert":
                return alert(said[0] if said else None, item, alone=len(said) == 1)
            return choice(said[0]["text"] if said else None, item)
        if item.kind == "alert":
            spoke = first_yes(outcome.answers) is not None
            return alert(outcome.answers[-1] if outcome.answers else None, item, alone=spoke)
        return choice(texts_of(outcome, 1)[0], item)

    def summarise(self, items: list[Item], scores: list[dict]) -> dict:
        result = apart(items, scores, micro)
        in_time = [score["in_time"] for score in scores if "in_time" in score]
        return result | ({"alerts in time": 100 * sum(in_time) / len(in_time)} if in_time else {})


def first_yes(answers: list[dict]) -> int | None:
    return next((index for index, answer in enumerate(answers) if "yes" in answer["text"].strip().lower()), None)


def choice(text: str | None, item: Item) -> dict:
    answer = item.truth["answer"]
    strict = float(strict_letter(text or "", item.options) == answer)
    if not text:
        return {"official": None if item.task == SEQUENTIAL else 0.0, "strict": strict}
    return {"official": float(text[0] == answer), "strict": strict}


def alert(said: dict | None, item: Item, alone: bool) -> dict:
    """
    Args:
        said (`dict`, *optional*): the text that counts, and its time.
        alone (`bool`): it was the only alert.
    """
    if said is None:
        return {"official": 0.0, "strict": 0.0, "in_time": 0.0}
    late, output = said["time"] - item.truth["time"], item.truth["output"]
    in_time = abs(late) <= WINDOW
    strict = alone and 0 <= late <= WINDOW and plain(said["text"]) == plain(output)
    return {"official": float(in_time and output in said["text"]), "strict": float(strict), "in_time": float(in_time)}
