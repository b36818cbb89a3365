"""Metrics of answers: top-1 by the nearest category, steps of a procedure, and ED@20 of anticipation."""

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


def normalise(text: str) -> str:
    """Lower case, without surrounding white space and final full stop."""
    return text.strip().rstrip(".").strip().lower()


def nearest(text: str, categories: Sequence[str]) -> str:
    """The category with the smallest edit distance to a text; the first of several."""
    if not categories:
        raise ValueError("`categories` must not be empty")
    text = normalise(text)
    best, letters = (math.inf, 0), Counter(text)
    # Letters that the texts do not share give a lower bound; in that order, few distances have to be computed.
    bounds = [max(len(text), len(c)) - (letters & Counter(c)).total() for c in map(normalise, categories)]
    for index in sorted(range(len(bounds)), key=bounds.__getitem__):
        if bounds[index] > best[0]:
            break
        best = min(best, (edit_distance(text, normalise(categories[index])), index))
    return categories[best[1]]


def listed(text: str) -> list[str]:
    """`1. a 2. b` -> `[a, b]`. Numbers must be consecutive; a text without numbers is one step."""
    found: list[re.Match[str]] = []
    position = 0
    while match := re.compile(rf"(?:^|(?<=\s)){len(found) + 1}[.)]\s+").search(text, position):
        found.append(match)
        position = match.end()
    if not found:
        return [text.strip()] if text.strip() else []
    stops = [match.start() for match in found[1:]] + [len(text)]
    return [text[match.end() : stop].strip() for match, stop in zip(found, stops, strict=True)]


def right_steps(predicted: list[str], true: list[str], categories: Sequence[str]) -> int:
    """Number of positions at which the nearest category of the predicted step is the true step."""
    return sum(nearest(p, categories) == t for p, t in zip(predicted, true, strict=False))


def edit_distance_at(candidates: Sequence[Sequence[Hashable]], true: Sequence[Hashable]) -> float:
    """Smallest edit distance of the K candidates to the Z true actions, divided by Z. Candidates are truncated to Z
    actions; missing actions count as insertions. Source: Ego4D (arXiv 2110.07058), ED@Z."""
    if not candidates or not true:
        raise ValueError(f"`candidates` and `true` must not be empty, got {len(candidates)} and {len(true)}")
    return min(edit_distance(candidate[: len(true)], true) for candidate in candidates) / len(true)


@dataclass(frozen=True)
class Taxonomy:
    """The verbs and nouns of actions, such as those of `fho_lta_taxonomy.json`. Without them, the first word of an
    action is its verb, and the rest its noun."""

    verbs: Sequence[str] = ()
    nouns: Sequence[str] = ()

    def split(self, action: str) -> tuple[str, str]:
        """`put down cutting board` -> `("put down", "cutting board")`: the longest verb that the action starts with,
        and the rest as the noun. Unknown words are replaced by the nearest ones of the taxonomy."""
        action = normalise(action)
        verbs = [verb for verb in self.verbs if f"{action} ".startswith(f"{verb} ")]
        verb = max(verbs, key=len, default=action.split(" ")[0])
        noun = action[len(verb) :].strip()
        if self.verbs and not verbs:
            verb = nearest(verb, self.verbs)
        return verb, nearest(noun, self.nouns) if self.nouns else noun


def actions(text: str) -> list[str]:
    """The actions of a numbered list, or of a list with commas."""
    steps = listed(text)
    return [part.strip() for part in steps[0].split(",") if part.strip()] if len(steps) == 1 else steps


def anticipation(candidates: list[str], true: str, taxonomy: Taxonomy) -> tuple[float, float, float]:
    """`edit_distance_at` for verbs, nouns and actions, of candidate lists of actions and the true list."""
    true_pairs = [taxonomy.split(action) for action in actions(true)]
    candidate_pairs = [[taxonomy.split(action) for action in actions(text)] for text in candidates]
    verbs, nouns = (
        edit_distance_at([[pair[i] for pair in pairs] for pairs in candidate_pairs], [pair[i] for pair in true_pairs])
        for i in (0, 1)
    )
    return verbs, nouns, edit_distance_at(candidate_pairs, true_pairs)
