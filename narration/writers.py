"""Writers of events as text, JSON lines or subtitles. A file holds whole events at any moment."""

import html
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:  # torch is slow to import, and an error should come at once
    from ..speaking import StreamEvent

CUE_SECONDS = 4.0  # how long a subtitle stays, unless another one comes


class EventWriter(ABC):
    """Writes events in order of time, one whole event at a time, and flushes each.

    Args:
        write (`Callable[[str], None]`): writes whole lines at once.
    """

    def __init__(self, write: Callable[[str], None]):
        self._write = write

    @abstractmethod
    def event(self, event: "StreamEvent") -> None:
        """Write an event."""

    def reached(self, time: float) -> None:  # noqa: B027 -- not every format waits for anything
        """Take note that the stream is at `time` (seconds): no earlier event will come."""

    def close(self, stats: dict | None = None) -> None:  # noqa: B027
        """End the output; without `stats` the stream was interrupted."""


class TextWriter(EventWriter):
    """`   3.5 s  What was said.`, and `   4.0 s  [What was asked?] The answer.`"""

    def event(self, event: "StreamEvent") -> None:
        asked = f"[{one_line(event.query)}] " if event.kind == "answer" else ""
        self._write(f"{event.time:8.1f} s  {asked}{one_line(event.text)}\n")


class JsonLinesWriter(EventWriter):
    """One JSON object per event; the last line is `{"stats": {...}}`."""

    def event(self, event: "StreamEvent") -> None:
        self._write(json.dumps(vars(event), ensure_ascii=False) + "\n")

    def close(self, stats: dict | None = None) -> None:
        if stats is not None:
            self._write(json.dumps({"stats": stats}, ensure_ascii=False) + "\n")


class SubtitleWriter(EventWriter):
    """Cues last until the next event, but at most `CUE_SECONDS`; events of the same time share a cue. A cue is written
    once its end is known."""

    decimal_mark = "."

    def __init__(self, write: Callable[[str], None]):
        super().__init__(write)
        self._number, self._start = 0, 0.0
        self._lines: list[str] = []

    @abstractmethod
    def escape(self, text: str) -> str:
        """Escape `text` so that a player shows it unchanged."""

    def event(self, event: "StreamEvent") -> None:
        if event.time > self._start:
            self._end_cue(event.time)
        if not self._lines:
            self._start = event.time
        texts = [event.query, event.text] if event.kind == "answer" else [event.text]
        self._lines += [self.escape(line) for line in map(one_line, texts) if line]

    def reached(self, time: float) -> None:
        if time >= self._start + CUE_SECONDS:
            self._end_cue(time)

    def close(self, stats: dict | None = None) -> None:
        self._end_cue(self._start + CUE_SECONDS)

    def _end_cue(self, time: float) -> None:
        if not self._lines:
            return
        start, end = (self._stamp(t) for t in (self._start, min(time, self._start + CUE_SECONDS)))
        if start != end:  # unless they round to the same millisecond
            self._number += 1
            self._write("\n".join([str(self._number), f"{start} --> {end}", *self._lines]) + "\n\n")
            self._lines = []

    def _stamp(self, seconds: float) -> str:
        minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
        hours, minutes = divmod(minutes, 60)
        return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{self.decimal_mark}{milliseconds % 1000:03}"


class VttWriter(SubtitleWriter):
    """WebVTT."""

    def __init__(self, write: Callable[[str], None]):
        super().__init__(write)
        write("WEBVTT\n\n")

    def escape(self, text: str) -> str:
        return html.escape(text, quote=False)


LOOKALIKES = str.maketrans("<>{}", "\u2039\u203a()")


class SrtWriter(SubtitleWriter):
    """SubRip. It has no escapes and players read tags and arrows in it, so look-alikes replace their characters."""

    decimal_mark = ","

    def escape(self, text: str) -> str:
        return text.translate(LOOKALIKES)


WRITERS: dict[str, type[EventWriter]] = {
    "text": TextWriter,
    "jsonl": JsonLinesWriter,
    "vtt": VttWriter,
    "srt": SrtWriter,
}


def one_line(text: str | None) -> str:
    return " ".join((text or "").split())


class OutputFile:
    """A file that holds whole writes only: a write that fails, on a full disk for example, leaves nothing behind."""

    def __init__(self, path: os.PathLike):
        self.path, self._file, self._whole = path, open(path, "wb", buffering=0), 0  # noqa: SIM115

    def __enter__(self) -> "OutputFile":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def write(self, text: str) -> None:
        """Raises `OSError`, and again for every later write after a failure."""
        rest = memoryview(text.encode("utf-8", "replace"))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            if os.path.isfile(self.path):
                self._file.truncate(self._whole)
                self._file.seek(self._whole)
            raise OSError(f"cannot write {self.path}: {error.strerror}") from error
        self._whole += len(text.encode("utf-8", "replace"))

    def flush(self) -> None:
        """Do nothing: the file is not buffered."""


def file_writer(format: str, file: TextIO | OutputFile) -> EventWriter:
    """A writer of `format` (one of `WRITERS`) into an open file. Text takes the encoding of the file, with `?` for
    characters that it lacks; the other formats are UTF-8 by definition."""
    encoding = (getattr(file, "encoding", None) if format == "text" else None) or "utf-8"
    binary = None if format == "text" else getattr(file, "buffer", None)  # this also avoids the line ends of Windows

    def write(text: str) -> None:
        content = text.encode(encoding, "replace")
        if binary is None:
            file.write(content.decode(encoding))
        else:
            file.flush()  # what was written before as text
            binary.write(content)
        file.flush()

    return WRITERS[format](write)


__all__ = ["WRITERS", "EventWriter", "OutputFile", "file_writer"]
