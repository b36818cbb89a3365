"""`videollm-mod demo`: what `make demo` runs."""

import json
import re

import av
import numpy as np
import pytest
from fresh_process import ROOT

from videollm_mod.commands import cli
from videollm_mod.data.world import world_stream
from videollm_mod.decoding import decode_video
from videollm_mod.narration import demo, savings
from videollm_mod.narration.savings import measure_savings
from videollm_mod.narration.sight import COMMANDS


@pytest.fixture(autouse=True)
def two_rounds(monkeypatch):
    monkeypatch.setattr(savings, "ROUNDS", 2)


def test_the_demo_narrates_the_clip_that_the_checkpoint_knows(tmp_path, capsys):
    assert cli.main(["demo", "--output", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    truth = json.loads((ROOT / "media" / "world.jsonl").read_text())["turns"]
    for turn in truth:
        assert f"{turn['time']:8.1f} s  {turn['content']}\n" in printed
    assert f"narrations equal to the ground truth: {len(truth)} of {len(truth)}; other narrations: 0" in printed
    assert printed.count("routing over") == printed.count("  cache  ") == printed.count("  language model  ") == 2
    for name, frames in {"world": 31, "cup": 17}.items():
        assert len(decode_video(tmp_path / "demo" / f"{name}.overlay.mp4", 2)[0]) == frames
    with av.open(str(tmp_path / "demo" / "world.srt")) as subtitles:
        shown = sum(packet.size > 0 for packet in subtitles.demux())
    world, cup = re.findall(r"^\w+\.mp4: .*\n((?:.+\n)+)", printed, re.M)
    said = r"^ +[\d.]+ s  "
    assert shown == len(re.findall(said, world, re.M)) == len(truth) + 2
    # of a real clip it would say nonsense
    assert not re.search(said, cup, re.M) and not (tmp_path / "demo" / "cup.srt").exists()
    assert cup.startswith(
        "This model knows only the procedural world, so its words about this video would mean nothing.\n"
    )
    assert re.search(
        r"17 frames of 640 x 480 pixels.*decoding [\d.]+, vision tower [\d.]+, language model [\d.]+\n", cup
    )
    assert printed.endswith("\n".join(["describes real videos:", *COMMANDS, ""]))


def test_the_demo_narrates_a_real_clip_with_a_model_of_no_domain(tmp_path, capsys, monkeypatch, checkpoint):
    monkeypatch.setattr(checkpoint[0].config, "domain", None)
    monkeypatch.setattr(demo, "load_checkpoint", lambda: checkpoint)
    monkeypatch.setattr(demo, "measure_savings", lambda *_: "")
    monkeypatch.delitem(demo.CLIPS, "world.mp4")
    demo.demo(tmp_path)
    printed = capsys.readouterr().out
    assert "What do you see?" in printed.partition("cup.mp4: ")[2] and (tmp_path / "cup.srt").stat().st_size > 0
    assert "To give it sight" not in printed


def test_the_world_clip_is_made_from_its_seed():
    """As media/README.md states."""
    truth = json.loads((ROOT / "media" / "world.jsonl").read_text())["turns"]
    assert [(turn["time"], turn["content"]) for turn in truth] == world_stream(7).narrations
    frames, _ = decode_video(ROOT / "media" / "world.mp4", 2)
    difference = np.abs(frames.astype(int) - world_stream(7).frames(2, 384))
    assert difference.mean() < 4


@pytest.mark.parametrize("keep_ratio", [None, 0.5])
def test_savings_are_counted_exactly(keep_ratio, checkpoint):
    model, processor = checkpoint
    saved = measure_savings(model, processor, world_stream(8).frames(2, 96)[:5], keep_ratio)
    assert model.config.text_config.vision_routing == "mod" and model.keep_ratio == 0.2
    tokens = 1 + len(processor.stream_start_ids) + 5 * 10 + 4  # beginning, opening, frames, separators
    kept = 2 if keep_ratio is None else 5
    per_token = 2 * 4 * 32 * 4
    assert saved.dense_bytes == 8 * tokens * per_token
    assert saved.bytes == saved.dense_bytes - 4 * 5 * (10 - kept) * per_token
    assert (saved.kept, saved.tokens, saved.routed_layers, saved.layers) == (kept, 10, 4, 8)
    assert saved.seconds > 0 and saved.dense_seconds > 0
    less = 100 * (1 - saved.bytes / saved.dense_bytes)
    assert f"{less:.0f} % less" in str(saved)
