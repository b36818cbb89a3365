"""The plot of `sight`: narrations over the margin, and what routing by calibration costs; a row of panels a model."""

from pathlib import Path

ROUTED = (("answers_lost", "exact answers", "#1b6ca8"), ("f1_lost", "F1 of narrations", "#c4572e"))


def plot(results: list[dict], path: Path) -> None:
    """Draw results of `sight measure`, some of them continued by `sight calibrate`."""
    from matplotlib.figure import Figure

    columns = 4 if any("calibration" in result for result in results) else 2
    figure = Figure(figsize=(4 * columns, 3.4 * len(results)), layout="constrained")
    panels = figure.subplots(len(results), columns, squeeze=False)
    for row, result in zip(panels, results, strict=True):
        draw_margins(row[0], result, "f1", "F1 of narrations, %")
        draw_margins(row[1], result, "false_per_minute", "false narrations per minute")
        row[0].set_title(f"{result['model']}, “{result['chosen']['query']}”", fontsize=9)
        if "calibration" in result:
            draw_lost(row[2], result, "operations", "operations of the language model, % of dense")
            draw_lost(row[3], result, "share", "replies that routing changes on the clips, %")
        else:
            for axis in row[2:]:
                axis.set_axis_off()
    entries: dict = {}
    for axis in panels.flat:
        entries |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=columns + 1, fontsize=8, frameon=False)
    for axis in panels.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def draw_margins(axis, result: dict, name: str, label: str) -> None:
    """A curve for each number of frames to remember, and the stock model asked anew."""
    query = result["validation"][-1]["query"]  # of the curves
    curves = [row for row in result["validation"] if row["query"] == query]
    margins = sorted({row["margin"] for row in curves})
    for remembered in dict.fromkeys(row["remembered"] for row in curves):
        rows = {row["margin"]: row for row in curves if row["remembered"] == remembered}
        frames = "all frames" if remembered is None else "1 frame" if remembered == 1 else f"{remembered} frames"
        values = [rows[margin][name] for margin in margins]
        axis.plot(range(len(margins)), values, marker="o", markersize=4, label=f"{frames} remembered")
    known = result["reference"]["validation"][name]
    axis.axhline(known, color="black", linestyle=":", label="stock model, asked anew at each frame")
    axis.set_xticks(range(len(margins)), [f"{margin:g}" for margin in margins])
    axis.set(xlabel="margin, nats", ylabel=label)


def draw_lost(axis, result: dict, name: str, label: str) -> None:
    """Percentage points lost on validation streams by each routing; the chosen one on test streams too."""
    found, tested = result["calibration"], result["test"].get("routed")
    for loss, what, colour in ROUTED:
        style = {"color": colour, "capsize": 2}
        points = sorted((value_of(row, name), *lost(row, found["dense"], loss)) for row in found["routed"])
        across, down, errors = zip(*points, strict=True) if points else ((), (), ())
        axis.errorbar(
            across, down, errors, fmt="o", color=colour, markersize=4, capsize=2, label=f"{what}, validation"
        )
        if tested is not None:
            place = value_of(tested, name), *lost(tested, result["test"]["dense"], loss)
            axis.errorbar(*place, fmt="D", mfc="none", markersize=9, label=f"{what}, chosen routing, test", **style)
    axis.axhline(0, color="0.6", linewidth=0.8)
    axis.axhline(1, color="0.6", linewidth=0.8, linestyle="--")
    axis.set(xlabel=label, ylabel="points lost against dense")


def value_of(row: dict, name: str) -> float:
    return 100 * (row["operations"] if name == "operations" else row["decisions"]["share"])


def lost(row: dict, dense: dict, loss: str) -> tuple[float, float]:
    """Points that are lost, and the standard error; that of F1 is not known."""
    return (row[loss], row[f"{loss}_error"]) if loss == "answers_lost" else (dense["f1"] - row["f1"], 0.0)


__all__ = ["plot"]
