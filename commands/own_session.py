"""Runs work in a process of its own session, which signals for the process group of this one do not reach.

Ctrl-C in a terminal interrupts the whole group, and service managers may terminate it. Libraries that start processes
beside the work would lose them before the work has ended.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from .signals import raising_on_signals


def in_own_session(work: Callable[[], None]) -> None:
    """Call `work` in another process, in a session of its own, and wait for it. There SIGTERM raises `SystemExit`. It
    is sent when this process is interrupted or terminated, and also when it is killed.

    Args:
        work (`Callable`): a function of a module, or a `partial` of one.

    Raises:
        `Exception`: what `work` raises. `RuntimeError`: if its process was killed.
    """
    spawning = multiprocessing.get_context("spawn")
    receiver, sender = spawning.Pipe(duplex=False)
    process = spawning.Process(target=run, args=(work, sender))
    asked_to_stop = threading.Event()

    def stop(*_: Any) -> None:
        asked_to_stop.set()
        if process.pid is not None:
            process.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        process.start()
        sender.close()
        if asked_to_stop.is_set():  # before there was a process
            process.terminate()
        process.join()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if receiver.poll():  # also at its end, without an error
        try:
            raise receiver.recv()
        except EOFError:
            pass
    if process.exitcode and not asked_to_stop.is_set():
        raise RuntimeError(f"the process that did the work has ended with code {process.exitcode}")


def run(work: Callable[[], None], sender: Connection) -> None:
    if hasattr(os, "setsid"):
        os.setsid()
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        with raising_on_signals(run, is_program=True):
            work()
    except Exception as error:
        sender.send(error)


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


__all__ = ["in_own_session"]
