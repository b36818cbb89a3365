"""A session that runs for 200,000 frames, with random questions, faults of the source, forks, saves and restores.

    OMP_NUM_THREADS=1 python -m videollm_mod.benchmarks.soak

The bundled model runs on a CPU, with bounds on frames and bytes. Blocks of frames have random gaps, repeated or
reversed times, odd sizes, or shapes that are not frames. Input that cannot be watched must be refused without a trace.
At random, a block is also watched frame by frame by a fork: events must be the same, none lost and none doubled. Give
the command again to continue an interrupted run from its last saved session.
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from videollm_mod import StreamingSession

from ..bench.record import summarise, surroundings, write_result
from ..data.files import write_whole
from .long_streams import held_bytes, nano, rss_bytes, scenes

BLOCK = 20  # frames
BYTES = 6 << 20
QUESTIONS = ("What happened last?", "How many objects are there?", "What is at the center?")
CHANCES = {"question": 0.04, "fork": 0.01, "restore": 0.005, "one_by_one": 0.005, "odd_size": 0.02, "gap": 0.02}
CHANCES |= {"repeated": 0.02, "reversed": 0.02, "no_frames": 0.01, "not_finite": 0.01, "empty": 0.01}


def tell(events) -> list[tuple]:
    return [(event.time, event.kind, event.text, event.query) for event in events]


class Soak:
    def __init__(self, model, processor, folder: Path):
        self.model, self.processor, self.folder = model, processor, folder
        self.pictures = scenes(64, seed=7000)
        folder.mkdir(parents=True, exist_ok=True)
        self.saved, self.progress = folder / "session.safetensors", folder / "progress.json"
        if self.progress.exists():
            self.state = json.loads(self.progress.read_text())
            self.session = StreamingSession.load(folder / self.state["session"], model, processor)
        else:
            self.session = model.stream(processor, max_cached_frames=32, max_cached_bytes=BYTES)
            self.state = {"step": 0, "frames": 0, "time": 0.0, "scene": 0, "narrations": 0, "answers": 0, "rows": []}
            self.state |= {"done": dict.fromkeys(CHANCES, 0), "checked_events": 0, "session": None}

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            raise AssertionError(f"{what} at step {self.state['step']}, frame {self.state['frames']}")

    def refused(self, frames, times) -> None:
        """Input that is not a frame, or goes back in time, changes nothing."""
        before = (self.session.stats.frames, self.session.stats.tokens, self.session.time)
        try:
            self.session.push(frames, times)
        except ValueError:
            pass
        else:
            self.check(False, "something that cannot be watched was taken")
        after = (self.session.stats.frames, self.session.stats.tokens, self.session.time)
        self.check(before == after, "a refused block left a trace")

    def step(self) -> None:
        state = self.state
        rng = random.Random(f"soak/{state['step']}")  # depends on the step only, so that a run can be continued
        happens = {name: rng.random() < chance for name, chance in CHANCES.items()}
        if rng.random() < 0.15:
            state["scene"] = (state["scene"] + 1) % len(self.pictures)
        frames = np.broadcast_to(self.pictures[state["scene"]], (BLOCK, 96, 96, 3))
        if happens["odd_size"]:
            rows, columns = (np.arange(rng.randint(1, 150)) * 96 // 150 for _ in range(2))
            frames = frames[:, rows][:, :, columns]
        start = state["time"] + (rng.uniform(0, 1e5) if happens["gap"] else 0.5)
        times = [start + index / 2 for index in range(BLOCK)]
        if happens["repeated"]:
            times = [start] * BLOCK
        if happens["reversed"]:
            self.refused(frames, times[::-1] if times[0] < times[-1] else [start - 1e6] * BLOCK)
        if happens["not_finite"]:
            self.refused(frames, [float("nan")] * BLOCK)
        if happens["no_frames"]:
            self.refused(np.zeros((BLOCK, 7, 9), np.uint8), times)
        if happens["empty"]:
            self.refused(frames[:0], [])
        apart = self.session.fork() if happens["one_by_one"] else None
        events = self.session.push(frames, times)
        if apart is not None:
            pairs = zip(frames, times, strict=True)
            expected = [event for frame, moment in pairs for event in apart.push(frame[None], [moment])]
            self.check(tell(events) == tell(expected), f"{tell(events)} in a block, {tell(expected)} one by one,")
            state["checked_events"] += len(events)
        state["frames"] += BLOCK
        state["time"] = times[-1]
        state["narrations"] += len(events)
        said = [event.time for event in events]
        self.check(said == sorted(said) and set(said) <= set(times), "an event has a time that no frame has")
        self.check(happens["repeated"] or len(set(said)) == len(said), "an event occurred twice")
        if happens["question"]:
            state["answers"] += len(self.session.ask(rng.choice(QUESTIONS)))
        if happens["fork"]:
            fork = self.session.fork()
            fork.ask(QUESTIONS[0])
            self.session = self.session.fork()
        if happens["restore"]:
            self.session = StreamingSession.load(self.session.save(self.saved), self.model, self.processor)
        for name in CHANCES:
            state["done"][name] += happens[name]
        stats = self.session.stats
        counted = {name: stats[name] for name in ("frames", "narrations", "answers")}
        self.check(counted == {name: state[name] for name in counted}, f"the session counts {counted}, not {state}")
        self.check(stats.kv_bytes <= BYTES, f"the cache takes {stats.kv_bytes} bytes")
        state["step"] += 1

    def keep(self) -> None:
        """Save everything to continue from here: the session under a new name, then the file that names it."""
        old, name = self.state["session"], f"{self.state['frames']}.safetensors"
        self.session.save(self.folder / name)
        self.state["session"] = name
        write_whole(self.progress, json.dumps(self.state))
        if old not in (None, name):
            (self.folder / old).unlink(missing_ok=True)

    def run(self, frames: int, row_every: int = 1000) -> dict:
        with tqdm(total=frames, initial=self.state["frames"], unit="frames", mininterval=10) as bar:
            start = time.process_time()
            while self.state["frames"] < frames:
                self.step()
                bar.update(BLOCK)
                if self.state["frames"] % row_every == 0:
                    row = {"frame": self.state["frames"], "rss_bytes": rss_bytes(), "held_bytes": held_bytes()}
                    row |= {"kv_bytes": self.session.stats.kv_bytes, "cpu_seconds": time.process_time() - start}
                    self.state["rows"].append(row)
                    start = time.process_time()
                if self.state["frames"] % (5 * row_every) == 0:
                    self.keep()
        self.keep()
        rows = self.state["rows"][
            len(self.state["rows"]) // 4 :
        ]  # without the first minutes, in which memory still grows
        slopes = {}
        for name in ("rss_bytes", "held_bytes") if len(rows) > 2 else ():
            slope = np.polyfit([row["frame"] for row in rows], [row[name] for row in rows], 1)[0]
            slopes[f"{name}_per_frame"] = round(float(slope), 2)
        return {**slopes, **self.state}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=200_000)
    parser.add_argument("--state", type=Path, default=Path("runs/soak"))
    args = parser.parse_args(argv)
    result = Soak(*nano(), args.state).run(args.frames)
    command = "OMP_NUM_THREADS=1 python -m videollm_mod.benchmarks.soak"
    write_result("soak", {"command": command, **surroundings(), **result})
    summarise("soak_frames", result["frames"], "benchmarks/results/soak.json", command)


if __name__ == "__main__":
    main()
