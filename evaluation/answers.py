"""Answers against categories: top-1 with the nearest category, steps of a procedure, and ED@20 of anticipation."""

import re
from collections.abc import Hashable, Sequence


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Levenshtein distance: insertions, deletions and substitutions, each of cost 1."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def plain(text: str) -> str:
    """Without case, full stop at the end, and white space around it."""
    return text.strip().rstrip(".").strip().lower()


def nearest(text: str, categories: Sequence[str]) -> str:
    """The category of the least edit distance to a text, the first of those as near."""
    if not categories:
        raise ValueError("`categories` must not be empty")
    return min(categories, key=lambda category: edit_distance(plain(text), plain(category)))


def listed(text: str) -> list[str]:
    """`1. a 2. b` -> `[a, b]`; a number counts where it is the next one. A text without numbers is one step."""
    found, position = [], 0
    while match := re.compile(rf"(?:^|(?<=\s)){len(found) + 1}[.)]\s+").search(text, position):
        found.append(match)
        position = match.end()
    if not found:
        return [text.strip()] if text.strip() else []
    stops = [match.start() for match in found[1:]] + [len(text)]
    return [text[match.end() : stop].strip() for match, stop in zip(found, stops, strict=True)]


def right_steps(predicted: list[str], true: list[str], categories: Sequence[str]) -> int:
    """How many of the true steps have, at their own place, a predicted one nearest to them."""
    return sum(nearest(p, categories) == t for p, t in zip(predicted, true, strict=False))


def edit_distance_at(candidates: list[list[Hashable]], true: list[Hashable]) -> float:
    """Lowest edit distance of the K candidates to the Z true actions, over Z. A candidate is cut at Z; one that is
    shorter pays for what it lacks. Source: Ego4D (arXiv 2110.07058), ED@Z."""
    if not candidates or not true:
        raise ValueError(f"`candidates` and `true` must not be empty, got {len(candidates)} and {len(true)}")
    return min(edit_distance(candidate[: len(true)], true) for candidate in candidates) / len(true)
