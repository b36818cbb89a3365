"""COIN, `COIN.json`: what is shown in a step, what the whole video does, and which steps come next."""

from collections.abc import Iterator
from functools import partial

from ..containers import shown
from .annotations import Request, Stream, need, numbered, part, seconds, segment_stream, turn, words_of

HELD_OUT = ("testing", "test", "validation")  # the same videos, whose name differs between sources of the file
SUBSETS = ("training", *HELD_OUT)
MOST = 5  # steps of a procedure
STEP = "Which step is this? Answer with its name and nothing else."
TASK = "What is done in this video? Answer with the name of the activity and nothing else."
NEXT = "Which step comes next? Answer with its name and nothing else."
PROCEDURE = f"Which steps come next, at most {MOST}? Answer with a numbered list and nothing else."
PROCEDURE_PLUS = "This is to {task}. " + PROCEDURE


def wanted(found: set[str], subset: str | None) -> set[str]:
    """The subset, as the annotations name it, that is asked for; all that are found without one.

    Raises:
        `ValueError`: if it is not among them.
    """
    if subset is None:
        return found
    alike = {subset} & found or (found.intersection(HELD_OUT) if subset in HELD_OUT else set())
    if len(alike) != 1:
        raise ValueError(f"`subset` is {subset!r}, but these annotations have {', '.join(sorted(found)) or 'none'}")
    return alike


def videos(annotations: dict, request: Request) -> Iterator[tuple[str, dict]]:
    """`(youtube id, video)` of the wanted subset."""
    database, of_video = need(annotations, "database", dict, "the file"), {}
    for name in database:
        with request.skipping("videos that cannot be read"):
            of_video[name] = need(need(database, name, dict, "database"), "subset", str, f"database.{name}")
    subsets = wanted(set(of_video.values()), request.subset)
    yield from ((name, database[name]) for name, subset in of_video.items() if subset in subsets)


def activity_of(name: str, video: dict) -> str:
    return words_of(need(video, "class", str, f"database.{name}"))


def steps_of(name: str, video: dict, request: Request) -> list[tuple[float, float, str]]:
    """`(start, end, step)` of a video's steps in order of time."""
    steps, annotation = [], need(video, "annotation", list, f"database.{name}")
    for index, item in enumerate(annotation):
        with request.skipping("steps that cannot be read"):
            where = f"database.{name}.annotation[{index}]"
            segment, label = need(item, "segment", list, where), need(item, "label", str, where).strip()
            if len(segment) != 2:
                raise ValueError(f"'segment' of {where} must be [start, end] in seconds, got {shown(segment)}")
            start, end = part({"start": segment[0], "end": segment[1]}, f"'segment' of {where}", "start", "end")
            if not label or not start < end:
                request.leave_out("steps without a name or without a length", where)
            elif (start, end, label) in steps:
                request.leave_out("steps that repeat another", where)
            else:
                steps.append((start, end, label))
    if not annotation:
        request.leave_out("videos without steps", name)
    return sorted(steps)


def step(annotations: dict, request: Request) -> Iterator[Stream]:
    for name, video in videos(annotations, request):
        with request.skipping("videos that cannot be read"):
            for start, end, label in steps_of(name, video, request):
                yield segment_stream((name,), start, end, STEP, label)


def task(annotations: dict, request: Request) -> Iterator[Stream]:
    """The whole video; the answer comes after its last frame."""
    for name, video in videos(annotations, request):
        with request.skipping("videos that cannot be read"):
            end, activity = seconds(video, "duration", f"database.{name}"), activity_of(name, video)
            turns = [turn(0.0, "user", TASK), turn(end, "assistant", activity)]
            yield Stream((name,), turns, to_end=True)


def following(annotations: dict, request: Request, question: str, most: int, listed: bool) -> Iterator[Stream]:
    """Each step but the last, and the names of the next ones."""
    for name, video in videos(annotations, request):
        with request.skipping("videos that cannot be read"):
            activity, steps = activity_of(name, video), steps_of(name, video, request)
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
