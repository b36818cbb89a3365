"""The scores of a benchmark as a Markdown table and as a plot."""

from pathlib import Path

from .speaking import check_plot

WAYS = {"official": "as the official script scores", "strict": "read strictly"}
COSTS = {"seconds": "seconds per item", "frames": "frames per item", "tokens": "tokens per item"}


def leaves(scores: dict, names: tuple[str, ...] = ()) -> dict[tuple[str, ...], float | None]:
    """The numbers in nested groups, in order, each under the names that lead to it."""
    found: dict[tuple[str, ...], float | None] = {}
    for name, value in scores.items():
        if isinstance(value, dict):
            found |= leaves(value, (*names, name))
        else:
            found[*names, name] = value
    return found


def cell(value: float | None) -> str:
    return "none" if value is None else f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


def table_of(result: dict) -> str:
    """A Markdown table of a result of `evaluate_benchmark`: a line for each task and each way of scoring, a column for
    the model and each control."""
    scores = result["scores"]
    title = f"{result['benchmark']}, protocol {result['protocol']}, {result['data']['items']} items, per cent"
    lines = [title, "", f"| score | {' | '.join(scores)} |", f"| --- |{' ---: |' * len(scores)}"]

    def line(name: str, values: list) -> None:
        lines.append(f"| {name} | {' | '.join(map(cell, values))} |")

    for way, label in WAYS.items():
        rows = {row: leaves(of_row[way]) for row, of_row in scores.items()}
        for names in dict.fromkeys(name for of_row in rows.values() for name in of_row):
            line(f"{', '.join(names)} ({label})", [of_row.get(names) for of_row in rows.values()])
    for name, label in COSTS.items():
        line(label, [of_row["cost"][name] for of_row in scores.values()])
    peaks = [of_row["cost"]["peak_cache_bytes"] for of_row in scores.values()]
    line("largest cache, MB", [None if peak is None else peak / 1e6 for peak in peaks])
    return "\n".join(lines) + "\n"


def plot_rows(result: dict, path: Path) -> None:
    """Plot the overall scores of the model and its controls. The extension of the path selects the format."""
    check_plot(path)
    from matplotlib.figure import Figure

    rows, ways = list(result["summary"]), list(WAYS.items())
    figure = Figure(figsize=(7.5, 1.2 + 0.42 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for number, (way, label) in enumerate(ways):
        values = [result["summary"][row][way] for row in rows]
        places = [index + 0.38 * (number - 0.5) for index in range(len(rows))]
        bars = axis.barh(places, [value or 0 for value in values], height=0.36, label=label)
        axis.bar_label(bars, ["none" if value is None else f"{value:.1f}" for value in values], padding=3, fontsize=8)
    axis.set_yticks(range(len(rows)), rows)
    axis.invert_yaxis()
    axis.set(xlim=(0, 112), xlabel="overall score, %", title=f"{result['benchmark']}, protocol {result['protocol']}")
    axis.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=120)


__all__ = ["plot_rows", "table_of"]
