"""`videollm-mod demo`: narrates the two clips of the package, with subtitles and an overlay video each."""

import json
import sys
from pathlib import Path

from ..decoding import decode_video
from ..loading.checkpoint import load_checkpoint
from ..loading.find import OWN_CHECKPOINT
from ..speaking import StreamEvent
from .narrate import narrate
from .options import NarrateOptions
from .savings import measure_savings
from .writers import file_writer

CLIPS = {
    "world.mp4": (
        "a stream of the procedural world; the checkpoint has learned other streams of it",
        ["How many objects are there?@6", "What happened last?@9.5"],
    ),
    "cup.mp4": (
        "a real clip; the checkpoint has never seen such things and says the few words it knows",
        ["What is at the center?@4"],
    ),
}


def demo(output: Path) -> None:
    """Narrate the clips of the package, print their events, and write subtitles (`NAME.srt`) and an overlay video
    (`NAME.overlay.mp4`) of each to the folder `output`, which is created.

    Raises:
        `OSError`: if a file cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    model, processor = load_checkpoint()
    writer = file_writer("text", sys.stdout)
    for name, (what, queries) in CLIPS.items():
        clip, stem = OWN_CHECKPOINT / "media" / name, output / Path(name).stem
        subtitles, overlay = stem.with_suffix(".srt"), stem.with_suffix(".overlay.mp4")
        events: list[StreamEvent] = []

        def echo(event: StreamEvent, events=events) -> None:
            events.append(event)
            writer.event(event)

        print(f"\n{name}: {what}", flush=True)
        options = NarrateOptions(source=str(clip), queries=queries, output=subtitles, overlay=overlay)
        narrate(options, load=lambda _: (model, processor), echo=echo)
        if clip.with_suffix(".jsonl").exists():
            print(compared(clip.with_suffix(".jsonl"), events))
        print(measure_savings(model, processor, decode_video(clip)[0]))
        print(f"written: {subtitles} and {overlay}", flush=True)


def compared(truth: Path, events: list[StreamEvent]) -> str:
    """How many narrations agree with the ground truth of the clip."""
    turns = json.loads(truth.read_text(encoding="utf-8"))["turns"]
    true = [(turn["time"], turn["content"]) for turn in turns]
    said = [(event.time, event.text) for event in events if event.kind == "narration"]
    exact = sum(any(text == words and abs(time - when) <= 0.25 for when, words in said) for time, text in true)
    return f"narrations equal to the ground truth: {exact} of {len(true)}; other narrations: {len(said) - exact}"


__all__ = ["demo"]
