"""COIN, `COIN.json`: what is shown in a step, what the whole video does, and which steps come next."""

from collections.abc import Iterator
from functools import partial

from .annotations import NUMBER, Request, Stream, need, numbered, segment_stream, turn, words_of

MOST = 5  # steps of a procedure
STEP = "Which step is this? Answer with its name and nothing else."
TASK = "What is done in this video? Answer with the name of the activity and nothing else."
NEXT = "Which step comes next? Answer with its name and nothing else."
PROCEDURE = f"Which steps come next, at most {MOST}? Answer with a numbered list and nothing else."
PROCEDURE_PLUS = "This is to {task}. " + PROCEDURE


def videos(annotations: dict, request: Request) -> Iterator[tuple[str, dict, list[tuple[float, float, str]]]]:
    """`(youtube id, video, [(start, end, step)])` of the wanted subset, steps in order of time."""
    database = need(annotations, "database", dict, "the file")
    found = {need(video, "subset", str, f"database.{name}") for name, video in database.items()}
    if not any(request.wants(subset) for subset in found):
        raise ValueError(f"`subset` must be one of {', '.join(sorted(found))}, got {request.subset!r}")
    for name, video in database.items():
        if not request.wants(video["subset"]):
            continue
        steps = []
        for index, step in enumerate(need(video, "annotation", list, f"database.{name}")):
            where = f"database.{name}.annotation[{index}]"
            segment, label = need(step, "segment", list, where), need(step, "label", str, where).strip()
            if len(segment) != 2 or not all(isinstance(time, NUMBER) for time in segment):
                raise ValueError(f"'segment' of {where} must be [start, end] in seconds, got {segment}")
            if not label or not 0 <= segment[0] < segment[1]:
                request.leave_out("steps without a name or without a length")
                continue
            steps.append((*segment, label))
        yield name, video, sorted(steps)


def step(annotations: dict, request: Request) -> Iterator[Stream]:
    for name, _, steps in videos(annotations, request):
        for start, end, label in steps:
            yield segment_stream((name,), start, end, STEP, label)


def task(annotations: dict, request: Request) -> Iterator[Stream]:
    """The whole video; the answer comes after its last frame."""
    for name, video, _ in videos(annotations, request):
        where = f"database.{name}"
        seconds, activity = need(video, "duration", NUMBER, where), words_of(need(video, "class", str, where))
        yield Stream((name,), [turn(0.0, "user", TASK), turn(seconds, "assistant", activity)])


def following(annotations: dict, request: Request, question: str, most: int, listed: bool) -> Iterator[Stream]:
    """Each step but the last, and the names of the next ones."""
    for name, video, steps in videos(annotations, request):
        activity = words_of(need(video, "class", str, f"database.{name}"))
        for index, (start, end, _) in enumerate(steps[:-1]):
            labels = [label for _, _, label in steps[index + 1 : index + 1 + most]]
            answer = numbered(labels) if listed else labels[0]
            yield segment_stream((name,), start, end, question.format(task=activity), answer)


TASKS = {
    "step": step,
    "task": task,
    "next": partial(following, question=NEXT, most=1, listed=False),
    "procedure": partial(following, question=PROCEDURE, most=MOST, listed=True),
    "procedure+": partial(following, question=PROCEDURE_PLUS, most=MOST, listed=True),
}
