"""Scores of a checkpoint on the procedural world, in half a minute on a GPU: narrations on its own words, and answers.

    python -m videollm_mod.benchmarks.nano_scores runs/nano/final --json scores.json

Many unseen streams run side by side (`evaluation.lockstep`). Questions about procedures are those of `videollm-mod
evaluate`. Only exact answers count.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from ..data.world import conversation, narrated, world_stream
from ..data.world_hard import split_seeds
from ..data.world_streams import FPS
from ..evaluation.answering import answers
from ..evaluation.encoding import encode
from ..evaluation.free_running import Counts, match
from ..evaluation.lockstep import narrate_in_lockstep
from ..evaluation.tasks import ANSWERING
from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
from ..processing_videollm_mod import VideoLLMMoDProcessor

NARRATED = ("basic", "hard_small", "hard")
PROCEDURES = ("hard_small", "hard")
AT_ONCE = 64  # answers in a batch
MAX_NEW_TOKENS = 160  # twenty actions take about 110


def narrations(model, processor, level: str, seeds: range, fps: float = FPS, height: int | None = None) -> dict:
    """`Counts.summary` of streams narrated side by side, without prompts or questions. Frames are drawn at `height`
    pixels (default: the size that the model takes)."""
    streams = [world_stream(seed, level) for seed in seeds]
    height = height or processor.video_processor.size["height"]
    drawn = [torch.from_numpy(s.frames(fps, height)) for s in streams]
    frames = torch.nn.utils.rnn.pad_sequence(drawn, batch_first=True).permute(0, 1, 4, 2, 3).to(model.device)

    def frames_of(rows: torch.Tensor, count: int) -> torch.Tensor:
        pixels = processor.video_processor(frames[rows, :count].flatten(0, 1), return_tensors="pt")
        return pixels["pixel_values_videos"]

    num_frames = torch.tensor([len(s.frame_times(fps)) for s in streams], device=model.device)
    said = narrate_in_lockstep(model, processor, frames_of, num_frames, max_reply=16)  # the longest have ten tokens
    counts = Counts()
    for stream, own in zip(streams, said, strict=True):
        own = [(frame / fps, processor.decode(list(ids), skip_special_tokens=True).strip()) for frame, ids in own]
        true = narrated(stream, fps)
        exact, pairs, seconds = match(true, own, tolerance=0.5 / fps)
        counts += Counts(len(true), exact, len(own), pairs, seconds)
    summary = counts.summary()
    return {name: summary[name] for name in ("narrations", "exact", "false", "time_diff", "unmatched")}


def right(model, processor, examples: list[tuple[list[dict], torch.Tensor]]) -> float:
    """Percentage of examples, `(messages that end with the true answer, frames)`, that are answered exactly."""
    count = 0
    for first in range(0, len(examples), AT_ONCE):
        part = examples[first : first + AT_ONCE]
        features = [encode(model, processor, frames) for _, frames in part]
        asked = [messages[:-1] for messages, _ in part]
        said = answers(model, processor, asked, features, max_new_tokens=MAX_NEW_TOKENS)
        count += sum(own == messages[-1]["content"] for (own,), (messages, _) in zip(said, part, strict=True))
    return 100 * count / len(examples)


def question(processor, level: str, seed: int, fps: float = FPS) -> tuple[list[dict], torch.Tensor]:
    """A stream up to the answer to its only question, with true narrations before it."""
    stream = world_stream(seed, level)
    messages = conversation(stream, fps, num_questions=1)
    (asked,) = stream.questions(fps, 1)
    place = max(
        i for i, message in enumerate(messages) if message["role"] == "user" and message["content"] == asked[1]
    )
    return with_frames(processor, stream, messages[: place + 2], fps)


def procedure(processor, level: str, task: str, seed: int, fps: float = FPS) -> tuple[list[dict], torch.Tensor]:
    stream = world_stream(seed, f"{level}_tasks")
    return with_frames(processor, stream, stream.asked(task, fps), fps)


def with_frames(processor, stream, messages: list[dict], fps: float) -> tuple[list[dict], torch.Tensor]:
    count = sum(message.get("num_frames", 0) for message in messages)
    frames = stream.frames(fps, processor.video_processor.size["height"])[:count]
    return messages, torch.from_numpy(frames).permute(0, 3, 1, 2)


@torch.no_grad()
def scores(model, processor, streams: int, tasks: tuple[str, ...] = ANSWERING) -> dict:
    """
    Args:
        streams (`int`): of each level, and of each task.

    Returns:
        `{"narrations": {level: Counts.summary}, "answers": {level: percent}, "tasks": {level: {task: percent}}}` and
        the seconds that it took.
    """
    started, seeds = time.perf_counter(), split_seeds("validation", streams)
    return {
        "narrations": {level: narrations(model, processor, level, seeds) for level in NARRATED},
        "answers": {
            level: right(model, processor, [question(processor, level, seed) for seed in seeds]) for level in NARRATED
        },
        "tasks": {
            level: {
                task: right(model, processor, [procedure(processor, level, task, seed) for seed in seeds])
                for task in tasks
            }
            for level in PROCEDURES
        },
        "streams": streams,
        "scoring_seconds": round(time.perf_counter() - started, 1),
    }


def load(folder: Path, device: str, keep_ratio: float | None = None):
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(folder, dtype=dtype).to(device).eval()
    if keep_ratio is not None:
        model.keep_ratio = keep_ratio
    return model, VideoLLMMoDProcessor.from_pretrained(folder)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a checkpoint")
    parser.add_argument(
        "--streams", type=int, default=100, help="streams of each level and of each task (default: 100)"
    )
    parser.add_argument("--keep-ratio", type=float)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    result = scores(*load(args.folder, args.device, args.keep_ratio), args.streams)
    print(json.dumps(result, indent=1))
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
