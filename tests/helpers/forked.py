"""Processes that need not import torch and transformers again, because they are forked from the test's own."""

import gc
import io
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial

import torch

from videollm_mod import cli


class ForkedProcess:
    """
    `run()` in a process of its own, which can be signalled, killed and read from, like a `subprocess.Popen` whose
    output and errors are text from pipes. `run` returns the exit code, or None for 0.

    Args:
        stdin (file, *optional*): what it reads; nothing if omitted.
    """

    def __init__(self, run: Callable[[], int | None], stdin=None):
        self.returncode: int | None = None
        read_out, write_out = os.pipe()
        read_err, write_err = os.pipe()
        source = os.open(os.devnull, os.O_RDONLY) if stdin is None else stdin.fileno()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(run, source, write_out, write_err)
        for descriptor in (write_out, write_err, *([source] if stdin is None else [])):
            os.close(descriptor)
        self.stdout, self.stderr = (os.fdopen(read, encoding="utf-8") for read in (read_out, read_err))

    def _run(self, run: Callable[[], int | None], source: int, out: int, err: int) -> None:
        code = 1
        try:
            for number, descriptor in enumerate((source, out, err)):
                os.dup2(descriptor, number)
            os.closerange(3, 256)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            torch.set_num_threads(1)  # the threads of its parent are not there after a fork
            gc.freeze()  # nor is garbage to be freed that would wait for them
            sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
            sys.stdout, sys.stderr = (
                io.TextIOWrapper(os.fdopen(number, "wb", closefd=False), encoding="utf-8", write_through=number == 2)
                for number in (1, 2)
            )
            sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
            try:
                code = run() or 0
            except SystemExit as end:
                code = end.code
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code if isinstance(code, int) else bool(code))

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """What it prints until it ends, and its errors, which must fit into a pipe."""
        out, err = self.stdout.read(), self.stderr.read()
        self.wait()
        return out, err


def forked_command(*arguments: object, **options) -> ForkedProcess:
    """`videollm-mod` with these arguments."""
    return ForkedProcess(partial(cli.main, list(map(str, arguments))), **options)


def run_forked(*arguments: object, **options) -> subprocess.CompletedProcess:
    """As `subprocess.run` of `videollm-mod` with text captured."""
    process = forked_command(*arguments, **options)
    out, err = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)
