"""The plots of the tables, with one column per level: means as lines or bars, seeds as dots."""

from statistics import mean

from matplotlib.figure import Figure

from .tables_scores import MIN_SEEDS, Level, exact, varies
from .world_rows import ROWS

COLOURS = {
    "dense": "black",
    "mod": "tab:blue",
    "uniform": "tab:green",
    "random": "tab:orange",
    "layer_skip": "tab:red",
    "early_exit": "tab:purple",
    "class_token": "tab:gray",
}
BEST, OTHER = "deeppink", "tab:blue"  # our best row, if it is not `mod`; other MoD rows
Bests = dict[Level, str | None]


def _coloured(best: str | None, *left_out: str) -> dict[str, str]:
    """The rows that a crowded panel shows, with their colours."""
    rows = {row: colour for row, colour in COLOURS.items() if row not in left_out}
    return rows if best in (None, *rows) else {**rows, best: BEST}


def _panels(rows: int, levels: Bests, width: float, height: float):
    figure = Figure(figsize=(width * len(levels), height * rows), layout="constrained")
    return figure, figure.subplots(rows, len(levels), squeeze=False, sharey=True)


def draw_exact(levels: Bests) -> Figure:
    """Exact narrations of every row, the best at the top."""
    figure, panels = _panels(1, levels, 6, 6)
    first = next(iter(levels))
    rows = sorted(ROWS, key=lambda row: (first.mean(row, exact) is not None, first.mean(row, exact) or 0))
    for panel, (level, best) in zip(panels[0], levels.items(), strict=True):
        for place, row in enumerate(rows):
            seeds = list(level.scores(row, exact).values())
            if not seeds:
                panel.text(1, place, "missing", va="center", fontsize=8, color="tab:gray")
                continue
            colour = BEST if row == best else COLOURS.get(row, OTHER)
            panel.barh(place, mean(seeds), color=colour, alpha=0.35)
            panel.plot(seeds, [place] * len(seeds), "o", color=colour, markersize=4)
            few = f"  ({len(seeds)} seed{'s' * (len(seeds) > 1)})" if len(seeds) < MIN_SEEDS else ""
            panel.text(101.5, place, f"{mean(seeds):.1f}{few}", va="center", fontsize=8)
        panel.set_yticks(range(len(rows)), rows)
        panel.set(
            title=f"{level.name}" + (f" (our best: {best})" if best else ""),
            xlim=(0, 130),
            ylim=(-0.7, len(rows) - 0.3),
        )
        panel.set_xticks(range(0, 101, 20))
        panel.set_xlabel("exact narrations, %, teacher-forced; dots are seeds")
        panel.grid(axis="x", alpha=0.3)
    return figure


def draw_depth(levels: Bests) -> Figure:
    """Exact narrations by the number of changes to follow."""
    figure, panels = _panels(1, levels, 6, 4.5)
    for panel, (level, best) in zip(panels[0], levels.items(), strict=True):
        for row, colour in _coloured(best).items():
            seeds = [run["test"]["exact_by_depth"] for run in level.of(row).values()]
            if seeds:
                depths = sorted(seeds[0], key=int)
                places = [int(depth) for depth in depths]
                means = [mean(seed[depth] for seed in seeds) for depth in depths]
                panel.plot(places, means, color=colour, label=row)
                for seed in seeds:
                    panel.plot(places, [seed[depth] for depth in depths], ".", color=colour, alpha=0.5)
                panel.set_xticks(places)
        panel.set(title=level.name, ylim=(0, 103))
        panel.set_xlabel("changes between the look that is lit and the first look")
        panel.grid(alpha=0.3)
    panels[0, 0].set_ylabel("exact narrations, %, teacher-forced")
    _legend(figure, panels)
    return figure


def draw_curves(levels: Bests) -> Figure:
    """Exact narrations on validation streams during training, against steps (top) and training FLOPs (bottom)."""
    figure, panels = _panels(2, levels, 6, 3.8)
    for column, (level, best) in zip(panels.T, levels.items(), strict=True):
        for row, colour in _coloured(best, "class_token").items():
            runs = list(level.of(row).values())
            if not runs:
                continue
            steps = [point["step"] for point in runs[0]["curve"]]
            flops = [step * runs[0]["stage"][2] * runs[0]["flops_per_stream"] / 1e15 for step in steps]
            curves = [[point["exact"] for point in run["curve"]] for run in runs]
            # training FLOPs are unknown for rows that keep more during training
            for panel, across in zip(column, (steps,) if varies(row) else (steps, flops), strict=False):
                panel.plot(across, [mean(points) for points in zip(*curves, strict=True)], color=colour, label=row)
                for curve in curves:
                    panel.plot(across, curve, color=colour, alpha=0.35, linewidth=0.7)
        column[0].set(title=level.name, xlabel="steps")
        column[1].set(xlabel="training PFLOP after pretraining")
        for panel in column:
            panel.set(ylim=(0, 103))
            panel.set_xlim(left=0)
            panel.grid(alpha=0.3)
    for panel in panels[:, 0]:
        panel.set_ylabel("exact, %, validation")
    _legend(figure, panels)
    return figure


def _legend(figure: Figure, panels) -> None:
    """One legend for all panels, below them."""
    lines = {}
    for panel in panels.flat:
        for line, name in zip(*panel.get_legend_handles_labels(), strict=True):
            lines.setdefault(name, line)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), fontsize=9)
