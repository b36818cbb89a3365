"""The runner of table rows: its tensors equal the processor's, its scores match values by hand, its runs repeat."""

import json
from argparse import Namespace
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fresh_process import ROOT
from safetensors.torch import load_file

from videollm_mod import VideoLLMMoDProcessor
from videollm_mod.benchmarks import world_rows
from videollm_mod.benchmarks.tables_recipes import TABLES
from videollm_mod.benchmarks.world_scores import exact_narrations
from videollm_mod.data import world_streams
from videollm_mod.data.world import conversation, world_stream
from videollm_mod.data.world_hard import SPLITS
from videollm_mod.data.world_streams import Streams, encoded_streams, normalised_sprites, pixels

ARGS = Namespace(layers=2, hidden=32, seed=0)


@pytest.fixture(scope="module")
def small():
    """`(model, processor)` of the dense row on 3 x 3 cells."""
    return world_rows.build("dense", "hard_small", ARGS)


def test_rows_differ_only_in_routing_and_tokens():
    for row, routing, tokens in (
        ("dense", "full", 50),
        ("mod_r1.0", "mod", 50),
        ("layer_skip", "layer_skip", 50),
        ("early_exit", "early_exit", 50),
        ("class_token", "full", 1),
        ("random", "mod", 50),
    ):
        model, processor = world_rows.build(row, "hard", ARGS)
        assert model.config.text_config.vision_routing == routing
        assert model.config.num_frame_tokens == processor.num_frame_tokens == tokens
        assert len(model.model.vision_tower.encoder.layers) == 0
    assert model.config.text_config.mod_selection == "random" and model.config.text_config.mod_keep_ratio == 0.2


def test_streams_equal_those_of_the_processor(small, tmp_path):
    model, processor = small
    groups = encoded_streams("hard_small", "validation", 12, processor, tmp_path)
    streams = Streams(groups, 10, model.config.video_token_id, "cpu")
    bank, seen = normalised_sprites(processor, "cpu"), []
    expected = {}
    for seed in range(SPLITS["validation"], SPLITS["validation"] + 12):
        stream = world_stream(seed, "hard_small")
        ids, labels, *_ = processor.encode_conversation(conversation(stream, num_questions=0, opening=False))
        frames = torch.from_numpy(stream.frames(height=24)).permute(0, 3, 1, 2)
        values = processor.video_processor(frames, return_tensors="pt")["pixel_values_videos"]
        expected[tuple(ids), tuple(labels), tuple(stream.depths)] = values
    for ids, labels, codes, depths in streams.batches(5):
        made = pixels(bank, codes).unflatten(0, codes.shape[:2])
        for row in range(len(ids)):
            key = (tuple(ids[row].tolist()), tuple(labels[row].tolist()), tuple(depths[row].tolist()))
            seen.append(key)
            torch.testing.assert_close(made[row], expected[key])
    assert len(seen) == 12
    random_order = [tuple(row.tolist()) for batch in streams.batches(1, np.random.default_rng(0)) for row in batch[0]]
    assert sorted(random_order) == sorted(key[0] for key in seen)
    assert encoded_streams("hard_small", "validation", 12, processor, tmp_path)[0][0].equal(groups[0][0])
    with pytest.raises(ValueError, match="`batch_size` 13"):
        next(streams.batches(13, np.random.default_rng(0)))


class Oracle(torch.nn.Module):
    """A model that predicts every next token right except those at `mistakes`, `{(ids of the row, position)}`."""

    def __init__(self, mistakes: set, vocab_size: int):
        super().__init__()
        self.mistakes, self.vocab_size = mistakes, vocab_size

    def forward(self, input_ids, pixel_values_videos):
        known = input_ids.roll(-1, 1)
        for row, ids in enumerate(input_ids.tolist()):
            for position in range(len(ids)):
                if (tuple(ids), position) in self.mistakes:
                    known[row, position] = (known[row, position] + 1) % self.vocab_size
        return SimpleNamespace(logits=torch.nn.functional.one_hot(known, self.vocab_size).float())


def test_narration_is_exact_if_all_since_the_previous_one_is_right(small, tmp_path):
    model, processor = small
    streams = Streams(
        encoded_streams("hard_small", "validation", 3, processor, tmp_path), 10, model.config.video_token_id, "cpu"
    )
    bank, eos = normalised_sprites(processor, "cpu"), processor.tokenizer.eos_token_id
    rows = [
        (tuple(ids.tolist()), labels.tolist(), depths.tolist())
        for batch in streams.batches(1)
        for ids, labels, depths in [(batch[0][0], batch[1][0], batch[3][0])]
    ]

    def score(mistakes: set) -> dict:
        return exact_narrations(Oracle(mistakes, len(processor.tokenizer)), streams, bank, processor, 2)

    assert score(set())["exact"] == score(set())["timed"] == 100
    ids, labels, depths = rows[0]
    ends = [i for i, label in enumerate(labels) if label == eos]
    silent = labels.index(processor.frame_separator_token_id)  # before the first narration
    mistakes = {(ids, silent - 1), (ids, ends[3] - 2), (ids, 0)}  # a word of the fourth, and what nothing learns
    result = score(mistakes)
    wrong = (0, 3)
    assert result["narrations"] == 24
    assert result["exact"] == round(100 * 22 / 24, 3)
    assert result["timed"] == round(100 * 23 / 24, 3)
    for depth, share in result["exact_by_depth"].items():
        count = sum(row[2].count(depth) for row in rows)
        missed = sum(depths[i] == depth for i in wrong)
        assert share == round(100 * (count - missed) / count, 3)


@pytest.mark.parametrize("row", ["layer_skip", "mod_fitted", "mod_all_deep_refitted"])
def test_run_is_written_once_and_is_reproducible(row, tmp_path, monkeypatch, capsys):
    small = replace(TABLES["hard"], layers=2, hidden=32, pretraining=(("hard_small", 2, 4),), stage=("hard", 2, 4))
    monkeypatch.setitem(TABLES, "hard", small)
    command = f"{row} --level hard --streams 20 --curve-streams 2 --eval-streams 2"
    monkeypatch.setattr(world_rows, "FITTED_ON", (2, 4))
    refitted = replace(world_rows.DEEP_ROWS["mod_all_deep_refitted"], routing=world_rows.mod(), refitted=1)
    monkeypatch.setitem(world_rows.DEEP_ROWS, "mod_all_deep_refitted", refitted)
    fits, fit = [], world_rows.initialise_routers
    monkeypatch.setattr(world_rows, "initialise_routers", lambda *given: fits.append(fit(*given)))
    command = [*command.split(), "--device", "cpu", "--data", str(tmp_path / "data"), "--output"]
    results = []
    for name in ("one", "two"):
        world_rows.main([*command, str(tmp_path / name)])
        (path,) = (tmp_path / name).iterdir()
        results.append(json.loads(path.read_text()))
        assert results[-1].pop("training_seconds") >= 0 and results[-1].pop("scoring_seconds") >= 0
        for point in results[-1]["curve"]:
            assert point.pop("seconds") >= 0
    assert results[0] == results[1]
    assert fits == 2 * {"layer_skip": 0, "mod_fitted": 1, "mod_all_deep_refitted": 2}[row] * [[1]]
    assert [(point["level"], point["step"]) for point in results[0]["curve"]] == [("hard", 2)]
    assert results[0]["test"]["narrations"] == results[0]["validation"]["narrations"] == 16
    assert results[0]["flops_per_stream"] > 0
    capsys.readouterr()
    monkeypatch.setattr(world_rows, "run", None)  # would fail if called
    world_rows.main([*command, str(tmp_path / "one")])
    assert "exists" in capsys.readouterr().out


def test_pretraining_goes_through_its_stages_until_it_has_learned_each(tmp_path, monkeypatch):
    scores = iter([0.0, 99.0, 99.6, 10.0, 20.0])
    monkeypatch.setattr(world_rows, "exact_narrations", lambda *args: {"exact": next(scores)})
    stages = (("hard_small", 400, 4), ("hard", 3, 4))
    monkeypatch.setitem(TABLES, "hard", replace(TABLES["hard"], layers=1, pretraining=stages, ends_at=99.5))
    args = Namespace(level="hard", layers=1, hidden=32, seed=3, data=tmp_path, row="pretrained", device="cpu")
    args.streams, args.curve_streams = 40, 1
    monkeypatch.setattr(world_rows, "SCORED_EVERY", 2)
    known = world_rows.pretrained(args)
    curve = json.loads(world_rows.pretrained_path(tmp_path, TABLES["hard"], 3).with_suffix(".json").read_text())
    steps = [(point["level"], point["step"]) for point in curve]
    assert steps == [("hard_small", 2), ("hard_small", 4), ("hard_small", 6), ("hard", 2), ("hard", 3)]
    assert all(value.dtype == torch.bfloat16 for value in known.values())
    model, _ = world_rows.build("mod", "hard", args)
    world_rows.start_from(model, known)
    own = model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in known.items())


def test_a_model_that_is_stuck_starts_anew_with_other_weights(tmp_path, monkeypatch):
    scores, first = iter([0.0, 10.0, 60.0, 70.0, 5.0]), []
    monkeypatch.setattr(world_rows, "exact_narrations", lambda *args: {"exact": next(scores)})
    monkeypatch.setattr(world_rows, "SCORED_EVERY", 2)
    monkeypatch.setattr(world_rows, "STUCK", (4, 50.0))
    stages = (("hard_small", 4, 4), ("hard", 2, 4))
    monkeypatch.setitem(TABLES, "hard", replace(TABLES["hard"], layers=1, pretraining=stages, ends_at=99.5))
    args = Namespace(level="hard", layers=1, hidden=32, seed=3, data=tmp_path, row="pretrained", device="cpu")
    args.streams, args.curve_streams = 40, 1
    train = world_rows.train

    def trained(model, *rest):
        first.append(model.lm_head.weight.detach().clone())
        return train(model, *rest)

    monkeypatch.setattr(world_rows, "train", trained)
    world_rows.pretrained(args)
    curve = json.loads(world_rows.pretrained_path(tmp_path, TABLES["hard"], 3).with_suffix(".json").read_text())
    steps = [(point["attempt"], point["level"], point["step"]) for point in curve]
    small = [(attempt, "hard_small", step) for attempt in (0, 1) for step in (2, 4)]
    assert steps == [*small, (0, "hard", 2)]
    assert len(first) == 3 and not torch.equal(first[0], first[1])


def test_interrupted_pretraining_goes_on_with_the_next_stage(tmp_path, monkeypatch):
    scores = iter([99.9, KeyboardInterrupt(), 20.0])

    def score(*args):
        if isinstance(found := next(scores), BaseException):
            raise found
        return {"exact": found}

    monkeypatch.setattr(world_rows, "exact_narrations", score)
    monkeypatch.setattr(world_rows, "SCORED_EVERY", 2)
    stages = (("hard_small", 9, 4), ("hard", 2, 4))
    monkeypatch.setitem(TABLES, "hard", replace(TABLES["hard"], layers=1, pretraining=stages, ends_at=99.5))
    args = Namespace(level="hard", layers=1, hidden=32, seed=3, data=tmp_path, row="pretrained", device="cpu")
    args.streams, args.curve_streams = 40, 1
    with pytest.raises(KeyboardInterrupt):
        world_rows.pretrained(args)
    first = load_file(tmp_path / "pretrained_hard_1x128_s3_hard_small.safetensors")
    known = world_rows.pretrained(args)
    curve = json.loads(world_rows.pretrained_path(tmp_path, TABLES["hard"], 3).with_suffix(".json").read_text())
    assert [(point["level"], point["step"]) for point in curve] == [("hard_small", 2), ("hard", 2)]
    assert any(
        first[name].shape == value.shape and not torch.equal(first[name], value) for name, value in known.items()
    )
    assert next(scores, None) is None


def test_compiled_blocks_train_as_the_model_does(tmp_path):
    """What the compiler traced is run without making kernels of it. All layers share what was traced once."""
    args = Namespace(**{**vars(ARGS), "layers": 4}, data=tmp_path, streams=40, curve_streams=2)
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph.forward

    model, processor = world_rows.build("mod", "hard_small", args)
    data = Streams(world_rows.stage_data("hard_small", processor, args)[0], 10, processor.video_token_id, "cpu")
    ids, labels, codes, _ = next(data.batches(2))
    bank = normalised_sprites(processor, "cpu")
    gradients = []
    for compiled in (nullcontext(), world_rows.compiled_blocks(model, backend=backend)):
        with compiled:
            model.train()(ids, labels=labels, pixel_values_videos=pixels(bank, codes), use_cache=False).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
        model.zero_grad(set_to_none=True)
    assert 2 <= len(traced) < 8  # of eight blocks
    assert "attention_block" not in vars(model.model.language_model.layers[0])
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_routers_of_the_frozen_row_are_not_trained():
    model, _ = world_rows.build("frozen", "hard_small", ARGS)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if "layer_expert" in name} != set()


def test_streams_are_the_same_from_one_or_several_processes(monkeypatch):
    processor = VideoLLMMoDProcessor.from_pretrained(ROOT)
    jobs = [("hard_small", range(first, first + 2), processor) for first in (0, 2)]
    torch.ones(500, 500) @ torch.ones(500, 500)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    several = list(world_streams.encode_all(jobs))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert repr(several) == repr(list(world_streams.encode_all(jobs)))


def test_rows_of_deep_models():
    args = Namespace(layers=12, hidden=32, seed=0)
    for row, selection, layers in (
        ("random_all_deep", "random", list(range(2, 12))),
        ("uniform_interleaved_deep", "uniform", [3, 5, 7, 9, 11]),
    ):
        text_config = world_rows.build(row, "crowd", args)[0].config.text_config
        assert (text_config.mod_selection, text_config.mod_keep_ratio) == (selection, 0.2)
        assert list(text_config.routed_layers) == layers
    assert world_rows.build("early_exit_4", "crowd", args)[0].config.text_config.early_exit_layer == 4
    assert TABLES["crowd_12"].rates == (1e-3, 2e-4, 5e-5) and TABLES["crowd_24"].rates == (5e-4, 1e-4, 2.5e-5)
    assert TABLES["crowd_24"].start == "pretrained_crowd_24x128" != TABLES["hard_24"].start
