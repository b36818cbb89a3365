"""The report of a calibration: as text, and as a plot."""

from pathlib import Path

from .measuring import CONTROLS, FREE_SELECTIONS, Measured

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
        f"replies that are the same: {sum(exact)} of {len(exact)}"
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
    ratio at the chosen number of layers."""
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
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", sharey="row", height_ratios=(2, 1))
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
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


__all__ = ["described", "plot", "table"]
