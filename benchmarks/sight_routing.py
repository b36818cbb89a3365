"""Routing by calibration of the models of `sight`: what it costs in answers and narrations, on the same questions.

A question is asked after each frame, in a fork that is thrown away, so that it changes nothing of the stream. Dense
and routed model get the same questions. What routing loses is the difference of the shares of exact answers; its
standard error is that over streams, since questions about one stream depend on one another.
"""

import json
import random
import time
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch

from ..calibration.clips import answering, encoded, read_clip, run_abreast
from ..calibration.measuring import FREE_SELECTIONS, Divergence, Measured, best, candidates, routed
from ..data.world_basic import BasicStream
from ..speaking import StreamEvent, WatchedFrame
from ..steps import Step
from .sight_scores import Counts, changes, score
from .stock_vlm_data import SEE, ask, of_image

FPS = 2.0
AT_ONCE = 64  # streams
REPLY = 40  # tokens at most
CLIPS = 16  # streams of the training split to calibrate on
KEEP_RATIOS = [tenth / 10 for tenth in range(1, 10)]
LOST = 1.0  # points of exact answers that routing may cost
STATISTICS = {  # of what is measured without labels
    "divergence": lambda row: row["divergence"],
    "divergence, 99th percentile": lambda row: row["decisions"]["percentile_99"],
    "divergence, largest": lambda row: row["decisions"]["largest"],
    "other words": lambda row: row["decisions"]["other_words"] / row["decisions"]["words"],
    "other decisions to speak": lambda row: row["decisions"]["spoken"] / row["decisions"]["frames"],
    "changed replies": lambda row: row["decisions"]["share"],
}


def questions_of(stream: BasicStream, query: str) -> list[tuple[str, str]]:
    """`(question, answer)` for each frame, about what is in view there. A question says which image it is about if the
    instruction does."""
    rng, found = random.Random(f"sight/{stream.seed}"), []
    for moment in stream.frame_times(FPS):
        _, question, answer = ask(rng, stream.things(moment))
        found.append((question if query == SEE else of_image(question), answer))
    return found


@dataclass(frozen=True)
class Watched:
    """A stream with its features `[F, N, Dv]`, and a question and an answer for each frame."""

    stream: BasicStream
    features: torch.Tensor
    questions: list[tuple[str, str]]


def encode(built, streams: list[BasicStream]) -> list[Watched]:
    model, processor = built
    return [
        Watched(own, encoded(model, processor, own.frames(FPS)), questions_of(own, processor.default_query))
        for own in streams
    ]


def watching(session, own: Watched, asks: bool) -> Generator[Step | StreamEvent]:
    """Narrate a stream, and answer its questions in forks."""
    times = own.stream.frame_times(FPS).tolist()
    for index, (moment, (question, _)) in enumerate(zip(times, own.questions, strict=True)):
        for item in session.watching((own.features[index : index + 1], [moment])):
            if isinstance(item, Step):
                yield item
            elif isinstance(item, WatchedFrame) and item.event is not None:
                yield item.event
        if asks:
            yield from answering(session.fork(), question)


@dataclass(frozen=True)
class Scores:
    """What was narrated, and for each stream which questions were answered exactly."""

    counts: Counts
    right: list[list[bool]]

    def summary(self) -> dict:
        answers = [each for own in self.right for each in own]
        found = self.counts.summary()
        return {**found, "answers": round(100 * sum(answers) / len(answers), 2)} if answers else found


def watch(built, streams: list[Watched], asks: bool = True, work=watching, **options) -> Scores:
    """Let a model watch streams. work: as `watching`; options: of `StreamingSession`."""
    model, processor = built
    counts, right = Counts(), []
    for first in range(0, len(streams), AT_ONCE):
        group = streams[first : first + AT_ONCE]
        sessions = [model.stream(processor, max_new_tokens=REPLY, **options) for _ in group]
        works = [work(session, own, asks) for session, own in zip(sessions, group, strict=True)]
        for own, events in zip(group, run_abreast(works), strict=True):
            said = [(event.time, event.text.strip()) for event in events if event.kind == "narration"]
            counts += score(changes(own.stream), said, own.stream.seconds)
            answers = [event.text.strip() for event in events if event.kind == "answer"]
            right.append([text == answer for text, (_, answer) in zip(answers, own.questions, strict=asks)])
    return Scores(counts, right)


def lost(dense: Scores, other: Scores) -> tuple[float, float]:
    """Percentage points of exact answers that the other model loses, and the standard error over streams."""
    of_stream = np.array([sum(own) - sum(routed) for own, routed in zip(dense.right, other.right, strict=True)])
    per_question, count = 100 / sum(map(len, dense.right)), len(of_stream)
    error = per_question * np.sqrt(count / max(1, count - 1) * ((of_stream - of_stream.mean()) ** 2).sum())
    return round(per_question * int(of_stream.sum()), 3), round(float(error), 3)


def compared(dense: Scores, other: Scores) -> dict:
    points, error = lost(dense, other)
    return {**other.summary(), "answers_lost": points, "answers_lost_error": error}


def calibrated(built, streams: list[BasicStream], options: dict) -> tuple[Divergence, list[Measured]]:
    """What measures routings on some streams, and from the most to the least operations those that `videollm-mod
    calibrate` would choose from."""
    model, processor = built
    clips = []
    with routed(model, None):
        for own in encode(built, streams):
            times = own.stream.frame_times(FPS).tolist()
            asked = [(time, question) for time, (question, _) in list(zip(times, own.questions, strict=True))[::4]]
            clips.append(read_clip(model, processor, str(own.stream.seed), own.features, times, asked, **options))
    divergence = Divergence(model, clips)
    tried = candidates([*divergence.ranked_layers()], model.config.num_frame_tokens, keep_ratios=KEEP_RATIOS)
    return divergence, best([divergence.measured(name, own) for name, own in tried if name in FREE_SELECTIONS])


def ranks(values: list[float]) -> np.ndarray:
    """Of each value among all; equal ones share their mean rank."""
    array = np.array(values)
    return (array[:, None] > array).sum(1) + ((array[:, None] == array).sum(1) - 1) / 2


def rank_correlations(rows: list[dict], dense: dict) -> dict:
    """Spearman's, of each statistic with the points of F1 and of exact answers that are lost; None where one of both
    is constant, and where there are fewer than three rows."""
    if len(rows) < 3:
        return {name: {"f1_lost": None, "answers_lost": None} for name in STATISTICS}
    losses = {
        "f1_lost": ranks([dense["f1"] - row["f1"] for row in rows]),
        "answers_lost": ranks([row["answers_lost"] for row in rows]),
    }
    found: dict = {}
    for name, of in STATISTICS.items():
        own = ranks([of(row) for row in rows])
        found[name] = {
            loss: round(float(np.corrcoef(own, other)[0, 1]), 3) if np.ptp(own) and np.ptp(other) else None
            for loss, other in losses.items()
        }
    return found


def search(
    built, trying: list[Watched], divergence: Divergence, rows: list[Measured], options: dict, seconds: float
) -> dict:
    """Scores of routings.

    The border between those that lose more and those that do not is found by bisection. While there is time, the
    nearest others are scored too.

    Args:
        rows: from the most to the least operations.
        seconds: for all but the bisection.
    """
    rows, found = [*rows], {}
    dense, until = watch(built, trying, **options), time.monotonic() + seconds

    def fits(index: int) -> bool:
        rows[index] = divergence.followed(rows[index])
        with routed(built[0], rows[index].routing):
            found[index] = rows[index].as_dict() | compared(dense, watch(built, trying, **options))
        print(json.dumps(found[index]), flush=True)
        return found[index]["answers_lost"] <= LOST

    good, bad = -1, len(rows)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    for index in sorted({*range(len(rows))} - {*found}, key=lambda index: abs(index - good)):
        if time.monotonic() > until:
            break
        fits(index)
    scores = [found[index] for index in sorted(found)]
    return {
        "questions": sum(len(own.questions) for own in trying),
        "routings": len(rows),
        "dense": dense.summary(),
        "routed": scores,
        "rank_correlation": rank_correlations(scores, dense.summary()),
    }


def cheapest(rows: list[dict]) -> dict | None:
    """The routing of the fewest operations that loses at most `LOST` points."""
    fit = [row for row in rows if row["answers_lost"] <= LOST]
    return min(fit, key=lambda row: row["operations"], default=None)
