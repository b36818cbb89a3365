"""The page of `bench plan`: a template, and the tables in it."""

import textwrap
from collections import Counter
from collections.abc import Callable
from string import Template

from .growth_cases import MIDDLE, key_of
from .plan_arithmetic import (
    FLEETS,
    FPS,
    HOURS,
    SOURCE_FPS,
    TOKENS,
    decoding_cores,
    feature_bytes,
    frames_held,
    gpu_hours,
    live_streams,
    training_efficiency,
)
from .plan_results import MEASURED, Measured

UNKNOWN = "?"
WAYS = {"mod": "mixture of depths", "dense": "dense"}
PAGE = Template("""\
# Planning for many GPUs

`videollm-mod bench plan --output docs/planning.md` writes this page from the files in `benchmarks/results`; do not
edit it by hand. The measurements are listed at the end. The rest is arithmetic on them (`bench/plan_arithmetic.py`),
to three digits.

Assumptions:

- The model has the geometry of Llama-3-8B with SigLIP-L/16 at 384 pixels, in bfloat16. It watches $fps frames per
  second, of $tokens tokens each. Its weights are random, which does not change what a step costs.
- Streams and recordings are independent, so GPUs that watch scale without loss.
- In training, every doubling of the GPUs costs as much efficiency as the first. That was measured on two GPUs of one
  machine; a slower network between machines costs more.
- GPUs are always busy and never fail, and the model stays silent. Speech takes additional time, which the result of
  `videollm-mod bench stream` gives per token.

## Live streams

$live
A stream of $fps frames per second takes a share of a GPU's time and of its memory. The weights take $weights bytes,
and a cache allocates up to an eighth more than it holds. Streams that run longer are bounded with
`max_cached_frames` or `max_cached_bytes`.

$memory
## Recorded video

$recorded
Every frame of a file has to be decoded, $source_fps per second$decoding.
`videollm-mod extract` stores features, from which every later pass starts: $feature_bytes bytes per hour of video,
$all_feature_bytes bytes for $hours hours.

## Training

$training
## How cost grows with length

Each cell holds three numbers for the language model alone: ms for one more frame of a live stream, ms per frame of a
recorded block, and GiB of keys and values. The tables of parallel streams and of keep ratios are for $middle_frames
frames of $middle_tokens tokens. With parallel streams, ms are per frame and GiB are for all streams together.
$commits
$growth
## Measurements

$measured$missing""")
MISSING = Template("""
These measurements are missing: what depends on them is a question mark, or left out. Run these commands, and then
write this page again:

$commands""")


def page(found: dict[str, Measured], sizes: dict[str, int], grown: list[dict]) -> str:
    """The page as Markdown, from what `read` found, the `sizes` of the model, and the rows of `bench growth`."""
    cores = computed(found, decoding_cores, "block", "decode_ms")
    return PAGE.substitute(
        fps=FPS,
        source_fps=SOURCE_FPS,
        tokens=TOKENS,
        hours=number(HOURS),
        middle_frames=number(MIDDLE["frames"]),
        middle_tokens=MIDDLE["tokens"],
        weights=number(sizes["weights"]),
        feature_bytes=number(feature_bytes(1, sizes["width"])),
        all_feature_bytes=number(feature_bytes(HOURS, sizes["width"])),
        decoding=""
        if cores is None
        else f", which keeps {number(cores)} CPU cores busy per GPU that decoded frames go to",
        live=live_table(found),
        memory=memory_table(found, sizes["weights"]),
        recorded=recorded_table(found),
        training=training_table(found),
        commits=commits(grown),
        growth=growth_tables(grown),
        measured=measured_table(found),
        missing=missing_commands(found),
    )


# numbers and tables --------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Three significant digits, or all digits of a whole number below a million."""
    if value is None:
        return UNKNOWN
    if value >= 1e6:
        power = next(p for p in (12, 9, 6) if value >= 10**p)
        return f"{value / 10**power:.3g} {({12: 'T', 9: 'G', 6: 'M'})[power]}"
    if value >= 100:
        return f"{round(value):,}"
    return f"{value:.3g}"


def computed(found: dict[str, Measured], compute: Callable, *names: str):
    """`compute` of measured values; None if one of them is missing."""
    return compute(*(found[name].value for name in names)) if all(name in found for name in names) else None


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def fleet_table(head: str, rows: list[list[str]], *heads: str) -> str:
    return table([head, *(f"{count} GPU{'s' * (count > 1)}" for count in FLEETS), *heads], rows)


def fleet_row(name: str, value: float | None, share: Callable[[int], float] = float) -> list[str]:
    """`value` of one GPU, times the `share` that each fleet has of it."""
    return [name, *(number(None if value is None else value * share(count)) for count in FLEETS)]


# sections ------------------------------------------------------------------------------------------------------------


def live_table(found: dict[str, Measured]) -> str:
    pool, alone = (computed(found, live_streams, name) for name in ("pool", "live"))
    return fleet_table("live streams", [fleet_row("in pools", pool), fleet_row("without a pool", alone)])


def memory_table(found: dict[str, Measured], weights: int) -> str:
    """How far back each stream of a GPU that is full of live streams can remember."""
    streams = max(filter(None, (computed(found, live_streams, name) for name in ("pool", "live"))), default=None)
    kinds = ("cache", "dense_cache")
    frames = [
        streams and computed(found, lambda memory, cache: frames_held(memory, weights, streams, cache), "memory", kind)
        for kind in kinds
    ]
    name = f"frames that each of {number(streams)} streams on a GPU can remember"
    rows = [
        ["bytes of cache per frame", *(number(computed(found, float, kind)) for kind in kinds)],
        [name if streams else "frames that each stream on a GPU can remember", *map(number, frames)],
        ["the same in minutes", *(number(None if count is None else count / FPS / 60) for count in frames)],
    ]
    return table(["", *WAYS.values()], rows)


def recorded_table(found: dict[str, Measured]) -> str:
    rows = [
        [
            *fleet_row(name, computed(found, lambda rate: gpu_hours(HOURS, rate), key), lambda count: 1 / count),
            number(computed(found, lambda rate: rate / FPS, key)),
        ]
        for name, key in {"from decoded frames": "block", "from features": "offline"}.items()
    ]
    return fleet_table(f"hours for {number(HOURS)} hours of video", rows, "hours of video per GPU hour")


def training_table(found: dict[str, Measured]) -> str:
    def product(rate: float, size: float, speedup: float) -> float:
        return rate * size

    def efficiency(count: int) -> float:
        return training_efficiency(found["speedup"].value, count)

    def scaled(count: int) -> float:
        return count * efficiency(count)

    tokens = computed(found, product, "samples", "sample_tokens", "speedup")  # per second
    frames = computed(found, product, "samples", "sample_frames", "speedup")
    rows = [
        fleet_row("share of ideal scaling", 1.0 if "speedup" in found else None, efficiency),
        fleet_row("tokens per hour", tokens and 3600 * tokens, scaled),
        fleet_row("hours of video per hour", frames and frames / FPS, scaled),
        fleet_row(
            f"hours for one pass over {number(HOURS)} hours",
            frames and gpu_hours(HOURS, frames),
            lambda count: 1 / scaled(count),
        ),
    ]
    return fleet_table("LoRA on features", rows)


def growth_tables(rows: list[dict]) -> str:
    """Tables of the rows of `bench growth`."""
    if not rows:
        return f"{UNKNOWN}\n"
    known, parts = {key_of(row): row for row in rows}, []

    def cell_of(**case) -> str:
        return cell(known.get(key_of({**MIDDLE, **case})))

    frames, tokens, batches, ratios = (
        sorted({row[key] for row in rows}) for key in ("frames", "tokens", "batch", "keep_ratio")
    )
    for way, name in WAYS.items():
        body = [[f"{count:,}", *(cell_of(frames=count, tokens=each, way=way) for each in tokens)] for count in frames]
        heads = [f"{each} token{'s' * (each > 1)} per frame" for each in tokens]
        parts.append(table([f"frames held, {name}", *heads], body))
    body = [[str(count), *(cell_of(batch=count, way=way) for way in WAYS)] for count in batches]
    parts.append(table(["parallel streams", *WAYS.values()], body))
    body = [[str(ratio), cell_of(keep_ratio=ratio, way="mod")] for ratio in ratios]
    parts.append(table(["keep ratio", WAYS["mod"]], body))
    return "\n".join(parts)


def cell(row: dict | None) -> str:
    if row is None:
        return UNKNOWN
    cache = f"{number(row['cache_bytes'] / 2**30)} GiB"
    if "stream" not in row:
        return f"{cache}: does not fit"
    times = [row[part]["ms_per_frame"] for part in ("stream", "block") if part in row]
    return " / ".join([*map(number, times), cache])


def commits(rows: list[dict]) -> str:
    """Which commits the rows of `bench growth` were measured at, if there are several."""
    counted = Counter(row["commit"] for row in rows if "commit" in row)
    if len(counted) < 2:
        return ""
    each = "; ".join(f"{count} at {commit}" for commit, count in counted.items())
    text = f"The {len(rows)} rows were measured at several commits, the smaller sizes first: {each}. "
    text += "Names of modules and constants are those of the commit."
    return "\n" + textwrap.fill(text, 119, break_long_words=False, break_on_hyphens=False) + "\n"


def measured_table(found: dict[str, Measured]) -> str:
    rows = [
        [wanted.text, number(known.value), known.gpus, f"[`{known.source}`](../{known.source})"]
        for name, wanted in MEASURED.items()
        if (known := found.get(name)) is not None
    ]
    return table(["measurement", "value", "device", "file"], rows)


def missing_commands(found: dict[str, Measured]) -> str:
    missing: dict[str, list[str]] = {}
    for name, wanted in MEASURED.items():
        if name not in found:
            missing.setdefault(wanted.command, []).append(wanted.text)
    lines = "".join(f"- {'; '.join(texts)}: `{command}`\n" for command, texts in missing.items())
    return MISSING.substitute(commands=lines) if lines else ""
