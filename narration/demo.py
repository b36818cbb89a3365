"""`videollm-mod demo`: narrates a clip of the world that the bundled checkpoint knows, and shows on a real clip what
watching costs."""

import json
import sys
from contextlib import closing
from pathlib import Path
from time import perf_counter

from ..decoding import decode_video
from ..loading.checkpoint import load_checkpoint
from ..loading.find import OWN_CHECKPOINT
from ..speaking import StreamEvent
from .narrate import narrate
from .options import NarrateOptions
from .overlay import OverlayVideo, frame_fit
from .savings import measure_savings
from .sight import COMMANDS, can_describe, clip_domain, why_silent
from .writers import file_writer

CLIPS = {
    "world.mp4": (
        "a stream of the procedural world; the checkpoint has learned other streams of it",
        ["How many objects are there?@6", "What happened last?@9.5"],
    ),
    "cup.mp4": ("a real clip", ["What do you see?@4"]),
}


def demo(output: Path) -> None:
    """Show the clips of the package: print what the model says and what routing saves.

    Subtitles (`NAME.srt`) and an overlay video (`NAME.overlay.mp4`) of each go to the folder `output`, which is
    created. A clip that the model cannot describe has no subtitles; see `sight`.

    Raises:
        `OSError`: if a file cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    model, processor = load_checkpoint()
    for name, (what, queries) in CLIPS.items():
        clip, stem = OWN_CHECKPOINT / "media" / name, output / Path(name).stem
        print(f"\n{name}: {what}", flush=True)
        described = can_describe(model.config, clip_domain(clip))
        if described:
            narrated(model, processor, clip, queries, stem)
        else:
            watched(model, processor, clip, stem)
        print(measure_savings(model, processor, decode_video(clip)[0]))
        print(f"written: {f'{stem}.srt and ' if described else ''}{stem}.overlay.mp4", flush=True)
    if model.config.domain is not None:
        print("\nTo give it sight, build a model on a pretrained one that describes real videos:")
        print(*COMMANDS, sep="\n", flush=True)


def narrated(model, processor, clip: Path, queries: list[str], stem: Path) -> None:
    """Narrate a clip, and compare what was said with the ground truth, if there is one beside it."""
    writer, events = file_writer("text", sys.stdout), list[StreamEvent]()

    def echo(event: StreamEvent) -> None:
        events.append(event)
        writer.event(event)

    options = NarrateOptions(
        source=str(clip), queries=queries, output=Path(f"{stem}.srt"), overlay=Path(f"{stem}.overlay.mp4")
    )
    narrate(options, load=lambda _: (model, processor), echo=echo)
    if clip.with_suffix(".jsonl").exists():
        print(compared(clip.with_suffix(".jsonl"), events))


def watched(model, processor, clip: Path, stem: Path) -> None:
    """Watch a clip without a word, and print how long each stage took."""
    print(why_silent(model.config))
    fps, start = float(processor.video_processor.fps), perf_counter()
    frames, times = decode_video(clip, fps)
    decoding = perf_counter() - start
    session = model.stream(processor, speak_threshold=0.0)
    fit = frame_fit(processor.video_processor)
    with closing(OverlayVideo(Path(f"{stem}.overlay.mp4"), model.config, fps, None, fit)) as overlay:
        for image, seen in zip(frames, session.watch(frames, times.tolist()), strict=True):
            overlay.frame(image, seen)
    height, width = frames.shape[1:3]
    stages = {"decoding": decoding, "vision tower": session.stats.seconds["vision"]}
    stages["language model"] = session.stats.seconds["language"]
    cost = ", ".join(f"{name} {1e3 * seconds / len(frames):.1f}" for name, seconds in stages.items())
    print(f"watched {len(frames)} frames of {width} x {height} pixels; milliseconds per frame: {cost}")


def compared(truth: Path, events: list[StreamEvent]) -> str:
    """How many narrations agree with the ground truth of the clip."""
    turns = json.loads(truth.read_text(encoding="utf-8"))["turns"]
    true = [(turn["time"], turn["content"]) for turn in turns]
    said = [(event.time, event.text) for event in events if event.kind == "narration"]
    exact = sum(any(text == words and abs(time - when) <= 0.25 for when, words in said) for time, text in true)
    return f"narrations equal to the ground truth: {exact} of {len(true)}; other narrations: {len(said) - exact}"


__all__ = ["demo"]
