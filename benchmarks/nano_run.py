"""Train the nano against the clock, and score it on the way.

    python -m videollm_mod.benchmarks.nano_run --seconds 545 --output OUT

`videollm-mod train` runs in processes of its own, one a GPU. How many steps fit is told by the first of a stage: if
they take longer than planned, or far less, the stage begins again with as many as fit. Every checkpoint is scored
beside the training, the finished one with more streams. OUT gets `result.json` (after each score), `train.log`, the
Trainer's states, and the checkpoint as `nano.tar` in parts of 15 MiB: `cat nano.tar.* | tar x`.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import psutil
import torch
import yaml

from ..evaluation.tasks import ANSWERING
from ..training.config import last_checkpoint
from ..training.saving import save
from .nano_scores import load, scores
from .record import surroundings

LOGGED = 20  # steps between two losses in the log
FIRST, WINDOW = 3, 20  # losses: those before the first are of a cold start, the speed is that of the last ones
START = 35  # seconds until a process that begins again has made its first step
MARGIN = 0.95  # of the seconds left: scores on the way slow the training down
SLACK = 35  # seconds that a stage may end late, of those kept for the last scores
SAVE = 25  # seconds to end with a checkpoint that is as it is
STEPS = ("max_steps", "warmup_steps", "keep_ratio_warmup_steps")
QUICK_TASKS = ("step", "task", "next")


class Training:
    """`videollm-mod train`, once started: when it logged losses in the stage that runs."""

    def __init__(self, config: Path, processes: int, log: Path):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        self.process = subprocess.Popen(
            [*command, "-m", "videollm_mod.cli", "train", str(config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )
        self.losses: list[float] = []
        self._reader = threading.Thread(target=self._read, args=(log,), daemon=True)
        self._reader.start()

    def _read(self, log: Path) -> None:
        with open(log, "a", encoding="utf-8") as file:
            for line in self.process.stdout:
                file.write(line)
                file.flush()
                if "'loss'" in line:
                    self.losses.append(time.monotonic())
                if "'train_runtime'" in line:  # the stage is over
                    self.losses = []
                print(line, end="", flush=True)

    def seconds_a_step(self) -> float | None:
        losses = self.losses[FIRST:][-WINDOW:]
        return None if len(losses) < 6 else (losses[-1] - losses[0]) / ((len(losses) - 1) * LOGGED)

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        if self.code is None:
            # torchrun's workers are in sessions of their own, and outlive it
            parent = psutil.Process(self.process.pid)
            family = [parent, *parent.children(recursive=True)]
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family[1:], timeout=10)
        self.process.wait()
        self._reader.join(timeout=10)


class Run:
    """The whole run: its plan (`steps` of both stages), and what is known of it so far (`result`)."""

    def __init__(self, args):
        self.args, self.started = args, time.monotonic()
        self.config = yaml.safe_load(args.config.read_text(encoding="utf-8"))
        self.folder = Path(self.config["output_dir"]).resolve()
        for stage in ("vision", "stream"):
            self.config[f"{stage}_stage"] |= {"logging_steps": LOGGED, "disable_tqdm": True}
        self.result = {"command": args.command, **surroundings(), "plans": [], "curve": []}
        self.scored: set[str] = set()
        args.output.mkdir(parents=True, exist_ok=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def stage(self) -> str:
        return "stream" if (self.folder / "vision" / "tower.safetensors").exists() else "vision"

    def begin(self) -> Training:
        path = self.folder.with_suffix(".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")
        self.checkpoint = 0 if (last := last_checkpoint(self.folder / self.stage)) is None else step_of(last)
        self.begun = self.stage
        steps = {stage: self.steps(stage) for stage in ("vision", "stream")}
        self.note("plans", {"stage": self.stage, "from_step": self.checkpoint, "steps": steps})
        return Training(path, self.args.processes, self.args.output / "train.log")

    def note(self, name: str, entry: dict) -> None:
        self.result[name].append({"seconds": round(self.seconds, 1), **entry})
        print("nano_run", name, json.dumps(self.result[name][-1]), flush=True)
        self.write()

    def write(self) -> None:
        path = self.args.output / "result.json"
        path.write_text(json.dumps(self.result, indent=1) + "\n", encoding="utf-8")

    def steps_that_fit(self, training: Training) -> int | None:
        """Another number of steps for the stage that runs, or None where the plan is good enough."""
        speed, planned, stage = training.seconds_a_step(), self.steps(self.stage), self.stage
        if speed is None:
            return None
        share, kept = (self.args.vision_share, 0) if stage == "vision" else (1, self.args.scoring_seconds)
        left = share * self.args.seconds - kept - self.seconds
        done = (self.checkpoint if stage == self.begun else 0) + len(training.losses) * LOGGED
        last = last_checkpoint(self.folder / stage)
        saved = 0 if last is None else step_of(last)
        fit = saved + int(MARGIN * (left - START) / speed)
        # once something is saved, what came after it would be lost
        late = (planned - done) * speed > left + (SLACK if saved else 5) and fit > max(saved, done // 2)
        wasteful = saved == 0 and fit > 1.2 * planned
        return fit if late or wasteful else None

    def replan(self, steps: int) -> None:
        options = self.config[f"{self.stage}_stage"]
        factor = steps / options["max_steps"]
        options |= {name: max(1, int(options[name] * factor)) for name in STEPS if name in options}

    def score(self, folder: Path, streams: int, tasks: tuple[str, ...], keep_ratio: float | None, **about) -> None:
        """A keep ratio of None is the checkpoint's own."""
        device = f"cuda:{torch.cuda.device_count() - 1}" if torch.cuda.is_available() else "cpu"
        try:
            found = scores(*load(folder, device, keep_ratio), streams, tasks)
        except Exception as error:  # a score that fails must not end the training
            found = {"error": f"{type(error).__name__}: {error}"}
        self.note("curve", {**about, "keep_ratio": keep_ratio or "own", **found})

    def watch(self) -> None:
        """Train until it is done or time is up."""
        training, replans = self.begin(), {"vision": 0, "stream": 0}
        try:
            while training.code is None:
                time.sleep(0.5)
                if self.seconds > self.args.seconds - SAVE:
                    print("nano_run: time is up", flush=True)
                    return
                last = last_checkpoint(self.folder / "stream")
                if last is not None and last not in self.scored and step_of(last) < self.steps("stream"):
                    self.scored.add(last)
                    dense = step_of(last) < self.config["stream_stage"].get("keep_ratio_warmup_steps", 0)
                    ratio = 1.0 if dense else None  # the one that it was trained with so far
                    self.score(Path(last), self.args.curve_streams, QUICK_TASKS, ratio, step=step_of(last))
                stage = self.stage
                steps = self.steps_that_fit(training) if replans[stage] < 2 else None
                if steps is not None:
                    training.stop()
                    replans[stage] += 1
                    self.replan(steps)
                    training = self.begin()
            self.result["exit_code"] = training.code
        finally:
            training.stop()

    def steps(self, stage: str) -> int:
        return self.config[f"{stage}_stage"]["max_steps"]

    def finish(self) -> None:
        """Keep the checkpoint, the finished one or the last, then score it."""
        final = self.folder / "final"
        if not (final / "model.safetensors").exists():
            last = last_checkpoint(self.folder / "stream")
            if last is None:
                raise SystemExit("error: there is no checkpoint")
            save(*load(Path(last), "cpu"), final, torch.bfloat16)
        self.result["training_seconds"] = round(self.seconds, 1)
        for stage in ("vision", "stream"):
            if (state := self.folder / stage / "trainer_state.json").exists():
                shutil.copy(state, self.args.output / f"{stage}_state.json")
        with tarfile.open(self.folder / "nano.tar", "w") as archive:
            archive.add(final, "nano")
            archive.add(self.folder.with_suffix(".yaml"), "nano.yaml")
        content = (self.folder / "nano.tar").read_bytes()
        for part, first in enumerate(range(0, len(content), 15 << 20)):
            (self.args.output / f"nano.tar.{part}").write_bytes(content[first : first + (15 << 20)])
        self.write()
        self.score(final, self.args.streams, ANSWERING, None, step="final")
        if self.seconds < self.args.seconds:
            self.score(final, self.args.streams, QUICK_TASKS, 1.0, step="final")


def step_of(checkpoint: str) -> int:
    return int(checkpoint.rsplit("-", 1)[1])


CONFIG = Path(__file__).parent.parent / "training" / "configs" / "nano_levels.yaml"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--output", type=Path, default=Path("runs/nano_run"))
    parser.add_argument("--seconds", type=float, default=545, help="for all of it")
    parser.add_argument("--vision-share", type=float, default=0.27, help="of the seconds, the start counted in")
    parser.add_argument("--scoring-seconds", type=float, default=75, help="kept for the last scores")
    parser.add_argument("--processes", type=int, default=max(1, torch.cuda.device_count()))
    parser.add_argument("--curve-streams", type=int, default=32)
    parser.add_argument("--streams", type=int, default=64, help="of each level and task, for the last scores")
    args = parser.parse_args(argv)
    args.command = " ".join(["python -m videollm_mod.benchmarks.nano_run", *(sys.argv[1:] if argv is None else argv)])
    run = Run(args)
    run.watch()
    run.finish()


if __name__ == "__main__":
    main()
