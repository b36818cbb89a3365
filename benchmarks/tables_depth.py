"""The tables of deep models: points that a row loses against dense, beside the operations that it leaves.

A row is compared with one that keeps as many tokens in the same layers, chosen at random, and with early exits and
skipped layers of about as many operations.
"""

from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure

from ..bench.record import summarise
from .tables_page import in_words, markdown, number
from .tables_recipes import LAYERS, TABLES
from .tables_runs import SEEDS, collect, path_of_level
from .tables_scores import MIN_SEEDS, Level, Score, difference, exact, flops, varies
from .world_rows import DEEP_ROWS, ROWS, row_of

COMMAND = "python -m videollm_mod.benchmarks.tables depth"
AT_MOST = 0.40  # of dense's operations, of the row that is the best
KINDS = {"learned": ("o", "tab:blue"), "random": ("x", "tab:orange"), "uniform": ("+", "tab:green")}
KINDS |= {"layer_skip": ("s", "tab:red"), "early_exit": ("D", "tab:purple"), "dense": ("*", "black")}
INTRODUCTION = """# Deep models on hard levels

Made by `python -m videollm_mod.benchmarks.tables depth` from the runs in `tables/`. Exact narrations of test streams,
teacher-forced, in percent; differences are means over paired seeds with 95 % t-intervals, and "worst" is the seed with
the largest loss. Operations are those of the matrix products of one stream, forward and backward; dense has 1."""


def kind(row: str) -> str:
    """How a row chooses vision tokens, or which layers it leaves out; a key of `KINDS`."""
    routing = row_of(row).routing
    chosen = routing.get("mod_selection", "learned")
    return {"mod": chosen, "full": "dense"}.get(routing["vision_routing"], routing["vision_routing"])


def peer(row: str, other: str) -> str | None:
    """The row that chooses `other`wise as many tokens in the same layers, if there is one."""
    places = {name: row_of(row).routing.get(f"mod_{name}") for name in ("layers", "keep_ratio")}
    for name in (*ROWS, *DEEP_ROWS):
        routing = row_of(name).routing
        plain = not (row_of(name).frozen or varies(name) or "mod_gate" in routing)
        if plain and kind(name) == other and all(routing.get(f"mod_{key}") == at for key, at in places.items()):
            return name
    return None


class Depth:
    """The rows of one table that have runs, by falling operations."""

    def __init__(self, level: Level):
        self.level = level
        there = [row for row in (*ROWS, *DEEP_ROWS) if level.of(row)]
        self.operations = {row: self._of_dense(row, flops) for row in there} if level.of("dense") else {}
        self.rows = sorted(self.operations, key=lambda row: -self.operations[row])

    def _of_dense(self, row: str, score: Score) -> float:
        own, dense = (self.level.scores(name, score) for name in (row, "dense"))
        return mean(own.values()) / mean(dense.values())

    def best(self) -> str | None:
        """The learned row with the most exact narrations on validation streams, of at most `AT_MOST` operations and
        with all seeds; None if there is none."""
        able = [row for row in self.rows if kind(row) == "learned" and self.operations[row] <= AT_MOST]
        able = [row for row in able if len(self.level.of(row)) == len(SEEDS)]
        validated = lambda row: mean(run["validation"]["exact"] for run in self.level.of(row).values())  # noqa: E731
        return max(able, key=validated, default=None)

    def line(self, row: str) -> list[str]:
        found = self.level.scores(row, exact)
        seeds = ", ".join(number(found.get(seed), 2) if seed in found else "-" for seed in SEEDS)
        dense, own = self.level.scores("dense", exact), self.level.difference(row, "dense", exact)
        losses = [found[seed] - dense[seed] for seed in found.keys() & dense.keys()]
        random = peer(row, "random") if kind(row) == "learned" else None
        against = in_words(difference(found, self.level.scores(random, exact))) if random else ""
        cells = [f"`{row}`", f"{self.operations[row]:.3f}", number(mean(found.values()), 2), seeds]
        return [
            *cells,
            in_words(own) if row != "dense" else "",
            f"{min(losses):+.2f}" if losses else "missing",
            against,
        ]

    def lines(self) -> list[str]:
        table, best = TABLES[self.level.name], self.best()
        header = ["row", "operations", "exact, %", f"seeds {SEEDS[0]} to {SEEDS[-1]}", "minus dense", "worst"]
        chosen = f"`{best}`" if best else f"none yet: it needs all {len(SEEDS)} seeds"
        return [
            f"## `{self.level.name}`: {table.layers} layers",
            "",
            *markdown([*header, "minus random"], [self.line(row) for row in self.rows]),
            f"The best of at most {AT_MOST:g} of dense's operations, by validation: {chosen}.",
            "",
        ]

    def enter(self, folder: Path, source: str) -> None:
        """Figures of `summary.json`, where every row that they need has at least three seeds."""
        best, name = self.best(), f"depth{TABLES[self.level.name].layers}"
        random = peer(best, "random") if best else None
        if best is None or random is None or self.level.too_few(["dense", best, random]):
            return
        for key, row in (("dense", "dense"), ("best", best), ("random", random)):
            scores = self.level.scores(row, exact)
            said = ", ".join(f"{value:g}" for value in scores.values())
            text = f"{source}, row {row}, exact narrations of test streams, seeds {list(scores)}: {said}"
            summarise(f"{name}_{key}_exact", round(mean(scores.values()), 3), text, COMMAND, folder)
        text = f"{source}, row {best}, of dense's operations"
        summarise(f"{name}_best_operations", round(self.operations[best], 3), text, COMMAND, folder)


def draw(depths: list[Depth]) -> Figure:
    """Points lost against operations, a panel for each table; dots are seeds, and lines join rows that differ only in
    which tokens they choose."""
    figure = Figure(figsize=(6 * len(depths), 4.8), layout="constrained")
    panels = figure.subplots(1, len(depths), squeeze=False, sharey=True)[0]
    for panel, depth in zip(panels, depths, strict=True):
        dense = depth.level.scores("dense", exact)
        lost = {row: [] for row in depth.rows}
        for row in depth.rows:
            scores = depth.level.scores(row, exact)
            lost[row] = [dense[seed] - scores[seed] for seed in scores.keys() & dense.keys()]
            if not lost[row]:
                continue
            marker, colour = KINDS[kind(row)]
            at = depth.operations[row]
            panel.plot([at] * len(lost[row]), lost[row], ".", color=colour, alpha=0.4, markersize=5)
            panel.plot(at, mean(lost[row]), marker, color=colour, markersize=8)
            below = kind(row) == "uniform"  # else it would lie on the name of the random row
            place = (5, -9 if below else 4)
            panel.annotate(row, (at, mean(lost[row])), place, textcoords="offset points", fontsize=7)
        for row in depth.rows:
            other = peer(row, "random") if kind(row) == "learned" else None
            if lost[row] and lost.get(other):
                both, at = (mean(lost[row]), mean(lost[other])), depth.operations[row]
                panel.plot([at, depth.operations[other]], both, color="tab:gray", linewidth=0.8, zorder=0)
        panel.axvline(AT_MOST, color="tab:gray", linestyle=":", linewidth=1)
        panel.set_yscale("symlog", linthresh=1)
        panel.set(title=f"{depth.level.name}", xlabel="operations, of dense's", xlim=(0, 1.08), ylim=(-1, 150))
        panel.set_yticks([0, 0.5, 1, 5, 10, 50, 100], ["0", "0.5", "1", "5", "10", "50", "100"])
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("points lost against dense")
    handles = [panels[0].plot([], [], marker, color=colour, label=name)[0] for name, (marker, colour) in KINDS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(KINDS), fontsize=9)
    return figure


def report(runs_folder: Path) -> None:
    """Write `world_depth.md`, its figure and the figures of `summary.json` next to `runs_folder`.

    Raises:
        `FileNotFoundError`: if no deep table has runs of dense.
        `ValueError`: if the runs of a table have different recipes; then nothing is written.
    """
    names = [name for name, table in TABLES.items() if table.layers > LAYERS]
    depths = [Depth(Level(name, collect(runs_folder, name))) for name in names]
    depths = [depth for depth in depths if depth.rows]
    if not depths:
        raise FileNotFoundError(f"no runs of dense of {', '.join(names)} in {runs_folder}")
    folder = runs_folder.parent
    draw(depths).savefig(folder / "world_depth.png", dpi=100)
    lines = [*INTRODUCTION.splitlines(), "", "![points lost against operations](world_depth.png)", ""]
    for depth in depths:
        lines += depth.lines()
        depth.enter(folder, path_of_level(runs_folder, depth.level.name).as_posix())
        few = depth.level.too_few(depth.rows)
        lines += [f"Fewer than {MIN_SEEDS} seeds: {', '.join(f'`{row}`' for row in few)}.", ""] if few else []
    (folder / "world_depth.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print(folder / "world_depth.md")
