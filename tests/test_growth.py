"""`videollm-mod bench growth`: it counts bytes exactly, skips what does not fit, and continues a result file."""

import json

import pytest
import torch

from videollm_mod.bench import growth, growth_cases
from videollm_mod.bench.filled import filled_cache
from videollm_mod.bench.geometries import config_values
from videollm_mod.bench.growth import advance, measure
from videollm_mod.bench.growth_cases import (
    FRAMES,
    MIDDLE,
    TOKENS,
    WORKING_BYTES,
    cache_bytes,
    cases,
    key_of,
    layer_lengths,
)
from videollm_mod.bench.streams import random_model
from videollm_mod.bench.watching import configured
from videollm_mod.commands import cli
from videollm_mod.configuration_videollm_mod import VideoLLMMoDConfig


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("frames, ratio", [(1, 0.2), (23, 0.2), (40, 0.5)])
@torch.no_grad()
def test_counted_bytes_match_a_cache(dense, frames, ratio):
    model = random_model("tiny", "cpu", dtype=torch.float32).eval()
    text = model.config.text_config
    with configured(model, dense):
        cache = filled_cache(model, frames, ratio)
    lengths = layer_lengths(text, frames, 10, ratio, routed=not dense)
    assert lengths == [layer.get_seq_length() for layer in cache.layers]
    held, buffers = cache_bytes(text, lengths, 4)
    assert held == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert buffers == sum(own.buffer.nbytes for layer in cache.layers for own in layer.growing.values())


def test_bytes_of_long_streams():
    """Worked out by hand for 8B: 32 layers, 8 heads of size 128, 2 bytes, keys and values."""
    text = VideoLLMMoDConfig(**config_values("llama3-8b")).text_config
    dense = layer_lengths(text, 20_000, 101, 0.2, routed=False)
    assert cache_bytes(text, dense, 2)[0] == 20_000 * 102 * 32 * 4096 == 267_386_880_000
    routed = layer_lengths(text, 20_000, 10, 0.2, routed=True)
    assert cache_bytes(text, routed, 2)[0] == 20_000 * (11 + 3) * 16 * 4096 == 18_350_080_000


def test_cases_are_unique():
    found = cases(FRAMES, TOKENS)
    keys = list(map(key_of, found))
    assert len(set(keys)) == len(keys) == 2 * 8 * 4 + 2 * 4 + 3
    assert (20_000, 101, 1, 0.2, "dense") in keys and (600, 10, 16, 0.2, "mod") in keys and keys[0][:2] == (100, 1)


def test_cases_that_do_not_fit_are_not_run():
    model = random_model("tiny", "cpu", dtype=torch.float32).eval()
    row = measure(model, {**MIDDLE, "way": "mod"}, repeats=1, total=WORKING_BYTES)
    assert row["fits"] is False and "stream" not in row and "block" not in row
    fits = measure(model, {**MIDDLE, "frames": 5, "way": "mod"}, repeats=1, total=WORKING_BYTES + 2**30)
    assert fits["fits"] is True and fits["stream"]["p50_ms"] > 0 and fits["needs_bytes"] < row["needs_bytes"]


@pytest.mark.parametrize("count", [1, 3])
def test_measuring_leaves_streams_unchanged(count):
    model = random_model("tiny", "cpu", dtype=torch.float32).eval()
    caches = [filled_cache(model, 6, 0.2) for _ in range(count)]
    held = [[layer.keys.clone() for layer in cache.layers] for cache in caches]
    found, why_not_static = advance(model, caches, 0.2, 2, repeats=2)
    assert why_not_static is None and found["frames"] == 2 and len(found["raw_ms"]) == 2
    assert found["ms_per_frame"] == pytest.approx(found["p50_ms"] / 2 / count, abs=1e-4)
    for cache, keys in zip(caches, held, strict=True):
        assert all(torch.equal(layer.keys, own) for layer, own in zip(cache.layers, keys, strict=True))
        assert int(cache.num_frames) == 6


def test_a_result_file_is_continued(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(growth_cases, "BATCHES", (1, 2))
    monkeypatch.setattr(growth_cases, "KEEP_RATIOS", (0.5,))
    path = tmp_path / "growth.json"
    command = ["bench", "growth", "--geometry", "tiny", "--device", "cpu", "--repeats", "1", "--json", str(path)]
    with monkeypatch.context() as patch:  # drawing takes longer than these steps: it is done in the end
        patch.setattr(growth, "plot", lambda *_: "")
        assert cli.main([*command, "--frames", "4", "--tokens", "5"]) == 0
        first = json.loads(path.read_text())
        assert cli.main([*command, "--frames", "4", "9", "--tokens", "5", "--minutes", "0"]) == 0
    assert json.loads(path.read_text())["rows"] == first["rows"]
    assert [row["batch"] for row in first["rows"]] == [1, 1, 1, 2, 2] and {"mod", "dense"} == {
        row["way"] for row in first["rows"]
    }
    assert cli.main([*command, "--frames", "4", "9", "--tokens", "5"]) == 0
    second = json.loads(path.read_text())
    assert second["rows"][: len(first["rows"])] == first["rows"] and len(second["rows"]) > len(first["rows"])
    assert path.with_suffix(".png").stat().st_size > 10_000
    path.write_text(json.dumps({**second, "geometry": "middle"}))
    assert cli.main([*command, "--frames", "4"]) == 2
    assert "give another --json" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--frames", "0"], ["--tokens", "7"], ["--tokens", "0"]])
def test_invalid_sizes_are_named(options, capsys):
    assert cli.main(["bench", "growth", "--geometry", "tiny", "--device", "cpu", *options]) == 2
    assert f"error: {options[0]} must be" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", '{"geometry": "ti', "[]", '{"geometry": "tiny"}'])
def test_a_file_that_is_not_a_result_is_named(tmp_path, capsys, content):
    path = tmp_path / "growth.json"
    path.write_text(content)
    assert cli.main(["bench", "growth", "--geometry", "tiny", "--device", "cpu", "--json", str(path)]) == 2
    assert f"error: {path} is not a result of `bench growth`" in capsys.readouterr().err
    assert path.read_text() == content


@pytest.mark.parametrize("benchmark", ["growth", "stream", "offline"])
def test_unknown_devices_are_named(benchmark, capsys):
    assert cli.main(["bench", benchmark, "--geometry", "tiny", "--device", "cdua"]) == 2
    assert "error: --device must be cpu or cuda, got 'cdua'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["frames", "repeats"])
def test_an_empty_training_step_is_refused(name, capsys):
    assert cli.main(["bench", "train", "--geometry", "tiny", f"--{name}", "0"]) == 2
    assert f"error: --{name} must be at least 1, got 0" in capsys.readouterr().err
