"""Sessions that outlive their process: a store that several machines share keeps what each session needs to go on.

A session is a folder of the store:

- `segments/`: keys and values, in files that never change; each save adds one with the tokens that are new
  (`segments.py`).
- `events/`: the events that a server keeps of it, in files that never change either (`event_files.py`).
- `manifests/GENERATION.json`: the files that make up the session now, and everything else of it. Each owner has a
  manifest of its own, which every save replaces as a whole.
- `leases/`: who owns the session (`lease.py`).

A save writes the segment and the events, then the manifest, and then checks that this process still owns the
session. It is durable once the check has passed. Whoever takes over reads the manifest of the highest generation,
hence the last durable save or a later one. Only then are files removed that no manifest needs.

What the server knows of a session beside its state and its events is in the same save: `notes`. How no event is lost
or doubled is told in `saving.py`.
"""

import hashlib
import json
import re
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from operator import methodcaller
from threading import Lock

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of_bytes
from safetensors.torch import save as bytes_of_tensors
from transformers.utils import logging

from ..session_state import SessionState, check_model, model_fingerprint, restore_session, session_content
from ..streaming import StreamingSession
from . import event_files
from .event_files import EventFile, Events
from .lease import Lease, SessionHeld, SessionLost, current_claim, owner_name
from .segments import Held, Segment, Written, assemble, check_segment, snapshot, written_before
from .shared_files import SharedFolder

logger = logging.get_logger(__name__)

FORMAT = "videollm-mod session store"
VERSION = 2
READABLE = (1, 2)  # version 1 had the events in its notes
SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
CLEANING = ".cleaning"  # folder for the lease of `remove_abandoned`
READERS = 8  # files that are read at the same time


@dataclass(frozen=True)
class Saved:
    """A durable save.

    Args:
        time (`float`, *optional*): of the last frame in it, in seconds; None before the first.
        num_bytes (`int`): that were written.
        seconds (`float`): that writing took.
    """

    time: float | None
    num_bytes: int
    seconds: float


class SessionStore:
    """
    Sessions in a folder or bucket that several processes share. Its methods may be called from any thread.

    ```python
    store = SessionStore("/srv/sessions")
    saved = store.open(session_id)
    session = saved.restore(model, processor) or model.stream(processor, max_cached_frames=600)
    session.push(frames)
    saved.save(session).result()
    ```

    Args:
        url (`str`): a folder, or any URL that `fsspec` knows; see `shared_files` for what a store must be able to do.
        owner (`str`, *optional*): a name of this process for people; made up if omitted.
        lease_seconds (`float`): a session whose lease was not renewed for so long may be taken over.
        threads (`int`): that write.

    Attributes:
        failures (`int`): saves that failed so far.

    Raises:
        `ValueError`: for a URL that `fsspec` does not know.
    """

    def __init__(self, url: str, owner: str | None = None, lease_seconds: float = 30.0, threads: int = 4):
        self.files, self.owner, self.lease_seconds = SharedFolder(url), owner or owner_name(), lease_seconds
        self.failures = 0
        self.open_sessions: dict[str, SavedSession] = {}
        self._writers = ThreadPoolExecutor(threads, "session-store")
        # what is new is copied at once, and not behind writes: memory that a session gives up is free only then
        self._copier = ThreadPoolExecutor(1, "session-store-copy")
        self._fingerprints: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def open(self, session_id: str, force: bool = False) -> "SavedSession":
        """Become the owner of a session, new or saved.

        Args:
            session_id (`str`): letters, digits, `-` and `_`, at most 128.
            force (`bool`): take it over even if the lease of its owner has not expired, as when the owner is known to
                be dead.

        Raises:
            `SessionHeld`: if another process owns it.
            `ValueError`: for another kind of id, or if what was saved is damaged or of another version.
            `OSError`: if the store cannot be reached.
        """
        if not SESSION_ID.fullmatch(session_id):
            raise ValueError(f"a session id must have 1 to 128 letters, digits, `-` or `_`, got {session_id!r}")
        files = self.files.folder(session_id)
        lease = Lease.acquire(files, self.owner, self.lease_seconds, force)
        try:
            session = SavedSession(self, session_id, files, lease)
        except BaseException:
            lease.release()
            raise
        self.open_sessions[session_id] = session
        return session

    def renew(self) -> list["SavedSession"]:
        """Renew the leases of all open sessions, and return those that others have taken over. Call it about three
        times in `lease_seconds`.

        Raises:
            `OSError`: if the store cannot be reached.
        """
        for session in list(self.open_sessions.values()):
            session.renew()
        return [session for session in list(self.open_sessions.values()) if session.lost]

    def notes(self, session_id: str) -> dict | None:
        """What the server has saved with a session, whoever owns it; None if nothing was saved under this id.

        Raises:
            `ValueError`: if what was saved is damaged or of another version. `OSError`.
        """
        if SESSION_ID.fullmatch(session_id) is None:
            return None
        files = self.files.folder(session_id)
        while found := manifests(files):
            with suppress(FileNotFoundError):  # a new owner has just replaced it
                return manifest_content(files.read(manifest_name(found[-1])), f"{files.url}")["notes"]
        return None

    def __contains__(self, session_id: str) -> bool:
        """Whether something was saved under this id, to its end."""
        known = SESSION_ID.fullmatch(session_id) is not None
        return known and bool(manifests(self.files.folder(session_id)))

    def session_ids(self) -> list[str]:
        """Of all sessions in the store."""
        return [name for name in self.files.names() if SESSION_ID.fullmatch(name)]

    def remove_abandoned(self, seconds: float, every: float = 0.0) -> list[str]:
        """Delete sessions that nobody has owned for so long; returns their ids.

        Args:
            every (`float`): seconds in which one process does this for all that share the store; the others return at
                once.
        """
        removed: list[str] = []
        with suppress(SessionHeld):
            turn = Lease.acquire(self.files.folder(CLEANING), self.owner, every)
            turn.remove_older()
            for session_id in self.session_ids():
                files = self.files.folder(session_id)
                claim = current_claim(files)
                if claim is None or claim.seconds_left < -seconds:
                    with suppress(SessionHeld):  # somebody has come back at this moment
                        Lease.acquire(files, self.owner, self.lease_seconds)
                        remove_session(files)
                        removed.append(session_id)
        return removed

    def close(self) -> None:
        """Wait for all writes, and let other processes take the sessions at once."""
        for session in list(self.open_sessions.values()):
            session.close()
        self._writers.shutdown()
        self._copier.shutdown()

    def fingerprint(self, model) -> str:
        """`model_fingerprint`, computed once a model: its weights must not change while its sessions are saved."""
        if model not in self._fingerprints:
            self._fingerprints[model] = model_fingerprint(model)
        return self._fingerprints[model]


@dataclass(frozen=True)
class Taken:
    """What a save will write.

    Args:
        tensors (`Future`): those of the segment, on the host, once they are copied.
        content (`dict`): of the manifest.
        written (`Written`): what the store holds afterwards.
        time (`float`, *optional*): of the last frame.
    """

    tensors: Future
    content: dict
    written: Written
    time: float | None


class SavedSession:
    """
    A session in a `SessionStore` that this process owns; made by `SessionStore.open`.

    `restore` and `save` are for the thread that uses the model.

    Attributes:
        time (`float`, *optional*): of the last frame that is saved: later frames must be sent again. None if no frame
            is.
        notes (`dict`): what the server has saved with the session.
        saved_by (`int`): generation of the owner that had saved what this one found, 0 if nothing was.
        lost (`bool`): the session is not this process's: another one has taken it over, or it was closed or deleted.
        failures (`int`): saves that failed since the last that was durable.
    """

    def __init__(self, store: SessionStore, session_id: str, files: SharedFolder, lease: Lease):
        self.store, self.session_id, self.files, self.lease = store, session_id, files, lease
        self.time: float | None = None
        self.notes: dict = {}
        self.lost, self.failures = False, 0
        self._leasing = Lock()  # or a lease that is given back could be renewed at the same moment
        self.saved_by = 0  # generation of the owner that has saved what was found
        self._state: SessionState | None = None  # of the session that `_written` describes
        self._written = self._next = Written()
        self._masks: list[torch.Tensor] = []  # of the evictions in the save that is being written
        self._number = -1  # of the last segment
        self._writing: Future | None = None
        self._event_files: list[EventFile] = []  # in the last durable save
        self._first_event = 0  # that is kept
        self._events: Events | None = None  # the last that were given, or found in notes
        self._garbage: set[str] = set()  # files to remove after the next durable save
        self._is_first = True  # save of this owner
        self._content: dict | None = self._read_manifest()

    @property
    def is_new(self) -> bool:
        """Whether nothing was saved when the session was opened."""
        return self._content is None

    @property
    def busy(self) -> bool:
        """Whether a save is being written. `save` would wait for it."""
        return self._writing is not None and not self._writing.done()

    def save(self, session: StreamingSession, notes: dict | None = None, events: Events | None = None) -> Future:
        """Save a session as it is now. It may go on as soon as this returns, while other threads copy to the host and
        write what is new. A save that is still being written is waited for first, so call this when not `busy`, or to
        drain.

        Args:
            session (`StreamingSession`): between two frames; for a stream of a pool see `PooledStream.settle`.
            notes (`dict`, *optional*): JSON values to be saved with it; the former ones stay if omitted.
            events (`Events`, *optional*): that are kept of it, with ascending numbers; the former ones stay if
                omitted. One that was saved before must be the same, and is not written again.

        Returns:
            `Future`: its result is the `Saved`, once it is durable. It fails with `SessionLost` if another process has
            taken the session over, and with `OSError` if the store is full or cannot be reached. The session can go on
            after an `OSError`; the next save then holds everything.

        Raises:
            `SessionLost`: if that was known before.
        """
        return self.write(self.take(session), notes, events)

    def take(self, session: StreamingSession) -> "Taken":
        """Hold what is new in a session: the first half of `save`, for the thread that uses the model, which goes on
        at once."""
        self._wait()
        if self.lost:
            raise SessionLost(f"session {self.session_id} is not, or no longer, owned by this process")
        session.break_off()
        state = session.state
        if state is not self._state:  # another session, or one that was reset
            self._follow(state, Written())
        masks = [] if state.memory is None else list(state.memory.evictions or ())
        self._number += 1  # also after a failed save, whose segment may be in use
        generation, seen_tokens = self.lease.generation, state.cache.get_seq_length()
        written, wanted = self._written.after(masks, seen_tokens, self._number, generation)
        content = {
            "session": json.loads(session_content(session, self.store.fingerprint(session.model))),
            "evictions": [written.first, len(written.masks)],
            "frames": state.counts["frames"],
        }
        self._masks = masks
        copied = self.store._copier.submit(snapshot, Held.of(session), written, wanted)
        return Taken(copied, content, written, state.time)

    def write(self, taken: "Taken", notes: dict | None = None, events: Events | None = None) -> Future:
        """Write what `take` has found, the second half of `save`, for any thread. Between the two there must be no
        other `take`."""
        self.notes = self.notes if notes is None else notes
        self._events = self._events if events is None else events
        taken.content["notes"] = self.notes
        self._writing = self.store._writers.submit(self._write, taken, self._events)
        return self._writing

    def _follow(self, state, written: Written) -> None:
        """From now on the saves are of this state, of which the store holds what `written` says."""
        self._garbage |= {f"segments/{segment.name}" for segment in self._written.segments}
        self._state, self._written = state, written
        if state.memory is not None:
            state.memory.evictions = []

    def _wait(self) -> None:
        """Wait for the save that is being written, and take note of what it wrote."""
        writing, self._writing = self._writing, None
        if writing is None or writing.exception() is not None:
            return
        self._written = self._next
        memory = None if self._state is None else self._state.memory
        if memory is not None and memory.evictions is not None:
            del memory.evictions[: len(self._masks)]

    def _write(self, taken: "Taken", events: Events | None) -> Saved:
        """Write a save, in another thread."""
        start, content, written = time.perf_counter(), taken.content, taken.written
        *older, new = written.segments
        files, lines, first = self._event_files, b"", self._first_event
        if events is not None:
            files, lines = event_files.add(self._event_files, events, new.number, new.generation)
            first = events[0][0] if events else 0
        try:
            data = bytes_of_tensors(taken.tensors.result())
            new = replace(new, sha256=hashlib.sha256(data).hexdigest())
            self._garbage.add(f"segments/{new.name}")
            self.files.write(f"segments/{new.name}", data)
            if lines:
                self._garbage.add(f"events/{files[-1].name}")
                self.files.write(f"events/{files[-1].name}", lines)
            content["segments"] = [asdict(segment) for segment in (*older, new)]
            content["events"] = {"first": first, "files": [asdict(file) for file in files]}
            manifest = manifest_bytes(content)
            self.files.write(manifest_name(self.lease.generation), manifest)
            self.lease.check()
        except (OSError, SessionLost, RuntimeError) as error:  # such as a device that has no memory left
            self._refuse_if_lost(error)
            self._count_failure(error)
            raise OSError(f"cannot save session {self.session_id} to {self.files.url}: {error}") from error
        self._next = Written((*older, new), written.owners, written.masks, written.first)
        self._garbage |= {f"events/{file.name}" for file in self._event_files}
        self._event_files, self._first_event = files, first
        self.time, self.failures = taken.time, 0
        self._remove_garbage(self._next)
        return Saved(taken.time, len(data) + len(lines) + len(manifest), time.perf_counter() - start)

    def _refuse_if_lost(self, error: Exception) -> None:
        """Raise `SessionLost` if that is why a save failed; a new owner also removes what it is writing."""
        try:
            self.lease.check()
        except SessionLost as lost:
            self.lost = True
            raise SessionLost(f"session {self.session_id} was not saved: {lost}") from error
        except OSError:
            return

    def _count_failure(self, error: Exception) -> None:
        self.failures += 1
        self.store.failures += 1
        if self.failures == 1:
            logger.warning(
                f"session {self.session_id} goes on unsaved: cannot write to {self.files.url}: {error} "
                f"({self.store.failures} failed saves of this process so far)"
            )

    def _remove_garbage(self, written: Written) -> None:
        """Remove what no manifest needs. What cannot be removed now is removed later, or with the session."""
        needed = {f"segments/{segment.name}" for segment in written.segments}
        needed |= {f"events/{file.name}" for file in self._event_files}
        self._garbage |= {f"segments/{segment.name}" for segment in self._written.segments}
        try:
            if self._is_first:  # what earlier owners left; a later one may be writing already
                for folder in ("segments", "events"):
                    for name in self.files.names(folder):
                        if written_before(self.lease.generation, name):
                            self._garbage.add(f"{folder}/{name}")
                for generation in manifests(self.files):
                    if generation < self.lease.generation:
                        self.files.remove(manifest_name(generation))
                self.lease.remove_older()
            for name in self._garbage - needed:
                self.files.remove(name)
        except OSError as error:
            logger.warning(f"files of session {self.session_id} could not be removed: {error}")
            return
        self._garbage, self._is_first = set(), False

    def restore(self, model, processor) -> StreamingSession | None:
        """The session as it was saved, on the same model; None if nothing was saved. The next save adds to it.

        Raises:
            `ValueError`: if it is damaged or malicious, or of another model.
            `OSError`: if a file cannot be read.
        """
        if self._content is None:
            return None
        place, content = f"session {self.session_id} in {self.store.files.url}", self._content
        fingerprint = self.store.fingerprint(model)
        check_model(content["session"], fingerprint, place)
        try:
            segments = [Segment(**own) for own in content["segments"]]
            with ThreadPoolExecutor(READERS) as readers:
                found = list(readers.map(self._read_segment, segments))
            state = {name[6:]: x for name, x in found[-1].items() if name.startswith("state.")}
            first, count = content["evictions"]
            masks = tuple(state.pop(f"leaving.{first + index}") for index in range(count))
            written = Written(tuple(segments), state.pop("owners"), masks, first)
            seen = content["session"]["seen_tokens"]
            limits = {written.evictions: seen} | {first + index: len(mask) for index, mask in enumerate(masks)}
            check_masks(masks, written.owners, seen)
            for segment, tensors in zip(segments, found, strict=True):
                check_segment(segment, tensors, limits[segment.evictions], model)
            tensors = state | assemble(list(zip(segments, found, strict=True)), masks, first, model)
        except (KeyError, TypeError, IndexError, AttributeError, RuntimeError, ValueError) as error:
            raise ValueError(f"{place} is damaged or malicious: {error!r}") from error
        session = restore_session(StreamingSession, tensors, content["session"], model, processor, fingerprint, place)
        self._follow(session.state, written)
        self._number = max(segment.number for segment in segments)
        return session

    def read_events(self) -> list[tuple[int, str]]:
        """The events of the last durable save, as they were given to it.

        Raises:
            `ValueError`: if they are damaged or malicious. `OSError`: if a file cannot be read.
        """
        files = self._event_files
        if not files:  # there are none, or they were found in notes
            return list(self._events or ())
        with ThreadPoolExecutor(READERS) as readers:
            parts = list(readers.map(lambda file: self.files.read(f"events/{file.name}"), files))
        try:
            found = event_files.read(zip(files, parts, strict=True))
        except ValueError as error:
            place = f"session {self.session_id} in {self.store.files.url}"
            raise ValueError(f"{place} is damaged or malicious: {error}") from error
        return [event for event in found if event[0] >= self._first_event]

    def _read_segment(self, segment: Segment) -> dict[str, torch.Tensor]:
        data = self.files.read(f"segments/{segment.name}")
        if hashlib.sha256(data).hexdigest() != segment.sha256:
            raise ValueError(f"the checksum of segment {segment.name} does not fit its content")
        try:
            return tensors_of_bytes(data)
        except SafetensorError as error:
            raise ValueError(f"the segment {segment.name} is no safetensors file: {error}") from error

    def _read_manifest(self) -> dict | None:
        """The content of the newest manifest, if there is one; sets the attributes that it holds."""
        found = manifests(self.files)
        if not found:
            return None
        self.saved_by, name = found[-1], manifest_name(found[-1])
        content = manifest_content(self.files.read(name), f"{self.files.url}/{name}")
        try:
            self.time, self.notes = content["session"]["state"]["time"], dict(content["notes"])
            if "events" in content:
                self._first_event = int(content["events"]["first"])
                self._event_files = [EventFile(**own) for own in content["events"]["files"]]
            else:
                self._events = [(int(at), str(text)) for at, text in self.notes.pop("events", ())]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.files.url}/{name} is damaged or malicious: {error!r}") from error
        return content

    def renew(self) -> None:
        """Renew the lease; sets `lost` if another process has taken over. Does nothing once it is lost. Raises
        `OSError` as `save`."""
        with self._leasing:
            if self.lost:
                return
            try:
                self.lease.renew()
            except SessionLost:
                self.lost = True

    def close(self) -> None:
        """Wait for the last save, and let other processes take the session at once."""
        self._wait()
        self.store.open_sessions.pop(self.session_id, None)
        with self._leasing:
            if not self.lost:
                self.lost = True
                self.lease.release()

    def delete(self) -> None:
        """Remove the session from the store, as it has ended. Does nothing if another process has taken it over."""
        self._wait()
        self.store.open_sessions.pop(self.session_id, None)
        with self._leasing:
            self.lost = True
            try:
                self.lease.check()
            except SessionLost:
                return
            remove_session(self.files)


def manifests(files: SharedFolder) -> list[int]:
    """Generations whose owners have saved something, ascending."""
    names = (name.removesuffix(".json") for name in files.names("manifests") if name.endswith(".json"))
    return sorted(int(name) for name in names if name.isdecimal())


def manifest_name(generation: int) -> str:
    return f"manifests/{generation:010d}.json"


def remove_session(files: SharedFolder) -> None:
    files.remove("manifests")  # first, so that what is left if this is interrupted is no session
    files.remove("")


def check_masks(masks: tuple[torch.Tensor, ...], owners: torch.Tensor, seen_tokens: int) -> None:
    """Raise `ValueError` if the masks of evictions do not fit each other, or the owners of tokens not the last."""
    if owners.dtype != torch.int32 or owners.shape != (seen_tokens,):
        raise ValueError(f"its segments do not hold {seen_tokens} tokens")
    lengths = [len(mask) for mask in masks] + [seen_tokens]
    for mask, later in zip(masks, lengths[1:], strict=True):
        if mask.dtype != torch.bool or mask.dim() != 1 or len(mask) - int(mask.sum()) > later:
            raise ValueError("its evictions do not fit each other")


def manifest_bytes(content: dict) -> bytes:
    text = json.dumps(content, default=methodcaller("item"))  # numbers of numpy
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({"format": FORMAT, "version": VERSION, "checksum": checksum, "content": text}).encode()


def manifest_content(data: bytes, place: str) -> dict:
    """The content of a manifest whose checksum was verified.

    Raises:
        `ValueError`: if it is damaged, or of another version.
    """
    try:
        manifest = json.loads(data)
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']!r}")
        if manifest["version"] not in READABLE:
            readable = " and ".join(map(str, READABLE))
            raise ValueError(f"it has version {manifest['version']!r}, this package reads the versions {readable}")
        if hashlib.sha256(manifest["content"].encode()).hexdigest() != manifest["checksum"]:
            raise ValueError("its checksum does not fit its content")
        return json.loads(manifest["content"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{place} is no manifest of a session, or damaged: {error}") from error


__all__ = ["Saved", "SavedSession", "SessionStore", "Taken"]
