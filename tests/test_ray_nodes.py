"""The files of `examples/ray` on two Ray nodes of this machine: jobs on two workers, and the application.

`make test-ray` runs this file in an environment with Ray.
"""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

import httpx
import pytest
import yaml
from comparing import assert_near
from fresh_process import ROOT
from safetensors.torch import load_file
from small_data import said, small_model, write_lines, write_video
from waiting import PATIENCE, until

from videollm_mod.data.extract import extract

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="needs Ray, which is large: make test-ray"),
]

EXAMPLES = ROOT / "examples" / "ray"
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def running(command: str, **options) -> Iterator[subprocess.Popen]:
    """A shell command with all that it starts, until the block ends."""
    process = subprocess.Popen(["bash", "-c", f"exec {command}"], start_new_session=True, text=True, **options)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(PATIENCE)


@pytest.fixture(scope="module")
def environment():
    """That of commands on two nodes, which the commands of `cluster.yaml` have started."""
    port = str(free_port())
    environment = {**os.environ, "RAY_AUTH_TOKEN": token_hex(32), "RAY_HEAD_IP": "127.0.0.1", "HF_HUB_OFFLINE": "1"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    cluster = yaml.safe_load((EXAMPLES / "cluster.yaml").read_text())
    with contextlib.ExitStack() as nodes:
        # where Ray would note this cluster for later programs; its sockets need a short path
        environment["RAY_TMPDIR"] = nodes.enter_context(tempfile.TemporaryDirectory(prefix="ray-"))
        for kind in ("head", "worker"):
            stop, start = (
                line.replace("~/videollm-mod/bin", str(BIN)) for line in cluster[f"{kind}_start_ray_commands"]
            )
            assert stop.endswith("/ray stop")  # which would stop the node before
            start = start.replace("6379", port).partition(" --autoscaling-config")[0]
            command = f"env {start} --num-cpus=1 --block" + " --include-dashboard=false" * (kind == "head")
            nodes.enter_context(
                running(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            environment["RAY_ADDRESS"] = f"127.0.0.1:{port}"
            count = 1 + (kind == "worker")
            until(lambda count=count: nodes_of(environment) == count, f"node {count}")
            del environment["RAY_ADDRESS"]
        yield {**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"}


def nodes_of(environment: dict) -> int:
    """How many nodes the cluster has."""
    asked = "import ray; ray.init(logging_level=40); print(sum(node['Alive'] for node in ray.nodes()))"
    answer = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True)
    return int(answer.stdout or 0)


def job(*command: object) -> str:
    return " ".join(map(str, (sys.executable, EXAMPLES / "job.py", "--workers", 2, "--", *command)))


def workers() -> list[int]:
    """The processes of a job."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(b"ray::Worker.run"):
                found.append(int(folder.name))
    return found


def test_extraction_survives_a_killed_worker(environment, tmp_path):
    model, processor = small_model()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    lines = []
    for index in range(12):
        video = write_video(tmp_path / f"v{index}.mp4", num_frames=40, seed=index)
        lines.append({"video": video.name, "turns": [said(0.5, "A red square appears.")]})
    streams, split = write_lines(tmp_path / "streams.jsonl", lines), tmp_path / "split"
    whole = extract(streams, tmp_path / "model", tmp_path / "whole").parent
    command = job("extract", streams, "--model", tmp_path / "model", "--output", split)
    with running(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        until(lambda: len(workers()) == 2 and any(split.glob("*.safetensors")), "features")
        os.kill(workers()[0], signal.SIGKILL)
        errors = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0, errors
    assert "a worker has died" in errors and "2 more attempts" in errors
    names = {file.name for file in whole.iterdir()}
    assert {file.name for file in split.iterdir()} == names
    for name in names:
        if name.endswith(".safetensors"):
            assert_near(load_file(split / name)["video_features"], load_file(whole / name)["video_features"])
        else:
            assert (split / name).read_bytes() == (whole / name).read_bytes()


def test_evaluation_on_two_workers_equals_that_of_one(environment, tmp_path):
    options = ["evaluate", "--model", ROOT, "--task", "narration", "--streams", 4, "--device", "cpu", "--json"]
    one = subprocess.run(
        [sys.executable, "-m", "videollm_mod.commands.cli", *map(str, options), "one.json"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert one.returncode == 0, one.stderr
    for _ in range(2):  # the second time, everything is done already
        with running(job(*options, "two.json"), env=environment, cwd=tmp_path, stderr=subprocess.PIPE) as process:
            errors = process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == 0, errors
        alone, both = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
        assert (alone["processes"], both["processes"]) == (1, 2)
        assert both["summary"] == alone["summary"]


def test_the_application_of_the_example_runs(environment, tmp_path):
    described = yaml.safe_load((EXAMPLES / "serve.yaml").read_text())
    port = described["http_options"]["port"] = free_port()
    described |= {"proxy_location": "HeadOnly"}  # both nodes have the same address here
    described["applications"][0]["args"] |= {"model": str(ROOT), "store": str(tmp_path / "saved"), "device": "cpu"}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(described))
    command = f"{BIN}/serve run {tmp_path}/serve.yaml"

    def ready() -> bool:
        assert process.poll() is None, process.communicate()[1]
        with contextlib.suppress(httpx.HTTPError, ValueError):  # Ray answers in plain text before it is ready
            return httpx.get(f"http://127.0.0.1:{port}/health", timeout=PATIENCE).json().get("replicas") == 2
        return False

    with running(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        until(ready, "two replicas")
