"""Ego-Exo4D keysteps, `keystep_{train,val}.json`: which keystep is shown."""

from collections.abc import Iterator

from .annotations import Request, Stream, need, part, segment_stream

INSTRUCTION = "Which keystep is this? Answer with its name and nothing else."


def keystep(annotations: dict, request: Request) -> Iterator[Stream]:
    """A stream a keystep. A take's video is named after its uid, or its name where the annotations have it."""
    request.check_split(annotations)
    takes = need(annotations, "annotations", dict, "the file")
    for uid in takes:
        take = need(takes, uid, dict, "annotations")
        names = (uid, take["take_name"]) if isinstance(take.get("take_name"), str) else (uid,)
        for index, segment in enumerate(need(take, "segments", list, f"annotations.{uid}")):
            where = f"annotations.{uid}.segments[{index}]"
            name = need(segment, "step_name", str, where).strip()
            start, end = part(segment, where)
            if name and 0 <= start < end:
                yield segment_stream(names, start, end, INSTRUCTION, name)
            else:
                request.leave_out("keysteps without a name or without a length")


TASKS = {"keystep": keystep}
