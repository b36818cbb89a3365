"""Commands in processes of their own that need not import torch and transformers again: forked from the test's."""

import gc
import io
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

import torch

from videollm_mod import cli


class ForkedCommand:
    """
    `videollm-mod` with `arguments`, as a process that can be signalled, killed and read from, like a
    `subprocess.Popen` whose output and errors are text from pipes.

    Args:
        arguments: of the command line.
        stdin (file, *optional*): what it reads; nothing if omitted.
        folder (`Path`, *optional*): in which it runs.
        environment (`dict[str, str]`, *optional*): variables to change.
    """

    def __init__(self, arguments: Iterable, stdin=None, folder: Path | None = None, environment: dict | None = None):
        self.returncode: int | None = None
        self.arguments = [str(argument) for argument in arguments]
        read_out, write_out = os.pipe()
        read_err, write_err = os.pipe()
        source = os.open(os.devnull, os.O_RDONLY) if stdin is None else stdin.fileno()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(source, write_out, write_err, folder, environment or {})
        for descriptor in (write_out, write_err, *([source] if stdin is None else [])):
            os.close(descriptor)
        self.stdout, self.stderr = (os.fdopen(read, encoding="utf-8") for read in (read_out, read_err))

    def _run(self, source: int, out: int, err: int, folder: Path | None, environment: dict) -> None:
        code = 1
        try:
            for number, descriptor in enumerate((source, out, err)):
                os.dup2(descriptor, number)
            os.closerange(3, 256)
            if folder is not None:
                os.chdir(folder)
            os.environ.update(environment)
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
                code = cli.main(self.arguments)
            except SystemExit as end:
                code = end.code
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code if isinstance(code, int) else bool(code))

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


def run_forked(arguments: Iterable, **options) -> subprocess.CompletedProcess:
    """As `subprocess.run` with text captured."""
    process = ForkedCommand(arguments, **options)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.arguments, process.returncode, out, err)
