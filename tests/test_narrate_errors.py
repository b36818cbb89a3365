"""`videollm-mod narrate`: every kind of bad input is one error line."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from fork_server import TORCH, run_forked
from fresh_process import ROOT
from narrating import COMMAND, NOTE, broken_checkpoint, is_one_line, make_broken, truth

from videollm_mod import VideoLLMMoDForConditionalGeneration
from videollm_mod.data.world import world_stream
from videollm_mod.decoding import decode_video
from videollm_mod.narration import narrate
from videollm_mod.narration.options import NarrateOptions
from videollm_mod.sources import source

BROKEN = {
    "empty": "is empty",
    "text": "cannot decode",
    "text as text": "no video stream",
    "noise": "cannot decode",
    "index missing": "cannot decode",
    "cut off": "is cut off: it ended at",
    "header only": "cannot decode",
    "audio": "there is no video stream in",
    "audio with cover": "there is no video stream in",
    "directory": "is a directory",
    "missing": "there is no video",
}


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_videos_are_one_error_line(run, tmp_path, clip, kind):
    output = tmp_path / "out.jsonl"
    code, lines, err = run(make_broken(kind, tmp_path, clip), "--output", output)
    assert code == 2 and lines == [] and is_one_line(err) and BROKEN[kind] in err
    if kind == "cut off":  # the narrations before the cut stay
        events = [json.loads(line) for line in output.read_text().splitlines()]
        assert events[0]["text"] and events[0]["time"] == truth(60)[0][0]
    else:
        assert not output.exists()  # so an older file would not have been overwritten either


ARGUMENTS = {
    "--fps 0": "`--fps` must be a finite number > 0, got 0.0",
    "--fps -2": "`--fps` must be a finite number > 0, got -2",
    "--fps nan": "`--fps` must be a finite number > 0, got nan",
    "--fps inf": "`--fps` must be a finite number > 0, got inf",
    "--fps 1e9": "`--fps` must be at most 1000",
    "--fps two": "argument --fps: invalid float value: 'two'",
    "--threshold 2": "`--threshold` must be in [0, 1], got 2",
    "--threshold -0.1": "`--threshold` must be in [0, 1]",
    "--threshold nan": "`--threshold` must be in [0, 1], got nan",
    "--keep-ratio 0": "`--keep-ratio` must be in (0, 1], got 0",
    "--keep-ratio 1.1": "`--keep-ratio` must be in (0, 1]",
    "--keep-ratio nan": "`--keep-ratio` must be in (0, 1], got nan",
    "--max-cached-frames 0": "`--max-cached-frames` must be at least 1, got 0",
    "--max-cached-frames many": "argument --max-cached-frames: invalid int value: 'many'",
    "--format pdf": "argument --format: invalid choice: 'pdf'",
    "--dtype int8": "argument --dtype: invalid choice: 'int8'",
    "--device tpu": "`--device` must be auto, cpu, mps, cuda or cuda:N, got 'tpu'",
    "--device cuda:99": "is not there: this machine has",
    "--query What?@-3": "the time of a `--query` must be seconds from 0 on, got 'What?@-3'",
    "--query What?@nan": "the time of a `--query` must be seconds from 0 on",
    "--query @3": "a `--query` must hold text",
    "--output no/such/folder.srt": "the folder of `--output` does not exist: no/such",
    "--output .": "`--output` must be a file",
    "--output clip.mp4": "`--output` would overwrite the source",
    "--overlay clip.mp4": "`--overlay` would overwrite the source",
    "--overlay no/o.mp4": "the folder of `--overlay` does not exist",
    "--overlay o.gif": "`--overlay` must end in .mp4",
    "--output o.mp4 --overlay o.mp4": "`--output` and `--overlay` must be two files",
    "--model no-folder/x/y": "`--model` must be a folder with a checkpoint or a Hub id",
    "--model ./nowhere": "`--model` must be a folder with a checkpoint or a Hub id",
    "--model empty": "there is no config.json in empty",
    "--model configured": "there is no *.safetensors in configured",
    "--nonsense": "unrecognized arguments: --nonsense",
}


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_wrong_arguments_are_one_error_line(run, tmp_path, monkeypatch, clip, arguments):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("configured").mkdir()
    shutil.copy(ROOT / "config.json", "configured")
    shutil.copy(clip, "clip.mp4")
    code, lines, err = run("clip.mp4", *arguments.split(" ", 1 if "?" in arguments else -1))
    assert code == 2 and lines == [] and is_one_line(err) and ARGUMENTS[arguments] in err
    assert Path("clip.mp4").read_bytes() == clip.read_bytes()


SOURCES = {
    "webcam:0": "cannot decode /dev/video0: No such file",
    "webcam:front": "a camera is `webcam:` and its number",
    "nosuch://x/y": "cannot decode nosuch://x/y: Protocol not found",
    "rtsp://127.0.0.1:9/x": "cannot decode rtsp://127.0.0.1:9/x: Connection refused",
    "http://127.0.0.1:9/x.mp4": "cannot decode http://127.0.0.1:9/x.mp4: Connection refused",
    "": "there is no video",
}


@pytest.mark.parametrize("name", SOURCES)
def test_unreachable_sources_are_one_error_line(run, name):
    if name == "webcam:0" and Path("/dev/video0").exists():
        pytest.skip("this machine has a camera")
    code, _, err = run(name)
    assert code == 2 and is_one_line(err) and SOURCES[name] in err


def test_a_server_that_never_answers_times_out(run, monkeypatch):
    monkeypatch.setattr(source, "TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=server.accept, daemon=True).start()
        code, _, err = run(f"http://127.0.0.1:{server.getsockname()[1]}/x.mp4")
    assert code == 2 and is_one_line(err)


CHECKPOINTS = {
    "other kind": "holds a model of type 'llama'",
    "to be built": "holds a smolvlm model, of which a streaming model can be built: run `videollm-mod build --vlm ",
    "no configuration": "config.json",
    "wrong type": "mod_keep_ratio",
    "out of range": "`mod_keep_ratio` must be a number in (0, 1], got 3",
    "truncated": "",
    "weights missing": "lacks 7 weights, such as model.language_model.layers.3.mlp.down_proj.weight",
    "no rate": "`fps` in ",
    "no processor": "is not the configuration of a processor",
    "no tokenizer": "",
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_broken_checkpoints_are_one_error_line(run, tmp_path, clip, kind):
    folder = broken_checkpoint(kind, tmp_path / "checkpoint")
    code, lines, err = run(clip, "--model", folder, own_checkpoint=False)
    assert code == 2 and lines == [] and err.startswith("error: ") and err.count("\n") == 1
    assert CHECKPOINTS[kind] in err


def test_an_unreachable_hub_id_is_one_error_line(clip):
    """The Hub is asked once, and a second time by the HTTP library when it hangs up, as here."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked = []

        def hang_up():
            with suppress(OSError):  # the server is closed at the end
                while True:
                    asked.append(server.accept()[0].close())

        threading.Thread(target=hang_up, daemon=True).start()
        hub = f"http://127.0.0.1:{server.getsockname()[1]}"
        environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub}
        asking = f"""
import sys
from videollm_mod.commands import cli
for extra in ([], ["--trust-remote-code"]):
    sys.stdout.write(str(cli.main(["narrate", {str(clip)!r}, "--model", "no/model", *extra])))
"""
        done = run_forked([sys.executable, "-c", asking], env=environment, preloaded=TORCH)
        errors = done.stderr.splitlines(keepends=True)
        assert done.stdout == "22" and len(errors) == 2
        assert all(is_one_line(error) and "the Hub cannot be reached" in error for error in errors)
        assert 2 <= len(asked) <= 2 * 2
    done = run_forked([*COMMAND, clip, "--model", "no/model"])
    assert done.returncode == 2 and is_one_line(done.stderr) and "which is offline" in done.stderr


def test_broken_code_of_a_checkpoint_is_one_error_line(run, tmp_path, clip):
    folder = broken_checkpoint("truncated", tmp_path / "checkpoint")
    for file in ROOT.glob("*.py"):
        shutil.copy(file, folder)
    code, lines, err = run(clip, "--model", folder, "--trust-remote-code", own_checkpoint=False)
    assert code == 2 and lines == [] and is_one_line(err)


def test_a_model_in_4_bit_narrates(run, clip):
    pytest.importorskip("bitsandbytes", reason="--load-in-4bit needs bitsandbytes")
    code, lines, err = run(clip, "--load-in-4bit", "--format", "jsonl", own_checkpoint=False)
    assert (code, err) == (0, "")
    *events, last = map(json.loads, lines)
    assert last["stats"]["frames"] == int(2 * world_stream(60).seconds)
    assert {(e["time"], e["text"]) for e in events} & set(truth(60))  # less exact, but still narrations of the world


def test_weights_that_are_not_finite_are_one_error_line(run, tmp_path, clip):
    folder = broken_checkpoint("whole", tmp_path / "checkpoint")
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT)
    model.model.language_model.layers[2].mlp.up_proj.weight.data[3, 5] = torch.nan
    model.save_pretrained(folder)
    code, lines, err = run(clip, "--model", folder, own_checkpoint=False)
    assert code == 2 and lines == [] and is_one_line(err) and "nan or infinity" in err


def test_the_default_model_is_the_checkpoint_of_the_package(run, tmp_path, clip):
    folder = broken_checkpoint("whole", tmp_path / "checkpoint")
    shutil.copy(ROOT / "chat_template.jinja", folder)
    for arguments in ([], ["--model", folder]):
        code, lines, err = run(clip, *arguments, own_checkpoint=False)
        assert (code, err) == (0, "")
        assert lines == [f"{time:8.1f} s  {text}" for time, text in truth(60)]


def test_a_fresh_process_prints_only_events(tmp_path, clip):
    """No traceback and no messages of libraries, which bypass Python's streams."""
    path = make_broken("cut off", tmp_path, clip)
    done = subprocess.run([*COMMAND, path, "--overlay", tmp_path / "o.mp4"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(NOTE) and is_one_line(done.stderr.removeprefix(NOTE))
    assert done.stdout.splitlines()[0] == "{:8.1f} s  {}".format(*truth(60)[0])
    assert len(decode_video(tmp_path / "o.mp4", 2)[0]) > 4


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device without room")
def test_a_full_disk_is_one_error_line(run, clip):
    code, _, err = run(clip, "--output", "/dev/full")
    assert code == 2 and is_one_line(err) and "No space left" in err


def test_options_are_checked_before_anything_is_loaded(monkeypatch, clip):
    def refuse(*_):
        raise AssertionError("loaded")

    with pytest.raises(ValueError, match="`--threshold`"):
        narrate.narrate(NarrateOptions(source=str(clip), threshold=3), load=refuse)
    with pytest.raises(OSError, match="there is no video"):
        narrate.narrate(NarrateOptions(source="nowhere.mp4"), load=refuse)
