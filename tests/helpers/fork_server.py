"""
Python commands in real processes that start at once, because they are forked from one that has imported torch,
transformers and this package already, and has computed nothing.

A new Python process needs 6 seconds of CPU time for the imports of `narrate`, and 12 for those of `train`. Start a new
one (`subprocess`, `fresh_process.py`) only where the imports, the start of Python, or a variable of `READ_AT_IMPORT`
are what a test is about.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import types
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE, STDOUT

# What has been imported before a command: all that it needs, or only what reads no variable of `READ_AT_IMPORT`. The
# server of the first is forked from that of the second.
PACKAGE = (
    *("transformers", "videollm_mod.modeling_videollm_mod", "videollm_mod.processing_videollm_mod"),
    *("videollm_mod.commands.cli", "videollm_mod.narration.narrate", "videollm_mod.narration.overlay"),
    *("videollm_mod.training.train", "matplotlib.pyplot", "videollm_mod.serving.server"),
)
TORCH = (
    *("torch", "torch._dynamo", "torch._inductor.compile_fx", "torch._inductor.select_algorithm"),
    *("torch.distributed.fsdp", "torch.distributed.tensor", "safetensors.torch", "scipy.optimize", "sympy"),
    *("av", "httpx", "pandas", "PIL.Image", "pyarrow.dataset", "tokenizers"),
)
# variables whose names begin so are read when Python starts, and when libraries are imported
READ_AT_START = ("PYTHON",)
READ_AT_IMPORT = ("HF_", "TRANSFORMERS_", *READ_AT_START)
QUIET = {"HF_HUB_VERBOSITY": "error"}  # which `videollm-mod` sets for its own process before these imports


class ForkedProcess:
    """
    A process that runs a Python command, with the attributes and methods of a `subprocess.Popen` whose output and
    errors are text from pipes. It has its own pid, can be signalled and killed, and ends with the exit code that
    `python` would have.

    Args:
        command (`Iterable`): as for `subprocess.Popen`: `sys.executable`, then `-m MODULE`, `-c CODE` or a path, and
            arguments. All are converted to `str`.
        stdin (file or `PIPE`, *optional*): what it reads; nothing if omitted.
        stderr (`PIPE` or `STDOUT`): whether errors have their own pipe, or go where the output goes.
        cwd (path, *optional*): its working directory; that of the test if omitted.
        env (`Mapping[str, str]`, *optional*): all its environment variables; those of the test if omitted. One that
            has been read differently when `preloaded` was imported is an error.
        limits (`Mapping[int, int]`, *optional*): its resource limits, such as `{resource.RLIMIT_FSIZE: 100}`.
        preloaded (`tuple[str, ...]`): what it has imported, `PACKAGE` or `TORCH`.
    """

    def __init__(
        self,
        command: Iterable[object],
        *,
        stdin=None,
        stderr: int = PIPE,
        cwd: object = None,
        env: Mapping[str, str] | None = None,
        limits: Mapping[int, int] | None = None,
        preloaded: tuple[str, ...] = PACKAGE,
    ):
        self.args = [os.fsdecode(each) if isinstance(each, bytes) else str(each) for each in command]
        if self.args[0] != sys.executable:
            raise ValueError(f"the command must begin with {sys.executable}, got {self.args[0]}")
        request = {"arguments": self.args[1:], "limits": [*(limits or {}).items()], "cwd": str(cwd or os.getcwd())}
        request["environment"] = dict(os.environ if env is None else env)
        self.stdin = self.stderr = self.returncode = None
        read_out, out = os.pipe()
        self.stdout, err = os.fdopen(read_out, encoding="utf-8"), out
        if stderr is not STDOUT:
            read_err, err = os.pipe()
            self.stderr = os.fdopen(read_err, encoding="utf-8")
        if stdin is PIPE:
            source, write_in = os.pipe()
            self.stdin = os.fdopen(write_in, "w", encoding="utf-8")
        else:
            source = os.dup(stdin.fileno()) if stdin else os.open(os.devnull, os.O_RDONLY)
        self._server, other_end = socket.socketpair()
        try:
            socket.send_fds(fork_server(preloaded), [b"1"], [other_end.fileno(), source, out, err])
        finally:
            other_end.close()
            for descriptor in {source, out, err}:
                os.close(descriptor)
        self._server.sendall(json.dumps(request).encode() + b"\n")
        self.pid = self._answer()
        _running.add(self)

    def __enter__(self) -> "ForkedProcess":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in filter(None, (self.stdin, self.stdout, self.stderr)):
            pipe.close()
        self.wait()

    def _answer(self) -> int:
        answer = self._server.recv(4, socket.MSG_WAITALL)
        if len(answer) < 4:
            raise ConnectionError("the fork server has ended")
        return int.from_bytes(answer, "little", signed=True)

    def poll(self) -> int | None:
        return self._ended(0)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._server], [], [], timeout)[0]:
            self.returncode = self._answer()
            self._server.close()
            _running.discard(self)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str | None]:
        """What it prints until it ends, and its errors. It is killed at the timeout."""
        if self.stdin:
            self.stdin.close()
        with ThreadPoolExecutor(2) as pool:
            reading = [pool.submit(pipe.read) if pipe else None for pipe in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except BaseException:
                self.kill()
                raise
        out, err = (each and each.result() for each in reading)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_forked(command: Iterable[object], *, timeout: float | None = None, **options) -> subprocess.CompletedProcess:
    """As `subprocess.run` of a `ForkedProcess`, with text captured."""
    process = ForkedProcess(command, **options)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def command(*arguments: object) -> list[object]:
    """`videollm-mod` with these arguments, for `run_forked` or `ForkedProcess`."""
    return [sys.executable, "-m", "videollm_mod.commands.cli", *arguments]


_running: weakref.WeakSet[ForkedProcess] = weakref.WeakSet()


@atexit.register
def _kill_what_runs() -> None:
    for process in list(_running):
        process.kill()


@functools.cache
def fork_server(preloaded: tuple[str, ...]) -> socket.socket:
    """The socket of the fork server that has imported `PACKAGE` or `TORCH`. It starts at the first call, and ends with
    this process."""
    ours, theirs = socket.socketpair()
    with theirs:
        if preloaded is TORCH:
            read_later = tuple(set(READ_AT_IMPORT) - set(READ_AT_START))
            environment = {name: value for name, value in os.environ.items() if not name.startswith(read_later)}
            environment |= {"OMP_NUM_THREADS": "1"}  # with more, each process sets its number
            silent = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
            subprocess.Popen([sys.executable, __file__], stdin=theirs, env=environment, **silent)
        else:
            code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            code += "import fork_server; sys.path.pop(0); fork_server.serve_and_run(fork_server.PACKAGE)"
            start = [sys.executable, "-c", code]
            environment = os.environ | QUIET | {"OMP_NUM_THREADS": "1"}
            ForkedProcess(start, stdin=theirs, env=environment, preloaded=TORCH)
    return ours


# --- the server


def serve_and_run(preloaded: tuple[str, ...]) -> None:
    """Be a fork server whose socket is standard input; in each child, run what was asked for."""
    control = socket.socket(fileno=os.dup(0))
    with open(os.devnull, "r+b") as nothing:
        for number in range(3):
            os.dup2(nothing.fileno(), number)
    sys.path[:] = filter(None, sys.path)  # without the folder where it starts
    gc.disable()
    for module in preloaded:
        with contextlib.suppress(ImportError):  # of another release: children import what they need
            importlib.import_module(module)
    if preloaded is PACKAGE:
        with contextlib.suppress(ImportError):
            # what loading any model begins with: a thousand expressions are compiled, which takes half of its time
            importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
    gc.freeze()  # so that children need not copy it
    gc.enable()
    with serve(control) as asked:
        request = json.loads(asked.makefile("rb").readline())
    environment = request["environment"] | (QUIET if preloaded is PACKAGE else {})
    for name in environment | dict(os.environ):
        was_read = name.startswith(READ_AT_IMPORT if preloaded is PACKAGE else READ_AT_START)
        if was_read and environment.get(name) != os.environ.get(name):
            raise SystemExit(f"{name} has been read already: start a new process, or one with `preloaded=TORCH`")
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(request["cwd"])
    for number, limit in request["limits"]:
        resource.setrlimit(number, (limit, limit))
    sys.stdin, sys.stdout, sys.stderr = map(reopened, (sys.stdin, sys.stdout, sys.stderr))
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    torch, threads = sys.modules["torch"], int(environment.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    if threads != torch.get_num_threads():  # which makes a pool, which children of this process could not use
        torch.set_num_threads(threads)
    run_main(request["arguments"])


def serve(control: socket.socket) -> socket.socket:
    """Fork a child for each request of `control`, which gets the child's socket and standard streams. The socket first
    says the child's pid and then its exit code, 4 bytes each.

    Returns:
        The child's socket, in each child, whose standard streams are set.
    """
    children: dict[int, socket.socket] = {}
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # so that it is not ignored, and written to `wake`
    while True:
        ready, _, _ = select.select([control, ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            for pid in list(children):
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    tell(children.pop(pid), os.waitstatus_to_exitcode(status))
        if control in ready:
            message, descriptors, _, _ = socket.recv_fds(control, 1, 4)
            if not message:
                os._exit(0)
            own, *streams = descriptors
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for number, descriptor in enumerate([*streams, own]):
                    os.dup2(descriptor, number)
                os.closerange(4, 1024)
                return socket.socket(fileno=3)
            for descriptor in streams:
                os.close(descriptor)
            children[pid] = socket.socket(fileno=own)
            tell(children[pid], pid)


def tell(process: socket.socket, number: int) -> None:
    try:
        process.sendall(number.to_bytes(4, "little", signed=True))
    except OSError:  # nobody waits for it any more
        process.close()


def reopened(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """A standard stream as Python opens it at its start: it looks once whether the descriptor can be sought."""
    mode, raw = "rb" if stream.readable() else "wb", isinstance(stream.buffer, io.FileIO)
    buffer = open(stream.fileno(), mode, buffering=0 if raw else -1, closefd=False)  # noqa: SIM115
    options = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
    return io.TextIOWrapper(buffer, stream.encoding, stream.errors, **options)


def run_main(arguments: list[str]) -> None:
    """Run a module, code or a file as the main program of this process, as the arguments of `python` say."""
    kind, *rest = arguments
    if kind == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = rest
        sys.modules.pop(rest[0], None)  # it is run, not imported
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *rest[1:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.path.insert(0, str(Path(kind).resolve().parent))
        sys.argv = arguments
        runpy.run_path(kind, run_name="__main__")


def leave() -> None:
    """Leave before Python frees every object, which takes longer than many a command. This is the last function that
    is called at exit: threads have been waited for, and errors printed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if exit_code < 0:
        signal.signal(-exit_code, signal.SIG_DFL)
        signal.raise_signal(-exit_code)
    os._exit(exit_code)


if __name__ == "__main__":
    atexit.register(leave)
    sys.path.pop(0)  # the folder of this file
    exit_code = 1
    try:
        serve_and_run(TORCH)
        exit_code = 0
    except SystemExit as end:
        exit_code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except KeyboardInterrupt:
        exit_code = -signal.SIGINT  # Python ends with the signal
        raise
