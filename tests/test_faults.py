"""Failures of memory, disk and checkpoint are one clear error, and files that were begun stay whole."""

import copy
import json
import random
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from comparing import assert_near
from fork_server import command, run_forked
from fresh_process import ROOT

from videollm_mod import VideoLLMMoDForConditionalGeneration
from videollm_mod.commands import cli
from videollm_mod.data.world import world_stream
from videollm_mod.data.world_clip import write_clip
from videollm_mod.decoding import decode_video
from videollm_mod.loading import checkpoint as loading
from videollm_mod.static_step import StaticStep


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", seed=60)[0]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the checkpoint, to be damaged."""
    copied = tmp_path / "checkpoint"
    copied.mkdir()
    for file in (*ROOT.glob("*.json"), *ROOT.glob("*.safetensors"), ROOT / "chat_template.jinja"):
        shutil.copy(file, copied)
    return copied


def is_one_line(err: str) -> bool:
    return err.startswith("error: ") and err.count("\n") == 1


def fails_after(monkeypatch, model, calls: int):
    """Let a model and its static steps run out of memory after `calls` calls, until the patch is undone."""
    left = [calls]

    def limited(forward):
        def run(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total ...")
            return forward(*args, **kwargs)

        return run

    for owner in (model, StaticStep):
        monkeypatch.setattr(owner, "forward", limited(owner.forward))


def test_out_of_memory_keeps_what_was_written(checkpoint, clip, tmp_path, monkeypatch, capfd):
    whole, output, overlay = tmp_path / "whole.jsonl", tmp_path / "out.jsonl", tmp_path / "o.mp4"
    monkeypatch.setattr(loading, "load_checkpoint", lambda *_, **__: checkpoint)
    assert cli.main(["narrate", str(clip), "--output", str(whole)]) == 0
    fails_after(monkeypatch, checkpoint[0], 16)
    capfd.readouterr()
    code = cli.main(["narrate", str(clip), "--output", str(output), "--overlay", str(overlay)])
    out, err = capfd.readouterr()
    assert code == 2 and out == "" and is_one_line(err) and "the GPU is out of memory; `--max-cached-frames`" in err
    written, expected = output.read_text().splitlines(), whole.read_text().splitlines()[:-1]
    assert 0 < len(written) < len(expected)
    assert_near([json.loads(line) for line in written], [json.loads(line) for line in expected[: len(written)]], 1e-3)
    assert len(decode_video(overlay, 2)[0]) > 0


def test_a_session_continues_after_running_out_of_memory(checkpoint, monkeypatch):
    model, processor = checkpoint
    frames, times = world_stream(61).frames(2, 96)[:12], world_stream(61).frame_times(2).tolist()[:12]
    expected = model.stream(processor).push(frames, times)
    assert len(expected) > 2
    for calls in (0, 3, 8):
        session, events = model.stream(processor), []
        with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
            fails_after(patch, model, calls)
            for watched in session.watch(frames, times):
                events += [watched.event] if watched.event else []
        done = session.stats.frames
        events += session.push(frames[done:], times[done:])
        assert [(e.time, e.text) for e in events] == [(e.time, e.text) for e in expected]


@pytest.mark.parametrize("name, room", [("out.jsonl", 450), ("out.srt", 130), ("o.mp4", 120_000)])
def test_a_full_disk_keeps_whole_events(clip, tmp_path, name, room):
    """A limit of the file size acts as a full disk: a write stops in the middle."""
    output = tmp_path / ("out.jsonl" if name == "o.mp4" else name)
    overlay = ["--overlay", tmp_path / name] if name == "o.mp4" else []
    narrate = command("narrate", clip, "--output", output, *overlay)
    done = run_forked(narrate, limits={resource.RLIMIT_FSIZE: room})
    assert done.returncode == 2 and done.stdout == "" and is_one_line(done.stderr)
    assert f"cannot write {tmp_path / name}: File too large" in done.stderr
    text = output.read_text(encoding="utf-8")
    assert 0 < len(text) <= room and text.endswith("\n")
    if output.suffix == ".jsonl":
        assert all("time" in json.loads(line) for line in text.splitlines())
    if output.suffix == ".srt":
        assert text.endswith("\n\n") and all(len(cue.splitlines()) >= 3 for cue in text.strip().split("\n\n"))


def test_damaged_weights_are_one_error(folder):
    weights, rng = (ROOT / "model.safetensors").read_bytes(), random.Random(7)
    header = int.from_bytes(weights[:8], "little")
    sizes = [0, 5, 8, 100, header + 8, len(weights) - 1, *(rng.randrange(len(weights)) for _ in range(3))]
    damaged = [weights[:size] for size in sizes] + [b"\xff" * 8 + weights[8:], weights[: header - 40] + b"#" + weights]
    for content in damaged:
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises((ValueError, OSError)):
            loading.load_checkpoint(folder, device="cpu")


@pytest.mark.parametrize("seed", range(4))
def test_a_weight_that_is_not_finite_is_named(folder, seed):
    rng = random.Random(seed)
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT)
    name, weight = rng.choice(list(model.named_parameters()))
    weight.data.view(-1)[rng.randrange(weight.numel())] = rng.choice([torch.nan, torch.inf, -torch.inf])
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match=f"holds nan or infinity in .*{name.rsplit('.', 1)[1]}"):
        loading.load_checkpoint(folder, device="cpu")


def test_scores_that_are_not_finite_are_an_error(checkpoint, monkeypatch):
    model, processor = checkpoint
    session = model.stream(processor)
    session.push(np.zeros((1, 32, 48, 3), np.uint8))
    wrong = model.lm_head.weight.detach().clone()
    wrong[5] = torch.nan
    monkeypatch.setattr(model.lm_head.weight, "data", wrong)
    with pytest.raises(ValueError, match="scores are not finite"):
        session.ask("What is there?")


WRONG = ["a fifth", -3, 1e400, None, [], {}, [["x"]], True, 10**30, 2.5, 0]


def places(value, path=()):
    """The paths of all fields of a nested object."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from places(inner, (*path, key))


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json"])
def test_any_option_of_a_wrong_type_loads_or_is_an_error(folder, name):
    """Some options, such as versions, may hold anything; other wrong values are refused before anything runs."""
    config, rng, refused = json.loads((ROOT / name).read_text()), random.Random(name), 0
    fields = list(places(config))
    for field in rng.sample(fields, min(12, len(fields))):
        altered = copy.deepcopy(config)
        inner = altered
        for key in field[:-1]:
            inner = inner[key]
        inner[field[-1]] = rng.choice(WRONG)
        (folder / name).write_text(json.dumps(altered))
        try:
            loading.load_checkpoint(folder, device="cpu")
        except (ValueError, OSError, ImportError) as error:
            refused += 1
            assert str(error)
    assert refused or name == "tokenizer_config.json"


def test_options_that_would_take_all_memory_are_refused(folder):
    for name, field, message in (
        ("config.json", ("text_config", "num_hidden_layers"), "`num_hidden_layers` must be in"),
        ("processor_config.json", ("num_frame_tokens",), "`num_frame_tokens` must be at most"),
    ):
        config = json.loads((ROOT / name).read_text())
        inner = config
        for key in field[:-1]:
            inner = inner[key]
        inner[field[-1]] = 10**9
        (folder / name).write_text(json.dumps(config))
        with pytest.raises(ValueError, match=message):
            loading.load_checkpoint(folder, device="cpu")
        shutil.copy(ROOT / name, folder)
