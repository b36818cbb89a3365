"""Write the tables as one Markdown file, with plots and the figures of `summary.json`, from the raw runs only."""

import subprocess
from pathlib import Path
from statistics import mean

from ..bench.record import summarise
from .tables_page import RECIPES, Page, of_both
from .tables_plots import draw_curves, draw_depth, draw_exact
from .tables_recipes import RATES
from .tables_runs import SEEDS, collect, path_of_level
from .tables_scores import MIN_SEEDS, Level, Score, exact, worded_f1

LEVELS = {"hard": "1+7x7 tokens per frame, the main result", "hard_small": "1+3x3 tokens per frame"}
COMMAND = "python -m videollm_mod.benchmarks.tables report"
INTRODUCTION = f"""# The tables of the hard level

The models have 4 layers; the tables say nothing about deeper ones. The rows are those of `benchmarks/world_rows.py`,
trained by `python -m videollm_mod.benchmarks.tables run --level LEVEL`. Every number comes from the raw runs in
`tables/LEVEL.jsonl`, with one run per line. This file, its plots and the `world_*` figures of `summary.json` are
written by `{COMMAND}`.

- All rows of a seed start from one dense model (`pretraining`) and train on the level for the same steps and streams.
- The learning rate of a row is the best of {", ".join(f"{rate:g}" for rate in RATES)} by exact narrations on the
  validation streams of seed 0. The tables hold the test streams, as means over {len(SEEDS)} seeds at that rate.
- A row with fewer than {MIN_SEEDS} seeds is marked with their number.
- Differences are paired by seed, in points, with a 95 % t-interval over seeds. "Not shown" means that the interval
  includes zero or, in the table of targets, the target. Intervals are not widened for the number of comparisons.
- Exact is the percentage of narrations for which every silent decision since the previous one, the decision to speak
  and every token of the reply is the most likely. Self-conditioned, it needs the same frame and the same words. F1
  matches segments at IoU 0.5; "with the words" counts a match only if the words are the same.
- FLOPs are those of the matrix products of one stream, forward and backward, at the row's own keep ratio; "> " marks
  rows that keep more during training. Seconds depend on other runs on the same GPU, so they are hard to compare.
"""


def recipe_in_words(level: Level) -> str:
    run = next(iter(level.runs.values()))
    devices = sorted({run["device"] for run in level.runs.values()})
    versions = sorted({f"{name} {v}" for run in level.runs.values() for name, v in run["versions"].items()})
    (first, steps, streams, *_, rate), (own, own_steps, own_streams) = run["pretraining"], run["stage"]
    return (
        f"{len(level.runs)} runs, {run['layers']} layers of {run['hidden']}; pretraining: {steps} steps of {streams} "
        f"streams of `{first}` at {rate:g}; then {own_steps} steps of {own_streams} streams of `{own}`, drawn from "
        f"{run['streams']} and as many lessons. Scored on {run['test']['narrations']} test narrations. "
        f"{', '.join(devices)}; {', '.join(versions)}."
    )


def commit() -> str:
    """The commit of the running code; empty outside a repository."""
    here = Path(__file__).resolve().parent
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    return asked.stdout.strip()


def write_figures(level: Level, folder: Path, source: str) -> str:
    """Enter means over the seeds that all needed rows have into `folder/summary.json`. Return a sentence about it."""
    needed = ["dense", "layer_skip", "early_exit", "class_token", "random", "uniform", *RECIPES]
    if few := level.too_few(needed):
        return f"No figures for `summary.json`: fewer than {MIN_SEEDS} seeds of {', '.join(f'`{x}`' for x in few)}."
    best, seeds = level.best(RECIPES), sorted(set.intersection(*(set(level.of(row)) for row in needed)))
    if best is None or len(seeds) < MIN_SEEDS:
        return f"No figures for `summary.json`: its rows have the seeds {seeds} in common, of {MIN_SEEDS} needed."
    at = f" at {commit()}" * bool(commit())

    def enter(name: str, row: str, score: Score, what: str) -> None:
        values = [score(level.of(row)[seed]) for seed in seeds]
        seeds_of = f"test {what} of seeds {', '.join(map(str, seeds))}: {', '.join(f'{x:g}' for x in values)}"
        text = f"{source}{at}, row {row}, learning rate {level.rate(row):g}, {seeds_of}"
        summarise(name, round(mean(values), 3), text, COMMAND, folder)

    names = {"dense": "dense", "mod": best, "layer_skip": "layer_skip", "early_exit": "early_exit"}
    names |= {"cls": "class_token", "random": "random", "uniform": "uniform"}
    for name, row in names.items():
        enter(f"world_{name}_exact", row, exact, "exact narrations, teacher-forced,")
    for name in ("dense", "mod"):
        what = "F1 on its own words, matched in time and the same words,"
        enter(f"world_{name}_self_f1", names[name], worded_f1, what)
    summarise("world_seeds", len(seeds), f"{source}{at}, seeds that all rows of the figures have", COMMAND, folder)
    return f"`world_mod_*` of `summary.json` is `{best}`, over the seeds {', '.join(map(str, seeds))}."


def report(runs_folder: Path) -> None:
    """Write `world_tables.md`, its plots and its figures next to `runs_folder`.

    Raises:
        `FileNotFoundError`: if there are no runs.
        `ValueError`: if the runs of a level have different recipes; then nothing is written.
    """
    if not runs_folder.is_dir():
        raise FileNotFoundError(f"no runs: {runs_folder} is not a folder")
    levels = [Level(name, collect(runs_folder, name)) for name in LEVELS]
    there, folder = [level for level in levels if level.runs], runs_folder.parent
    if not there:
        raise FileNotFoundError(f"no runs of {' or '.join(LEVELS)} in {runs_folder}")
    pages = {level.name: Page(level) for level in there}
    lines = [*INTRODUCTION.splitlines(), ""]
    for title, draw in (("exact", draw_exact), ("depth", draw_depth), ("curves", draw_curves)):
        picture = draw({level: page.best for level, page in zip(there, pages.values(), strict=True)})
        picture.savefig(folder / f"world_tables_{title}.png", dpi=100)
        lines += [f"![{title}](world_tables_{title}.png)", ""]
    for level in levels:
        lines += [f"## `{level.name}`: {LEVELS[level.name]}", ""]
        lines += [recipe_in_words(level), "", *pages[level.name].lines()] if level.runs else ["No runs.", ""]
        if level.name == "hard":
            lines += [write_figures(level, folder, path_of_level(runs_folder, level.name).as_posix()), ""]
    if len(there) > 1:
        lines += of_both(there)
    path = folder / "world_tables.md"
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print(path)
    for level in there:
        print(f"{level.name}:", *pages[level.name].missing()[2:-1], sep="\n  ")
