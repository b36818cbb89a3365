"""The margin of the rule `"verify"`: how far a narration may fall behind before the model speaks again.

A clip needs no labels for it. After each frame the last narration is verified twice: under the frame, and, in a fork
that is thrown away, under the same picture shaken a little, in which nothing has changed. What the model would say
there is needless. The margin is the smallest one at which needless narrations are rarer than a limit.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..containers import video_duration
from ..data.files import write_whole
from ..decoding import iter_video_blocks
from ..loading.checkpoint import load_checkpoint
from ..memory import frames_in_context
from .speaking import check_plot
from .surroundings import surroundings

MARGINS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0)
BLOCK_FRAMES = 16
LARGEST_GAP = 745.0  # the logarithm of the smallest float64


@dataclass(frozen=True)
class Probe:
    """A frame after which a narration was verified.

    Args:
        clip (`str`), time (`float`): the name of the file, and seconds.
        gap (`float`): of the last narration, in nats; see `speaking`.
        still_gap (`float`): of the narration that holds after the frame, if nothing changes.
        text (`str`, *optional*): what greedy decoding says now, where it differs from the last narration.
        changed (`bool`): whether that is another text.
    """

    clip: str
    time: float
    gap: float
    still_gap: float
    text: str | None
    changed: bool


def shaken(frames: np.ndarray, first: int = 0) -> np.ndarray:
    """Frames, uint8 `[F, H, W, 3]`, of a camera that moved by half a percent, in light that differs by two percent.
    first: number of the first frame; the direction changes from frame to frame."""
    moved = []
    for index, frame in enumerate(frames, first):
        pixels = max(1, frame.shape[1] // 200)
        padded = np.pad(frame, ((pixels, pixels), (pixels, pixels), (0, 0)), mode="edge")
        down, right = 2 * pixels * (index % 2), 2 * pixels * (index // 2 % 2)
        part = padded[down : down + frame.shape[0], right : right + frame.shape[1]]
        moved.append((part * (1.02 if index % 3 else 0.98)).clip(0, 255).round())
    return np.stack(moved).astype(np.uint8)


def probe(model, processor, clip: Path, fps: float, query: str | None, keep_ratio: float | None) -> Iterator[Probe]:
    """Watch a clip at margin 0, at which the model speaks whenever greedy decoding says something else."""
    session = model.stream(
        processor,
        speak_rule="verify",
        speak_threshold=1.0,
        keep_ratio=keep_ratio,
        max_cached_frames=frames_in_context(model.config),
    )
    if query is not None:
        session.instruct(query)
    last, count = None, 0
    for images, times in iter_video_blocks(clip, fps, BLOCK_FRAMES):
        seen, still = session.encode(images), session.encode(shaken(images, count))
        count += len(images)
        for index, time in enumerate(times):
            (watched,) = session.watch_encoded(seen[index : index + 1], [time])
            text = None if watched.event is None else watched.event.text
            if last is not None:
                fork = session.fork()
                fork.speak_threshold = 0.0
                (unchanged,) = fork.watch_encoded(still[index : index + 1], [time + 1 / fps])
                gaps = gap_of(watched.silence_probability), gap_of(unchanged.silence_probability)
                yield Probe(clip.name, time, *gaps, text, text not in (None, last))
            last = last if text is None else text


def gap_of(silence_probability: float) -> float:
    return -math.log(silence_probability) if silence_probability else LARGEST_GAP


def per_minute(gaps: list[float], margin: float, fps: float) -> float:
    """How often a minute gaps are larger than the margin."""
    return 60 * fps * sum(gap > margin for gap in gaps) / len(gaps)


def pick_margin(still_gaps: list[float], fps: float, limit: float) -> float:
    """The smallest margin, in thousandths, at which at most `limit` narrations a minute are needless.

    Args:
        still_gaps: of each probe.
        fps (`float`): frames per second.
    """
    allowed = int(limit * len(still_gaps) / (60 * fps))
    largest = sorted(still_gaps, reverse=True)
    return math.ceil(1000 * largest[allowed]) / 1000 if allowed < len(largest) else 0.0


def summarise(probes: list[Probe], fps: float, limit: float) -> dict:
    """The margin that is picked, and what other margins would do."""
    gaps, still = [each.gap for each in probes], [each.still_gap for each in probes]
    margin = pick_margin(still, fps, limit)
    changes = [each.gap for each in probes if each.changed]

    def at(value: float) -> dict:
        kept = None if not changes else 100 * sum(gap > value for gap in changes) / len(changes)
        rates = {"narrations_per_minute": per_minute(gaps, value, fps)}
        return {"margin": value, **rates, "needless_per_minute": per_minute(still, value, fps), "changes_kept": kept}

    return {"picked": at(margin), "sweep": [at(value) for value in sorted({*MARGINS, margin})]}


def table(summary: dict) -> str:
    """The sweep as lines of text; the margin that is picked has a mark."""
    lines = ["margin  narrations/min  needless/min  changes kept"]
    for row in summary["sweep"]:
        kept = "" if row["changes_kept"] is None else f"{row['changes_kept']:.0f} %"
        mark = "  <- picked" if row["margin"] == summary["picked"]["margin"] else ""
        rates = f"{row['narrations_per_minute']:14.1f}  {row['needless_per_minute']:12.1f}"
        lines.append(f"{row['margin']:6.3f}  {rates}  {kept:>12}{mark}")
    return "\n".join(lines)


def calibrate_margin(options, command: str = "") -> dict:
    """Pick the margin from clips, and write it into the configuration of a checkpoint's folder.

    Args:
        options (`CalibrateMarginOptions`), command (`str`): its command line, for the result.

    Returns:
        The result, as in the JSON file.

    Raises:
        `ValueError`, `OSError`, `ImportError`: naming what is wrong. Then the configuration is unchanged.
    """
    options.check()
    model, processor = load_checkpoint(options.model, device=options.device, dtype=options.dtype)
    fps = options.fps or float(processor.video_processor.fps)
    probes: list[Probe] = []
    for clip in options.clips:
        found = probe(model, processor, clip, fps, options.query, options.keep_ratio)
        total = max(1, round(fps * (video_duration(clip) or 0)) - 1)  # none after the first frame
        probes += tqdm(found, clip.name, total, disable=None, unit=" frames")  # on a terminal
    if not probes:
        raise ValueError("the clips must have at least two frames each, so that there is something to verify")
    summary = summarise(probes, fps, options.needless)
    result = {
        "command": command,
        "model": Path(options.model).name,
        "speak_rule": model.config.speak_rule,
        "clips": [clip.name for clip in options.clips],
        "query": options.query,
        "fps": fps,
        "needless_limit": options.needless,
        **summary,
        "probes": [asdict(each) for each in probes],
        "device": f"{model.device.type}, {str(model.dtype).removeprefix('torch.')}",
        **surroundings(),
    }
    if options.json is not None:
        write_whole(options.json, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if options.plot is not None:
        plot_margin(result, options.plot)
    path = Path(options.model) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["verify_margin"] = summary["picked"]["margin"]
    write_whole(path, json.dumps(config, indent=2) + "\n")
    return result


def plot_margin(result: dict, path: Path) -> None:
    """Plot how often the model would speak over the margin, and the gaps with and without a change. The extension of
    the path selects the format.

    Raises:
        as `check_plot`.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    margin, probes = result["picked"]["margin"], result["probes"]
    gaps = {
        "frames of the clip": sorted((each["gap"] for each in probes), reverse=True),
        "the same picture, shaken": sorted((each["still_gap"] for each in probes), reverse=True),
    }
    for label, values in gaps.items():
        spoken = [gap for gap in values if gap > 0]
        rates = [60 * result["fps"] * count / len(values) for count in range(len(spoken) + 1)]
        left.step([*spoken, 0.0], rates, where="pre", label=label)
        right.hist(np.minimum(values, 19.9), bins=np.linspace(0, 20, 21), alpha=0.6, label=label)
    for axes in (left, right):
        axes.axvline(margin, color="0.3", linestyle="--", label=f"picked: {margin:g}")
        axes.legend()
    left.set(
        xlabel="margin, nats", ylabel="narrations per minute", xlim=(0, min(20.0, 1.5 * margin + 5)), ylim=(0, None)
    )
    right.set(xlabel="gap, nats (20 and more in the last bin)", ylabel="frames", yscale="symlog")
    figure.savefig(path, dpi=120)


__all__ = ["Probe", "calibrate_margin", "pick_margin", "shaken", "summarise", "table"]
