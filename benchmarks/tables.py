"""All tables of the hard level: trains what is missing, side by side on every card, then writes them.

    python -m videollm_mod.benchmarks.tables run --minutes 9  # again, until it says that none is missing
    python -m videollm_mod.benchmarks.tables report

A run is one row, seed and learning rate (`benchmarks/world_rows.py`). The learning rate of each row is the best of
`RATES` by the validation streams of seed 0; the tables hold the test streams of all seeds.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from .world_rows import PRETRAINING_LR, ROWS, path_of, pretrained_path

RATES = (1e-3, 5e-4, 2e-3)
SEEDS = range(5)
EXPECTED_SECONDS = 170  # of a run beside others; none is started that would be cut off


def wanted(folder: Path, level: str, rows: list[str]) -> list[tuple[str, str, int, float]]:
    """Runs `(row, level, seed, lr)` that are missing and can be started now, first things first."""
    jobs = [(row, level, 0, lr) for lr in RATES for row in rows]
    for row in rows:
        rate = best_rate(folder, row, level)
        if rate is not None:
            jobs += [(row, level, seed, rate) for seed in SEEDS[1:]]
    return [job for job in jobs if not path_of(folder, *job).exists()]


def ready(jobs: list[tuple], args) -> list[tuple]:
    """Those of `jobs` that have the model to start from, after the runs that make one."""
    there = {seed: pretrained_path(args.data, seed).exists() for seed in dict.fromkeys(job[2] for job in jobs)}
    first = [("pretrained", args.level, seed, PRETRAINING_LR) for seed, exists in there.items() if not exists]
    return first + [job for job in jobs if there[job[2]]]


def best_rate(folder: Path, row: str, level: str) -> float | None:
    """None until the sweep of the row is complete."""
    paths = [path_of(folder, row, level, 0, lr) for lr in RATES]
    if not all(path.exists() for path in paths):
        return None
    exact = [json.loads(path.read_text())["validation"]["exact"] for path in paths]
    return RATES[exact.index(max(exact))]


def run_all(args) -> None:
    cards = max(1, torch.cuda.device_count())
    slots: dict[int, tuple[tuple, subprocess.Popen]] = {}
    ends, done, failed = time.monotonic() + 60 * args.minutes, 0, set()
    args.output.mkdir(parents=True, exist_ok=True)
    progress = tqdm(desc="runs", unit="run")
    while True:
        for slot, (job, process) in list(slots.items()):
            if process.poll() is not None:
                del slots[slot]
                progress.update()
                done += process.returncode == 0
                if process.returncode:
                    failed.add(job)
        running = [job for job, _ in slots.values()]
        jobs = ready(wanted(args.output, args.level, args.rows), args)
        jobs = [job for job in jobs if job not in running and job not in failed]
        if not slots and (not jobs or time.monotonic() > ends - EXPECTED_SECONDS):
            break
        for slot in range(cards * args.per_card):
            if jobs and slot not in slots and time.monotonic() < ends - EXPECTED_SECONDS:
                slots[slot] = (job := jobs.pop(0), start(job, slot % cards, args))
        time.sleep(0.5)
    print(f"{done} runs done, {len(failed)} failed, {len(jobs)} missing")
    if failed:
        sys.exit(1)


def start(job: tuple[str, str, int, float], card: int, args) -> subprocess.Popen:
    row, level, seed, lr = job
    name = path_of(args.output, *job).with_suffix(".log")
    command = [sys.executable, "-m", "videollm_mod.benchmarks.world_rows", row, "--level", level, "--seed", str(seed)]
    command += ["--lr", str(lr), "--data", str(args.data), "--output", str(args.output)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(card), "OMP_NUM_THREADS": "1"}
    with open(name, "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--level", default="hard_small", choices=("hard_small", "hard"))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--minutes", type=float, default=9, help="no run is started that would not end by then")
    parser.add_argument("--per-card", type=int, default=8, help="runs side by side on one card")
    parser.add_argument("--data", type=Path, default=Path("runs/world_rows"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/tables"))
    args = parser.parse_args()
    if args.what == "run":
        run_all(args)


if __name__ == "__main__":
    main()
