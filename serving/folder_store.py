"""Saves the sessions of one server in a folder, whole, when they are closed."""

import json
import os
from pathlib import Path

from ..data.files import written_whole
from ..streaming import StreamingSession


class FolderStore:
    """Each session is a file, and what the server knows of it a JSON file beside; see `registry.Store`."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _files(self, session_id: str) -> tuple[Path, Path]:
        return self.folder / f"{session_id}.session", self.folder / f"{session_id}.json"

    def save(self, session_id: str, session: StreamingSession, about: dict) -> None:
        state, beside = self._files(session_id)
        session.save(state)
        with written_whole(beside) as partial:
            partial.write_text(json.dumps(about), encoding="utf-8")

    def about(self, session_id: str) -> dict | None:
        beside = self._files(session_id)[1]
        return json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else None

    def load(self, session_id: str, model, processor) -> StreamingSession:
        return StreamingSession.load(self._files(session_id)[0], model, processor)

    def delete(self, session_id: str) -> None:
        for file in self._files(session_id):
            file.unlink(missing_ok=True)


__all__ = ["FolderStore"]
