"""Work in a session of its own ends by itself, whatever happens to the process group of the command."""

import os
import signal
import subprocess
import sys

import pytest
from waiting import PATIENCE

WORK = """
import os, signal, subprocess, sys, time
from videollm_mod.commands.own_session import in_own_session

def work():
    helper = subprocess.Popen(["sleep", "100000"])
    try:  # a signal may come as soon as the line is out
        print("at work", flush=True)
        while True:
            time.sleep(1000)
    finally:
        print("the helper lives" if helper.poll() is None else "the helper has died", flush=True)
        helper.kill()

def fail():
    raise ValueError("the options do not fit")

def die():
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    in_own_session(globals()[sys.argv[1]])
    print("stopped", flush=True)
"""


@pytest.fixture
def started(tmp_path):
    """Runs one of the functions of `WORK` in a new process group."""
    (tmp_path / "work.py").write_text(WORK)
    running = []

    def start(name: str) -> subprocess.Popen:
        command, pipe = [sys.executable, str(tmp_path / "work.py"), name], subprocess.PIPE
        running.append(subprocess.Popen(command, start_new_session=True, text=True, stdout=pipe, stderr=pipe))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_for_the_group_lets_the_work_end(started, number):
    process = started("work")
    assert process.stdout.readline() == "at work\n"
    os.killpg(process.pid, number)
    assert process.communicate(timeout=PATIENCE) == ("the helper lives\nstopped\n", "")
    assert process.returncode == 0


def test_work_ends_when_the_command_is_killed(started):
    process = started("work")
    assert process.stdout.readline() == "at work\n"
    os.killpg(process.pid, signal.SIGKILL)
    assert process.communicate(timeout=PATIENCE)[0] == "the helper lives\n"


@pytest.mark.parametrize(
    "name, error",
    [("fail", "ValueError: the options do not fit"), ("die", "RuntimeError: the process that did the work has ended")],
)
def test_what_goes_wrong_is_raised(started, name, error):
    process = started(name)
    assert error in process.communicate(timeout=PATIENCE)[1] and process.returncode == 1
