"""The tables of the hard levels: which runs are started and kept, and scores worked out by hand."""

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from multiprocessing.sharedctypes import RawValue
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from waiting import PATIENCE, killed_in, until

from videollm_mod.benchmarks import tables, tables_depth, tables_page, tables_report, world_rows
from videollm_mod.benchmarks.tables_recipes import RATES, TABLES
from videollm_mod.benchmarks.tables_runs import SEEDS, best_rate, collect, key_of
from videollm_mod.benchmarks.tables_scores import difference, self_conditioned

WRITER = "import os, pathlib, sys; p = pathlib.Path(sys.argv[1]); q = p.with_suffix(f'.{os.getpid()}.part'); "
WRITER += "q.write_text(sys.argv[2]); q.replace(p)"


def run_of(row: str, level: str, seed: int, lr: float, exact=50.0, validation=50.0, **fields) -> dict:
    streaming = {"lm_ppl": 1.5, "time_diff": 0.25, "fluency": 80.0, "lm_correctness": 70.0}
    own_words = {"precision": 90.0, "recall": 90.0, "f1": 90.0, "worded_f1": exact - 1, "exact": exact - 2}
    own_words |= {"said": 5120, "true": 5120}
    score = {"narrations": 5120, "exact": exact, "exact_by_depth": {"0": exact, "1": exact}}
    return {
        **{"row": row, "level": level, "seed": seed, "lr": lr},
        **TABLES[level].recipe,
        **{"flops_per_stream": 4e9, "training_seconds": 60.0, "device": "a card", "versions": {"torch": "2"}},
        "validation": {**score, "exact": validation},
        "test": {**score, "streaming": streaming, "self_conditioned": own_words},
        **{f"test_r{ratio:g}": {**score, "exact": exact - ratio} for ratio in world_rows.ELASTIC_RATIOS},
        "curve": [{"step": step, "exact": exact / 2} for step in (400, 800)],
        **fields,
    }


def write(folder, *runs: dict) -> None:
    """Write a run as `world_rows` does, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        path = world_rows.path_of(folder, *key_of(run))
        path.with_suffix(".part").write_text(json.dumps(run))
        path.with_suffix(".part").replace(path)


def every_row(level: str, exact: dict[str, list[float]], seeds=SEEDS) -> list[dict]:
    """All runs; `exact` of seeds 0, 1, ... for rows that do not have 50 everywhere. The best rate is the second."""
    runs = []
    for row in world_rows.ROWS:
        for seed in seeds:
            score = exact.get(row, [50.0] * len(SEEDS))[seed]
            for lr in RATES if seed == 0 else RATES[1:2]:
                best = lr == RATES[1]  # by validation only: the other rates have the better test scores
                runs.append(run_of(row, level, seed, lr, score if best else 99.0, score - 10 if best else 30.0))
    return runs


def test_the_rate_of_a_row_is_chosen_before_its_other_seeds_run():
    rows = ["dense", "mod"]
    assert tables.wanted({}, "hard", rows) == [(row, "hard", 0, lr) for lr in RATES for row in rows]
    runs = [run_of("mod", "hard", 0, lr, validation=x) for lr, x in zip(RATES, (80, 90, 85), strict=True)]
    runs = {key_of(run): run for run in [*runs, run_of("dense", "hard", 0, RATES[0], validation=99)]}
    missing = tables.wanted(runs, "hard", rows)
    assert missing[:2] == [("dense", "hard", 0, lr) for lr in RATES[1:]]
    assert missing[2:] == [("mod", "hard", seed, RATES[1]) for seed in SEEDS[1:]]
    assert best_rate(runs, "dense", "hard") is None and best_rate(runs, "mod", "hard") == RATES[1]
    (one,) = TABLES["hard_24"].rates  # nothing to choose
    assert tables.wanted({}, "hard_24", rows) == [(row, "hard_24", seed, one) for seed in SEEDS for row in rows]


def test_a_run_waits_for_the_model_it_starts_from(tmp_path):
    args = SimpleNamespace(data=tmp_path, level="hard", seeds=list(SEEDS))
    jobs = [("mod", "hard", 0, 1e-3), ("mod", "hard", 1, 1e-3), ("dense", "hard", 1, 1e-3)]
    first = [("pretrained", "hard", seed, TABLES["hard"].pretraining_lr) for seed in SEEDS]
    assert tables.ready(jobs, args) == first
    world_rows.pretrained_path(tmp_path, TABLES["hard"], 1).touch()
    assert tables.ready(jobs, args) == first[:1] + first[2:] + jobs[1:]
    assert tables.ready([], args) == []
    assert tables.wanted({}, "hard_12", ["mod"], [1, 3]) == [("mod", "hard_12", seed, 1e-3) for seed in (1, 3)]
    args.seeds = [1, 3]
    assert tables.ready(jobs[1:], args) == [first[3], *jobs[1:]]


@pytest.mark.parametrize(
    "given, count, cards",
    [(None, 2, ["0", "1"]), ("3,5", 2, ["3", "5"]), ("1,-1,0", 1, ["1"]), ("", 0, [""]), (None, 0, [""])],
)
def test_a_run_gets_one_of_the_given_gpus(given, count, cards, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert tables.visible_cards() == cards
    show = [sys.executable, "-c", "import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES'], *sys.argv[1:])"]
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: popen([*show, *command[3:]], **options))
    args = SimpleNamespace(data=tmp_path / "data", output=tmp_path)
    for job in (("mod", "hard", 3, 5e-4), ("pretrained", "hard", 3, 1e-3)):
        assert tables.start(job, cards[-1], args).wait() == 0
        told = tables.log_of(tmp_path, job).read_text().rstrip("\n").split(" ")
        assert told[:2] == [cards[-1], job[0]]
        assert ("--output" in told) == (job[0] == "mod")


def test_runs_of_a_level_are_kept_in_one_file(tmp_path):
    runs = [run_of("mod", "hard", 1, 1e-3), run_of("mod", "hard", 0, 1e-3), run_of("dense", "hard", 1, 5e-4)]
    small = run_of("dense", "hard_small", 0, 1e-3)
    write(tmp_path, *runs[:2], small)
    assert collect(tmp_path, "hard") == collect(tmp_path, "hard") == {key_of(run): run for run in runs[:2]}
    write(tmp_path, runs[2], runs[1])  # as if killed between the two steps: in the file, and not yet removed
    assert collect(tmp_path, "hard") == {key_of(run): run for run in runs}
    assert [json.loads(line) for line in (tmp_path / "hard.jsonl").read_text().splitlines()] == runs[::-1]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["hard.jsonl", "hard_small_dense_lr0.001_s0.json"]
    assert collect(tmp_path, "hard_small") == {key_of(small): small}


def write_and_collect(folder, row: str, seeds: range, written) -> None:
    for seed in seeds:
        write(folder, run_of(row, "hard", seed, 1e-3))
        written.value = seed + 1
        collect(folder, "hard")


def forked(function, *args):
    process = get_context("fork").Process(target=function, args=args)
    process.start()
    return process


def test_collectors_lose_nothing_in_parallel_or_when_killed(tmp_path):
    rows, written = ("dense", "mod", "random", "uniform"), RawValue("i", 0)
    workers = [forked(write_and_collect, tmp_path, row, range(25), written) for row in rows]
    for worker in workers:
        worker.join(PATIENCE)
        assert worker.exitcode == 0
    runs = collect(tmp_path, "hard")
    assert sorted(runs) == [(row, "hard", seed, 1e-3) for row in rows for seed in range(25)]
    written.value = 0
    for attempt in range(12):
        first = written.value
        worker = forked(write_and_collect, tmp_path, "frozen", range(first, 9999), written)
        while written.value < first + 2 and worker.is_alive():
            time.sleep(0.001)
        time.sleep(0.003 * attempt)
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        now = collect(tmp_path, "hard")
        frozen = {seed for row, _, seed, _ in now if row == "frozen"}
        assert frozen >= set(range(written.value)) and runs.items() <= now.items()


def start_writer(job, card, args) -> subprocess.Popen:
    """Instead of training: some runs end together, some while the next is started."""
    row, level, seed, lr = job
    time.sleep(0.02 * seed)
    text = json.dumps(run_of(row, level, seed, lr, validation=60.0 - 1e3 * lr))
    return subprocess.Popen([sys.executable, "-S", "-c", WRITER, world_rows.path_of(args.output, *job), text])


def test_programs_lose_nothing_in_parallel_or_when_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "start", start_writer)
    output = tmp_path / "tables"
    for seed in SEEDS:
        world_rows.pretrained_path(tmp_path, TABLES["hard"], seed).touch()

    def arguments(rows: list[str]) -> SimpleNamespace:
        return SimpleNamespace(
            data=tmp_path, output=output, level="hard", rows=rows, seeds=[0, 1, 2, 3, 4], minutes=60, per_card=2
        )

    def run(come) -> None:
        monkeypatch.setattr(tables, "start", lambda *job: come() or start_writer(*job))
        tables.run_all(arguments(["dense", "mod"]))

    known = 0
    for count in (1, 4, 5):  # killed where it is about to start so many runs
        assert killed_in(run, count)
        there = len(collect(output, "hard")) if output.exists() else 0
        assert there >= known
        known = there
    assert known < 14
    # two programs on one folder
    processes = [forked(tables.run_all, arguments(rows)) for rows in (["dense", "mod"], ["random", "mod"])]
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
    rows, best = ("dense", "mod", "random"), min(RATES)
    expected = {(row, "hard", 0, lr) for row in rows for lr in RATES}
    expected |= {(row, "hard", seed, best) for row in rows for seed in SEEDS}
    # a run whose program was killed may end only now, and is taken in by whoever comes next
    until(lambda: collect(output, "hard") and len(list(output.iterdir())) == 1)
    lines = [json.loads(line) for line in (output / "hard.jsonl").read_text().splitlines()]
    assert [key_of(run) for run in lines] == sorted(expected)
    assert all(run == run_of(*key_of(run), validation=60.0 - 1e3 * run["lr"]) for run in lines)
    assert [path.name for path in output.iterdir()] == ["hard.jsonl"]


def test_differences_are_paired_by_seed():
    found = difference({0: 11.0, 1: 12.0, 2: 13.0, 7: 0.0}, {0: 10.0, 1: 10.0, 2: 10.0, 8: 99.0})
    assert (found.n, found.mean) == (3, 2.0)
    half = 4.302653 / 3**0.5  # 97.5 % quantile of t with two degrees of freedom, by a printed table; deviation 1
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-6) and not found.shown
    surer = difference(dict.fromkeys(range(5), 1.0) | {4: 1.5}, dict.fromkeys(range(5), 0.0))
    half = 2.776445 * 0.2236068 / 5**0.5
    assert (surer.low, surer.high) == pytest.approx((1.1 - half, 1.1 + half), abs=1e-6) and surer.shown
    same = difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert (same.low, same.high, same.shown) == (0, 0, False)
    assert difference({0: 1.0}, {1: 1.0}) is None
    single = difference({0: 1.0}, {0: 0.0})
    assert single.low is None and not single.shown and "no interval" in tables_page.in_words(single)


def test_precision_and_recall_with_the_words_follow_from_the_counts():
    said, true, matched = 8, 10, 6
    scores = {"worded_f1": round(200 * matched / (said + true), 3), "said": said, "true": true, "f1": 80.0}
    run = {"test": {"self_conditioned": scores}}
    assert self_conditioned("worded_precision")(run) == pytest.approx(75, abs=1e-3)
    assert self_conditioned("worded_recall")(run) == pytest.approx(60, abs=1e-3)
    assert self_conditioned("f1")(run) == 80


def cells(page: str, section: str, row: str) -> list[str]:
    """Of the first table line after `section` whose first cell starts with `row`, the others."""
    lines = [line for line in page.split(section, 1)[1].splitlines() if line.startswith(f"| {row}")]
    return [cell.strip() for cell in lines[0].split("|")[2:-1]]


EXACT = {
    "dense": [99.0, 98.0, 97.0, 98.0, 98.0],
    "mod": [98.0, 98.0, 98.0, 98.0, 98.0],
    "mod_output": [98.5, 98.5, 98.5, 98.5, 98.5],
    "random": [70.0, 71.0, 72.0, 73.0, 74.0],
    "layer_skip": [60.0, 60.0, 60.0, 60.0, 65.0],
}


def test_the_report_of_all_rows(tmp_path):
    write(tmp_path / "tables", *every_row("hard", EXACT))
    tables_report.report(tmp_path / "tables")
    page = (tmp_path / "world_tables.md").read_text()
    first = "Teacher-forced:"
    assert cells(page, first, "`dense`") == ["0.0005", "1.5000", "0.250", "80.00", "70.00", "98.00", ""]
    # mod minus dense: -1, 0, 1, 0, 0; deviation sqrt(1 / 2), so 2.776445 * 0.7071068 / sqrt(5) = 0.878
    assert cells(page, first, "`mod`")[-2:] == ["98.00", "+0.00 [-0.88, +0.88], not shown"]
    own = ["97.00 / 97.00 / 97.00", "", "90.00 / 90.00 / 90.00", "96.00", ""]
    assert cells(page, "Self-conditioned (", "`dense`") == own
    assert cells(page, "Training:", "`mod`") == ["4.00", "1.000", "60"]
    assert cells(page, "### Table 3", "row")[2:] == ["`mod` minus it", "`mod_output` minus it"]
    # random minus dense: -29, -27, -25, -25, -24; mean -26, deviation 2, half 2.483; mod_output, the best by
    # validation, minus random: 28.5, 27.5, ..., 24.5; deviation 1.5811, half 1.963
    found = ["72.00", "-26.00 [-28.48, -23.52]", "+26.00 [+24.04, +27.96]", "+26.50 [+24.54, +28.46]"]
    assert cells(page, "### Table 3", "`random`") == found
    assert cells(page, first, "`mod_output`, our best")[-2] == "98.50"
    assert cells(page, "### Table 2", "`mod`: inter")[0] == cells(page, "### Table 3", "`mod`: r=0.2")[0] == "98.00"
    assert cells(page, "### Ours", "`mod_elastic`")[2] == "-48.00 [-48.00, -48.00]"  # minus mod
    # elastic training, 50 - r at each ratio, next to 50
    assert cells(page, "Elastic training", "r=0.3") == ["49.70", "50.00", "-0.30 [-0.30, -0.30]"]
    # 39, 38, 37, 38, 33: mean 37, deviation 2.3452, half 2.912
    found = ["+15 or more", "+37.00 [+34.09, +39.91]", "reached"]
    assert cells(page, "### Targets", "`dense` minus `layer_skip`") == found
    # -0.5, 0.5, 1.5, 0.5, 0.5
    found = ["-0.5 or more", "+0.50 [-0.38, +1.38]", "reached"]
    assert cells(page, "### Targets", "`mod_output` minus `dense`, exact") == found
    assert "Nothing." in page and "No runs." in page  # of `hard`; and none of the other level
    for name in ("exact", "depth", "curves"):
        with Image.open(tmp_path / f"world_tables_{name}.png") as picture:
            assert max(picture.info["dpi"]) < 120.1 and len(picture.getcolors(1 << 20)) > 10
    summary = json.loads((tmp_path / "summary.json").read_text())
    values = {name: entry["value"] for name, entry in summary.items()}
    assert values == {
        "world_dense_exact": 98.0,
        "world_mod_exact": 98.5,
        "world_layer_skip_exact": 61.0,
        "world_early_exit_exact": 50.0,
        "world_cls_exact": 50.0,
        "world_random_exact": 72.0,
        "world_uniform_exact": 50.0,
        "world_dense_self_f1": 97.0,
        "world_mod_self_f1": 97.5,
        "world_seeds": 5,
    }
    source = summary["world_mod_self_f1"]["source"]
    assert "hard.jsonl" in source and "row mod_output" in source and "same words" in source
    assert "70, 71, 72, 73, 74" in summary["world_random_exact"]["source"]


def test_each_seed_of_both_levels_is_one_pair(tmp_path):
    write(tmp_path / "tables", *every_row("hard", EXACT), *every_row("hard_small", EXACT | {"frozen": [60] * 5}))
    tables_report.report(tmp_path / "tables")
    page = (tmp_path / "world_tables.md").read_text()
    dense = sum(EXACT["dense"]) / 5
    assert cells(page, "## Both levels", "`frozen`")[0].startswith(f"{(50 + 60) / 2 - dense:+.2f} [")
    assert cells(page, "## Both levels", "`mod_none`")[2] == "-5.00 [-5.00, -5.00]"  # 50 against 55 for every seed
    write(tmp_path / "one" / "tables", *every_row("hard", EXACT))
    tables_report.report(tmp_path / "one" / "tables")
    assert "Both levels" not in (tmp_path / "one" / "world_tables.md").read_text()


def test_missing_runs_are_named_and_have_no_figures(tmp_path, capsys):
    runs = every_row("hard", EXACT)
    lacking = {("uniform", 2), ("uniform", 3), ("uniform", 4), ("mod_none", 4)}
    runs = [run for run in runs if (run["row"], run["seed"]) not in lacking]
    runs = [run for run in runs if run["row"] != "mod_all" and (run["row"], run["lr"]) != ("mod_r0.1", RATES[2])]
    write(tmp_path / "tables", *runs, run_of("mine", "hard", 0, 1e-3))
    tables_report.report(tmp_path / "tables")
    page, printed = (tmp_path / "world_tables.md").read_text(), capsys.readouterr().out
    for text in (
        "- `mod_all`: learning rates 0.001, 0.0005, 0.002 of seed 0",
        "- `mod_r0.1`: learning rates 0.002 of seed 0",
        "- `uniform`: seeds 2, 3, 4 at 0.0005",
        "- `mod_none`: seeds 4 at 0.0005",
        "no such row: `mine`",
    ):
        assert text in page and text in printed
    assert set(cells(page, "### Table 2", "`mod_all`")) == {"missing"}
    assert "(2 seeds)" in cells(page, "### Table 3", "`uniform` (2 seeds)")[1]
    assert "No figures for `summary.json`: fewer than 3 seeds of `uniform`." in page
    assert not (tmp_path / "summary.json").exists()
    # with three seeds there are figures, over the seeds that all rows have
    write(tmp_path / "tables", run_of("uniform", "hard", 2, RATES[1]))
    tables_report.report(tmp_path / "tables")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["world_seeds"]["value"] == 3 and summary["world_random_exact"]["value"] == 71.0


@pytest.mark.parametrize("what", ["report", "run"])
@pytest.mark.parametrize(
    "old", [{"stage": ["hard", 2000, 64]}, {"stage": None}, {"hidden": 64}, {"pretraining": ["hard_small", 1, 1, 0.1]}]
)
def test_runs_of_two_recipes_are_refused(what, old, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "tables"
    write(folder, run_of("dense", "hard", 0, 1e-3))
    collect(folder, "hard")
    write(folder, run_of("mod", "hard", 0, 1e-3, **old))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(sys, "argv", ["tables", what, "--level", "hard", "--output", str(folder)])
    with pytest.raises(SystemExit) as stopped:
        tables.main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: runs of `hard` in ") and "mod, seed 0" in line and "elsewhere" in line
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_without_runs_gives_one_error_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tables", "report", "--output", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as stopped:
        tables.main()
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_deep_rows_are_compared_with_chance_at_the_same_operations(tmp_path):
    folder, level = tmp_path / "tables", "crowd_12"
    kept = {"dense": (21.9, 99.9), "mod_all_deep": (7.7, 99.5), "random_all_deep": (7.7, 24.0), "mod": (13.4, 99.8)}
    rate, *others = TABLES[level].rates
    for row, (gflop, exact) in kept.items():
        runs = [run_of(row, level, 0, other, 100.0, validation=exact - 1) for other in others]
        for seed in SEEDS if row != "mod" else SEEDS[:2]:
            runs.append(run_of(row, level, seed, rate, exact - seed / 10, validation=exact))
        write(folder, *({**run, "flops_per_stream": gflop * 1e9} for run in runs))
    tables_depth.report(folder)
    page = (tmp_path / "world_depth.md").read_text()
    lines = {line.split("`")[1]: line.split(" | ") for line in page.splitlines() if line.startswith("| `")}
    assert list(lines) == ["dense", "mod", "mod_all_deep", "random_all_deep"]  # by falling operations
    assert lines["mod_all_deep"][1:4] == ["0.352", "99.30", "99.50, 99.40, 99.30, 99.20, 99.10"]
    assert lines["mod_all_deep"][4:6] == ["-0.40 [-0.40, -0.40]", "-0.40"]
    assert lines["mod_all_deep"][6] == "+75.50 [+75.50, +75.50] |"
    assert "99.80, 99.70, -, -, -" in page and "Fewer than 3 seeds: `mod`." in page
    assert "by validation: `mod_all_deep`" in page  # `mod` has more operations than the best may have
    figures = {name: figure["value"] for name, figure in json.loads((tmp_path / "summary.json").read_text()).items()}
    assert figures == {
        "depth12_dense_exact": 99.7,
        "depth12_best_exact": 99.3,
        "depth12_random_exact": 23.8,
        "depth12_best_operations": 0.352,
    }
    with Image.open(tmp_path / "world_depth.png") as picture:
        assert picture.size == (600, 480)


def test_rows_have_the_peers_that_differ_only_in_what_they_choose():
    peers = {row: tables_depth.peer(row, "random") for row in world_rows.ROWS | world_rows.DEEP_ROWS}
    assert peers["mod"] == peers["mod_warmup"] == peers["mod_output"] == "random"
    assert peers["mod_all_deep"] == peers["mod_all_deep_warmup"] == "random_all_deep"
    assert peers["mod_r0.5"] is None  # no row chooses half of them at random


def test_there_is_no_page_of_deep_rows_without_dense(tmp_path):
    write(tmp_path / "tables", *(run_of("mod", "crowd_12", 0, rate) for rate in TABLES["crowd_12"].rates))
    with pytest.raises(FileNotFoundError, match="no runs of dense"):
        tables_depth.report(tmp_path / "tables")
    assert not (tmp_path / "world_depth.md").exists()
