"""All tables of the hard levels: train the missing runs in parallel on all GPUs, then write the tables.

    python -m videollm_mod.benchmarks.tables run --minutes 9  # repeat until no run is missing
    python -m videollm_mod.benchmarks.tables report
    python -m videollm_mod.benchmarks.tables depth  # of tables with more than four layers

A run is one row, seed and learning rate (`benchmarks/world_rows.py`). The learning rate of a row is the best of those
of its level (`tables_recipes.py`) on the validation streams of seed 0; the tables show the test streams of all seeds.
Runs are kept in one file per level, `--output/LEVEL.jsonl`. `report` writes `world_tables.md`, its plots and the
figures of `summary.json` next to that folder.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

import torch
from tqdm import tqdm

from .tables_recipes import TABLES
from .tables_runs import SEEDS, Key, Runs, best_rate, collect
from .world_rows import DEEP_ROWS, ROWS, path_of, pretrained_path

SECONDS, SECONDS_PER_LAYER = 60, 12  # of a run next to others; no run is started that would be cut off


def wanted(runs: Runs, level: str, rows: list[str], seeds: Collection[int] = SEEDS) -> list[Key]:
    """Missing runs `(row, level, seed, lr)` of `seeds` that can be started now, in order of priority."""
    jobs = [(row, level, 0, lr) for lr in TABLES[level].rates for row in rows]
    rates = [(row, rate) for row in rows if (rate := best_rate(runs, row, level)) is not None]
    jobs += [(row, level, seed, rate) for seed in SEEDS[1:] for row, rate in rates]
    return [job for job in jobs if job not in runs and job[2] in seeds]


def ready(jobs: list[Key], args) -> list[Key]:
    """The runs that make pretrained models, for all seeds at once, since the sweep of the first seed takes longer;
    then those of `jobs` whose pretrained model exists."""
    seeds = args.seeds if jobs else ()
    there = {seed: pretrained_path(args.data, TABLES[args.level], seed).exists() for seed in seeds}
    rate = TABLES[args.level].pretraining_lr
    first = [("pretrained", args.level, seed, rate) for seed, exists in there.items() if not exists]
    return first + [job for job in jobs if there[job[2]]]


def visible_cards() -> list[str]:
    """The GPUs that this program may use, as in `CUDA_VISIBLE_DEVICES`; one empty name if there is none."""
    given, count = os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count()
    return (list(map(str, range(count))) if given is None else given.split(",")[:count]) or [""]


def run_all(args) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    cards, runs = visible_cards(), collect(args.output, args.level, TABLES[args.level].recipe)
    slots: dict[int, tuple[Key, subprocess.Popen]] = {}
    ends, done, failed = time.monotonic() + 60 * args.minutes, 0, set()
    last_start = ends - SECONDS - SECONDS_PER_LAYER * TABLES[args.level].layers
    progress = tqdm(desc="runs", unit="run")
    while True:
        for slot, (job, process) in list(slots.items()):
            if process.poll() is not None:
                del slots[slot]
                progress.update()
                if process.returncode:
                    failed.add(job)
                    continue
                done += 1
                runs = collect(args.output, args.level, TABLES[args.level].recipe)
                log_of(args.output, job).unlink(missing_ok=True)
        running = [job for job, _ in slots.values()]
        jobs = ready(wanted(runs, args.level, args.rows, args.seeds), args)
        jobs = [job for job in jobs if job not in running and job not in failed]
        if not slots and (not jobs or time.monotonic() > last_start):
            break
        for slot in range(len(cards) * args.per_card):
            if jobs and slot not in slots and time.monotonic() < last_start:
                slots[slot] = (job := jobs.pop(0), start(job, cards[slot % len(cards)], args))
        time.sleep(0.5)
    progress.close()
    print(f"{done} runs done, {len(failed)} failed, {len(jobs)} missing")
    if failed:
        print("failed:", *(log_of(args.output, job) for job in sorted(failed)))
        sys.exit(1)


def log_of(folder: Path, job: Key) -> Path:
    return path_of(folder, *job).with_suffix(".log")


def start(job: Key, card: str, args) -> subprocess.Popen:
    row, level, seed, lr = job
    command = [sys.executable, "-m", "videollm_mod.benchmarks.world_rows", row, "--level", level, "--seed", str(seed)]
    command += ["--lr", str(lr), "--data", str(args.data)]
    if row != "pretrained":  # pretrained models are kept with the data
        command += ["--output", str(args.output)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": card, "OMP_NUM_THREADS": "1"}
    with open(log_of(args.output, job), "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "report", "depth"))
    parser.add_argument("--level", default="hard_small", choices=TABLES)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=[*ROWS, *DEEP_ROWS])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), choices=SEEDS)
    parser.add_argument(
        "--minutes", type=float, default=9, help="start no run that would not end by then (default: 9)"
    )
    parser.add_argument("--per-card", type=int, default=8, help="parallel runs per GPU (default: 8)")
    parser.add_argument("--data", type=Path, default=Path("runs/world_rows"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/tables"))
    args = parser.parse_args()
    try:
        if args.what == "run":
            run_all(args)
        elif args.what == "depth":
            from . import tables_depth  # needs packages that a run does not need

            tables_depth.report(args.output)
        else:
            from . import tables_report

            tables_report.report(args.output)
    except (ValueError, OSError, ImportError) as error:
        needs = ": pip install videollm-mod[eval]" if isinstance(error, ImportError) else ""
        print(f"error: {error}{needs}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
