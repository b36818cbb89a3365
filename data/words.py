"""Numbers of things in messages."""


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """`1 line`, `2 lines`; `plural` where it takes more than an s."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


__all__ = ["counted"]
