"""The report of a calibration: as text, and as a plot."""

from pathlib import Path

from .following import Changes
from .measuring import CONTROLS, FREE_SELECTIONS, Measured

ENOUGH = 50  # replies, so that the default budget is at least one of them
COLOURS = {
    "change": "#1b6ca8",
    "difference": "#c4572e",
    "uniform": "#3c9a5f",
    "random": "#999999",
    "random layers": "#d9a441",
}


def described(chosen: Measured, ranked: dict[int, float], exact: list[bool], num_layers: int) -> str:
    """What was chosen, in a few lines."""
    routing = chosen.routing
    return (
        f"layers, from the one whose work on vision tokens matters least: {', '.join(map(str, ranked))}\n"
        f"routed: {len(routing.layers)} of {num_layers} layers ({', '.join(map(str, routing.layers))})\n"
        f"kept: {routing.keep_ratio:g} of each frame's tokens, mod_selection={routing.selection!r}\n"
        f"operations of the language model: {100 * chosen.operations:.1f} % of the dense model's\n"
        f"divergence from it: {chosen.divergence:.4f} nats\n"
        f"{changes_of(chosen.changes)}"
        f"replies that are the same: {sum(exact)} of {len(exact)}"
    )


def changes_of(changes: Changes | None) -> str:
    """What a routing changes, as a line; empty if it was not measured."""
    if changes is None:
        return ""
    few = ""
    if changes.replies < ENOUGH:
        few = f"; nothing between 0 and {1 / max(1, changes.replies):.2g} of so few can be seen"
    return (
        f"after the same past, replies that it gives otherwise or misses: {changes.other_replies} of "
        f"{changes.replies}{few}\n"
        f"narrations that it adds: {changes.added}, after {changes.frames} frames\n"
    )


def table(rows: list[Measured], columns: int = 5) -> str:
    """The least divergence of each way of choosing within several shares of the dense operations, from the largest
    share that was measured to the smallest."""
    found = [row.operations for row in rows]
    operations = [max(found) + (min(found) - max(found)) * column / (columns - 1) for column in range(columns)]
    operations[-1] = min(found)  # to the last bit
    lines = ["least divergence (nats)".ljust(26) + "".join(f"{f'at {share:.1%}':>10}" for share in operations)]
    for name in (*FREE_SELECTIONS, *CONTROLS):
        cells = []
        for share in operations:
            within = [row.divergence for row in rows if row.name == name and row.operations <= share]
            cells.append(f"{min(within):10.4f}" if within else " " * 9 + "-")
        lines.append(name.ljust(26) + "".join(cells))
    return "\n".join(lines)


def plot(rows: list[Measured], chosen: Measured, path: Path) -> None:
    """Divergence and operations against the number of routed layers at the chosen keep ratio, and against the keep
    ratio at the chosen number of layers; and the changed replies against the operations."""
    from matplotlib.figure import Figure

    layers, ratio = len(chosen.routing.layers), chosen.routing.keep_ratio
    columns = [
        ("routed layers", f"{ratio:g} of the tokens kept", lambda row: len(row.routing.layers)),
        ("keep ratio", f"{layers} layers routed", lambda row: row.routing.keep_ratio),
    ]
    shown = [
        [row for row in rows if row.routing.keep_ratio == ratio],
        [row for row in rows if len(row.routing.layers) == layers],
    ]
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(9, 4))  # type: ignore[misc]
    panels = left.subplots(2, 2, sharex="col", sharey="row", height_ratios=(2, 1))
    for column, (label, title, place) in enumerate(columns):
        upper, lower = panels[:, column]
        for name, colour in COLOURS.items():
            own = sorted((place(row), row.divergence, row.operations) for row in shown[column] if row.name == name)
            if own:
                across, divergence, operations = zip(*own, strict=True)
                style = "--" if name in CONTROLS else "-"
                upper.plot(across, divergence, "o" + style, color=colour, label=name, markersize=4)
                lower.plot(across, [100 * share for share in operations], "o-", color="0.3", markersize=4)
        upper.plot(place(chosen), chosen.divergence, "o", color="none", markeredgecolor="black", markersize=11)
        upper.set(title=title, yscale="log")
        lower.set(xlabel=label)
    panels[0, 0].set(ylabel="divergence from dense, nats")
    panels[1, 0].set(ylabel="operations, % of dense", ylim=(0, 102))
    panels[0, 0].legend(frameon=False)
    changed = right.subplots()
    plot_changed(changed, rows, chosen)
    for axes in [*panels.flat, changed]:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def plot_changed(axes, rows: list[Measured], chosen: Measured) -> None:
    """The share of changed replies against the operations, where it was measured."""
    for row in rows:
        if row.changes is not None:
            place = 100 * row.operations, 100 * row.changes.share
            axes.plot(*place, "o", color=COLOURS[row.name], markersize=5)
            if row == chosen:
                axes.plot(*place, "o", color="none", markeredgecolor="black", markersize=11)
    axes.set(
        title="routings of least divergence",
        xlabel="operations, % of dense",
        ylabel="replies changed, missed or added, %",
        ylim=(-2, None),
    )


__all__ = ["described", "plot", "table"]
