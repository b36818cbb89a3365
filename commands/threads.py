"""How many threads a command computes with: as many as there are free cores. Threads that wait for each other on busy
cores take many times as long as a single one."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

NAMED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # with which users, and `torchrun`, choose a number


def share_cores() -> None:
    """`sleep_while_waiting` and `use_free_cores`, for commands that compute from the start."""
    sleep_while_waiting()
    use_free_cores()


def sleep_while_waiting() -> None:
    """Let threads that wait for each other sleep instead of spinning. Beside other programs a small model then runs
    twice as fast; alone it takes longer for single frames, unless OMP_WAIT_POLICY is ACTIVE. Call this before torch is
    imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def use_free_cores() -> None:
    """Let torch compute with at most as many threads as there are free cores, unless the environment sets a number.
    Imports torch."""
    if any(os.environ.get(name) for name in NAMED):
        return
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), free_cores()))


def free_cores(root: Path = Path("/")) -> int:
    """How many of `allowed_cores` are free now, at least 1."""
    return max(1, min(allowed_cores(root), round((os.cpu_count() or 1) - busy(root))))


def allowed_cores(root: Path = Path("/")) -> int:
    """How many cores this process may use by its affinity and the quota of its control groups, at least 1. Processes
    that `torchrun` starts on one machine share them.

    Args:
        root (`Path`): where `proc` and `sys` lie.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
    return max(1, math.floor(min([allowed, *quotas(root)]) / processes))


def busy(root: Path) -> float:
    """How many cores other processes use: the load of the last minute, but at most the number of processes that run
    right now, since the user's last command may have made that load."""
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # not on every system
        return 0.0
    try:
        running = int((root / "proc" / "loadavg").read_text().split()[3].split("/")[0])
    except (OSError, ValueError, IndexError):
        return load
    return min(load, max(0, running - 1))


def quotas(root: Path) -> Iterator[float]:
    """How many cores the control groups of this process (version 1 or 2), and the groups around them, grant."""
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        mounts = [""] if not controllers else [controllers, "cpu"] if "cpu" in controllers.split(",") else []
        for mount in mounts:
            top = root / "sys" / "fs" / "cgroup" / mount
            group = Path(path.lstrip("/"))
            for folder in (top / group, *(top / parent for parent in group.parents)):
                try:
                    if mount:
                        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                        words = [(folder / name).read_text() for name in names]
                    else:
                        words = (folder / "cpu.max").read_text().split()
                    quota, period = (math.inf if word == "max" else int(word) for word in words)
                except (OSError, ValueError):  # inside a container, the path may be the host's
                    continue
                if 0 < quota < math.inf and period > 0:
                    yield quota / period
