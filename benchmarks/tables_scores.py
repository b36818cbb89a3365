"""Scores of a level for the tables: each row's seeds at its best learning rate, and paired differences.

Scores are dicts `seed -> value`, so that two rows are compared only on seeds that both have.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, stdev

from scipy import stats

from .tables_runs import SEEDS, Runs, best_rate, lacking_rates
from .world_rows import ROWS, row_of

MIN_SEEDS = 3  # a row with fewer is marked and has no figure

Score = Callable[[dict], float]
Scores = dict[int, float]


@dataclass(frozen=True)
class Difference:
    """Mean difference over `n` paired seeds, and its 95 % t-interval, which is None for one seed."""

    n: int
    mean: float
    low: float | None
    high: float | None

    @property
    def shown(self) -> bool:
        """Whether there is an interval, and it excludes zero."""
        return self.low is not None and (self.low > 0 or self.high < 0)


def difference(a: Scores, b: Scores) -> Difference | None:
    """Of `a` minus `b`, or None without a common seed."""
    # scores have few digits; more would be rounding noise, which could look like a difference
    pairs = [round(a[seed] - b[seed], 9) for seed in sorted(a.keys() & b.keys())]
    if not pairs:
        return None
    n, middle = len(pairs), mean(pairs)
    if n == 1:
        return Difference(1, middle, None, None)
    half = float(stats.t.ppf(0.975, n - 1)) * stdev(pairs) / math.sqrt(n)
    return Difference(n, middle, middle - half, middle + half)


def varies(row: str) -> bool:
    """Whether the row keeps more than its own ratio during training, so that its training FLOPs are unknown."""
    return row_of(row).warmup > 0 or row_of(row).elastic is not None


def exact(run: dict) -> float:
    return run["test"]["exact"]


def self_exact(run: dict) -> float:
    return run["test"]["self_conditioned"]["exact"]


def worded_f1(run: dict) -> float:
    return run["test"]["self_conditioned"]["worded_f1"]


def flops(run: dict) -> float:
    return run["flops_per_stream"]


def streaming(name: str) -> Score:
    return lambda run: run["test"]["streaming"][name]


def self_conditioned(name: str) -> Score:
    """`precision`, `recall`, `f1`: matched in time. `worded_precision`, `worded_recall`, `worded_f1`: and in words."""

    def score(run: dict) -> float:
        scores = run["test"]["self_conditioned"]
        if name in scores:
            return scores[name]
        matched = scores["worded_f1"] * (scores["said"] + scores["true"]) / 2  # percent; F1 = 2 m / (said + true)
        return matched / max(1, scores[{"worded_precision": "said", "worded_recall": "true"}[name]])

    return score


@dataclass(frozen=True, eq=False)
class Level:
    name: str
    runs: Runs

    def rate(self, row: str) -> float | None:
        return best_rate(self.runs, row, self.name)

    def of(self, row: str) -> dict[int, dict]:
        """Runs of the row at its best rate, `seed -> run`; empty while its sweep is incomplete."""
        rate = self.rate(row)
        there = {key[2]: run for key, run in self.runs.items() if key[0] == row and key[3] == rate}
        return dict(sorted(there.items()))

    def scores(self, row: str, score: Score) -> Scores:
        return {seed: score(run) for seed, run in self.of(row).items()}

    def mean(self, row: str, score: Score) -> float | None:
        scores = self.scores(row, score)
        return mean(scores.values()) if scores else None

    def difference(self, a: str, b: str, score: Score) -> Difference | None:
        return difference(self.scores(a, score), self.scores(b, score))

    def lacks(self, row: str) -> str | None:
        """What is missing from the row, in words, or None."""
        if rates := lacking_rates(self.runs, row, self.name):
            return f"learning rates {', '.join(f'{rate:g}' for rate in rates)} of seed 0"
        seeds = [str(seed) for seed in SEEDS if seed not in self.of(row)]
        return f"seeds {', '.join(seeds)} at {self.rate(row):g}" if seeds else None

    def too_few(self, rows: list[str]) -> list[str]:
        """Those of `rows` with fewer than `MIN_SEEDS` seeds."""
        return [row for row in rows if len(self.of(row)) < MIN_SEEDS]

    def unknown(self) -> list[str]:
        """Rows of runs that `world_rows`, and therefore every table, does not have."""
        return sorted({key[0] for key in self.runs} - ROWS.keys())

    def best(self, rows: tuple[str, ...]) -> str | None:
        """The one of `rows` with the most exact narrations on validation streams, over the seeds that all of them
        have, or None if a row has too few."""
        common = set.intersection(*(set(self.of(row)) for row in rows))
        if len(common) < MIN_SEEDS:
            return None
        return max(rows, key=lambda row: mean(self.of(row)[seed]["validation"]["exact"] for seed in common))
