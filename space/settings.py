"""The settings of the Space, read from environment variables."""

import os
from dataclasses import dataclass, fields

PREFIX = "VIDEOLLM_MOD_"


@dataclass(frozen=True)
class Settings:
    """
    Args:
        running (`int`): streams that run at the same time; by default two per core.
        waiting (`int`): streams that may wait in line; more are turned away.
        patience_seconds (`float`): a stream loses its place if its page sends nothing for this long.
        idle_seconds (`float`): clips and streams that nobody uses are deleted after this long.
        upload_megabytes (`int`): maximum size of an upload.
        video_seconds (`float`), camera_seconds (`float`): how much of a video or camera the model watches.
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
        """Read each field from the variable with its name, such as `VIDEOLLM_MOD_RUNNING`.

        Raises:
            `ValueError`: for a value that is not a positive number.
        """
        given = {}
        for field in fields(cls):
            name, number = PREFIX + field.name.upper(), type(getattr(cls, field.name))
            text = environment.get(name)
            if not text:
                continue
            try:
                given[field.name] = number(text)
            except ValueError as error:
                raise ValueError(f"{name} must be a number, got {text!r}") from error
            if not given[field.name] > 0:
                raise ValueError(f"{name} must be more than 0, got {text!r}")
        return cls(**given)


__all__ = ["PREFIX", "Settings"]
