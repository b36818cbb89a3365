"""Plots of results of `videollm-mod bench serve`."""

from pathlib import Path

COLOURS = {"fixed": "#1b6ca8", "follows the load": "#d9a441"}


def plot(result: dict, path: Path) -> Path:
    """Left: latency against the number of sessions. Right: dropped frames and the keep ratio against it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    ratios = right.twinx()
    live = [row for row in result["rows"] if row["name"] == "live" and row["p95_ms"] is not None]
    for way, colour in COLOURS.items():
        last = {row["sessions"]: row for row in live if row["ratio"] == way}  # some were measured twice
        rows = [last[count] for count in sorted(last)]
        if not rows:
            continue
        sessions, name = [row["sessions"] for row in rows], f"keep ratio {way}"
        for key, style, label in (("p95_ms", "o-", "p95"), ("p50_ms", "o:", "p50")):
            left.plot(sessions, [row[key] / 1000 for row in rows], style, color=colour, label=f"{label}, {name}")
        first = [(row["sessions"], row["first_delta_p95_ms"] / 1000) for row in rows if row["first_delta_p95_ms"]]
        if first:
            left.plot(*zip(*first, strict=True), "x--", color=colour, label=f"p95 to the first words, {name}")
        right.plot(
            sessions, [100 * row["dropped_share"] for row in rows], "o-", color=colour, label=f"dropped, {name}"
        )
        ratios.plot(sessions, [row["keep_ratio"] for row in rows], "s:", color=colour, label=name)
    left.axhline(result["limit_s"], color="#b03030", linewidth=1, label=f"limit of p95, {result['limit_s']:g} s")
    left.set_yscale("log")
    per_session = f"sessions of {result['fps']:g} frames/s"
    left.set(xlabel=per_session, ylabel="seconds from frame to decision", title="Latency")
    right.set(xlabel=per_session, ylabel="dropped frames, %", title="What gives under load", ylim=(-2, 102))
    ratios.set(ylabel="keep ratio", ylim=(-0.02, 1.02))
    left.legend(frameon=False, fontsize=8)
    lines = [line for axes in (right, ratios) for line in axes.get_lines()]
    right.legend(lines, [line.get_label() for line in lines], frameon=False, fontsize=8, loc="center left")
    left.spines[["top", "right"]].set_visible(False)
    for axes in (right, ratios):
        axes.spines["top"].set_visible(False)
    machine = ", ".join(result["machine"]["gpus"]) or f"{result['machine']['cpu_cores']} CPU cores"
    figure.suptitle(f"{result['geometry']} on {machine}, {result['held']} frames held")
    figure.savefig(path, dpi=130)
    return path
