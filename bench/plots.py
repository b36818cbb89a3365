"""Plots of results of `bench train` and `bench memory`."""

import statistics
from pathlib import Path

MOD, DENSE, OTHER = "tab:blue", "tab:orange", "tab:gray"


def axes(rows: int, columns: int, size: tuple[float, float]):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(rows, columns, figsize=size)


def color(row: str) -> str:
    return MOD if row.startswith("MoD") else OTHER if "all logits" in row else DENSE


def plot_training(result: dict, path: Path) -> None:
    """Time against memory of every way; the lower left is best."""
    figure, axis = axes(1, 1, (8, 5.5))
    timed = [entry for entry in result["search"] if entry["seconds"]]
    for name in dict.fromkeys(entry["row"] for entry in timed):
        entries = sorted((entry["peak_gib"], *entry["seconds"][:1]) for entry in timed if entry["row"] == name)
        marker = "x" if "stock" in name else "o"
        axis.scatter(*zip(*entries, strict=True), label=name, marker=marker, color=color(name))
    for role, entry in result["rows"].items():
        if entry["seconds"] and role in ("reference", "fast", "small"):
            point = entry["peak_gib"], statistics.median(entry["seconds"])
            beside = (6, 6) if role == "fast" else (8, -3)  # away from the neighbouring points
            axis.annotate(
                f"{role}: {entry['recompute']}", point, textcoords="offset points", xytext=beside, fontsize=8
            )
    axis.set_xlabel("peak memory, GiB")
    axis.set_ylabel("seconds per step")
    axis.set_title(f"A training step: {result['frames']} frames of {result['tokens_per_frame']} tokens")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def plot_memory(result: dict, frames: tuple[int, ...], path: Path) -> None:
    """The cache against the number of frames, and what was measured of training."""
    rows = [row for row in result.get("training", []) if row["grows"] == "frames" and "seconds" in row]
    figure, panels = axes(1, 3 if rows else 1, (15 if rows else 6, 4.5))
    first = panels[0] if rows else panels
    for row in result["cache"]:
        if row["keep_ratio"] == 0.2 and row["tokens_per_frame"] in (10, 50):
            style = "-" if row["tokens_per_frame"] == 10 else "--"
            for kind, name, shade in (("mod", "MoD", MOD), ("dense", "dense", DENSE)):
                gib = [count * row[kind] / 2**30 for count in frames]
                label = f"{name}, {row['tokens_per_frame']} tokens per frame"
                first.plot(frames, gib, style, color=shade, label=label)
    first.set_ylabel("cache, GiB")
    for panel, key, label in zip(
        panels[1:] if rows else (), ("peak_gib", "seconds"), ("peak, GiB", "s"), strict=False
    ):
        for name in ("MoD", "dense"):
            points = [(row["frames"], row[key]) for row in rows if row["row"] == name]
            panel.plot(*zip(*points, strict=True), "o-", color=color(name), label=f"{name}, 10 tokens per frame")
        panel.set_ylabel(f"training step, {label}")
    for panel in panels if rows else [panels]:
        panel.set_xlabel("frames")
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
