"""Strict readings of answers, and sums that several benchmarks share."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from ...data.benchmark_items import Item

READINGS = ("official", "strict")
Scores = list[tuple[Item, dict]]


def plain(text: str) -> str:
    """Lower case, without surrounding spaces, quotes and final punctuation, with single spaces."""
    return " ".join(text.split()).strip(" \"'\u201c\u201d\u2018\u2019.,;:!?").lower()


def strict_letter(text: str, options: tuple[str, ...]) -> str | None:
    """The letter that an answer consists of, such as `B`, `(B)`, `B.` or `B. its option`, or that of the only option
    whose text it is; None for anything else."""
    match = re.fullmatch(r"\(?([A-Z])(?:\)?[.:)]?(?:\s+(.*))?)", text.strip(), re.DOTALL)
    own = None if match is None else options[ord(match[1]) - 65 : ord(match[1]) - 64]
    if match is not None and own and (not match[2] or plain(match[2]) == plain(own[0])):
        return match[1]
    named = [index for index, option in enumerate(options) if plain(option) == plain(text)]
    return chr(65 + named[0]) if len(named) == 1 else None


def strict_number(text: str) -> int | None:
    """The only number of an answer, written in digits; None if there is none, or more than one."""
    found = re.findall(r"-?\d+(?:[.,]\d+)*", text)
    return int(found[0]) if len(found) == 1 and re.fullmatch(r"-?[0-9]+", found[0]) else None


def strict_yes(text: str) -> bool | None:
    """Whether an answer is yes; None if it is neither `yes` nor `no`."""
    return {"yes": True, "no": False}.get(plain(text))


def since(said: list[dict], time: float, until: float = float("inf")) -> list[dict]:
    """What was said from `time` to `until`, in seconds."""
    return [one for one in said if time <= one["time"] <= until]


def mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def per_cent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def by(pairs: Scores, name: str) -> dict[str, Scores]:
    """The pairs of each group or task, in order of their first item."""
    found: dict[str, Scores] = {}
    for item, score in pairs:
        found.setdefault(getattr(item, name), []).append((item, score))
    return found


def apart(items: list[Item], scores: list[dict], table: Callable[[Scores, str], dict[str, Any]]) -> dict:
    """Both readings of a table, with items that need sound in a table of their own."""
    pairs = list(zip(items, scores, strict=True))
    heard = [pair for pair in pairs if pair[0].needs_sound]
    seen = [pair for pair in pairs if not pair[0].needs_sound]
    result = {"items": len(seen)} | {reading: table(seen, reading) for reading in READINGS}
    if heard:
        result["with sound"] = {"items": len(heard)} | {reading: table(heard, reading) for reading in READINGS}
    return result


def hits(pairs: Scores, reading: str) -> list[float]:
    """All counted answers of some items: those under `{reading}_hits`, or else the score itself."""
    found: list[float] = []
    for _, score in pairs:
        values = score.get(f"{reading}_hits", [score[reading]])
        found += [value for value in values if value is not None]
    return found


def micro(pairs: Scores, reading: str) -> dict[str, Any]:
    """Per cent of all answers, of each task, of each group (`average`) and of all (`overall`)."""
    result: dict[str, Any] = {}
    for group, of_group in by(pairs, "group").items():
        tasks = {task: per_cent(mean(hits(of_task, reading))) for task, of_task in by(of_group, "task").items()}
        result[group] = tasks | {"average": per_cent(mean(hits(of_group, reading)))}
    return result | {"overall": per_cent(mean(hits(pairs, reading)))}


def macro(pairs: Scores, reading: str) -> dict[str, Any]:
    """The same, but a group is the mean of its tasks, and `overall` the mean of the groups."""
    result: dict[str, Any] = {}
    for group, of_group in by(pairs, "group").items():
        tasks = {task: per_cent(mean(hits(of_task, reading))) for task, of_task in by(of_group, "task").items()}
        result[group] = tasks | {"average": mean(value for value in tasks.values() if value is not None)}
    averages = [group["average"] for group in result.values()]
    return result | {"overall": mean(value for value in averages if value is not None)}
