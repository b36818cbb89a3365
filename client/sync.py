"""The client for programs without asyncio, such as a loop that reads a camera with OpenCV.

The connection lives in a thread of its own, so that events are received while the program does something else.
"""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

from .events import Event, Said
from .stream import connect as connect_async


class SyncStream:
    """As `Stream`, whose methods it has; `events` returns what has come."""

    def __init__(self, url: str, options: dict):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="videollm-mod client", daemon=True)
        self._thread.start()
        try:
            self._stream = self._call(self._open(url, options))
        except BaseException:
            self._end()
            raise

    async def _open(self, url: str, options: dict):
        return await connect_async(url, **options).__aenter__()

    def _call(self, work: Coroutine) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> "SyncStream":
        return self

    def __exit__(self, *_) -> None:
        self._call(self._stream.close())
        self._end()

    def push(self, image: Any, time: float, wait: bool = True) -> bool:
        return self._call(self._stream.push(image, time, wait))

    def ask(self, question: str) -> Said:
        return self._call(self._stream.ask(question))

    def update(self, **options: Any) -> None:
        self._call(self._stream.update(**options))

    def cancel(self) -> None:
        self._call(self._stream.cancel())

    def finish(self) -> None:
        self._call(self._stream.finish())

    def events(self) -> list[Event]:
        """The events that have come since the last call, without waiting. Raises `ClientError` if there is none and
        the stream has failed."""

        async def pending() -> list[Event]:
            return self._stream.pending()

        return self._call(pending())


def connect(url: str, **options: Any) -> SyncStream:
    """A stream to a server: `with connect(url) as stream`. Arguments and errors are those of `client.connect`."""
    return SyncStream(url, options)


__all__ = ["SyncStream", "connect"]
