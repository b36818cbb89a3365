"""The run against the clock: batches of its bank, a run from end to end, and scores as the sessions' own."""

import json
import subprocess

import numpy as np
import pytest
import torch
from fresh import ROOT

from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor
from videollm_mod.benchmarks import nano_run
from videollm_mod.benchmarks.nano_data import CHUNK, Chunks, StreamBank
from videollm_mod.benchmarks.nano_scores import narrations, question, right
from videollm_mod.data.collator import StreamCollator
from videollm_mod.data.world import world_stream
from videollm_mod.data.world_data import WorldCells, WorldData, WorldStreams
from videollm_mod.data.world_hard import SPLITS


def test_batches_are_the_collators(monkeypatch):
    """Whatever the order: the rows, and the features of each frame, as `videollm-mod train` gets them."""
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
        return frames.flatten(1).double() @ torch.arange(3 * 96 * 96).double()[:, None].sin()

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


def test_a_run_leaves_a_checkpoint_its_log_and_its_scores(tmp_path, monkeypatch):
    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4}
    vision = {**nano_run.MODEL["vision_config"], **small, "num_hidden_layers": 1}
    text = {**nano_run.MODEL["text_config"], **small, "num_key_value_heads": 2, "num_hidden_layers": 2}
    monkeypatch.setattr(nano_run, "MODEL", {**nano_run.MODEL, "text_config": text, "vision_config": vision})
    monkeypatch.setattr(nano_run, "LEVELS", {"basic": 6, "hard_small": 4})
    scored = []
    monkeypatch.setattr(
        nano_run, "scores", lambda model, *_: scored.append(model.keep_ratio) or {"answers": {"basic": 1.0}}
    )
    options = ["--seconds", "8", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    nano_run.main(["--output", str(tmp_path), *options])
    result = json.loads((tmp_path / "result.json").read_text())
    assert [entry["keep_ratio"] for entry in result["scores"]] == ["own", 1.0] and scored == [0.2, 1.0]
    for stage in ("vision", "stream"):
        own = [entry for entry in result["log"] if entry["stage"] == stage]
        assert own[-1]["progress"] > 0.9 and own[-1]["loss"] < own[0]["loss"]
    assert list(result["seconds"].values()) == sorted(result["seconds"].values())
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(f"cat {tmp_path}/nano.tar.* | tar x -C {unpacked}", shell=True, check=True)
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(unpacked / "nano")
    assert (
        model.dtype == torch.bfloat16 and model.model.language_model.layers[1].layer_expert.weight.dtype.itemsize == 4
    )
    VideoLLMMoDProcessor.from_pretrained(unpacked / "nano")


@pytest.mark.parametrize(("progress", "share"), [(0.01, 0.2), (0.05, 1.0), (0.5, 0.5), (1.0, 0.0)])
def test_the_learning_rate_follows_the_clock(progress, share, monkeypatch):
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    clock = nano_run.Clock("stream", 100.0, [parameter], lr=1.0, log=[])
    monkeypatch.setattr(nano_run.Clock, "progress", progress)
    clock.step((parameter**2).sum())
    assert clock.optimizer.param_groups[0]["lr"] == pytest.approx(share, abs=0.01)
    assert (clock.log != []) == (progress == 1)


def test_a_checkpoint_that_knows_the_world_scores_so():
    """That streams narrated side by side say what sessions say is for `test_lockstep.py` to show."""
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
