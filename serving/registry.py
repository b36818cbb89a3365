"""All sessions of a server: opening, finding, closing and saving them, and the limits of how many there are.

With a store each open session has a lease in it. One that another server has taken over is closed here.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from time import monotonic
from typing import Any

from ..speaking import default_threshold
from ..streaming import StreamingSession
from .engine import Engine
from .errors import MOVED, RATE, SERVER, ApiError
from .event_log import EventLog
from .exchange import new_session_id
from .keys import Keys
from .lease import SessionHeld, SessionLost, has_died
from .limits import Limits
from .metrics import Metrics
from .outputs import Busy, Closed
from .realtime_session import RealtimeSession
from .saving import Saving, restored_log
from .store import SavedSession, SessionStore

logger = logging.getLogger(__name__)

DECODERS = 4  # threads that decode images
CHECK_SECONDS = 1.0  # between two looks for idle sessions
OWN_SECONDS = 30.0  # for a session that is being opened or put away here
OTHERS_SECONDS, TRY_SECONDS = 15.0, 0.2  # for one that another server gives up, and between two looks at its lease
SETTLE_SECONDS = 20.0  # for the work that waits when the server stops
CLEAN_SECONDS = 3600.0  # between two looks for sessions that nobody has continued
STOPPING = ("server_stopping", "the server stops", 503, SERVER)
STARTING = "the server is starting: {} of {} CUDA graphs are captured; try again in a moment"


class Registry:
    """
    Args:
        engine (`Engine`), limits (`Limits`), metrics (`Metrics`).
        name (`str`): of the model.
        options (`dict`): of new sessions, for `StreamingSession`.
        store (`SessionStore`, *optional*): where sessions are saved; nowhere if omitted.
        keys (`Keys`, *optional*): which may have limits of their own.
        save_seconds (`float`): between two saves of a session.
        keep_seconds (`float`): for which a saved session is kept that nobody continues.

    Attributes:
        preparations (`list[Callable]`): are called in the engine's thread before the first session is opened.
        on_prepared (`Callable[[int, int], None]`): is called with how many of them are done, and with how many there
            are: before each, and in the end.
        ready (`asyncio.Event`): is set once they are done.
        take_over (`Callable`): is awaited with the id of a saved session and the name of the process that owns it;
            returns whether that process is known to be dead.
    """

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        metrics: Metrics,
        name: str,
        options: dict,
        store: SessionStore | None = None,
        keys: Keys | None = None,
        save_seconds: float = 5.0,
        keep_seconds: float = 7 * 86400.0,
    ):
        self.engine, self.limits, self.metrics, self.name = engine, limits, metrics, name
        self.options, self.store, self.keys = options, store, keys or Keys()
        self.save_seconds, self.keep_seconds = save_seconds, keep_seconds
        self.take_over: Callable[[str, str], Awaitable[bool]] = ended_here
        self._savings: dict[str, Saving] = {}
        self.sessions: dict[str, RealtimeSession] = {}
        self.decoders = ThreadPoolExecutor(DECODERS, "decode")
        self.stopping = False
        self.preparations: list[Callable[[], object]] = []
        self.on_prepared: Callable[[int, int], None] = lambda done, total: None
        self.prepared, self.ready = 0, asyncio.Event()
        self._opening: dict[str, str] = {}  # session ids, and their owners
        self._changing: dict[str, asyncio.Event] = {}  # sessions that are being opened, put away or deleted
        self._tasks: list[asyncio.Task] = []
        self._losing: set[asyncio.Task] = set()

    def start(self) -> None:
        self.engine.start()
        self.metrics.watch(self.engine)
        regular: list[tuple[float, Callable[[], Awaitable]]] = [(CHECK_SECONDS, self._close_idle)]
        if self.store is not None:
            regular.append((self.store.lease_seconds / 3, partial(self._renew, self.store)))
            regular.append((CLEAN_SECONDS, partial(self._clean, self.store)))
        self._tasks = [asyncio.create_task(repeat(seconds, work)) for seconds, work in regular]
        self._tasks.append(asyncio.create_task(self._prepare()))

    async def _prepare(self) -> None:
        total = len(self.preparations)
        try:
            for self.prepared, work in enumerate(self.preparations):  # noqa: B020
                self.on_prepared(self.prepared, total)
                await self.engine.call(work)
        except Closed:
            return
        except Exception:  # such as a lack of memory: it may be enough without graphs
            logger.exception("the server could not prepare everything, so its first clients may wait")
        finally:
            self.prepared = total
            self.ready.set()
        self.on_prepared(total, total)

    @property
    def is_starting(self) -> bool:
        return self.prepared < len(self.preparations)

    def check_open(self) -> None:
        """Raise `ApiError` while nothing new is begun: before the server is ready, and when it stops."""
        if self.stopping:
            raise ApiError(*STOPPING)
        if self.is_starting:
            message = STARTING.format(self.prepared, len(self.preparations))
            raise self.refused(ApiError("server_starting", message, 503, SERVER))

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

    @asynccontextmanager
    async def _alone(self, session_id: str) -> AsyncIterator[None]:
        """Open, put away or delete a session, after all others who do. Entered at once for one in `sessions`.

        Raises:
            `ApiError`: if the others take longer than `OWN_SECONDS`.
        """
        try:
            async with asyncio.timeout(OWN_SECONDS):
                while session_id in self._changing:
                    await self._changing[session_id].wait()
        except TimeoutError:
            message = f"session {session_id[:80]!r} was still being saved after {OWN_SECONDS:g} seconds; try again"
            raise self.refused(ApiError("session_in_use", message, 409)) from None
        changed = self._changing[session_id] = asyncio.Event()
        try:
            yield
        finally:
            del self._changing[session_id]
            changed.set()

    async def open(self, owner: str, new_id: str | None = None) -> RealtimeSession:
        """A new session. new_id (`str`, *optional*): its id, if the caller knows it already.

        Raises:
            `ApiError`: if there is no room for another one.
        """
        session_id = new_id or new_session_id()
        async with self._alone(session_id):
            return await self._add(owner, session_id, is_new=True)

    async def find(self, owner: str, session_id: str) -> RealtimeSession:
        """An open session, or a saved one, which is opened. One that is being opened or put away is waited for.

        Raises:
            `ApiError`: if there is no such session of this owner, another server has it, or there is no room.
        """
        async with self._alone(session_id):
            if session_id in self.sessions:
                return self.get(owner, session_id)
            return await self._add(owner, session_id, is_new=False)

    async def _add(self, owner: str, session_id: str, is_new: bool) -> RealtimeSession:
        """Open a session within the limits of the server and of its owner."""
        self.check_open()
        if len(self.sessions) + len(self._opening) >= self.limits.sessions:
            message = f"{self.limits.sessions} sessions are open, the limit of this server; try again later"
            raise self.refused(ApiError("session_limit_exceeded", message, 429, RATE))
        owners = [*self._opening.values(), *(session.owner for session in self.sessions.values())]
        self.keys.allowance(owner).check_sessions(owners.count(owner))
        self._opening[session_id] = owner
        try:
            session = await self._open(owner, session_id, is_new)
        except SessionHeld as error:
            raise self.refused(ApiError("session_in_use", str(error), 409)) from error
        except RuntimeError as error:  # the pool has no room
            raise self.refused(ApiError("no_memory", str(error), 503, SERVER)) from error
        except Closed:
            raise ApiError(*STOPPING) from None
        except (OSError, ValueError) as error:
            raise self.refused(ApiError("session_not_restored", str(error), 500, SERVER)) from error
        finally:
            del self._opening[session_id]
        self.sessions[session_id] = session
        session.on_fatal = partial(self.close, session)
        return session

    async def _open(self, owner: str, session_id: str, is_new: bool) -> RealtimeSession:
        if not is_new:
            await self._check_owner(owner, session_id)
        elif self.store is None:
            return await self._join(owner, session_id, None)
        saved = await self._hold(session_id)
        try:
            return await self._join(owner, session_id, saved)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(saved.close))
            raise

    async def _join(self, owner: str, session_id: str, saved: SavedSession | None) -> RealtimeSession:
        """Open a session that this process owns."""
        name, model, processor = session_id[5:15], self.engine.model, self.engine.processor
        state: StreamingSession | None = None
        log = EventLog(name, self.limits.kept_events)
        if saved is not None and not saved.is_new:
            state = await asyncio.to_thread(saved.restore, model, processor)
            events = await asyncio.to_thread(saved.read_events)
            log = restored_log(name, self.limits.kept_events, saved, events)
        session = RealtimeSession(
            session_id, owner, self.engine, self.limits, self.metrics, self.decoders, log, self.name
        )
        session.shared_rate = self.keys.allowance(owner).frames
        await session.open(lambda: StreamingSession(model, processor, **self.options) if state is None else state)
        if saved is not None:
            saving = self._savings[session_id] = Saving(session, saved)
            saving.start()
            session.start(repeat(self.save_seconds, partial(self._save, saving)))
        return session

    async def _check_owner(self, owner: str, session_id: str) -> None:
        """Raise `ApiError` unless this owner has saved a session with this id."""
        notes = None if self.store is None else await asyncio.to_thread(self.store.notes, session_id)
        if notes is None or notes["owner"] != owner:
            raise not_found(session_id)

    async def _hold(self, session_id: str) -> SavedSession:
        """Own a session of the store. One that another server gives up is waited for, `OTHERS_SECONDS` at most. Raises
        as `SessionStore.open`."""
        store, is_dead, end = self.store, False, monotonic() + OTHERS_SECONDS
        assert store is not None
        while True:
            try:
                return await asyncio.to_thread(store.open, session_id, is_dead)
            except SessionHeld as held:
                # a lease of this server is one that it could not give back: nobody here has the session
                is_dead = held.owner == store.owner or await self.take_over(session_id, held.owner)
                if not is_dead and (monotonic() > end or self.stopping):
                    raise
            if not is_dead:
                await asyncio.sleep(TRY_SECONDS)

    def get(self, owner: str, session_id: str) -> RealtimeSession:
        """An open session. Raises `ApiError` if this owner has none of this id."""
        session = self.sessions.get(session_id)
        if session is None or session.owner != owner:
            raise not_found(session_id)
        return session

    async def close(self, session: RealtimeSession, notice: ApiError | None = None, forget: bool = False) -> None:
        """Close a session, and save it unless it is to be forgotten, or there is no store.

        Args:
            notice (`ApiError`, *optional*): why, for the client.
        """
        if self.sessions.pop(session.id, None) is None:
            return
        async with self._alone(session.id):
            await self._close(session, notice, forget)

    async def _close(self, session: RealtimeSession, notice: ApiError | None, forget: bool) -> None:
        saving = self._savings.pop(session.id, None)
        finish: Callable[[StreamingSession], Coroutine[Any, Any, None]] | None = None
        if saving is not None and not forget and not saving.saved.lost:
            finish = saving.finish
        try:
            await session.close(notice, finish)
        except (Closed, OSError, ValueError, SessionLost) as error:
            session.refuse(ApiError("session_not_saved", str(error), 500, SERVER))
        finally:
            if saving is not None:
                with suppress(OSError):  # the lease expires
                    await asyncio.to_thread(saving.saved.delete if forget else saving.saved.close)

    async def delete(self, owner: str, session_id: str) -> None:
        """Close a session, and delete what was saved of it. Raises `ApiError` if this owner has none of this id, or
        another server has it."""
        async with self._alone(session_id):
            if session_id in self.sessions:
                session = self.get(owner, session_id)
                del self.sessions[session_id]
                await self._close(session, None, forget=True)
                return
            await self._check_owner(owner, session_id)
            try:
                await asyncio.to_thread((await self._hold(session_id)).delete)
            except SessionHeld as error:
                raise self.refused(ApiError("session_in_use", str(error), 409)) from error

    # Saving.

    async def _save(self, saving: Saving) -> None:
        """Save a session that is open. What cannot be saved now is saved the next time."""
        with suppress(OSError, Busy, Closed, SessionLost):  # the store has warned
            await saving.save()
        if saving.saved.lost:
            self._lose(saving)

    async def _renew(self, store: SessionStore) -> None:
        try:
            lost = await asyncio.to_thread(store.renew)
        except OSError as error:
            logger.warning(f"the leases of sessions cannot be renewed: {error}")
            return
        for saving in list(self._savings.values()):
            if saving.saved in lost:
                self._lose(saving)

    def _lose(self, saving: Saving) -> None:
        """Close a session that another server has."""
        session = saving.session
        if self.sessions.get(session.id) is session:
            self._losing.add(task := asyncio.create_task(self.close(session, ApiError(*MOVED))))
            task.add_done_callback(self._losing.discard)

    async def _clean(self, store: SessionStore) -> None:
        try:
            await asyncio.to_thread(store.remove_abandoned, self.keep_seconds, CLEAN_SECONDS)
        except OSError as error:
            logger.warning(f"old sessions cannot be removed: {error}")

    def refused(self, error: ApiError) -> ApiError:
        """Count an error."""
        self.metrics.refused(error.code)
        return error

    async def stop(self) -> None:
        """Take no more work, finish what waits, save all sessions, tell their clients, and end the engine."""
        if self.stopping:
            return
        self.stopping = True
        for session in self.sessions.values():
            session.refusing = ApiError(*STOPPING)
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                await self.engine.settle()
        kept = "it was saved, and continues on a server with the same store" if self.store else "it was not saved"
        while self.sessions or self._changing:  # also those of clients that have just come or left
            ending: list[Awaitable] = [changed.wait() for changed in self._changing.values()]
            for session in list(self.sessions.values()):
                notice = ApiError(STOPPING[0], f"the server stops; session {session.id}: {kept}", *STOPPING[2:])
                ending.append(self.close(session, notice))
            await asyncio.gather(*ending)
        for task in self._tasks:
            task.cancel()
        await self.engine.stop()
        self.decoders.shutdown(wait=False)

    async def _close_idle(self) -> None:
        await self.close_idle(monotonic())

    async def close_idle(self, now: float) -> None:
        """Close the sessions whose clients have sent nothing for longer than the limit, and wait for nothing. now: as
        `monotonic`."""
        limit = self.limits.idle_seconds
        for session in list(self.sessions.values()):
            if session.is_working:
                session.touched = now
            elif now - session.touched > limit:
                message = f"nothing was sent for {limit:g} seconds, the limit of a session"
                await self.close(session, ApiError("session_idle", message, 408))


async def repeat(seconds: float, work: Callable[[], Awaitable]) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except Exception:  # the next time may be better
            logger.exception("regular work of the server has failed")


async def ended_here(session_id: str, owner: str) -> bool:
    return has_died(owner)


def not_found(session_id: str) -> ApiError:
    return ApiError("session_not_found", f"there is no session {session_id[:80]!r}", 404, param="session_id")


__all__ = ["Registry"]
