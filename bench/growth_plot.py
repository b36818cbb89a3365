"""Plot a result of `bench growth`."""

from pathlib import Path

from .growth_cases import MIDDLE

SHADES = ("#9ecae1", "#4292c6", "#2171b5", "#08306b")  # by tokens per frame
STYLES = {"mod": "o-", "dense": "x:"}


def plot(result: dict, path: Path) -> Path:
    """Three panels against the number of frames held: ms per live frame, ms per frame of a block, and GiB of cache.
    The fourth has frames per second against the number of streams."""
    from matplotlib.figure import Figure

    rows = sorted(result["rows"], key=lambda row: row["frames"])
    figure = Figure(figsize=(12, 8), layout="constrained")
    (stream, block), (cache, batch) = figure.subplots(2, 2)
    growing = [row for row in rows if row["batch"] == 1 and row["keep_ratio"] == MIDDLE["keep_ratio"]]
    for shade, tokens in zip(SHADES, sorted({row["tokens"] for row in growing}), strict=False):
        for way, style in STYLES.items():
            own = [row for row in growing if (row["tokens"], row["way"]) == (tokens, way)]
            label = f"{tokens} token{'s' * (tokens > 1)} per frame, {way}"
            look = {"color": shade, "label": label, "markersize": 4}
            for axes, part in ((stream, "stream"), (block, "block")):
                timed = [row for row in own if part in row]
                axes.plot([r["frames"] for r in timed], [r[part]["ms_per_frame"] for r in timed], style, **look)
            cache.plot([r["frames"] for r in own], [r["cache_bytes"] / 2**30 for r in own], style, **look)
    cache.axhline(result["memory_bytes"] / 2**30, color="tab:red", linewidth=1)
    place = (0.01, result["memory_bytes"] / 2**30)
    cache.text(*place, "memory of the device", transform=cache.get_yaxis_transform(), color="tab:red", va="bottom")
    stream.set(ylabel="ms", title="One frame of a live stream")
    block.set(ylabel="ms per frame", title="Blocks of recorded frames")
    cache.set(ylabel="GiB", title="Keys and values of one stream")
    for axes in (stream, block, cache):
        axes.set(xlabel="frames held", xscale="log", yscale="log")
    stream.legend(frameon=False, fontsize=8)
    many = [row for row in rows if row["keep_ratio"] == MIDDLE["keep_ratio"] and "stream" in row]
    sizes = {(row["frames"], row["tokens"]) for row in many if row["batch"] > 1}
    for way, style in STYLES.items():
        own = [row for row in many if (row["frames"], row["tokens"]) in sizes and row["way"] == way]
        own.sort(key=lambda row: row["batch"])
        batch.plot(
            [r["batch"] for r in own], [r["stream"]["per_second"] for r in own], style, color=SHADES[2], label=way
        )
    batch.set(xlabel="parallel streams", ylabel="frames per second, all streams", title="Many streams")
    batch.set_ylim(bottom=0)
    batch.legend(frameon=False)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{result['geometry']} on {', '.join(result['machine']['gpus']) or 'CPU'}, language model")
    figure.savefig(path, dpi=130)
    return path
