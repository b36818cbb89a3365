"""The number of threads, from affinity, control groups, load, and environment variables."""

import os
import subprocess
import sys

import pytest
import torch
from fork_server import run_forked
from fresh_process import ROOT
from waiting import PATIENCE

from videollm_mod.commands.threads import free_cores, use_free_cores


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """`machine(files, cores, allowed, load, running)`: `free_cores` there."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

    def free(files: dict[str, str] | None = None, cores=16, allowed=16, load=0.0, running=1) -> int:
        for name, content in {"proc/loadavg": f"{load} 0 0 {running}/900 77\n", **(files or {})}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
        monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
        return free_cores(tmp_path)

    return free


@pytest.mark.parametrize(
    ("options", "free"),
    [
        ({}, 16),
        ({"allowed": 3}, 3),
        ({"load": 5.2, "running": 20}, 11),
        ({"load": 5.2, "running": 1}, 16),  # from a command that has just ended
        ({"load": 0.0, "running": 9}, 16),  # from other processes that have just started
        ({"load": 40.0, "running": 41}, 1),
        ({"cores": 2, "allowed": 2, "load": 2.1, "running": 3}, 1),
        ({"cores": 64, "allowed": 4, "load": 50.0, "running": 51}, 4),
        ({"cores": 64, "allowed": 4, "load": 62.0, "running": 63}, 2),
    ],
)
def test_busy_cores_are_not_used(machine, options, free):
    assert machine(**options) == free


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 16),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "350000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "200000 100000\n"}, 2),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "800000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
            },
            4,
        ),
        ({"proc/self/cgroup": "0::/docker/of-the-host\n", "sys/fs/cgroup/cpu.max": "600000 100000\n"}, 6),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n2:cpu,cpuacct:/x\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "500000\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
            },
            5,
        ),
        (
            {
                "proc/self/cgroup": "2:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            16,
        ),
    ],
)
def test_cgroup_quota_is_respected(machine, files, free):
    assert machine(files) == free


def test_processes_on_one_machine_share_its_cores(machine, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")
    assert machine() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
    assert machine() == 1


@pytest.mark.parametrize(("named", "free", "threads"), [(None, 1, 1), (None, 64, 2), ("4", 1, 2), ("", 1, 1)])
def test_environment_variables_take_precedence(monkeypatch, named, free, threads):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    if named is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", named)
    monkeypatch.setattr("videollm_mod.commands.threads.free_cores", lambda: free)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        use_free_cores()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_unreadable_source_fails_before_torch_is_imported():
    program = (
        "import sys; from videollm_mod.commands import cli; cli.main(['narrate', 'no']); print('torch' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "there is no video no" in done.stderr and done.stdout == "False\n"


@pytest.mark.parametrize("command", ["narrate", "train", "evaluate", "extract"])
def test_commands_do_not_use_busy_cores(command):
    """In a new process whose affinity allows one core."""
    program = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from videollm_mod.commands import cli
from videollm_mod.commands.threads import free_cores
import torch
torch.set_num_threads(2)
assert free_cores() == 1
cli.main(sys.argv[1:])
print(torch.get_num_threads())
"""
    arguments = {
        "narrate": [str(ROOT / "media" / "world.mp4"), "--device", "cuda:99"],  # fails after the source is opened
        "evaluate": ["--task", "none"],
        "extract": ["no", "--model", "no", "--output", "no/no"],
    }
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    given = [sys.executable, "-c", program, command, *arguments.get(command, ["no"])]
    done = run_forked(given, env=environment, timeout=PATIENCE)
    assert done.stdout.split()[-1:] == ["1"], done.stderr
