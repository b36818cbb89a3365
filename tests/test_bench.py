"""`videollm-mod bench`: its counts are exact, and its results are complete."""

import json
import subprocess

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from videollm_mod.bench import record, train
from videollm_mod.bench.arithmetic import layer_tokens, step_operations
from videollm_mod.bench.cache_bytes import bytes_per_frame, held_tokens
from videollm_mod.bench.check import check
from videollm_mod.bench.step import Bench, Deadline, Way
from videollm_mod.bench.train import CHOICES, REFERENCE, figures, row, scaled, take_turns
from videollm_mod.benchmarks import varying_lengths
from videollm_mod.commands.cli import main
from videollm_mod.configuration_videollm_mod import num_kept_tokens
from videollm_mod.recomputing import choices_of_layers


def test_the_commit_says_whether_the_code_is_another(tmp_path, monkeypatch):
    def git(*command: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *who, *command], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    monkeypatch.delenv("VIDEOLLM_MOD_COMMIT", raising=False)
    monkeypatch.setattr(record, "ROOT", tmp_path)
    assert record.commit() is None  # no repository
    git("init", "-q")
    (tmp_path / "code.py").write_text("1")
    (tmp_path / "result.json").write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    head = git("rev-parse", "HEAD").strip()
    (tmp_path / "result.json").write_text("2")  # which a benchmark writes
    assert record.commit() == head
    (tmp_path / "code.py").write_text("2")
    assert record.commit() == head + "+"
    monkeypatch.setenv("VIDEOLLM_MOD_COMMIT", "abc")
    assert record.commit() == "abc"


@pytest.fixture(scope="module")
def tiny():
    return Bench("tiny", 20, 10, "cpu")


@pytest.mark.parametrize("tokens", [1, 5, 10])
@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_cache_bytes_match_the_tokens_that_layers_hold(tokens, ratio):
    held = held_tokens("tiny", 6, tokens, ratio)
    assert held == [6 * (tokens + 1), 6 * (num_kept_tokens(ratio, tokens) + 1)] * 2
    counted = bytes_per_frame("tiny", tokens, ratio)
    assert counted["mod"] == sum(held) / 6 * 2 * 2 * 16 * 2  # keys and values, heads, head size, bytes
    assert counted["ratio"] == sum(held) / (4 * held[0])


def test_cache_ratios_of_the_paper():
    """The ratios of its geometry, to four digits by arithmetic: (11 + 3) / 22 and (51 + 11) / 102."""
    assert bytes_per_frame("llama3-8b", 10)["ratio"] == pytest.approx(14 / 22)
    assert bytes_per_frame("llama3-8b", 50)["ratio"] == pytest.approx(62 / 102)


@pytest.mark.parametrize("routed", [True, False])
@pytest.mark.parametrize("all_logits", [True, False])
def test_counted_operations_match_the_executed_ones(tiny, routed, all_logits):
    way = Way(routed, all_logits, recompute="none")
    tiny.set(way)
    product = {torch.ops.aten.addmm_: lambda added, a, b, *args, **kwargs: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=product) as counter:
        tiny.backward(way)
    tiny.optimizer.zero_grad()
    text, (full, kept) = tiny.model.config.text_config, layer_tokens(tiny.model, tiny.inputs)
    squares = sum((kept if routed and index % 2 else full) ** 2 for index in range(text.num_hidden_layers))
    attention = 7 * text.hidden_size * squares  # which the counter does not count on every device
    run = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    products = sum(count for name, count in run.items() if "mm" in name)
    frames = tiny.inputs["video_features"].shape[:2].numel()
    width, hidden = tiny.model.config.vision_config.hidden_size, text.hidden_size
    connector = frames * 2 * (2 * width * hidden + 3 * hidden * hidden)
    counted = step_operations(tiny.model, tiny.inputs, tiny.rank, routed, all_logits)
    assert counted - attention == pytest.approx(products - connector, rel=0.01)


@pytest.mark.parametrize("num_layers", [4, 8, 32])
@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_covers_every_layer(choice, num_layers):
    choices = Way(True, recompute=scaled(choice, num_layers)).choices(num_layers)
    assert len(choices_of_layers(choices, num_layers)) == num_layers


def test_all_ways_agree():
    errors = {name: entry["gradient_error"] for name, entry in check("cpu", "tiny", frames=10).items()}
    assert len(errors) == 18 and all(0 < error < 0.02 for error in errors.values())


def test_a_result_is_complete(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "CHOICES", ("layer", "mlp", "mlp:16+activation:16"))  # `check` runs all of them
    monkeypatch.setattr(train, "DENSE_CHOICES", ("layer", "mlp"))
    arguments = ["--geometry", "tiny", "--json", str(tmp_path / "train.json")]
    assert main(["bench", "train", *arguments, "--frames", "20", "--tokens", "5", "--repeats", "2"]) == 0
    result = json.loads((tmp_path / "train.json").read_text())
    assert result["sequence_tokens"] == 1 + 1 + 20 * 6 + 24 and result["labelled_tokens"] == 20 + 24
    assert result["tokens_in_routed_layers"] == 1 + 1 + 20 * 2 + 24
    assert all(len(row["seconds"]) == 2 for row in result["rows"].values())
    assert {"commit", "command", "machine", "versions", "rates", "search", "figures"} <= result.keys()
    assert len(result["search"]) == 2 + 3 + 2 + 1
    assert "train_time_vs_dense_20x5" in capsys.readouterr().out
    assert (tmp_path / "train.png").stat().st_size > 10_000


def test_an_invalid_number_of_tokens_is_named(capsys):
    assert main(["bench", "train", "--geometry", "tiny", "--tokens", "7"]) == 2
    assert "1 more than a square" in capsys.readouterr().err


def test_running_out_of_memory_in_turns_is_reported(capsys, monkeypatch, tiny):
    """Once: the turn is repeated. In every turn: the row of the search is kept and marked."""
    once, always, never = Way(True, recompute="mlp"), Way(False, recompute="mlp"), Way(False)
    found = {way: row(way, [(1.0, 2.0, 3.0)]) for way in (once, always)}
    calls = []

    def step(way):
        calls.append(way)
        if way == always or (way == once and calls.count(once) == 2):
            raise torch.OutOfMemoryError
        return 4.0, 5.0, 6.0

    monkeypatch.setattr(tiny, "step", step)
    picked = {"fast": once, "alike": always, "alike, layer": never}
    rows = take_turns(tiny, picked, found, 3, Deadline(1))
    assert rows["fast"]["seconds"] == [5.0] * 3 and not rows["fast"]["out_of_memory"]
    assert rows["alike"] == {**found[always], "out_of_memory": True, "of_search": True}
    assert rows["alike, layer"]["seconds"] == [5.0] * 3 and "of_search" not in rows["alike, layer"]
    printed = capsys.readouterr().out
    assert "MoD, mlp: OUT OF MEMORY after" in printed and "alike: OUT OF MEMORY in 3 of 3 turns" in printed
    assert "alike: using its single step of the search" in printed and "fast:" not in printed
    assert calls.count(once) == 4 + 2 and calls.count(never) == 4


def test_without_time_for_turns_the_step_of_the_search_counts(capsys, tiny):
    """A way that the search did not try has no figure."""
    found = {way: row(way, [(1.0, seconds, 3.0)]) for way, seconds in ((REFERENCE, 4.0), (Way(True), 2.0))}
    picked = {"reference": REFERENCE, "fast": Way(True), "alike": Way(False, recompute="mlp")}
    rows = take_turns(tiny, picked, found, 3, Deadline(-1))
    assert rows["fast"] == {**found[Way(True)], "of_search": True} and not rows["fast"]["out_of_memory"]
    assert rows["alike"]["seconds"] == [] and "of_search" not in rows["alike"]
    assert figures(rows, "20x10") == {"train_time_vs_own_dense_all_logits_20x10": 0.5}
    printed = capsys.readouterr().out
    assert "fast: no time left for its turns\nfast: using its single step of the search" in printed
    assert "alike: no time left" in printed and "alike: using" not in printed


def test_lengths_vary_and_the_cudnn_setting_is_restored(tmp_path, monkeypatch):
    enabled, seen, step = torch.backends.cuda.cudnn_sdp_enabled(), [], Bench.step

    def noted(bench, way):
        """The first of 7 steps is run."""
        seen.append((len(bench.inputs["video_features"]), torch.backends.cuda.cudnn_sdp_enabled()))
        return step(bench, way) if len(seen) % 7 == 1 else (1.0, 0.1, 0.0)

    monkeypatch.setattr(Bench, "step", noted)
    arguments = ["--geometry", "tiny", "--device", "cpu", "--frames", "20", "--long-frames", "30"]
    varying_lengths.main([*arguments, "--json", str(tmp_path / "lengths.json")])
    result = json.loads((tmp_path / "lengths.json").read_text())
    assert seen == [(frames, row["cudnn"]) for row in result["rows"] for frames in row["frames"]]
    assert [len(row["seconds"]) for row in result["rows"]] == [7, 7, 7, 7, 3, 3]
    varied = [row["frames"] for row in result["rows"] if row["streams"] == "many lengths"]
    assert len({20, *varied[0], *varied[1]}) == 15 and torch.backends.cuda.cudnn_sdp_enabled() == enabled
