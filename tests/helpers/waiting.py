"""Wait for conditions instead of the clock, and kill processes at given points."""

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable

import pytest
import torch

PATIENCE = 900  # seconds, which only a hang takes, even on a busy machine


def until(condition: Callable[[], object], what: str = "what is waited for") -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"{what} has not come in {PATIENCE} seconds")
        time.sleep(0.01)


def killed_in(run: Callable[[Callable[[], None]], None], count: int) -> bool:
    """Call `run(come)` in a new process, which is killed when it calls `come()` for the `count`-th time.

    Returns:
        `bool`: whether it was killed; otherwise it has ended without an error.
    """
    reader, writer = multiprocessing.Pipe(duplex=False)
    left = count

    def come() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            writer.send_bytes(b"here")
            while True:
                signal.pause()

    def child() -> None:
        reader.close()
        torch.set_num_threads(1)  # a fork does not copy the threads of its parent
        gc.freeze()  # nor is garbage to be freed that would wait for them
        run(come)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    writer.close()
    try:
        if not reader.poll(PATIENCE):
            process.kill()
            pytest.fail(f"it neither came there nor ended in {PATIENCE} seconds")
        reader.recv_bytes()
    except EOFError:
        process.join()
        assert process.exitcode == 0
        return False
    finally:
        reader.close()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return True
