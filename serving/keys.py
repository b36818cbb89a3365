"""Keys that clients must show: from the environment or a file, never from the command line, where others see them."""

import hashlib
import hmac
import os
from collections.abc import Sequence
from pathlib import Path

from .errors import FORBIDDEN, ApiError

VARIABLE = "VIDEOLLM_MOD_API_KEYS"  # keys with commas between them
PROTOCOL = "realtime"
PROTOCOL_KEY = "openai-insecure-api-key."  # browsers cannot set headers, and send the key as a subprotocol
SHORTEST = 16  # characters
ANYONE = "anyone"  # the owner of everything, where no keys are needed


class Keys:
    """
    Args:
        keys (`Sequence[str]`): of which each client has one; empty if none is needed.

    Raises:
        `ValueError`: for a key that is short enough to guess, or holds other than printable ASCII characters.
    """

    def __init__(self, keys: Sequence[str] = ()):
        for key in keys:
            if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError(f"a key must have at least {SHORTEST} printable ASCII characters without spaces")
        self._digests = [digest(key) for key in keys]

    @classmethod
    def load(cls, file: Path | None = None) -> "Keys":
        """The keys of a file, one a line (empty lines and those with # do not count), and those of the environment
        variable `VIDEOLLM_MOD_API_KEYS`."""
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
        return asked.hex()[:32]


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


__all__ = ["ANYONE", "PROTOCOL", "PROTOCOL_KEY", "VARIABLE", "Keys"]
