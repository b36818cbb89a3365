"""The visitors' clips, streams and places in line, and their deletion when visitors leave."""

import logging
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from .clips import Clip
from .lane import Controls
from .line import Line
from .remote import AnyModels
from .settings import Settings
from .stream import Stream

SWEEP_SECONDS = 5.0
log = logging.getLogger(__name__)


class Gone(ValueError):
    """A clip or stream that no longer exists."""


class Visitors:
    """
    Clips and streams by their secret ids: only a visitor who has the id can see or change them.

    Args:
        models (`Models` or `RemoteModels`), settings (`Settings`).
        uploads (`Callable[[], set[str]]`): returns the paths of all uploads; clips have their own links to them.
    """

    def __init__(self, models: AnyModels, settings: Settings, uploads: Callable[[], set[str]] = set):
        self.models, self.settings, self._uploads = models, settings, uploads
        self.line = Line(settings.running, settings.waiting, settings.patience_seconds)
        self.clips: dict[str, Clip] = {}
        self.streams: dict[str, Stream] = {}
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="videollm-mod-space-")
        self._closed = threading.Event()
        threading.Thread(target=self._sweep_forever, daemon=True, name="sweep").start()

    def add_clip(self, make, *arguments) -> Clip:
        """Create a clip with `make(id, folder, *arguments)` in its own folder."""
        clip_id = secrets.token_urlsafe(16)
        folder = Path(self._folder.name) / clip_id
        folder.mkdir()
        try:
            clip = make(clip_id, folder, *arguments)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._lock:
            self.clips[clip_id] = clip
        return clip

    def clip(self, clip_id: str) -> Clip:
        """Raises `Gone`."""
        clip = self.clips.get(clip_id)
        if clip is None:
            raise Gone("This video no longer exists. Please choose it again.")
        clip.touched = time.monotonic()
        return clip

    def begin(
        self, clip: Clip, controls: Controls, instruction: str | None, compare: bool, rule: str | None = None
    ) -> Stream:
        """Create a stream of a clip at the end of the line.

        Raises:
            `LineIsFull`: if the line has no place left.
        """
        stream_id = secrets.token_urlsafe(16)
        self.line.place(stream_id)
        max_seconds = self.settings.camera_seconds if clip.path is None else self.settings.video_seconds
        try:
            stream = Stream(stream_id, self.models, clip, controls, instruction, compare, max_seconds, rule)
        except BaseException:
            self.line.leave(stream_id)
            raise
        with self._lock:
            self.streams[stream_id] = stream
        return stream

    def stream(self, stream_id: str) -> Stream:
        """Raises `Gone`."""
        stream = self.streams.get(stream_id)
        if stream is None:
            raise Gone("This stream was deleted because it was idle for too long. Please start again.")
        stream.touched = stream.clip.touched = time.monotonic()
        return stream

    def sweep(self) -> None:
        """Delete what has been idle for `idle_seconds`."""
        limit = time.monotonic() - self.settings.idle_seconds
        with self._lock:
            streams = [stream for stream in self.streams.values() if stream.touched < limit]
            for stream in streams:
                del self.streams[stream.id]
            clips = [clip for clip in self.clips.values() if clip.touched < limit]
            for clip in clips:
                del self.clips[clip.id]
        for stream in streams:
            self.line.leave(stream.id)
            stream.close()
        for clip in clips:
            shutil.rmtree(clip.folder, ignore_errors=True)
        oldest = time.time() - self.settings.idle_seconds
        uploads = self._uploads()
        for upload in list(uploads):
            if not os.path.exists(upload) or os.path.getmtime(upload) < oldest:
                Path(upload).unlink(missing_ok=True)
                uploads.discard(upload)

    def _sweep_forever(self) -> None:
        while not self._closed.wait(min(SWEEP_SECONDS, self.settings.idle_seconds)):
            try:
                self.sweep()
            except Exception:
                log.exception("could not delete idle clips and streams")

    def close(self) -> None:
        """Stop all streams and delete all files."""
        self._closed.set()
        for stream in list(self.streams.values()):
            stream.close()
        self._folder.cleanup()


__all__ = ["Gone", "Visitors"]
