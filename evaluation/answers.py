"""Answers against categories: top-1 with the nearest category, steps of a procedure, and ED@20 of anticipation."""

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


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
    text = plain(text)
    best, letters = (math.inf, 0), Counter(text)
    # what is not in both texts has to be changed: in order of that bound, few distances need be computed
    bounds = [max(len(text), len(c)) - (letters & Counter(c)).total() for c in map(plain, categories)]
    for index in sorted(range(len(bounds)), key=bounds.__getitem__):
        if bounds[index] > best[0]:
            break
        best = min(best, (edit_distance(text, plain(categories[index])), index))
    return categories[best[1]]


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


@dataclass(frozen=True)
class Taxonomy:
    """The words of actions, such as those of `fho_lta_taxonomy.json`. Without any, the first word of an action is its
    verb and the rest its noun."""

    verbs: Sequence[str] = ()
    nouns: Sequence[str] = ()

    def split(self, action: str) -> tuple[str, str]:
        """`put down cutting board` -> `("put down", "cutting board")`: the longest verb that it begins with, and of
        what no taxonomy has the nearest."""
        action = plain(action)
        verbs = [verb for verb in self.verbs if f"{action} ".startswith(f"{verb} ")]
        verb = max(verbs, key=len, default=action.split(" ")[0])
        noun = action[len(verb) :].strip()
        if self.verbs and not verbs:
            verb = nearest(verb, self.verbs)
        return verb, nearest(noun, self.nouns) if self.nouns else noun


def actions(text: str) -> list[str]:
    """Of a numbered list, or else of one with commas."""
    steps = listed(text)
    return [part.strip() for part in steps[0].split(",") if part.strip()] if len(steps) == 1 else steps


def anticipation(candidates: list[str], true: str, taxonomy: Taxonomy) -> tuple[float, float, float]:
    """`edit_distance_at` of verbs, nouns and actions: lists of actions against the true one."""
    of_true = [taxonomy.split(action) for action in actions(true)]
    of_candidates = [[taxonomy.split(action) for action in actions(text)] for text in candidates]
    verbs, nouns = (
        edit_distance_at([[pair[i] for pair in pairs] for pairs in of_candidates], [pair[i] for pair in of_true])
        for i in (0, 1)
    )
    return verbs, nouns, edit_distance_at(of_candidates, of_true)
