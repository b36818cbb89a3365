"""The names of the levels of the procedural world, for options: the levels themselves are slow to import."""

NAMES = (
    "basic",
    "hard",
    "hard_small",
    "hard_lessons",
    "hard_small_lessons",
    "hard_tasks",
    "hard_small_tasks",
    "hard_tasks_lessons",
    "hard_small_tasks_lessons",
    "crowd",
    "crowd_small",
    "crowd_lessons",
    "crowd_small_lessons",
    "things",
    "things_camera",
    "things_camera_unseen",
    "things_unseen",
    "things_photos",
    "things_unknown",
    "minute",
    "minutes",
)


def check_level(name: str, level: str) -> None:
    """Raise `ValueError` for an unknown level; `name` is that of the argument."""
    if level not in NAMES:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, NAMES))}, got {level!r}")


__all__ = ["NAMES", "check_level"]
