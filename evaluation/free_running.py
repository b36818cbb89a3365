"""Narration as it is used: the model runs on its own past words, frame by frame, over streams it has not seen."""

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..data.world import world_stream


@dataclass
class Counts:
    """What happened over some streams; counts of several sets add up."""

    narrations: int = 0  # true ones
    exact: int = 0  # of them: same text at the same frame, matched one to one
    said: int = 0  # narrations of the model
    matched: int = 0  # of them: same text as a true one at whatever time, matched in order of time
    seconds_off: float = 0.0  # of the matched ones, absolute
    questions: int = 0
    right: int = 0  # answers that are the true one to the letter

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Counts)))

    def summary(self) -> dict[str, float]:
        """Shares in percent of the true narrations (`exact`, `false`) and of the questions; `time_diff` in seconds."""
        return {
            "narrations": self.narrations,
            "exact": 100 * self.exact / max(1, self.narrations),
            "false": 100 * (self.said - self.exact) / max(1, self.narrations),
            "time_diff": self.seconds_off / max(1, self.matched),
            "unmatched": self.narrations - self.matched,
            "questions": self.questions,
            "right": 100 * self.right / max(1, self.questions),
        }


def match(true: list[tuple[float, str]], said: list[tuple[float, str]], tolerance: float) -> tuple[int, int, float]:
    """Match narrations one to one.

    Args:
        true, said (`list[(seconds, text)]`): in order of time.
        tolerance (`float`): seconds within which two times are the same frame.

    Returns:
        `(exact, matched, seconds_off)`: pairs of the same text at the same frame; pairs of the same text, the nearest
        in time first; and the sum of their absolute differences in time.
    """
    pairs = sorted(
        (abs(t - s), i, j)
        for i, (t, true_text) in enumerate(true)
        for j, (s, said_text) in enumerate(said)
        if true_text == said_text
    )
    used_true, used_said, exact, seconds = set(), set(), 0, 0.0
    for difference, i, j in pairs:
        if i not in used_true and j not in used_said:
            used_true.add(i)
            used_said.add(j)
            exact += difference <= tolerance
            seconds += difference
    return exact, len(used_true), seconds


def watch_world(
    model, processor, seed: int, level: str = "basic", fps: float = 2.0, num_questions: int = 1, **options
) -> tuple[Counts, list]:
    """Let a model watch the stream of a seed, frame by frame, and ask it the stream's questions.

    Returns:
        The counts, and the events of the session. An answer is not learned to be followed by the true narration: the
        model hears itself only.
    """
    stream = world_stream(seed, level)
    session = model.stream(processor, system_prompt=stream.opening()[0], **options)
    if stream.opening()[1]:
        session.instruct(stream.opening()[1])
    frames, times = stream.frames(fps, processor.video_processor.size["height"]), stream.frame_times(fps)
    asked = stream.questions(fps, num_questions)
    events, counts, start = [], Counts(), 0
    for stop, question, answer in [
        *((int(np.searchsorted(times, time)) + 1, question, answer) for time, question, answer in asked),
        (len(times), None, None),
    ]:
        if stop > start:
            events += session.push(frames[start:stop], times[start:stop].tolist())
        start = max(start, stop)
        if question is not None:
            events += session.ask(question)
            counts.questions += 1
            counts.right += events[-1].text == answer
    said = [(event.time, event.text) for event in events if event.kind == "narration"]
    counts.narrations, counts.said = len(stream.narrations), len(said)
    counts.exact, counts.matched, counts.seconds_off = match(stream.narrations, said, tolerance=0.5 / fps)
    return counts, events


def _count(job: tuple[str, range, dict]) -> Counts:
    import torch

    from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
    from ..processing_videollm_mod import VideoLLMMoDProcessor

    checkpoint, seeds, options = job
    torch.set_num_threads(1)
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    processor = VideoLLMMoDProcessor.from_pretrained(checkpoint)
    return sum((watch_world(model, processor, seed, **options)[0] for seed in seeds), Counts())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--level", default="basic")
    parser.add_argument("--questions", type=int, default=1, help="asked in each stream")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    if arguments.streams < 1:
        parser.error(f"--streams must be at least 1, got {arguments.streams}")
    if not (Path(arguments.checkpoint) / "config.json").is_file():
        parser.error(f"no checkpoint in {arguments.checkpoint}")
    try:
        world_stream(arguments.first_seed, arguments.level).questions(count=arguments.questions)
    except ValueError as error:
        parser.error(str(error))
    options = {"level": arguments.level, "num_questions": arguments.questions}
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.streams)
    parts = 8 * arguments.processes
    jobs = [(arguments.checkpoint, seeds[part::parts], options) for part in range(min(parts, len(seeds)))]
    with get_context("spawn").Pool(arguments.processes) as pool:
        counts = sum(tqdm(pool.imap_unordered(_count, jobs), total=len(jobs), desc="parts of the streams"), Counts())
    result = {
        "command": " ".join(["python -m videollm_mod.evaluation.free_running", *sys.argv[1:]]),
        "seeds": [seeds.start, seeds.stop],
        "counts": asdict(counts),
        "summary": counts.summary(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, CPU, float32",
        "versions": {name: version(name) for name in ("torch", "transformers")}
        | {"python": platform.python_version()},
    }
    print(json.dumps(result, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
