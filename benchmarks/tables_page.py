"""The Markdown tables of one level."""

from collections.abc import Callable
from statistics import mean

from .tables_scores import (
    MIN_SEEDS,
    Difference,
    Level,
    Score,
    Scores,
    difference,
    exact,
    flops,
    self_conditioned,
    self_exact,
    streaming,
    varies,
    worded_f1,
)
from .world_rows import ELASTIC_RATIOS, ROWS

# ways to train a model that keeps two of ten vision tokens; the best one on validation streams is "our best"
RECIPES = ("mod", "mod_elastic", "mod_warmup", "mod_output", "mod_none", "mod_keep_last", "mod_elastic_output")
RECIPES += ("mod_elastic_warmup", "mod_elastic_output_warmup")
INSERTIONS = {"mod_all": "all", "mod_all_deep": "all_deep"}
INSERTIONS |= {"mod": "interleaved", "mod_interleaved_deep": "interleaved_deep"}
RATIOS = {0.1: "mod_r0.1", 0.2: "mod", 0.3: "mod_r0.3", 0.5: "mod_r0.5", 1.0: "mod_r1.0"}
CONTROLS = ("random", "uniform", "random_elastic", "uniform_elastic", "frozen")


def number(value: float | None, digits: int) -> str:
    return "missing" if value is None else f"{value:.{digits}f}"


def in_words(found: Difference | None, digits: int = 2) -> str:
    if found is None:
        return "missing"
    few = f" ({found.n} seed{'s' * (found.n > 1)})" if found.n < MIN_SEEDS else ""
    if found.low is None:
        return f"{found.mean:+.{digits}f}, no interval{few}"
    interval = f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    return interval + ("" if found.shown else ", not shown") + few


def markdown(header: list[str], lines: list[list[str]]) -> list[str]:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return ["| " + " | ".join(line) + " |" for line in (header, rule, *lines)] + [""]


class Page:
    """The tables of one level."""

    def __init__(self, level: Level):
        self.level, self.best = level, level.best(RECIPES)
        self.learned = list(dict.fromkeys(("mod", self.best or "mod")))  # the row of the paper, and our best

    def named(self, row: str) -> str:
        count = len(self.level.of(row))
        name = f"`{row}`" + (", our best" if row == self.best else "")
        return name + (f" ({count} seed{'s' * (count > 1)})" if 0 < count < MIN_SEEDS else "")

    def mean(self, score: Score, digits: int = 2) -> Callable[[str], str]:
        return lambda row: number(self.level.mean(row, score), digits)

    def minus(self, other: str, score: Score) -> Callable[[str], str]:
        return lambda row: "" if row == other else in_words(self.level.difference(row, other, score))

    def from_minus(self, learned: str, score: Score) -> Callable[[str], str]:
        return lambda row: "" if row == learned else in_words(self.level.difference(learned, row, score))

    def flops(self, row: str) -> str:
        mean_flops = self.level.mean(row, flops)
        return self.at_least(row, number(mean_flops and mean_flops / 1e9, 2))

    def relative_flops(self, row: str) -> str:
        own, dense = self.level.mean(row, flops), self.level.mean("dense", flops)
        return self.at_least(row, number(own / dense if own and dense else None, 3))

    def at_least(self, row: str, cell: str) -> str:
        """FLOPs are counted at the row's keep ratio, which is a lower bound if a row keeps more during training."""
        return f"> {cell}" if varies(row) and cell != "missing" else cell

    def rate(self, row: str) -> str:
        rate = self.level.rate(row)
        return "missing" if rate is None else f"{rate:g}"

    def table(self, rows, columns: dict[str, Callable[[str], str]], names: dict[str, str] | None = None) -> list[str]:
        """One line per row; `names` describes the rows of this table."""
        named = [self.named(row) + (f": {names[row]}" if names else "") for row in rows]
        lines = [[name] + [cell(row) for cell in columns.values()] for row, name in zip(rows, named, strict=True)]
        return markdown(["row", *columns], lines)

    def table_1(self) -> list[str]:
        rows = ["class_token", "dense", "early_exit", "layer_skip", *self.learned]
        return [
            "### Table 1: routing",
            "",
            "Teacher-forced:",
            "",
            *self.table(
                rows,
                {
                    "learning rate": self.rate,
                    "LM-PPL": self.mean(streaming("lm_ppl"), 4),
                    "TimeDiff, s": self.mean(streaming("time_diff"), 3),
                    "Fluency, %": self.mean(streaming("fluency")),
                    "LM-Correctness, %": self.mean(streaming("lm_correctness")),
                    "exact, %": self.mean(exact),
                    "minus `dense`": self.minus("dense", exact),
                },
            ),
            "Self-conditioned (precision / recall / F1, in percent):",
            "",
            *self.table(
                rows,
                {
                    "with the words": self.triple("worded_"),
                    "F1 minus `dense`": self.minus("dense", worded_f1),
                    "in time only": self.triple(""),
                    "exact, %": self.mean(self_exact),
                    "exact minus `dense`": self.minus("dense", self_exact),
                },
            ),
            "Training:",
            "",
            *self.table(
                rows,
                {
                    "GFLOP per stream": self.flops,
                    "of `dense`": self.relative_flops,
                    "seconds": self.mean(lambda run: run["training_seconds"], 0),
                },
            ),
        ]

    def triple(self, kind: str) -> Callable[[str], str]:
        scores = [self_conditioned(kind + name) for name in ("precision", "recall", "f1")]
        return lambda row: " / ".join(number(self.level.mean(row, score), 2) for score in scores)

    def against(self, *others: str) -> dict[str, Callable[[str], str]]:
        return {"exact, %": self.mean(exact), **{f"minus `{other}`": self.minus(other, exact) for other in others}}

    def table_2(self) -> list[str]:
        columns = {**self.against("dense", "mod"), "GFLOP per stream": self.flops}
        return ["### Table 2: which layers route", "", *self.table(list(INSERTIONS), columns, INSERTIONS)]

    def table_3(self) -> list[str]:
        learned = {f"`{row}` minus it": self.from_minus(row, exact) for row in self.learned}
        ratios = {row: f"r={ratio:g}" for ratio, row in RATIOS.items()}
        columns = {**self.against("dense"), "GFLOP per stream": self.flops}
        return [
            "### Table 3: which tokens are kept, and how many",
            "",
            *self.table([*CONTROLS, *self.learned], {**self.against("dense"), **learned}),
            *self.table(list(ratios), columns, ratios),
        ]

    def ours(self) -> list[str]:
        names = {"mod": "gate `residual`, nothing forced, no warm-up", "mod_output": "gate `output`"}
        names |= {"mod_none": "gate `none`", "mod_keep_last": "decision token always kept"}
        names |= {"mod_warmup": "keep ratio falls from 1", "mod_elastic": "a keep ratio drawn at each step"}
        names |= {"mod_elastic_output": "drawn at each step, gate `output`"}
        names |= {"mod_elastic_warmup": "falls from 1 to the one drawn at each step"}
        names |= {"mod_elastic_output_warmup": "both of these"}
        columns = {**self.against("dense", "mod"), "self-conditioned F1 with the words, %": self.mean(worded_f1)}
        columns["validation exact, %"] = self.mean(lambda run: run["validation"]["exact"])
        chosen = f"Best by validation: `{self.best}`." if self.best else "Best by validation: not known yet."
        return ["### Ours", "", *self.table(list(RECIPES), columns, names), chosen, "", *self.elastic()]

    def elastic(self) -> list[str]:
        lines = []
        for ratio in ELASTIC_RATIOS:
            at = self.level.scores("mod_elastic", lambda run, name=f"test_r{ratio:g}": run[name]["exact"])
            fixed = self.level.scores(RATIOS[ratio], exact)
            found = in_words(difference(at, fixed))
            lines.append([f"r={ratio:g}", *(number(mean(x.values()) if x else None, 2) for x in (at, fixed)), found])
        header = [
            "exact, %, teacher-forced",
            "`mod_elastic` at this ratio",
            "trained at this ratio only",
            "difference",
        ]
        return ["Elastic training against training at a single ratio:", "", *markdown(header, lines)]

    def targets(self) -> list[str]:
        """Each target with its interval: it is reached or missed if the whole interval is on one side."""
        wanted = [("dense", other, exact, 15) for other in ("early_exit", "layer_skip", "class_token")]
        if self.best:
            wanted += [(self.best, "dense", score, -0.5) for score in (exact, worded_f1)]
            wanted += [(self.best, other, exact, 5) for other in ("random", "uniform")]
        # routing fewer layers is also a choice, which saves fewer operations
        wanted += [("mod_interleaved_deep", "dense", score, -0.5) for score in (exact, worded_f1)]
        lines = []
        for row, other, score, bound in wanted:
            found = self.level.difference(row, other, score)
            what = f"`{row}` minus `{other}`, {'exact' if score is exact else 'self-conditioned F1 with the words'}"
            interval = in_words(found).replace(", not shown", "")  # this refers to zero, not to the bound
            lines.append([what, f"{bound:+g} or more", interval, verdict(found, bound)])
        return ["### Targets", "", *markdown(["difference", "target", "found", "verdict"], lines)]

    def missing(self) -> list[str]:
        lacks = [f"- `{row}`: {what}" for row in ROWS if (what := self.level.lacks(row))]
        unknown = [f"- in no table, since `world_rows` has no such row: `{row}`" for row in self.level.unknown()]
        return ["### Missing", "", *(lacks + unknown or ["Nothing."]), ""]

    def lines(self) -> list[str]:
        parts = (self.targets, self.table_1, self.table_2, self.table_3, self.ours, self.missing)
        return [line for part in parts for line in part()]


def of_both(levels: list[Level]) -> list[str]:
    """Rows against the paper's row and a frozen router, by each seed's mean over the levels, which share a start."""
    rows = [*dict.fromkeys((*RECIPES[1:], *INSERTIONS, "frozen"))]
    rows.remove("mod")

    def scores(row: str) -> Scores:
        own = [level.scores(row, exact) for level in levels]
        return {seed: mean(x[seed] for x in own) for seed in set.intersection(*map(set, own))}

    def minus(row: str, other: str) -> str:
        return "" if row == other else in_words(difference(scores(row), scores(other)))

    lines = [[f"`{row}`", *(minus(row, other) for other in ("dense", "mod", "frozen"))] for row in rows]
    header = ["exact, %, mean of both levels", "minus `dense`", "minus `mod`", "minus `frozen`"]
    return ["## Both levels", "", *markdown(header, lines)]


def verdict(found: Difference | None, bound: float) -> str:
    if found is None or found.n < MIN_SEEDS:
        return "too few seeds"
    if found.low >= bound:
        return "reached"
    return "missed" if found.high < bound else "not shown"
