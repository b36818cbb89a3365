"""All tables of the hard level: trains what is missing, side by side on every card, then writes them.

    python -m videollm_mod.benchmarks.tables run --minutes 9  # again, until it says that none is missing
    python -m videollm_mod.benchmarks.tables report

A run is one row, seed and learning rate (`benchmarks/world_rows.py`). The learning rate of each row is the best of
`RATES` by the validation streams of seed 0; the tables hold the test streams of all seeds. Runs are kept in one file a
level, `--output/LEVEL.jsonl`; `report` writes `world_tables.md`, its plots and the figures of `summary.json` beside
that folder.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from .tables_runs import RATES, SEEDS, Key, Runs, best_rate, collect
from .world_rows import HIDDEN, LAYERS, PRETRAINING, PRETRAINING_LR, ROWS, STAGES, STREAMS, path_of, pretrained_path

EXPECTED_SECONDS = 110  # of a run beside others; none is started that would be cut off


def wanted(runs: Runs, level: str, rows: list[str]) -> list[Key]:
    """Runs `(row, level, seed, lr)` that are missing and can be started now, first things first."""
    jobs = [(row, level, 0, lr) for lr in RATES for row in rows]
    for row in rows:
        rate = best_rate(runs, row, level)
        if rate is not None:
            jobs += [(row, level, seed, rate) for seed in SEEDS[1:]]
    return [job for job in jobs if job not in runs]


def ready(jobs: list[Key], args) -> list[Key]:
    """Those of `jobs` that have the model to start from, after the runs that make one: of all seeds at once, for the
    sweep of the first takes longer."""
    there = {seed: pretrained_path(args.data, seed).exists() for seed in (SEEDS if jobs else ())}
    first = [("pretrained", args.level, seed, PRETRAINING_LR) for seed, exists in there.items() if not exists]
    return first + [job for job in jobs if there[job[2]]]


def recipe(level: str) -> dict:
    """What the runs that are there must have in common with those that would be started."""
    pretraining = [*PRETRAINING, PRETRAINING_LR]
    shape = {"layers": LAYERS, "hidden": HIDDEN, "streams": STREAMS}
    return {"pretraining": pretraining, "stage": list(STAGES[level]), **shape}


def visible_cards() -> list[str]:
    """The cards that this program may use, as `CUDA_VISIBLE_DEVICES` names them; one empty name if there is none."""
    given, count = os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count()
    return (list(map(str, range(count))) if given is None else given.split(",")[:count]) or [""]


def run_all(args) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    cards, runs = visible_cards(), collect(args.output, args.level, recipe(args.level))
    slots: dict[int, tuple[Key, subprocess.Popen]] = {}
    ends, done, failed = time.monotonic() + 60 * args.minutes, 0, set()
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
                runs = collect(args.output, args.level, recipe(args.level))
                log_of(args.output, job).unlink(missing_ok=True)
        running = [job for job, _ in slots.values()]
        jobs = ready(wanted(runs, args.level, args.rows), args)
        jobs = [job for job in jobs if job not in running and job not in failed]
        if not slots and (not jobs or time.monotonic() > ends - EXPECTED_SECONDS):
            break
        for slot in range(len(cards) * args.per_card):
            if jobs and slot not in slots and time.monotonic() < ends - EXPECTED_SECONDS:
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
    if row in ROWS:  # what the others start from is kept with the data
        command += ["--output", str(args.output)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": card, "OMP_NUM_THREADS": "1"}
    with open(log_of(args.output, job), "w") as log:
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
    try:
        if args.what == "run":
            run_all(args)
        else:
            from .tables_report import report  # needs libraries that a run does not

            report(args.output)
    except (ValueError, OSError, ImportError) as error:
        needs = ": pip install videollm-mod[eval]" if isinstance(error, ImportError) else ""
        print(f"error: {error}{needs}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
