"""Events as text, JSON lines or subtitles, written so that a file is whole at any moment."""

import html
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:  # torch is slow to import, and an error should come at once
    from ..speaking import StreamEvent

CUE_SECONDS = 4.0  # that a subtitle stays, unless another comes


class EventWriter(ABC):
    """Writes events in order of time; what is written is flushed, a whole event at a time.

    Args:
        write (`Callable[[str], None]`): takes whole lines and hands them on at once.
    """

    def __init__(self, write: Callable[[str], None]):
        self._write = write

    @abstractmethod
    def event(self, event: "StreamEvent") -> None:
        """Something was said."""

    def reached(self, time: float) -> None:  # noqa: B027 -- not every format waits for anything
        """The stream is at `time`, in seconds, and no event before it will come."""

    def close(self, stats: dict | None = None) -> None:  # noqa: B027
        """The stream has ended, or was broken off (without `stats`)."""


class TextWriter(EventWriter):
    """`   3.5 s  What was said.`, and `   4.0 s  [What was asked?] The answer.`"""

    def event(self, event: "StreamEvent") -> None:
        asked = f"[{one_line(event.query)}] " if event.kind == "answer" else ""
        self._write(f"{event.time:8.1f} s  {asked}{one_line(event.text)}\n")


class JsonLinesWriter(EventWriter):
    """One object an event, in the last line `{"stats": {...}}`."""

    def event(self, event: "StreamEvent") -> None:
        self._write(json.dumps(vars(event), ensure_ascii=False) + "\n")

    def close(self, stats: dict | None = None) -> None:
        if stats is not None:
            self._write(json.dumps({"stats": stats}, ensure_ascii=False) + "\n")


class SubtitleWriter(EventWriter):
    """Cues that last until the next event, `CUE_SECONDS` at most; events of one time share a cue. A cue is written
    when its end is known."""

    decimal_mark = "."

    def __init__(self, write: Callable[[str], None]):
        super().__init__(write)
        self._number, self._start, self._lines = 0, 0.0, []

    @abstractmethod
    def escape(self, text: str) -> str:
        """`text` so that a player shows it as it is."""

    def event(self, event: "StreamEvent") -> None:
        if event.time > self._start:
            self._end_cue(event.time)
        if not self._lines:
            self._start = event.time
        lines = [event.query, event.text] if event.kind == "answer" else [event.text]
        self._lines += [self.escape(one_line(line)) for line in lines if line.strip()]

    def reached(self, time: float) -> None:
        if time >= self._start + CUE_SECONDS:
            self._end_cue(time)

    def close(self, stats: dict | None = None) -> None:
        self._end_cue(self._start + CUE_SECONDS)

    def _end_cue(self, time: float) -> None:
        if not self._lines:
            return
        start, end = (self._stamp(t) for t in (self._start, min(time, self._start + CUE_SECONDS)))
        if start != end:  # closer than a millisecond
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
    """SubRip, which knows no escapes: players read tags and arrows in it, so these are broken up."""

    decimal_mark = ","

    def escape(self, text: str) -> str:
        return text.translate(LOOKALIKES)


WRITERS = {"text": TextWriter, "jsonl": JsonLinesWriter, "vtt": VttWriter, "srt": SrtWriter}


def one_line(text: str) -> str:
    return " ".join(text.split())


class OutputFile:
    """A file that holds whole writes only: of one that fails, as where the disk is full, nothing stays."""

    def __init__(self, path: os.PathLike):
        self.path, self._file, self._whole = path, open(path, "wb", buffering=0), 0  # noqa: SIM115

    def __enter__(self) -> "OutputFile":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def write(self, text: str) -> None:
        """Raises `OSError`, and again whenever something more is written after a failure."""
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
        """Nothing is held back."""


def file_writer(format: str, file: TextIO) -> EventWriter:
    """A writer of `format` (one of `WRITERS`) into an open file: text in its own encoding, with `?` for what that does
    not have, and the other formats in UTF-8, which they are by definition."""
    encoding = (getattr(file, "encoding", None) if format == "text" else None) or "utf-8"
    binary = None if format == "text" else getattr(file, "buffer", None)  # without the line ends of Windows too

    def write(text: str) -> None:
        content = text.encode(encoding, "replace")
        if binary is None:
            file.write(content.decode(encoding))
        else:
            file.flush()  # what others wrote before
            binary.write(content)
        file.flush()

    return WRITERS[format](write)


__all__ = ["WRITERS", "EventWriter", "OutputFile", "file_writer"]
