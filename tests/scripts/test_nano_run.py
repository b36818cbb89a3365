"""Training the bundled checkpoint within a given time: its batches, a short run, and its scores."""

import itertools
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fresh_process import ROOT
from safetensors.torch import load_file
from torchrun import torchrun

from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor
from videollm_mod.benchmarks import nano_data, nano_run, nano_scales
from videollm_mod.benchmarks.nano_data import CHUNK, Chunks, StreamBank
from videollm_mod.benchmarks.nano_scores import narrations, question, right
from videollm_mod.data.collator import StreamCollator
from videollm_mod.data.world import world_stream
from videollm_mod.data.world_data import WorldCells, WorldData, WorldStreams
from videollm_mod.data.world_hard import SPLITS


def test_batches_match_those_of_the_collator(monkeypatch):
    """In any order, rows and features of frames are those of `videollm-mod train`."""
    processor = VideoLLMMoDProcessor.from_pretrained(ROOT)
    levels = {"basic": CHUNK + 3, "hard_small_tasks_lessons": 5}
    chunks = Chunks(levels, processor, (3, 3), fps=2.0, num_questions=3)
    pad = processor.tokenizer.pad_token_id
    bank = StreamBank.make(chunks, "cpu", pad, workers=2)
    data = [WorldData(level=level, first_seed=SPLITS["train"], num_questions=3) for level in levels]
    expected = {}  # by place in the bank: a chunk of the one level, one of the other, and the rest of the first
    order = [(0, i) for i in range(CHUNK)] + [(1, i) for i in range(5)] + [(0, i) for i in range(CHUNK, CHUNK + 3)]
    for place, (which, index) in enumerate(order):
        expected[place] = WorldStreams(data[which], processor)[index]
    frames, states = bank.pictures(3)
    assert torch.equal(frames, torch.cat([example["frames"] for example in expected.values()]))
    cells = torch.cat([WorldCells(data[which], 96, (3, 3))[index]["labels"] for which, index in order])
    assert torch.equal(states.long(), cells)

    def feature(frames: torch.Tensor) -> torch.Tensor:
        products = frames.flatten(1).double() @ torch.arange(3 * 96 * 96).double()[:, None].sin()
        return products.float()

    bank.encode(feature)
    collate, seen = StreamCollator(pad), []
    whole = StreamBank.batch
    monkeypatch.setattr(StreamBank, "batch", lambda self, streams: seen.append(streams) or whole(self, streams))
    for batch in bank.epoch(7, np.random.default_rng(3)):
        wanted = collate([expected[place] for place in seen[-1].tolist()])
        assert torch.equal(batch["input_ids"], wanted["input_ids"])
        assert torch.equal(batch["labels"], wanted["labels"])
        mask = torch.ones_like(batch["input_ids"]) if batch["attention_mask"] is None else batch["attention_mask"]
        assert torch.equal(mask, wanted["attention_mask"])
        torch.testing.assert_close(batch["video_features"], feature(wanted["frames"][wanted["frame_index"]]))
    assert sorted(np.concatenate(seen).tolist()) == list(range(CHUNK + 8))
    seen.clear()
    masks = [batch["attention_mask"] for batch in bank.epoch(2, np.random.default_rng(4))]
    alike = [len(set(bank.tokens[streams])) == 1 for streams in seen]
    assert [mask is None for mask in masks] == alike and any(alike)


needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="the run needs Muon, of torch 2.9")


@pytest.fixture
def small_run(tmp_path, monkeypatch):
    """`main` for a small model and few streams on the CPU, with an output folder."""
    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4}
    vision = {**nano_run.MODEL["vision_config"], **small, "num_hidden_layers": 1}
    text = {**nano_run.MODEL["text_config"], **small, "num_key_value_heads": 2, "num_hidden_layers": 2}
    monkeypatch.setattr(nano_run, "MODEL", {**nano_run.MODEL, "text_config": text, "vision_config": vision})
    monkeypatch.setattr(nano_run, "LEVELS", {"basic": 1.5, "hard_small": 1})
    monkeypatch.setattr(nano_run, "CHECKED", 2)
    monkeypatch.setattr(nano_run, "SAVING", 1.0)
    # each look at the clock takes 0.1 seconds, so that as many steps are taken on any machine
    monkeypatch.setattr(nano_run, "time", SimpleNamespace(monotonic=itertools.count(step=0.1).__next__))
    options = ["--streams", "4", "--batch-size", "2", "--workers", "0", "--device", "cpu"]

    def main(name: str, *more: str) -> tuple[dict, Path]:
        nano_run.main(["--output", str(tmp_path / name), *options, *more])
        return json.loads((tmp_path / name / "result.json").read_text()), tmp_path / name

    return main


@needs_muon
def test_a_run_writes_a_checkpoint_and_a_log(small_run):
    result, folder = small_run("whole", "--seconds", "6")
    for stage in ("vision", "stream"):
        own = [entry for entry in result["log"] if entry["stage"] == stage]
        assert own[-1]["progress"] == 1 and own[-1]["loss"] < own[0]["loss"]
    assert all(set(entry["right_tokens"]) == {"basic", "hard_small"} for entry in own)
    assert own[-1]["right_tokens"]["basic"] > own[0]["right_tokens"]["basic"]
    assert list(result["seconds"].values()) == sorted(result["seconds"].values())
    unpacked = folder / "unpacked"
    unpacked.mkdir()
    subprocess.run(f"cat {folder}/nano.tar.* | tar x -C {unpacked}", shell=True, check=True)
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(unpacked / "nano")
    assert (
        model.dtype == torch.bfloat16 and model.model.language_model.layers[1].layer_expert.weight.dtype.itemsize == 4
    )
    VideoLLMMoDProcessor.from_pretrained(unpacked / "nano")


@needs_muon
def test_a_part_continues_the_one_before(small_run, monkeypatch):
    seeds = []
    whole = nano_data.world_stream
    monkeypatch.setattr(
        nano_data, "world_stream", lambda seed, level: seeds.append((level, seed)) or whole(seed, level)
    )
    first, folder = small_run("first", "--seconds", "5", "--part", "1/2")
    own = {seed for seed in seeds if seed[1] >= SPLITS["train"]}
    seeds.clear()
    second, _ = small_run("second", "--seconds", "4", "--part", "2/2", "--begin", str(folder / "nano"))
    assert not own & {seed for seed in seeds if seed[1] >= SPLITS["train"]}, "it learns from the same streams"
    assert {entry["stage"] for entry in second["log"]} == {"stream"}, "the tower is as it was"
    progress = [
        [entry["progress"] for entry in result["log"] if entry["stage"] == "stream"] for result in (first, second)
    ]
    assert progress[0][-1] <= 0.5 <= progress[1][0] and progress[1][-1] > 0.9
    assert second["log"][0]["loss"] < first["log"][-1]["loss"] + 0.5


@needs_muon
def test_each_parameter_has_one_optimizer():
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT)
    muon, adamw = nano_run.muon_and_adamw(model)
    own = [{id(p) for group in optimizer.param_groups for p in group["params"]} for optimizer in (muon, adamw)]
    assert not own[0] & own[1] and own[0] | own[1] == {id(p) for p in model.parameters()}
    names = {name for name, p in model.named_parameters() if id(p) in own[1] and p.dim() > 1}
    assert all("embed" in name or "layer_expert" in name or "probe" in name for name in names), names


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "/2"])
def test_an_invalid_part_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        nano_run.main(["--part", text])
    assert f"must be like 1/2, got {text!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--part", "2/2"], "after the first needs --begin"), (["--streams", "1"], "--streams must be at least 2"),
     (["--batch-size", "0"], "--batch-size at least 1")],
)  # fmt: skip
def test_invalid_options_of_a_run_are_refused(options, said, capsys):
    with pytest.raises(SystemExit):
        nano_run.main(options)
    assert said in capsys.readouterr().err


ONE_OF_TWO = """
import sys, torch
from videollm_mod.benchmarks.nano_run import Team
team, layer = Team("cpu"), torch.nn.Linear(3, 2)
torch.nn.init.constant_(layer.weight, float(team.rank))
team.same_weights(layer)
layer.weight.grad = torch.full((2, 3), 1.0 + team.rank)
layer.bias.grad = None if team.rank else torch.ones(2)
team.average_gradients(list(layer.parameters()))
torch.save([layer.weight, layer.weight.grad, layer.bias.grad, team.agree(0.25 + team.rank)], f"{team.rank}.pt")
"""


def test_processes_share_weights_and_average_gradients(tmp_path):
    (tmp_path / "one.py").write_text(ONE_OF_TWO)
    assert torchrun("one.py", cwd=tmp_path).returncode == 0
    for rank in range(2):
        weight, gradient, other, agreed = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(weight, torch.zeros(2, 3)) and agreed == 0.25
        assert torch.equal(gradient, torch.full((2, 3), 1.5)) and torch.equal(other, torch.full((2,), 0.5))


@pytest.mark.parametrize(
    ("span", "passed", "share"),
    [((0, 1), 0.01, 0.2), ((0, 1), 0.05, 1.0), ((0, 1), 0.5, 0.5), ((0, 1), 1.0, 0.0), ((0.5, 1), 0.05, 0.46),
     ((0.5, 1), 0.01, 0.1), ((0, 0.5), 1.0, 0.5)],
)  # fmt: skip
def test_the_learning_rate_follows_the_clock(span, passed, share):
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    sgd = torch.optim.SGD([parameter], lr=2.0)
    clock = nano_run.Clock("stream", 100.0, [sgd], nano_run.Team("cpu"), [], span)
    clock.passed = clock.shown = passed
    clock.started -= 100 * passed
    clock.step((parameter**2).sum())
    assert sgd.param_groups[0]["lr"] == pytest.approx(2 * share, abs=0.02)
    assert (clock.log != []) == (passed == 1)


def test_the_bundled_checkpoint_scores_well():
    """`test_lockstep.py` shows that streams narrated side by side equal sessions."""
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT, dtype="float32").eval()
    processor = VideoLLMMoDProcessor.from_pretrained(ROOT)
    shortest = min(range(100), key=lambda seed: (world_stream(seed).seconds, len(world_stream(seed).narrations)))
    found = narrations(model, processor, "basic", range(shortest, shortest + 1))
    assert found["narrations"] == len(world_stream(shortest).narrations) > 0
    assert found["exact"] > 50 and found["false"] < 50
    examples = [question(processor, "basic", seed) for seed in range(50, 54)]
    assert right(model, processor, examples) >= 50
    wrong = [([*messages[:-1], {"role": "assistant", "content": "No."}], frames) for messages, frames in examples]
    assert right(model, processor, wrong) == 0


def test_scaled_frames_change_only_the_tower(tmp_path, monkeypatch):
    monkeypatch.setattr(nano_scales, "HELD_OUT", 1)
    monkeypatch.setattr(nano_scales, "LEVELS", {"hard_small": 0.5, "basic": 0.5})
    monkeypatch.setattr(nano_scales, "SCORED", (96, 128))
    monkeypatch.setattr(nano_scales, "BATCH", 4)
    nano_scales.main(["--begin", str(ROOT), "--output", str(tmp_path), "--minutes", "0.001"])
    result = json.loads((tmp_path / "scales.json").read_text())
    assert result["log"] and result["before"].keys() == result["after"].keys()
    assert all((value == 0) == name.endswith(" 96") for name, value in result["before"].items())
    before, after = (load_file(folder / "model.safetensors") for folder in (ROOT, tmp_path))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("vision_tower" in name for name in changed) and before.keys() == after.keys()
