"""What whoever runs the Space can set, by environment variables."""

import os
from dataclasses import dataclass, fields

PREFIX = "VIDEOLLM_MOD_"


@dataclass(frozen=True)
class Settings:
    """
    Args:
        running (`int`): streams that run at once; by default two a core.
        waiting (`int`): streams that wait in line for one of these to end; more are turned away.
        patience_seconds (`float`): a running or waiting stream whose page is silent for this long loses its place.
        idle_seconds (`float`): what a visitor left behind is deleted after this long.
        upload_megabytes (`int`), video_seconds (`float`), camera_seconds (`float`): how large an upload may be, and
            how much of a video or camera is watched.
    """

    running: int = 2 * (os.cpu_count() or 1)
    waiting: int = 16
    patience_seconds: float = 20.0
    idle_seconds: float = 600.0
    upload_megabytes: int = 100
    video_seconds: float = 180.0
    camera_seconds: float = 300.0

    @classmethod
    def from_environment(cls, environment=os.environ) -> "Settings":
        """Each field from the variable of its name, `VIDEOLLM_MOD_RUNNING` and so on.

        Raises:
            `ValueError`: for a value that is no positive number.
        """
        given = {}
        for field in fields(cls):
            text = environment.get(name := PREFIX + field.name.upper())
            if not text:
                continue
            try:
                given[field.name] = field.type(text)
            except ValueError as error:
                raise ValueError(f"{name} must be a number, got {text!r}") from error
            if not given[field.name] > 0:
                raise ValueError(f"{name} must be more than 0, got {text!r}")
        return cls(**given)


__all__ = ["Settings"]
