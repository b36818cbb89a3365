"""Plot results of `bench stream` and `bench offline`."""

from pathlib import Path

COLOURS = {"mod": "#1b6ca8", "dense": "#999999", "mod, eager": "#8fc1e3", "stock": "#d9a441"}
NAMES = {
    "mod": "mixture of depths",
    "dense": "dense, same code",
    "mod, eager": "mixture of depths, without CUDA graphs",
    "stock": "LlamaForCausalLM of transformers",
}


def way_of(row: dict) -> str:
    """The way of a row; results of earlier commits say `as it is`."""
    return row["way"].replace("as it is", "eager")


def plot(result: dict, path: Path) -> Path:
    """Left: ms per frame in the language model against the frames held. Right: frames per second, end to end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for way, colour in COLOURS.items():
        points = sorted(
            (row["held"], row["p50_ms"], row["p95_ms"])
            for row in result["rows"]
            if way_of(row) == way and row["name"] in ("language", "stock LlamaForCausalLM")
        )
        if points:
            held, p50, p95 = zip(*points, strict=True)
            left.plot(held, p50, "o-", color=colour, label=NAMES[way])
            left.fill_between(held, p50, p95, color=colour, alpha=0.2, linewidth=0)
    left.set(xlabel="frames held", ylabel="ms per frame (p50, shaded to p95)", title="One frame, language model")
    left.set_yscale("log")  # a CUDA graph is far below the others
    left.legend(frameon=False)
    rows = [row for row in result["rows"] if row["name"] == "end to end"]
    names = [f"{NAMES[way_of(row)]}\n{row['frames']} per call" for row in rows]
    bars = right.barh(names, [row["per_second"] for row in rows], color=[COLOURS[way_of(row)] for row in rows])
    right.bar_label(bars, fmt="%.0f", padding=3)
    published = [row for row in result["published"] if result["geometry"] == "llama3-8b"]
    if published:
        bars = right.barh(
            [row["name"].replace(", end to end", "") + "\n(as published)" for row in published],
            [row["frames_per_second"][1] for row in published],
            color="#e4e4e4",
        )
        right.bar_label(bars, fmt="%.0f", padding=3)
    right.invert_yaxis()
    right.margins(x=0.12)
    right.set(xlabel="frames per second", title="From decoded frame to decision")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{result['geometry']} on {', '.join(result['machine']['gpus']) or 'CPU'}")
    figure.savefig(path, dpi=130)
    return path


def plot_offline(result: dict, path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    sizes = sorted({row["tokens"] for row in result["rows"]})
    for axes, tokens in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        rows = [row for row in result["rows"] if row["tokens"] == tokens]
        colours = [COLOURS[way_of(row)] for row in rows]
        bars = axes.barh([NAMES[way_of(row)] for row in rows], [row["per_second"] for row in rows], color=colours)
        axes.bar_label(bars, fmt="%.0f", padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set(xlabel="frames per second", title=f"{tokens} tokens per frame")
        axes.spines[["top", "right"]].set_visible(False)
        if axes is not figure.axes[0]:
            axes.set_yticks([])
    figure.suptitle(f"Recorded video, {result['geometry']} on {', '.join(result['machine']['gpus']) or 'CPU'}")
    figure.savefig(path, dpi=130)
    return path
