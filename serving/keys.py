"""Keys that clients must show: from the environment or a file, never from the command line, where others see them.

A line of the file is a key, and what it may use if that is less than the server allows:

    a-key-0123456789abcdef sessions=4 fps=8
"""

import hashlib
import hmac
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import FORBIDDEN, RATE, ApiError
from .limits import FrameRate

VARIABLE = "VIDEOLLM_MOD_API_KEYS"  # keys with commas between them
PROTOCOL = "realtime"
PROTOCOL_KEY = "openai-insecure-api-key."  # browsers cannot set headers, and send the key as a subprotocol
SHORTEST = 16  # characters
ANYONE = "anyone"  # the owner of everything, where no keys are needed


@dataclass
class Allowance:
    """What all sessions of one key together may use.

    Args:
        sessions (`float`): open at the same time.
        frames (`FrameRate`, *optional*): of all its sessions; None without a limit.
    """

    sessions: float = math.inf
    frames: FrameRate | None = None

    @classmethod
    def read(cls, words: Sequence[str]) -> "Allowance":
        """From words such as `sessions=4` and `fps=8`. Raises `ValueError`."""
        given: dict[str, float] = {}
        for word in words:
            name, _, value = word.partition("=")
            try:
                given[name] = float(value)
            except ValueError:
                given[name] = math.nan
            if name not in ("sessions", "fps") or not 0 < given[name] < math.inf:
                raise ValueError(f"after a key stand sessions=N and fps=N, numbers above 0, or nothing, got {word!r}")
        fps = given.get("fps")
        return cls(given.get("sessions", math.inf), None if fps is None else FrameRate(fps, whose="this key"))

    def check_sessions(self, number: int) -> None:
        """number: of open sessions. Raises `ApiError` if there may be no other one."""
        if number + 1 > self.sessions:
            message = f"{number} sessions of this key are open, its limit is {self.sessions:g}; close one first"
            raise ApiError("key_session_limit_exceeded", message, 429, RATE)


class Keys:
    """
    Args:
        lines (`Sequence[str]`): keys, each with its limits as in the file; empty if no key is needed.

    Raises:
        `ValueError`: for a key that is short enough to guess, or holds other than printable ASCII characters; or a
            limit that is none.
    """

    def __init__(self, lines: Sequence[str] = ()):
        self._allowances: dict[str, Allowance] = {}
        self._digests: list[bytes] = []
        for line in lines:
            key, *words = line.split()
            if len(key) < SHORTEST or not key.isascii() or not key.isprintable():
                raise ValueError(f"a key must have at least {SHORTEST} printable ASCII characters without spaces")
            self._digests.append(digest(key))
            self._allowances[owner_of(digest(key))] = Allowance.read(words)

    @classmethod
    def load(cls, file: Path | None = None) -> "Keys":
        """The keys of a file, one a line (empty lines and those with # do not count), and those of the environment
        variable `VIDEOLLM_MOD_API_KEYS`. Raises `ValueError`, `OSError`."""
        keys = [key.strip() for key in os.environ.get(VARIABLE, "").split(",") if key.strip()]
        if file is not None:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
            found = [line for line in lines if line and not line.startswith("#")]
            if not found:
                raise ValueError(f"{file} holds no key: write one a line")
            keys += found
        return cls(keys)

    @property
    def needed(self) -> bool:
        return bool(self._digests)

    def owner(self, authorization: str | None, protocols: Sequence[str] = ()) -> str:
        """Who asks. Everybody with the same key is the same owner.

        Args:
            authorization (`str`, *optional*): the header, `Bearer KEY`.
            protocols (`Sequence[str]`): subprotocols that a WebSocket offers, of which one may hold the key.

        Raises:
            `ApiError`: without a key, or with a wrong one.
        """
        if not self.needed:
            return ANYONE
        scheme, _, given = (authorization or "").partition(" ")
        key = given.strip() if scheme.lower() == "bearer" else ""
        key = key or next((p.removeprefix(PROTOCOL_KEY) for p in protocols if p.startswith(PROTOCOL_KEY)), "")
        if not key:
            message = "a key is needed: send the header Authorization: Bearer KEY"
            raise ApiError("missing_api_key", message, 401, FORBIDDEN)
        asked = digest(key)
        matches = [hmac.compare_digest(asked, known) for known in self._digests]  # all of them, whichever fits
        if not any(matches):
            raise ApiError("invalid_api_key", "the key is wrong", 401, FORBIDDEN)
        return owner_of(asked)

    def allowance(self, owner: str) -> Allowance:
        """What an owner may use."""
        return self._allowances.get(owner) or Allowance()


def owner_of(digest: bytes) -> str:
    return digest.hex()[:32]


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


__all__ = ["ANYONE", "PROTOCOL", "PROTOCOL_KEY", "VARIABLE", "Allowance", "Keys"]
