"""A signal to all processes of `videollm-mod serve --ray`, as terminals and service managers send it, ends no session.

`make test-ray` runs this file in an environment with Ray.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile

import pytest

pytest.importorskip("ray", reason="needs Ray, which is large: make test-ray")

from test_ray_cluster import KEY, SEEDS, Resumed, alone, play  # noqa: F401
from test_ray_nodes import free_port
from waiting import PATIENCE

pytestmark = pytest.mark.ray


class Command:
    """`videollm-mod serve --ray`, which starts Ray on this machine, and can be started again with the same sessions.
    It saves them when it stops, and not before."""

    def __init__(self, store: str, ray_folder: str):
        self.port = free_port()
        options = ["--replicas", "2", "--port", str(self.port), "--store", store, "--save-seconds", "100000"]
        options += ["--device", "cpu", "--max-fps", "1000000", "--max-waiting-frames", "256", "--name", "nano"]
        self.command = [sys.executable, "-m", "videollm_mod.commands.cli", "serve", "--ray", *options]
        self.environment = {**os.environ, "RAY_TMPDIR": ray_folder, "VIDEOLLM_MOD_API_KEYS": KEY}
        self.environment.pop("RAY_ADDRESS", None)

    def start(self) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            self.command, env=self.environment, start_new_session=True, text=True, stdout=pipe, stderr=pipe
        )
        self.url = f"http://127.0.0.1:{self.port}"
        if self.process.stdout.readline() != f"serving on {self.url}\n":
            self.process.kill()
            pytest.fail(self.process.communicate()[1])

    def stop(self, number: int) -> None:
        """Send a signal to the process group."""
        os.killpg(self.process.pid, number)
        out, errors = self.process.communicate(timeout=PATIENCE)
        assert (self.process.returncode, out) == (0, "stopped\n"), errors


@pytest.fixture
def server(tmp_path):
    with tempfile.TemporaryDirectory(prefix="ray-") as ray_folder:  # the sockets in it need a short path
        command = Command(str(tmp_path), ray_folder)
        command.start()
        try:
            yield command
        finally:
            with contextlib.suppress(ProcessLookupError):
                command.process.terminate()
            command.process.communicate(timeout=PATIENCE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_for_all_processes_saves_all_sessions(server, alone, number):  # noqa: F811
    def restart(_) -> None:
        server.stop(number)
        server.start()

    streams = play(server.url, restart)
    assert streams.results() == alone
    resumed = [event for events in streams.events.values() for event in events if isinstance(event, Resumed)]
    assert len(resumed) >= len(SEEDS)
    assert None not in [event.time for event in resumed]  # each session was saved, with frames
