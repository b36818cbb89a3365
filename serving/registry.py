"""All sessions of a server: opening, finding, closing and saving them, and the limits of how many there are."""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from secrets import token_urlsafe
from time import monotonic
from typing import Any, Protocol

from ..speaking import default_threshold
from ..streaming import StreamingSession
from .engine import Engine
from .errors import RATE, SERVER, ApiError
from .event_log import EventLog
from .keys import Keys
from .limits import Limits
from .metrics import Metrics
from .outputs import Closed
from .realtime_session import RealtimeSession

SESSION_ID = re.compile(r"sess_[A-Za-z0-9_-]{16,64}")
DECODERS = 4  # threads that decode images
CHECK_SECONDS = 1.0  # between two looks for idle sessions
SETTLE_SECONDS = 20.0  # for the work that waits when the server stops
STOPPING = ("server_stopping", "the server stops", 503, SERVER)


class Store(Protocol):
    """Where sessions are saved. Its methods run in the engine's thread, and may raise `OSError`."""

    def save(self, session_id: str, session: StreamingSession, about: dict) -> None:
        """Save a session, with what the server knows of it (JSON)."""

    def about(self, session_id: str) -> dict | None:
        """What was saved of a session beside itself; None if there is none."""

    def load(self, session_id: str, model, processor) -> StreamingSession:
        """A saved session."""

    def delete(self, session_id: str) -> None:
        """Forget a session, if there is one."""


class Registry:
    """
    Args:
        engine (`Engine`), limits (`Limits`), metrics (`Metrics`).
        name (`str`): of the model.
        options (`dict`): of new sessions, for `StreamingSession`.
        store (`Store`, *optional*): where sessions are saved when they are closed; nowhere if omitted.
        keys (`Keys`, *optional*): which may have limits of their own.
    """

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        metrics: Metrics,
        name: str,
        options: dict,
        store: Store | None = None,
        keys: Keys | None = None,
    ):
        self.engine, self.limits, self.metrics, self.name = engine, limits, metrics, name
        self.options, self.store, self.keys = options, store, keys or Keys()
        self.sessions: dict[str, RealtimeSession] = {}
        self.decoders = ThreadPoolExecutor(DECODERS, "decode")
        self.stopping = False
        self._opening: dict[str, str] = {}  # session ids, and their owners
        self._closing: dict[str, asyncio.Event] = {}
        self._reaper: asyncio.Task | None = None

    def start(self) -> None:
        self.engine.start()
        self.metrics.watch(self.engine)
        self._reaper = asyncio.get_running_loop().create_task(self._close_idle())

    def describe_model(self) -> dict:
        """What a page or a program has to know of the model to stream to it."""
        model, processor = self.engine.model, self.engine.processor
        threshold = self.options.get("speak_threshold")
        if threshold is None:
            threshold = default_threshold(model.config.speak_rule, model.config.verify_margin)
        return {
            "fps": processor.video_processor.fps,
            "domain": model.config.domain,
            "instruction": processor.default_query,
            "speak_threshold": threshold,
        }

    async def open(self, owner: str, session_id: str | None = None) -> RealtimeSession:
        """A new session, or a saved one with this id.

        Raises:
            `ApiError`: if there is no such session of this owner, or no room for another one.
        """
        if self.stopping:
            raise ApiError(*STOPPING)
        if len(self.sessions) + len(self._opening) >= self.limits.sessions:
            message = f"{self.limits.sessions} sessions are open, the limit of this server; try again later"
            raise self.refused(ApiError("session_limit_exceeded", message, 429, RATE))
        opening = f"sess_{token_urlsafe(18)}" if session_id is None else session_id
        if opening in self._opening:
            raise ApiError("session_in_use", f"{session_id} is being opened", 409)
        owners = [*self._opening.values(), *(session.owner for session in self.sessions.values())]
        self.keys.allowance(owner).check_sessions(owners.count(owner))
        self._opening[opening] = owner
        try:
            if opening in self._closing:  # its client has come back before it was saved
                await self._closing[opening].wait()
            session = await self._open(owner, opening, is_new=session_id is None)
        except RuntimeError as error:  # the pool has no room
            raise self.refused(ApiError("no_memory", str(error), 503, SERVER)) from error
        except Closed:
            raise ApiError(*STOPPING) from None
        except (OSError, ValueError) as error:
            raise self.refused(ApiError("session_not_restored", str(error), 500, SERVER)) from error
        finally:
            self._opening.pop(opening, None)
        self.sessions[session.id] = session
        session.on_fatal = partial(self.close, session)
        return session

    async def _open(self, owner: str, session_id: str, is_new: bool) -> RealtimeSession:
        model, processor = self.engine.model, self.engine.processor
        make: Callable[[], StreamingSession] = partial(StreamingSession, model, processor, **self.options)
        saved: dict[str, Any] = {}
        store = self.store
        if not is_new:
            about = None
            if store is not None and SESSION_ID.fullmatch(session_id):
                about = await self.engine.call(partial(store.about, session_id))
            if about is None or about["owner"] != owner or store is None:
                raise not_found(session_id)
            saved, make = about, partial(store.load, session_id, model, processor)
        log = EventLog(session_id[5:15], self.limits.kept_events, saved.get("events", ()), saved.get("sequence", 0))
        session = RealtimeSession(
            session_id, owner, self.engine, self.limits, self.metrics, self.decoders, log, self.name
        )
        session.dropped = saved.get("dropped", 0)
        session.shared_rate = self.keys.allowance(owner).frames
        await session.open(make)
        return session

    def get(self, owner: str, session_id: str) -> RealtimeSession:
        """An open session. Raises `ApiError` if this owner has none of this id."""
        session = self.sessions.get(session_id)
        if session is None or session.owner != owner:
            raise not_found(session_id)
        return session

    async def find(self, owner: str, session_id: str) -> RealtimeSession:
        """An open session, or a saved one, which is opened. Raises `ApiError`."""
        try:
            return self.get(owner, session_id)
        except ApiError:
            return await self.open(owner, session_id)

    async def close(self, session: RealtimeSession, notice: ApiError | None = None, forget: bool = False) -> None:
        """Close a session, and save it unless it is to be forgotten, or there is no store.

        Args:
            notice (`ApiError`, *optional*): why, for the client.
        """
        if self.sessions.pop(session.id, None) is None:
            return
        closing = self._closing[session.id] = asyncio.Event()
        try:
            await self._close(session, notice, forget)
        finally:
            del self._closing[session.id]
            closing.set()

    async def _close(self, session: RealtimeSession, notice: ApiError | None, forget: bool) -> None:
        store = self.store
        finish = None
        if store is not None and not forget:
            finish = partial(self._save, store, session)
        elif store is not None:
            finish = partial(self._forget, store, session)
        try:
            await session.close(notice, finish)
        except (Closed, OSError, ValueError) as error:
            session.refuse(ApiError("session_not_saved", str(error), 500, SERVER))

    @staticmethod
    def _save(store: Store, session: RealtimeSession, state: StreamingSession) -> None:
        log = session.log
        about = {"owner": session.owner, "sequence": log.last, "events": log.kept, "dropped": session.dropped}
        store.save(session.id, state, about)

    @staticmethod
    def _forget(store: Store, session: RealtimeSession, state: StreamingSession) -> None:
        store.delete(session.id)

    def refused(self, error: ApiError) -> ApiError:
        """Count an error."""
        self.metrics.refused(error.code)
        return error

    async def stop(self) -> None:
        """Take no more work, finish what waits, save all sessions, tell their clients, and end the engine."""
        if self.stopping:
            return
        self.stopping = True
        if self._reaper is not None:
            self._reaper.cancel()
        for session in self.sessions.values():
            session.refusing = ApiError(*STOPPING)
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                await self.engine.settle()
        kept = "it was saved, and continues on a server with the same store" if self.store else "it was not saved"
        for session in list(self.sessions.values()):
            notice = ApiError(STOPPING[0], f"the server stops; session {session.id}: {kept}", *STOPPING[2:])
            await self.close(session, notice)
        await self.engine.stop()
        self.decoders.shutdown(wait=False)

    async def _close_idle(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await self.close_idle(monotonic())

    async def close_idle(self, now: float) -> None:
        """Close the sessions whose clients have sent nothing for longer than the limit. now: as `monotonic`."""
        limit = self.limits.idle_seconds
        for session in list(self.sessions.values()):
            if now - session.touched > limit:
                message = f"nothing was sent for {limit:g} seconds, the limit of a session"
                await self.close(session, ApiError("session_idle", message, 408))


def not_found(session_id: str) -> ApiError:
    return ApiError("session_not_found", f"there is no session {session_id[:80]!r}", 404, param="session_id")


__all__ = ["Registry", "Store"]
