"""The page of `bench plan`: its arithmetic is worked out by hand, and all its numbers come from results."""

import json
import re
import shlex

import pytest
from fresh_process import ROOT

from videollm_mod.bench import plan, plan_arithmetic
from videollm_mod.bench.geometries import BOS, END, EOS, START
from videollm_mod.bench.growth_cases import WORKING_BYTES
from videollm_mod.bench.plan_page import number, page
from videollm_mod.bench.plan_results import MEASURED, growth_rows, read
from videollm_mod.bench.record import RESULTS
from videollm_mod.bench.streams import RandomStreams, random_model
from videollm_mod.commands import cli

COMMANDS = {wanted.command for wanted in MEASURED.values()}


def test_arithmetic():
    assert plan_arithmetic.live_streams(35.9) == 17  # at 2 frames a second
    assert plan_arithmetic.gpu_hours(1_000_000, 500.0) == 4000  # 7.2e9 frames, 500 a second, 3600 seconds
    assert plan_arithmetic.decoding_cores(500.0, 2.0) == 15  # 250 s of video a second, 30 frames in each, 2 ms
    assert plan_arithmetic.training_efficiency(1.9, 1) == 1
    assert plan_arithmetic.training_efficiency(1.9, 2) == 0.95
    assert plan_arithmetic.training_efficiency(1.9, 64) == pytest.approx(0.95**6)
    assert plan_arithmetic.feature_bytes(1, 1024) == 7200 * 10 * 1024 * 2
    free = 9 * 8 * 10**9  # what remains of it, of which a room's spare takes a ninth
    assert plan_arithmetic.frames_held(free + 10**10 + WORKING_BYTES, 10**10, 8, 10**6) == 8000
    assert plan_arithmetic.frames_held(10**9, 10**10, 8, 10**6) == 0


def test_sample_tokens_match_the_random_streams():
    for frames in (20, 45):
        sample = RandomStreams(random_model("tiny", "cpu", 10).config, frames)[0]["input_ids"]
        counted, known = plan_arithmetic.sample_tokens(
            f"{frames} frames of 10 tokens, a reply of 12 words after every 20th"
        )
        assert (counted, known) == (len(sample), frames) and {BOS, START, END, EOS} <= set(sample)


@pytest.mark.parametrize(
    "value, text", [(None, "?"), (0, "0"), (3.14159, "3.14"), (99.96, "100"), (123.4, "123"), (917504, "917,504")]
)
def test_numbers(value, text):
    assert number(value) == text


def test_large_numbers():
    assert [number(x) for x in (1_441_792, 1.6e10, 1.47e14)] == ["1.44 M", "16 G", "147 T"]


GPU = {"machine": {"gpus": ["GPU of a test", "GPU of a test"]}}


def results(folder, **changed):
    """A folder with results of all kinds."""
    files = {
        "stream": {"rows": [{"name": "decode", "p50_ms": 1.5}]},
        "offline": {},
        "pool": {"ways": {"live": {"frames_per_second_pool": [230.0, 251.0, 240.0]}}},
        "growth": {"memory_bytes": 85_000_000_000, "rows": rows_of_growth()},
        "memory": {"cache": [{"tokens_per_frame": 10, "keep_ratio": 0.2, "mod": 900_000.0, "dense": 1_400_000.0}]},
        "scale": {
            "samples_per_second": {"1": 1.5},
            "sample": "600 frames of 10 tokens, a reply of 12 words after every 20th",
        },
    } | changed
    figures = {
        "end_to_end_fps": (130.0, "stream"),
        "end_to_end_block_fps": (640.0, "stream"),
        "pool_8_throughput": (3.0, "pool"),
        "offline_fps_10": (2560.0, "offline"),
        "growth_ms_100": (5.0, "growth"),
        "cache_ratio_10": (0.64, "memory"),
        "ddp_speedup_2": (1.8, "scale"),
    }
    for name, content in files.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps({**GPU, **content}))
    entries = {
        name: {"value": value, "source": f"benchmarks/results/{file}.json", "command": "of a test"}
        for name, (value, file) in figures.items()
    }
    (folder / "summary.json").write_text(json.dumps(entries))


def rows_of_growth() -> list[dict]:
    middle = {"frames": 600, "tokens": 10, "batch": 1, "keep_ratio": 0.2, "way": "mod", "cache_bytes": 2**29}
    timed = {"stream": {"ms_per_frame": 6.78}, "block": {"ms_per_frame": 0.456}}
    return [
        {**middle, "fits": True, **timed},
        {**middle, "frames": 20_000, "tokens": 101, "way": "dense", "cache_bytes": 249 * 2**30, "fits": False},
        {**middle, "batch": 4, "fits": True, "stream": {"ms_per_frame": 2.34}},
    ]


def page_of(folder) -> str:
    output = folder / "planning.md"
    assert cli.main(["bench", "plan", "--results", str(folder), "--output", str(output)]) == 0
    return output.read_text(encoding="utf-8")


def row(page: str, name: str) -> list[str]:
    line = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_the_page_is_made_of_results(tmp_path):
    results(tmp_path)
    page = page_of(tmp_path)
    assert row(page, "in pools") == ["125", "1,000", "8,000"]
    assert row(page, "without a pool") == ["65", "520", "4,160"]
    assert row(page, "from decoded frames") == ["3,125", "391", "48.8", "320"]
    assert row(page, "from features") == ["781", "97.7", "12.2", "1,280"]
    assert "which keeps 14.4 CPU cores busy" in page  # 320 s a second, 30 frames, 1.5 ms
    assert row(page, "share of ideal scaling") == ["1", "0.729", "0.531"]
    tokens = 1.5 * 7021 * 3600
    assert row(page, "tokens per hour") == [number(tokens), number(tokens * 8 * 0.729), number(tokens * 64 * 0.9**6)]
    assert row(page, "hours of video per hour") == ["450", "2,624", "15,306"]  # 900 frames a second
    assert row(page, "hours for one pass over 1 M hours") == ["2,222", "381", "65.3"]
    free = 85_000_000_000 - plan.sizes()["weights"] - WORKING_BYTES
    held = [int(free / 125 / (bytes_ * 9 / 8)) for bytes_ in (900_000, 1_400_000)]
    assert row(page, "frames that each of 125 streams on a GPU can remember") == [number(count) for count in held]
    assert row(page, "600") == ["6.78 / 0.456 / 0.5 GiB", "?"]
    assert "249 GiB: does not fit" in page and row(page, "4") == ["2.34 / 0.5 GiB", "?"]
    assert "GPU of a test" in page and "These measurements are missing" not in page


def test_rows_of_several_commits_are_named(tmp_path):
    results(tmp_path)
    assert "several commits" not in page_of(tmp_path)
    rows = [{**row, "commit": commit} for row, commit in zip(rows_of_growth(), ("a1", "b2", "b2"), strict=True)]
    results(tmp_path, growth={"memory_bytes": 85_000_000_000, "rows": rows})
    text = " ".join(page_of(tmp_path).split())
    assert "The 3 rows were measured at several commits, the smaller sizes first: 1 at a1; 2 at b2. Names of" in text


def test_other_results_make_another_page(tmp_path):
    results(tmp_path)
    page = page_of(tmp_path)
    results(tmp_path, pool={"ways": {"live": {"frames_per_second_pool": [500.0]}}})
    assert row(page_of(tmp_path), "in pools")[0] == "250" != row(page, "in pools")[0]


@pytest.mark.parametrize("gone", ["stream", "offline", "pool", "growth", "memory", "scale"])
def test_missing_results_are_named_with_their_commands(tmp_path, gone, capsys):
    (tmp_path / "all").mkdir(), (tmp_path / "some").mkdir()
    results(tmp_path / "all")
    results(tmp_path / "some", **{gone: None})
    page, whole = page_of(tmp_path / "some"), page_of(tmp_path / "all")
    named = {command for command in COMMANDS if f"`{command}`" in page}
    assert len(named) == 1 and not any(f"`{command}`" in whole for command in COMMANDS)
    assert f"missing: {named.pop()}" in capsys.readouterr().out
    assert "These measurements are missing" in page and "These measurements are missing" not in whole


def test_files_of_another_format_count_as_missing(tmp_path):
    results(tmp_path, pool={"ways": {}}, stream={"rows": []}, scale={"samples_per_second": {}, "sample": "of words"})
    page = page_of(tmp_path)
    assert row(page, "in pools")[0] == "?" and row(page, "tokens per hour")[0] == "?"
    assert row(page, "without a pool")[0] == "65" and "CPU cores" not in page


def test_a_folder_without_results_is_an_error(tmp_path, capsys):
    assert cli.main(["bench", "plan", "--results", str(tmp_path), "--output", str(tmp_path / "page.md")]) == 2
    error = f"error: --results must hold summary.json and the results that it names, found none in {tmp_path}\n"
    assert capsys.readouterr().err == error and not (tmp_path / "page.md").exists()


def test_the_page_is_printed_unless_a_file_is_asked_for(tmp_path, capsys):
    results(tmp_path, stream=None)
    page = page_of(tmp_path)
    capsys.readouterr()
    assert cli.main(["bench", "plan", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.out == page and printed.err.startswith("missing: ")


def test_the_commands_exist():
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] == "videollm-mod":
            with pytest.raises(SystemExit) as stop:
                cli.main([*words[1:3], "--help"])
            assert stop.value.code == 0
        else:
            assert words[:2] == ["python", "-m"] and words[2].startswith("videollm_mod.benchmarks.")
            assert (ROOT / "benchmarks" / f"{words[2].rpartition('.')[2]}.py").exists()


def test_the_page_of_the_repository_matches_its_results():
    """If this fails after new results, run `videollm-mod bench plan --output docs/planning.md`."""
    written = page(read(RESULTS), plan.sizes(), growth_rows(RESULTS))
    assert plan.PAGE.read_text(encoding="utf-8") == written
    assert all((plan.PAGE.parent / link).exists() for link in re.findall(r"\]\((\.\./[^)]*)\)", written))


def test_results_that_are_not_a_folder_are_named(tmp_path, capsys):
    assert cli.main(["bench", "plan", "--results", str(tmp_path / "none"), "--output", str(tmp_path / "page.md")]) == 2
    assert f"error: --results must be a folder, got {tmp_path / 'none'}\n" == capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"end_to_end_fps": {"value": 3', "[1]"])
def test_an_invalid_summary_is_named(tmp_path, content, capsys):
    (tmp_path / "summary.json").write_text(content)
    assert cli.main(["bench", "plan", "--results", str(tmp_path), "--output", str(tmp_path / "page.md")]) == 2
    assert f"error: {tmp_path / 'summary.json'} " in capsys.readouterr().err


def test_a_result_without_its_fields_counts_as_missing(tmp_path):
    entry = {"value": 3.0, "source": "benchmarks/results/stream.json", "command": "none"}
    (tmp_path / "summary.json").write_text(json.dumps({"end_to_end_fps": entry}))
    (tmp_path / "stream.json").write_text("{}")
    assert read(tmp_path) == {}
