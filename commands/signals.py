"""Lets a command that is interrupted or terminated finish what it has begun to write."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

PACKAGE = Path(__file__).parents[1]
FIRST = (str(PACKAGE / "commands"), str(PACKAGE / "loading"))  # they import libraries before anything is written


@contextmanager
def raising_on_signals(main: Callable, is_program: bool) -> Iterator[None]:
    """Let SIGINT raise `KeyboardInterrupt` and SIGTERM raise `SystemExit`, so that files are closed.

    A signal that arrives during an import is deferred until the import has ended: extension modules abort the process,
    or raise something else, when their initialisation is interrupted. A program ends at once while `commands` or
    `loading` import what the work needs, which takes seconds: no file has been begun then.

    Args:
        main (`Callable`): the function that does the work; imports that began before it do not count.
        is_program (`bool`): whether this process does nothing else.
    """

    def end(number: int, frame: FrameType | None) -> None:
        importer = who_imports(frame, main)
        if importer is None:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        if is_program and importer.startswith(FIRST):
            os._exit(128 + number)
        again = threading.Timer(0.05, signal.pthread_kill, [threading.main_thread().ident, number])
        again.daemon = True
        again.start()

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def who_imports(frame: FrameType | None, main: Callable) -> str | None:
    """The file that began the import of which `frame` is a part, if `main` has called it and it is one."""
    importer, inside = None, False
    while frame is not None and frame.f_code is not main.__code__:
        file, was_inside = frame.f_code.co_filename, inside
        inside = file.startswith("<frozen importlib.")
        if was_inside and not inside:
            importer = file
        frame = frame.f_back
    return importer


__all__ = ["raising_on_signals"]
