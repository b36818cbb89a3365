"""The procedural world of streams: `world_stream(seed, level)` is the same stream on every machine.

A stream gives its frames at any resolution, its timed narrations, and questions with their answers. Each level is a
class of its own.
"""

import numpy as np

from .levels import NAMES, check_level
from .world_basic import BasicStream
from .world_hard import (
    CrowdLessons,
    CrowdSmallLessons,
    CrowdSmallStream,
    CrowdStream,
    HardLessons,
    HardSmallLessons,
    HardSmallStream,
    HardStream,
)
from .world_minutes import MinutesStream, MinuteStream
from .world_tasks import HardSmallTasksLessons, HardSmallTasksStream, HardTasksLessons, HardTasksStream
from .world_things import ThingsPhotosStream, ThingsStream, ThingsUnknownStream, ThingsUnseenStream
from .world_things_camera import ThingsCameraStream, ThingsCameraUnseenStream

DOMAIN = "procedural world"  # `config.domain` of models that know only this world, and the title of its clips
KINDS: tuple[type[BasicStream], ...] = (
    BasicStream,
    HardStream,
    HardSmallStream,
    HardLessons,
    HardSmallLessons,
    HardTasksStream,
    HardSmallTasksStream,
    HardTasksLessons,
    HardSmallTasksLessons,
    CrowdStream,
    CrowdSmallStream,
    CrowdLessons,
    CrowdSmallLessons,
    ThingsStream,
    ThingsCameraStream,
    ThingsCameraUnseenStream,
    ThingsUnseenStream,
    ThingsPhotosStream,
    ThingsUnknownStream,
    MinuteStream,
    MinutesStream,
)
LEVELS = dict(zip(NAMES, KINDS, strict=True))


def world_stream(seed: int, level: str = "basic") -> BasicStream:
    """The stream of a seed.

    Raises:
        `ValueError`: for an unknown level.
    """
    check_level("`level`", level)
    return LEVELS[level](seed)


def narrated(stream, fps: float) -> list[tuple[float, str]]:
    """`(time, text)` of the narrations of what the frames at `fps` show: none comes after the last frame."""
    last = stream.frame_times(fps)[-1]
    return [(time, text) for time, text in stream.narrations if time <= last]


def conversation(stream, fps: float = 2.0, num_questions: int = 1, opening: bool = True) -> list[dict]:
    """A stream as messages for a processor: each narration follows the frame of its time; questions come in between.

    The frames, in order, are `stream.frames(fps)`.
    """
    turns = [(time, 0, [("assistant", text)]) for time, text in narrated(stream, fps)]
    for time, question, answer in stream.questions(fps, num_questions):
        turns.append((time, 1, [("user", question), ("assistant", answer)]))
    messages = []
    if opening:
        system, instruction = stream.opening()
        messages += [{"role": "system", "content": system}] if system else []
        messages += [{"role": "user", "content": instruction}] if instruction else []
    times, done = stream.frame_times(fps), 0
    for time, _, texts in sorted(turns, key=lambda turn: turn[:2]):
        seen = int(np.searchsorted(times, time)) + 1  # up to the first frame at or after the time, inclusive
        if seen > done:
            messages.append({"role": "stream", "num_frames": seen - done})
            done = seen
        messages += [{"role": role, "content": text} for role, text in texts]
    if done < len(times):
        messages.append({"role": "stream", "num_frames": len(times) - done})
    return messages


def texts(seeds: range, level: str = "basic") -> list[str]:
    """All text of the streams of `seeds`, to train a tokenizer on."""
    return [
        message["content"]
        for seed in seeds
        for message in conversation(world_stream(seed, level), num_questions=4)
        if message["role"] != "stream"
    ]
