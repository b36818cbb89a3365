"""COIN, `COIN.json`: name the step shown, name the activity of the whole video, predict the next steps."""

from collections.abc import Iterator
from functools import partial

from ..containers import shown
from .annotations import Adapter, Request, Stream, need, numbered, part, seconds, segment_stream, turn, words_of

HELD_OUT = ("testing", "test", "validation")  # names of the same videos in different copies of the file
SUBSETS = ("training", *HELD_OUT)
MAX_STEPS = 5  # steps of a procedure
STEP = "Which step is this? Answer with its name and nothing else."
TASK = "What is done in this video? Answer with the name of the activity and nothing else."
NEXT = "Which step comes next? Answer with its name and nothing else."
PROCEDURE = f"Which steps come next, at most {MAX_STEPS}? Answer with a numbered list and nothing else."
PROCEDURE_PLUS = "This is to {task}. " + PROCEDURE


def matching_subsets(found: set[str], subset: str | None) -> set[str]:
    """The requested subset as the annotations name it, or all of them if `subset` is None.

    Raises:
        `ValueError`: if the annotations do not have the subset.
    """
    if subset is None:
        return found
    matching = {subset} & found or (found.intersection(HELD_OUT) if subset in HELD_OUT else set())
    if len(matching) != 1:
        raise ValueError(f"`subset` is {subset!r}, but these annotations have {', '.join(sorted(found)) or 'none'}")
    return matching


def videos(annotations: dict, request: Request) -> Iterator[tuple[str, dict]]:
    """`(youtube id, video)` of each video of the requested subset."""
    database, subset_of = need(annotations, "database", dict, "the file"), {}
    for name in database:
        with request.skipping("videos that cannot be read"):
            subset_of[name] = need(need(database, name, dict, "database"), "subset", str, f"database.{name}")
    subsets = matching_subsets(set(subset_of.values()), request.subset)
    yield from ((name, database[name]) for name, subset in subset_of.items() if subset in subsets)


def activity_of(name: str, video: dict) -> str:
    return words_of(need(video, "class", str, f"database.{name}"))


def steps_of(name: str, video: dict, request: Request) -> list[tuple[float, float, str]]:
    """`(start, end, name)` of a video's steps in order of time."""
    steps, annotation = [], need(video, "annotation", list, f"database.{name}")
    for index, item in enumerate(annotation):
        with request.skipping("steps that cannot be read"):
            where = f"database.{name}.annotation[{index}]"
            segment, label = need(item, "segment", list, where), need(item, "label", str, where).strip()
            if len(segment) != 2:
                raise ValueError(f"'segment' of {where} must be [start, end] in seconds, got {shown(segment)}")
            start, end = part({"start": segment[0], "end": segment[1]}, f"'segment' of {where}", "start", "end")
            if not label or not start < end:
                request.leave_out("steps without a name or a duration", where)
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


def next_steps(annotations: dict, request: Request, question: str, max_steps: int, as_list: bool) -> Iterator[Stream]:
    """Each step but the last, with the names of the next `max_steps` as the answer."""
    for name, video in videos(annotations, request):
        with request.skipping("videos that cannot be read"):
            activity, steps = activity_of(name, video), steps_of(name, video, request)
            for index, (start, end, _) in enumerate(steps[:-1]):
                labels = [label for _, _, label in steps[index + 1 : index + 1 + max_steps]]
                answer = numbered(labels) if as_list else labels[0]
                yield segment_stream((name,), start, end, question.format(task=activity), answer)


TASKS: dict[str, Adapter] = {
    "step": step,
    "task": task,
    "next": partial(next_steps, question=NEXT, max_steps=1, as_list=False),
    "procedure": partial(next_steps, question=PROCEDURE, max_steps=MAX_STEPS, as_list=True),
    "procedure+": partial(next_steps, question=PROCEDURE_PLUS, max_steps=MAX_STEPS, as_list=True),
}
