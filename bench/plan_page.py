"""The page that plans past one machine, from what `plan` reads and computes."""

from collections import Counter

from . import plan
from .growth import KEYS, MIDDLE
from .plan import FLEETS, FPS, HOURS, MEASURED, SOURCE_FPS, TOKENS, Measured

MISSING = "?"


def number(value: float | None) -> str:
    """Three digits that count, or all of a whole number below a million."""
    if value is None:
        return MISSING
    if value >= 1e6:
        power = next(p for p in (12, 9, 6) if value >= 10**p)
        return f"{value / 10**power:.3g} {({12: 'T', 9: 'G', 6: 'M'})[power]}"
    if value >= 100:
        return f"{round(value):,}"
    return f"{value:.3g}"


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def cell(row: dict | None) -> str:
    """ms of a frame as it comes, ms of one in a block, and GiB of cache."""
    if row is None:
        return MISSING
    cache = f"{number(row['cache_bytes'] / 2**30)} GiB"
    if "stream" not in row:
        return f"{cache}: does not fit"
    times = [row[part]["ms_per_frame"] for part in ("stream", "block") if part in row]
    return " / ".join([*map(number, times), cache])


def growth_tables(rows: list[dict]) -> str:
    """Of the rows of `bench growth`."""
    if not rows:
        return f"{MISSING}\n"
    known, parts = {tuple(row[key] for key in KEYS): row for row in rows}, []

    def of(**case) -> dict | None:
        return known.get(tuple({**middle, **case}[key] for key in KEYS))

    middle, names = dict(MIDDLE), {"mod": "mixture of depths", "dense": "dense"}
    frames, tokens = (sorted({row[key] for row in rows}) for key in ("frames", "tokens"))
    for way, name in names.items():
        body = [[f"{count:,}", *(cell(of(frames=count, tokens=each, way=way)) for each in tokens)] for count in frames]
        parts.append(table([f"frames held, {name}", *(f"{each} tokens" for each in tokens)], body))
    batches = sorted({row["batch"] for row in rows})
    body = [[str(count), *(cell(of(batch=count, way=way)) for way in names)] for count in batches]
    parts.append(table(["streams together", *names.values()], body))
    ratios = sorted({row["keep_ratio"] for row in rows})
    parts.append(table(["kept", "mixture of depths"], [[str(r), cell(of(keep_ratio=r, way="mod"))] for r in ratios]))
    return "\n".join(parts)


def commits(rows: list[dict]) -> str:
    """Of which code the rows of `bench growth` are, where it is not one."""
    counted = Counter(row["commit"] for row in rows if "commit" in row)
    if len(counted) < 2:
        return ""
    each = "; ".join(f"{count} at {commit}" for commit, count in counted.items())
    return f"\nThe smaller sizes were measured first, by other code than the rest.\nOf {len(rows)} rows: {each}.\n"


def page(found: dict[str, Measured], sizes: dict[str, int], grown: list[dict]) -> str:
    """Markdown. What is missing is a dash, and the command that makes it stands at the end."""

    def of(compute, *names: str):
        """`compute` of measured values; None where one is missing."""
        return compute(*(found[name].value for name in names)) if all(name in found for name in names) else None

    fleets = [f"{count} GPU{'s' * (count > 1)}" for count in FLEETS]

    def over_fleets(name: str, value: float | None, share=lambda count: float(count)) -> list[str]:
        return [name, *(number(None if value is None else value * share(count)) for count in FLEETS)]

    pool, alone = (of(plan.live_streams, name) for name in ("pool", "live"))
    streams = max(filter(None, (pool, alone)), default=None)

    def held(kind: str) -> int | None:
        def frames(memory: float, cache: float) -> int:
            return plan.frames_held(memory, sizes["weights"], streams, cache)

        return of(frames, "memory", kind) if streams else None

    live = table(
        ["live streams", *fleets],
        [
            over_fleets("in pools", pool),
            over_fleets("each by itself, one frame after the other", alone),
        ],
    )
    remembered = table(
        ["", "mixture of depths", "dense"],
        [
            ["bytes of cache a frame", *(number(of(float, kind)) for kind in ("cache", "dense_cache"))],
            [
                f"frames that each of {number(streams)} streams on a GPU can remember",
                *(number(held(kind)) for kind in ("cache", "dense_cache")),
            ],
            [
                "the same in minutes",
                *(number(None if held(kind) is None else held(kind) / FPS / 60) for kind in ("cache", "dense_cache")),
            ],
        ],
    )

    def hours(rate: float) -> float:
        return plan.gpu_hours(HOURS, rate)

    ways = {"from decoded frames": "block", "from features": "offline"}
    recorded = table(
        [f"hours for {number(HOURS)} hours of video", *fleets, "hours of video a GPU and hour"],
        [
            [*over_fleets(name, of(hours, key), lambda count: 1 / count), number(of(lambda rate: rate / FPS, key))]
            for name, key in ways.items()
        ],
    )
    cores = of(plan.decoding_cores, "block", "decode_ms")
    rate = of(lambda samples, tokens: samples * tokens, "samples", "sample_tokens")
    frames = of(lambda samples, count: samples * count, "samples", "sample_frames")

    def scaled(count: int) -> float:
        return count * plan.training_efficiency(found["speedup"].value, count)

    rates = [rate, frames] if "speedup" in found else [None, None]
    training = table(
        ["LoRA on features", *fleets],
        [
            over_fleets("share of ideal scaling", rates[0] and 1.0, lambda count: scaled(count) / count),
            over_fleets("tokens an hour", rates[0] and 3600 * rates[0], scaled),
            over_fleets("hours of video an hour", rates[1] and rates[1] / FPS, scaled),
            over_fleets(
                f"hours for {number(HOURS)} hours, seen once",
                rates[1] and plan.gpu_hours(HOURS, rates[1]),
                lambda count: 1 / scaled(count),
            ),
        ],
    )
    measured = table(
        ["measured", "value", "on", "file"],
        [
            [text, number(found[name].value), found[name].gpus, f"[`{found[name].source}`](../{found[name].source})"]
            for name, (text, *_) in MEASURED.items()
            if name in found
        ],
    )
    storage = plan.feature_bytes(1, sizes["width"]), plan.feature_bytes(HOURS, sizes["width"])
    missing = {}
    for name, (text, _, _, command) in MEASURED.items():
        if name not in found:
            missing.setdefault(command, []).append(text)
    rest = "".join(f"- {'; '.join(texts)}: `{command}`\n" for command, texts in missing.items())
    return f"""# Planning past one machine

Made by `videollm-mod bench plan` from the files in `benchmarks/results`, so it is not to be edited by hand. What was
measured is at the end; the rest is arithmetic on it (`bench/plan.py`), to three digits.

It assumes:
- Llama-3-8B's geometry with SigLIP-L/16 at 384 pixels, bfloat16, frames of {TOKENS} tokens, {
        FPS
    } frames of each second of
  video; random weights, which cost what trained ones do.
- Streams and recordings need nothing of each other, so that GPUs that watch add up without loss.
- In training every further doubling of the GPUs costs the share that the first one did; this was measured on two GPUs
  of one machine, and a slower network between machines costs more.
- GPUs that are always busy and never fail; nobody speaks. Speech adds to the time of watching: what a word takes is in
  the result of `videollm-mod bench stream`.

## Live streams

{live}
A stream of {FPS} frames a second that is watched in time takes a share of a GPU's time, and of its memory: {
        number(sizes["weights"])
    } bytes are
weights, and a cache's room is up to an eighth larger than what it holds. Where streams run longer, bound them with
`max_cached_frames` or `max_cached_bytes`.

{remembered}
## Recorded video

{recorded}
Decoding comes first: a file of {SOURCE_FPS} frames a second is decoded whole, which keeps {
        number(cores)
    } CPU cores busy beside each GPU
that watches from decoded frames. `videollm-mod extract` stores features, and all later passes begin there: {
        number(storage[0])
    } bytes an
hour of video, {number(storage[1])} bytes for {number(HOURS)} hours.

## Training

{training}
## How watching grows

Of each size: ms of one more frame as it comes, ms a frame of a recorded block, and the GiB of keys and values, all of
the language model alone. Streams together and other shares kept are of {number(MIDDLE["frames"])} frames of {
        MIDDLE["tokens"]
    } tokens;
there the ms are a frame's, and the GiB those of all streams.
{commits(grown)}
{growth_tables(grown)}
## What this comes from

{measured}{
        rest
        and f'''
Not measured yet, a question mark above; these commands make it, then `videollm-mod bench plan` this page anew:

{rest}'''
    }"""
