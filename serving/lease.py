"""The right to continue a session: at any time one process has it, and its claim has a number, the generation.

Claims are files `leases/GENERATION` in the folder of the session. A process that takes a session over creates the file
of the next generation, which only one process can do. The highest generation owns the session.

A process that was paused for long may not know that it has lost its session. So a lease that expires is no proof of
anything: it only allows others to take over. What keeps the former owner from doing harm is `Lease.check`, which it
calls after each write and before it relies on it. If `check` passes, whoever takes over later reads that write.

Times are those of the machines' clocks. A clock that is wrong lets a session be taken over too early or too late, and
does no other harm.
"""

import json
import os
import socket
import time
from dataclasses import dataclass
from uuid import uuid4

from .shared_files import SharedFolder

FOLDER = "leases"


class SessionHeld(RuntimeError):
    """Another process owns the session.

    Attributes:
        owner (`str`): its name.
    """

    def __init__(self, message: str, owner: str = ""):
        super().__init__(message)
        self.owner = owner


class SessionLost(RuntimeError):
    """Another process has taken the session over; this one must stop working on it."""


@dataclass(frozen=True)
class Claim:
    """The content of a lease file.

    Args:
        generation (`int`): 1 for the first owner of a session, and one more for each that follows.
        owner (`str`): a name for people.
        expires (`float`): when others may take over, in seconds of `time.time()`.
    """

    generation: int
    owner: str
    expires: float

    @property
    def seconds_left(self) -> float:
        return self.expires - time.time()


def owner_name() -> str:
    """A name for this process: host, process id, and a part that no other process has."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"


def has_died(owner: str) -> bool:
    """Whether a process with a name of `owner_name` ran on this machine and has ended. Then nobody has to
    wait for its leases to expire. Being wrong, as with machines of the same name, does no harm: the other process is
    fenced off."""
    host, _, pid = owner.rpartition(":")[0].rpartition(":")
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def generations(files: SharedFolder) -> list[int]:
    """Of all lease files of a session, ascending."""
    return sorted(int(name) for name in files.names(FOLDER) if name.isdecimal())


def file_name(generation: int) -> str:
    return f"{FOLDER}/{generation:010d}"


def current_claim(files: SharedFolder) -> Claim | None:
    """The claim of the highest generation; None if nobody ever had the session. A lease file that cannot be read
    counts as expired."""
    found = generations(files)
    if not found:
        return None
    try:
        content = json.loads(files.read(file_name(found[-1])))
        return Claim(found[-1], str(content["owner"]), float(content["expires"]))
    except (ValueError, KeyError, TypeError, FileNotFoundError):
        return Claim(found[-1], "unknown", 0.0)


class Lease:
    """
    A claim of this process on a session.

    Args:
        files (`SharedFolder`): of the session.
        generation (`int`), owner (`str`): as in `Claim`.
        seconds (`float`): how long it is valid after `renew`.
    """

    def __init__(self, files: SharedFolder, generation: int, owner: str, seconds: float):
        self.files, self.generation, self.owner, self.seconds = files, generation, owner, seconds

    @classmethod
    def acquire(cls, files: SharedFolder, owner: str, seconds: float, force: bool = False) -> "Lease":
        """Take a session that nobody holds, or whose lease has expired; with `force` also one that is held.

        Raises:
            `SessionHeld`: if another process holds it, or was faster.
        """
        held = current_claim(files)
        if held is not None and held.seconds_left > 0 and not force:
            raise SessionHeld(
                f"the session is held by {held.owner} for another {held.seconds_left:.1f} seconds", held.owner
            )
        lease = cls(files, 1 if held is None else held.generation + 1, owner, seconds)
        try:
            files.create(file_name(lease.generation), lease._content(seconds))
            lease.check()  # the file may have been created anew after a later owner had removed it
        except (FileExistsError, SessionLost) as error:
            raise SessionHeld("the session was taken by another process at the same moment") from error
        return lease

    def _content(self, seconds: float) -> bytes:
        return json.dumps({"owner": self.owner, "expires": time.time() + seconds}).encode()

    def check(self) -> None:
        """Raise `SessionLost` if this process no longer owns the session."""
        found = generations(self.files)
        if not found:
            raise SessionLost("the session has been deleted")
        if found[-1] != self.generation:
            raise SessionLost(
                f"the session was taken over: this process has generation {self.generation}, the owner {found[-1]}"
            )

    def renew(self) -> None:
        """Extend the lease; call it more than twice as often as it expires. Raises `SessionLost` as `check`."""
        self.check()
        self.files.write(file_name(self.generation), self._content(self.seconds))
        self.check()

    def release(self) -> None:
        """Let others take the session at once. Does nothing if another process already has."""
        try:
            self.check()
        except SessionLost:
            return
        self.files.write(file_name(self.generation), self._content(0.0))

    def remove_older(self) -> None:
        """Remove the files of earlier generations."""
        for generation in generations(self.files):
            if generation < self.generation:
                self.files.remove(file_name(generation))


__all__ = ["Claim", "Lease", "SessionHeld", "SessionLost", "current_claim", "has_died", "owner_name"]
