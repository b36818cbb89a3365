"""How the Space starts: from the Hub, from this repository, and on ZeroGPU."""

import configparser
import os
import re
import shutil
import signal
import socket
import sys

import httpx
import pytest
import yaml
from fork_server import PACKAGE, TORCH, ForkedProcess, run_forked
from fresh_process import ROOT, run_fresh
from plain_http import web
from waiting import PATIENCE, until

APP = ROOT / "space_app"
REVISION = "0123456789abcdef0123456789abcdef01234567"


def test_space_has_its_files():
    head = yaml.safe_load((APP / "README.md").read_text(encoding="utf-8").split("---")[1])
    constraints = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    assert head["sdk"] == "gradio" and head["sdk_version"] == constraints["gradio"] and head["app_file"] == "app.py"
    assert {"title", "emoji", "python_version", "models", "license"} <= set(head)
    assert len(head["short_description"]) <= 60  # what the Hub takes
    lines = [line for line in (APP / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert set(setup["options"]["install_requires"].split("\n")) - {""} <= set(lines)
    assert f"gradio=={constraints['gradio']}" in lines


def start(app, *arguments, **environment) -> tuple[ForkedProcess, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1"} | environment
    preloaded = PACKAGE if app == APP / "app.py" else TORCH  # a Space of its own loads the package from the Hub
    process = ForkedProcess([sys.executable, app, *arguments], env=environment, preloaded=preloaded)
    return process, f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """The files of a Space, outside the repository."""
    return shutil.copytree(APP, tmp_path_factory.mktemp("space") / "app") / "app.py"


@pytest.mark.parametrize(
    "environment, message",
    [
        ({}, "error: set VIDEOLLM_MOD_MODEL and VIDEOLLM_MOD_REVISION to a model repository and its commit"),
        ({"VIDEOLLM_MOD_MODEL": "a/b"}, "error: set VIDEOLLM_MOD_REVISION to the commit of a/b to run"),
    ],
)
def test_missing_settings_are_reported_at_once(pushed, environment, message):
    process, _ = start(pushed, **environment)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and errors.startswith(message) and errors.count("\n") == 1


def test_missing_model_is_reported_in_one_line():
    process, _ = start(APP / "app.py", "--model", "./nowhere")
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert errors == "error: `--model` must be a folder with a checkpoint or a Hub id, got ./nowhere\n"


def test_a_missing_package_is_reported_in_one_line():
    code = "import runpy, sys; sys.modules['gradio'] = None; sys.argv[1:] = []; "
    done = run_forked([sys.executable, "-c", code + f"runpy.run_path({str(APP / 'app.py')!r}, run_name='__main__')"])
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "gradio" in done.stderr and done.stderr.endswith(": pip install videollm-mod[space]\n")


def test_code_and_weights_come_from_the_pinned_revision(pushed, tmp_path):
    """They come from the Hub's cache, since there is no connection to the Hub."""
    snapshot = tmp_path / "hub" / "models--someone--nano" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    for item in ROOT.iterdir():
        if not item.name.startswith(".") and item.name != "space":
            (snapshot / item.name).symlink_to(item)
    page = shutil.copytree(ROOT / "space", snapshot / "space") / "page" / "index.html"
    page.write_text(page.read_text(encoding="utf-8").replace("<title>", "<title>From the revision: "), "utf-8")
    environment = {"VIDEOLLM_MOD_MODEL": "someone/nano", "VIDEOLLM_MOD_REVISION": REVISION, "HF_HUB_OFFLINE": "1"}
    process, url = start(pushed, HF_HOME=str(tmp_path), VIDEOLLM_MOD_WAITING="3", **environment)
    try:
        until(lambda: answers(url) or process.poll() is not None, url)
        assert process.poll() is None, process.communicate()
        assert "<title>From the revision: " in web.get(url).text
        about = web.get(f"{url}about.json").json()
        assert about["limits"]["waiting"] == 3 and about["model"]["parameters"] > 8e6
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in errors


def answers(url: str) -> bool:
    try:
        return web.get(url).is_success
    except httpx.TransportError:
        return False


def watch_in_processes_of_their_own(folder: str) -> dict:
    """As on ZeroGPU, a decorated function runs in its own process, whose memory is lost after the call."""
    import multiprocessing
    import pickle
    import types

    processes = multiprocessing.get_context("fork")
    calls = []

    def gpu(function):
        def call(*arguments):
            here, there = processes.Pipe()
            work = processes.Process(target=lambda: there.send_bytes(pickle.dumps(function(*arguments))))
            work.start()
            result = pickle.loads(here.recv_bytes())
            work.join()
            calls.append(work.pid)
            return result

        return call

    sys.modules["spaces"] = types.SimpleNamespace(GPU=gpu)
    from videollm_mod.space.models import ZERO_GPU

    assert ZERO_GPU
    return watched(folder) | {"processes": len(set(calls))}


def watched(folder) -> dict:
    """The results of a stream with frames, a question and changed controls."""
    from pathlib import Path

    from videollm_mod.space import clips
    from videollm_mod.space.lane import Controls
    from videollm_mod.space.models import Models
    from videollm_mod.space.stream import Stream

    stream = Stream("id", Models.load(), clips.scene("clip", Path(folder), 121), Controls(), "Narrate.", compare=True)
    stream.advance(2.0, Controls(keep_ratio=0.4))
    stream.ask("How many objects are there?")
    stream.advance(5.0, Controls(memory=6))
    lanes = stream.lanes.values()
    events = [[event.time, event.text, event.query] for lane in lanes for event in lane.events]
    frames = [[s.watched.silence_probability, s.kv_bytes, len(s.watched.kept)] for lane in lanes for s in lane.seen]
    return {"events": events, "frames": frames}


def test_zero_gpu_equals_one_process(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "apart").mkdir()
    process = tmp_path / "process"
    apart = run_fresh(watch_in_processes_of_their_own, process, tmp_path / "apart", SPACES_ZERO_GPU="1")
    assert apart.pop("processes") == 6
    assert apart == watched(tmp_path / "one") and len(apart["events"]) >= 4
