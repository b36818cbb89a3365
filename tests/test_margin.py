"""`videollm-mod calibrate-margin`: the margin of the rule "verify" from clips without labels."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
from fork_server import command, run_forked
from small_data import small_model, write_video

from videollm_mod.commands.cli import main
from videollm_mod.evaluation import margin
from videollm_mod.evaluation.margin import LARGEST_GAP, Probe, pick_margin, probe, shaken, summarise

FPS = 4.0


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model, processor = small_model(2, initializer_range=0.1)
    path = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.mark.parametrize("seed", range(4))
def test_the_margin_is_the_smallest_that_keeps_to_the_limit(seed):
    rng = np.random.default_rng(seed)
    gaps = np.where(rng.random(90) < 0.5, 0.0, rng.exponential(2.0, 90)).tolist()
    for limit in (0.0, 1.0, 5.0, 30.0, 1000.0):
        picked = pick_margin(gaps, FPS, limit)
        rates = [60 * FPS * np.mean([gap > value for gap in gaps]) for value in (picked, picked - 0.002)]
        assert rates[0] <= limit and (picked == 0 or rates[1] > limit)


def test_rates_of_a_margin():
    probes = [Probe("a", 1.0, 0.0, 0.0, None, False), Probe("a", 1.5, 3.0, 0.4, "x", True)]
    probes += [Probe("a", 2.0, 0.1, 0.3, "x", False), Probe("b", 0.5, LARGEST_GAP, 0.0, "y", True)]
    summary = summarise(probes, fps=2.0, limit=30.0)
    assert summary["picked"] == {
        "margin": 0.3,
        "narrations_per_minute": 60.0,
        "needless_per_minute": 30.0,
        "changes_kept": 100.0,
    }
    last = summary["sweep"][-1]
    assert (last["margin"], last["narrations_per_minute"], last["changes_kept"]) == (12.0, 30.0, 50.0)


def test_shaken_frames_show_the_same():
    frames = np.random.default_rng(0).integers(0, 240, (5, 6, 20, 3), dtype=np.uint8)
    frames = frames.repeat(40, axis=1).repeat(40, axis=2)  # patches larger than the movement
    moved = shaken(frames)
    assert moved.shape == frames.shape and moved.dtype == np.uint8
    for index in range(5):
        difference = np.abs(moved[index].astype(int) - frames[index])
        assert 0 < np.median(difference) <= 5 and not np.array_equal(moved[index], frames[index])
        assert np.array_equal(moved[index], shaken(frames[index : index + 1], index)[0])


def test_probes_equal_a_session_at_margin_0(folder, tmp_path):
    """Probing in a fork changes nothing."""
    from videollm_mod.loading.checkpoint import load_checkpoint

    model, processor = load_checkpoint(folder, device="cpu")
    model.stream = partial(model.stream, max_new_tokens=6)  # this model never ends a narration
    clip = write_video(tmp_path / "a.mp4", 20)
    session = model.stream(processor, speak_rule="verify", speak_threshold=1.0, max_cached_frames=8)
    model.config.text_config.max_position_embeddings = 8 * (2 * model.config.num_frame_tokens + 1)  # 8 frames
    processor.video_processor.fps = FPS
    events = session.push(clip)
    probes = list(probe(model, processor, clip, FPS, None, None))
    assert len(probes) == 19 == session.stats.verified
    assert [each.text for each in probes if each.text is not None] == [event.text for event in events[1:]]
    assert [each.time for each in probes if each.gap > 0] == [event.time for event in events[1:]]
    assert all(each.still_gap >= 0 for each in probes) and len(events) > 1


def test_the_command_writes_the_margin(folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "model")
    before = json.loads((model / "config.json").read_text())
    clips = [write_video(tmp_path / f"{seed}.mp4", 4, seed=seed) for seed in range(2)]
    files = tmp_path / "m.json", tmp_path / "m.png"
    arguments = ["calibrate-margin", *clips, "--model", model, "--fps", FPS, "--device", "cpu", "--needless", 80]
    done = run_forked(command(*arguments, "--json", files[0], "--plot", files[1]))
    assert done.returncode == 0, done.stderr
    result = json.loads(files[0].read_text())
    picked = result["picked"]["margin"]
    assert json.loads((model / "config.json").read_text()) == {**before, "verify_margin": picked}
    use = "; this model uses it with `--speak-rule verify` only"
    assert f"verify_margin {picked:g} is written to {model / 'config.json'}{use}\n" in done.stdout
    assert len(result["probes"]) == 6 and result["picked"]["needless_per_minute"] <= 80
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_the_command_shows_how_far_it_is(folder, tmp_path, monkeypatch):
    shown = []

    def bar(probes, name, total, **_):
        shown.append((name, total, probes := list(probes)))
        return probes

    monkeypatch.setattr(margin, "tqdm", bar)
    clip = str(write_video(tmp_path / "a.mp4", 12))
    assert main(["calibrate-margin", clip, "--model", str(shutil.copytree(folder, tmp_path / "m"))]) == 0
    ((name, total, probes),) = shown
    assert name == "a.mp4" and total == len(probes) > 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["no.mp4"], "there is no clip no.mp4"),
        (["a.mp4", "--needless", "-1"], "`--needless` must be a number of at least 0, got -1"),
        (["a.mp4", "--model", "no"], "`--model` must be a folder with a checkpoint, got no"),
        (["a.mp4", "--keep-ratio", "2"], "`--keep-ratio` must be in (0, 1], got 2"),
        (["a.mp4", "--plot", "a.txt"], "the file name of a plot must end in"),
        (["still.mp4"], "the clips must have at least two frames"),
        (["a.mp4", "--json", "no/a.json"], "the folder of `--json` does not exist"),
    ],
)
def test_what_is_wrong_is_named(folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mp4", 4)
    write_video(tmp_path / "still.mp4", 1)
    before = (folder / "config.json").read_bytes()
    done = run_forked(command("calibrate-margin", "--model", folder, *arguments))
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr, done.stderr
    assert (folder / "config.json").read_bytes() == before
