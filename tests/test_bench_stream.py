"""`videollm-mod bench stream` and `offline`, on a model small enough to run here."""

import json
from unittest import mock

import pytest
import torch

from videollm_mod.bench import geometries, stream
from videollm_mod.bench.filled import fill
from videollm_mod.bench.streams import random_model
from videollm_mod.bench.traffic import bytes_of_weights
from videollm_mod.bench.watching import build, configured, graphs_ms, joined, summary
from videollm_mod.bench.weights import quantise
from videollm_mod.commands import cli
from videollm_mod.static_graphs import Graph


def test_stream_measures_every_stage(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stream, "HELD", (4, 8))
    monkeypatch.setattr(stream, "ALSO_FRAMES", (3,))
    path = tmp_path / "stream.json"
    options = ["--geometry", "tiny", "--device", "cpu", "--repeats", "2", "--height", "32"]
    assert cli.main(["bench", "stream", *options, "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert (
        str(path.with_suffix(".png")) in capsys.readouterr().out and path.with_suffix(".png").stat().st_size > 10_000
    )
    found = {(row["name"], row["way"]) for row in result["rows"]}
    assert {("language", "mod"), ("language", "dense"), ("stock LlamaForCausalLM", "stock")} <= found
    assert {"end to end", "first token", "generation", "decode", "language, blocks"} <= {name for name, _ in found}
    for row in result["rows"]:
        assert row["raw_ms"] and all(value > 0 for value in row["raw_ms"])
        assert min(row["raw_ms"]) <= row["p50_ms"] + 1e-3 and row["p50_ms"] <= row["p95_ms"]
        if row["name"] == "end to end":
            assert set(row["ms_per_frame"]) == {"preprocess", "vision", "language"}
    result["geometry"] = "llama3-8b"
    wanted = {"stream_p50_ms_600": (600, "language"), "stream_p50_ms_3000": (3000, "language")}
    for (held, name), row in zip(wanted.values(), result["rows"][::2], strict=False):
        row |= {"held": held, "name": name, "way": "mod"}
    assert set(stream.figures(result)) >= {*wanted, "first_token_ms", "generate_tokens_per_s", "end_to_end_fps"}
    assert list(stream.figures({**result, "weights": "nf4"})) == ["stream_p50_ms_600_nf4"]


def test_what_is_not_the_devices_is_the_hosts():
    """The time of the device is the least of all turns, and the rest of the median call is the host's."""
    read = {"read_bytes": 16_000, "copy_ms": 3.5}
    turns = [
        summary([0.006, 0.007]) | {"device_ms": 5.0, **read},
        summary([0.0065, 0.008]) | {"device_ms": 4.75, **read},
    ]
    whole = joined(turns)
    assert (whole["p50_ms"], whole["device_ms"], whole["host_ms"]) == (7.0, 4.75, 2.25)
    assert whole["copy_ms"] == 3.5 and "host_ms" not in joined([summary([0.006])])


def test_the_devices_time_is_that_of_the_graphs_of_this_call(monkeypatch):
    """No other graph is replayed: the caches that it writes to may be freed."""
    others, own = Graph([mock.Mock()], (), None), [Graph([mock.Mock()], (), None) for _ in range(2)]
    monkeypatch.setattr(torch.cuda, "Event", mock.Mock(return_value=mock.Mock(elapsed_time=lambda end: 12.0)))
    others()
    assert graphs_ms(lambda: [graph() for graph in own], repeats=4) == 3.0
    assert [graph._parts[0].replay.call_count for graph in [others, *own]] == [1, 6, 6]
    assert graphs_ms(lambda: None, repeats=4) is None


@pytest.mark.parametrize("weights, bits", [("bf16", 16), ("nf4", 4 + 32 / 64), ("fp8", 8 + 32 / 128**2)])
def test_bytes_of_weights_are_those_in_memory(weights, bits):
    """With a scale of float32 for each 64 codes, or for each block of 128 x 128."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
    model = random_model("tiny", "cpu", **sizes)
    text, head = model.config.text_config, model.lm_head.weight.numel()
    layers = sum(
        linear.weight.numel()
        for layer in model.model.language_model.layers
        for block in (layer.self_attn, layer.mlp)
        for linear in block.children()
        if isinstance(linear, torch.nn.Linear)
    )
    rest = bytes_of_weights(model) - 2 * (layers + head)
    assert 0 < rest < 2 * 256 * (2 * text.num_hidden_layers + 1024)  # norms, experts and the connector
    quantise(model, weights)
    in_head = bits if weights == "fp8" else 16
    assert bytes_of_weights(model) - rest == pytest.approx((bits * layers + in_head * head) / 8, rel=1e-3)


def test_offline_measures_frames_of_both_sizes(tmp_path):
    path = tmp_path / "offline.json"
    options = ["--geometry", "tiny", "--device", "cpu", "--repeats", "1", "--frames", "4"]
    assert cli.main(["bench", "offline", *options, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [(row["tokens"], row["way"]) for row in rows] == [
        (tokens, way) for tokens in (10, 50) for way in ("mod", "dense", "mod, eager", "stock")
    ]
    assert path.with_suffix(".png").exists()


@torch.no_grad()
def test_a_filled_session_is_as_large_as_one_that_has_watched():
    model, processor = build("tiny", torch.device("cpu"))
    for dense in (False, True):
        with configured(model, dense):
            filled, watched = (model.stream(processor, speak_threshold=0.0) for _ in range(2))
            fill(filled, 5)
            features = torch.randn(5, 10, model.config.vision_config.hidden_size)
            watched.state.pending = []
            list(watched.watch_encoded(features))
            text = len(processor.stream_start_ids) - 1  # the start of the stream precedes the first frame
            for own, other in zip(filled.cache.layers, watched.cache.layers, strict=True):
                assert own.get_seq_length() == other.get_seq_length() - text
            list(filled.watch_encoded(features))
            assert filled.stats.frames == 10 and int(filled.cache.num_frames) == 10


@pytest.mark.parametrize(
    "options, message",
    [
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--height", "3"], "--height must be at least 16, got 3"),
        (["--geometry", "huge"], "invalid choice: 'huge'"),
        (["--device", "cpu:"], "--device must be cpu or cuda, got 'cpu:'"),
        (["--json", "x.png"], "--json must end in .json, got 'x.png'"),
        (["--json", "folder.json"], "folder.json is a directory"),
        (["--json", "no/x.json"], "the folder of `--json` does not exist: no"),
        (["--json", "file/x.json"], "the folder of `--json` does not exist: file"),
        (["--minutes", "-1"], "--minutes must be 0 or more, got -1"),
        (["--weights", "fp8"], "--weights fp8 needs a CUDA device"),
        (["--minutes", "nan"], "--minutes must be 0 or more, got nan"),
        (["--minutes", "0", "--json", "x.json"], "no row was started within --minutes 0"),
    ],
)
def test_invalid_options_are_named(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").touch()
    try:
        code = cli.main(["bench", "stream", "--geometry", "tiny", "--device", "cpu", *options])
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("error: ") and message in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.json"]


@pytest.mark.parametrize("options", [["stream", "--device", "cpu"], ["train"], ["memory", "--training"]])
def test_a_model_that_does_not_fit_into_memory_is_refused(options, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(geometries.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 20}.get)
    assert cli.main(["bench", *options]) == 2
    assert "takes up to 40 GiB on a CPU, and this machine has 4 GiB: use" in capsys.readouterr().err
