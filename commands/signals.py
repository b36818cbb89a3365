"""Lets a command that is interrupted or terminated finish what it has begun to write."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def raising_on_signals(main: Callable) -> Iterator[None]:
    """Let SIGINT raise `KeyboardInterrupt` and SIGTERM raise `SystemExit`, so that files are closed.

    A signal that arrives during an import is deferred until the import has ended: extension modules abort the process,
    or raise something else, when their initialisation is interrupted.

    Args:
        main (`Callable`): the function that does the work; imports that began before it do not count.
    """

    def end(number: int, frame: FrameType | None) -> None:
        if not is_importing(frame, main):
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
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


def is_importing(frame: FrameType | None, main: Callable) -> bool:
    """Whether `frame` is part of an import that `main` began."""
    while frame is not None and frame.f_code is not main.__code__:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


__all__ = ["raising_on_signals"]
