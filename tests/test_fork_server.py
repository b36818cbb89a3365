"""A forked process is like a new one: see `helpers/fork_server.py`."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fork_server import PIPE, STDOUT, TORCH, ForkedProcess, command, run_forked

CODE = {
    "printed": "import sys; print('out', sys.argv, __name__); print('err', file=sys.stderr)",
    "exit code": "raise SystemExit(3)",
    "exit message": "raise SystemExit('why')",
    "error": "print('out'); raise KeyError('why')",
    "interrupt": "raise KeyboardInterrupt",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "functions at exit": "import atexit; atexit.register(print, 'at exit')",
    "a thread": "import threading, time; threading.Thread(target=lambda: (time.sleep(0.05), print('ended'))).start()",
    "a full pipe": "import sys; sys.stderr.write('x' * 200_000); print('y' * 200_000)",
    "environment": "import os; print(os.environ['NAMED'], os.getcwd(), os.environ.get('LEFT_OUT'))",
    "input": "import sys; print(input(), sys.stdin.seekable(), sys.stdout.seekable())",
}


@pytest.mark.parametrize("name", CODE)
def test_a_forked_process_is_like_a_new_one(tmp_path, name):
    (tmp_path / "input").write_text("a line\n")
    environment = {**os.environ, "NAMED": "ä"}
    environment.pop("LEFT_OUT", None)
    start = [sys.executable, "-c", CODE[name], "an argument"]
    with open(tmp_path / "input") as one, open(tmp_path / "input") as other:
        new = subprocess.run(start, stdin=one, cwd=tmp_path, env=environment, capture_output=True, text=True)
        forked = run_forked(start, stdin=other, cwd=tmp_path, env=environment)
    assert (forked.returncode, forked.stdout) == (new.returncode, new.stdout)
    assert forked.stderr.splitlines()[-1:] == new.stderr.splitlines()[-1:]


def test_modules_and_files_are_run(tmp_path):
    (tmp_path / "beside.py").write_text("VALUE = 5\n")
    (tmp_path / "script.py").write_text("import sys, beside\nprint(__name__, sys.argv, beside.VALUE)\n")
    done = run_forked([sys.executable, tmp_path / "script.py", "x"])
    assert done.stdout == f"__main__ ['{tmp_path / 'script.py'}', 'x'] 5\n" and done.stderr == ""
    assert run_forked(command("--version")).stdout.startswith("videollm-mod ")
    assert run_forked([sys.executable, "-m", "beside"], cwd=tmp_path).returncode == 0


def test_a_process_is_signalled_and_written_to():
    waiting = "print(input(), flush=True); import signal; signal.pause()"
    with ForkedProcess([sys.executable, "-c", waiting], stdin=PIPE, stderr=STDOUT) as process:
        assert process.poll() is None and process.stderr is None and Path(f"/proc/{process.pid}").exists()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.stdin.write("a line\n")
        process.stdin.flush()
        assert process.stdout.readline() == "a line\n"
        process.send_signal(signal.SIGTERM)
    assert process.returncode == process.wait() == process.poll() == -signal.SIGTERM


def test_limits_hold_in_the_process_alone(tmp_path):
    write = "with open('file', 'w') as file: file.write('x' * 500)"
    done = run_forked([sys.executable, "-c", write], cwd=tmp_path, limits={resource.RLIMIT_FSIZE: 100})
    assert done.returncode == 1 and "File too large" in done.stderr
    assert run_forked([sys.executable, "-c", write], cwd=tmp_path).returncode == 0


def test_variables_that_have_been_read_are_refused():
    for environment in ({**os.environ, "HF_HOME": "elsewhere"}, {"PATH": ""}):
        done = run_forked([sys.executable, "-c", "pass"], env=environment)
        assert done.returncode == 1 and "has been read already" in done.stderr
    show = "import sys; print('torch' in sys.modules, 'transformers' in sys.modules, 'videollm_mod' in sys.modules)\n"
    assert run_forked([sys.executable, "-c", show]).stdout == "True True True\n"
    show += "from huggingface_hub.constants import HF_HOME; print(HF_HOME)"
    done = run_forked([sys.executable, "-c", show], env={**os.environ, "HF_HOME": "elsewhere"}, preloaded=TORCH)
    assert done.stdout == "True False False\nelsewhere\n"
