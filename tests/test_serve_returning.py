"""Clients that come back while their session is opened, put away or deleted wait for it, and then have it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from time import monotonic

import httpx
import pytest
from running_servers import Client, client, frames_of, held, serving
from waiting import PATIENCE
from websockets.exceptions import InvalidStatus

from videollm_mod.serving import registry as registry_module
from videollm_mod.serving.lease import Lease, current_claim

AT = "/v1/streaming/sessions"


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    with serving(checkpoint, saved=tmp_path_factory.mktemp("sessions"), save_seconds=0.1) as running:
        yield running


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


def calls_of(monkeypatch, holder, name: str) -> list:
    """A list that grows with each call of a method, before it begins."""
    calls, method = [], getattr(holder, name)
    monkeypatch.setattr(holder, name, lambda *given: (calls.append(given), method(*given))[1])
    return calls


def is_closed(server, session: str) -> bool:
    return session not in server.registry.sessions and session not in server.registry._changing


@contextlib.asynccontextmanager
async def watched(url: str) -> AsyncIterator[tuple[Client, str]]:
    """A client whose session has one frame, and vanishes in the end."""
    async with client(url) as mine:
        session = (await mine.until("session.created"))["session"]["id"]
        await mine.frame(*frames_of(60, 1)[0])
        await mine.until("input_video_frame.acknowledged", status="watched")
        yield mine, session
        mine.socket.transport.abort()


async def over_websocket(url: str, session: str) -> float:
    """The time of the session's last frame."""
    async with client(url, f"?session_id={session}&after=1") as mine:
        return (await mine.until("session.updated"))["session"]["time"]


async def over_http(url: str, method: str, path: str, json=None) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as http:
        return await http.request(method, f"{AT}{path}", json=json)


async def everywhere(url: str, session: str) -> list[float]:
    """The time of the session's last frame, as all ways to come back tell it at once."""
    requests = [
        over_http(url, "GET", f"/{session}"),
        over_http(url, "POST", "", {"session_id": session}),
        over_http(url, "POST", f"/{session}/fork", {"question": "How many objects are there?"}),
    ]
    first, *answers = await asyncio.gather(over_websocket(url, session), *requests)
    return [first, *(answer.raise_for_status().json()["time"] for answer in answers)]


@pytest.mark.parametrize("why", ["its client vanished", "it was idle", "it is not open"])
def test_who_returns_gets_the_session(server, monkeypatch, why):
    registry, found = server.registry, calls_of(monkeypatch, server.registry, "find")

    async def run():
        async with contextlib.AsyncExitStack() as stack:
            async with watched(server.url) as (_, session):
                if why != "it is not open":
                    stack.enter_context(held(server))
                if why == "it was idle":
                    closing = registry.close_idle(monotonic() + registry.limits.idle_seconds + 1)
                    asyncio.run_coroutine_threadsafe(closing, registry.engine._loop)
            if why == "it is not open":
                await until(lambda: is_closed(server, session))
                stack.enter_context(held(server))
            else:
                await until(lambda: session in registry._changing)
            returned = asyncio.create_task(everywhere(server.url, session))
            await until(lambda: len(found) == 4)
        assert await returned == [0.0] * 4

    asyncio.run(run())


def test_texts_that_no_question_could_hold_are_forgotten(server):
    """Those of a question that waited when its server crashed, together with those after it."""
    long = "x" * (server.registry.limits.text_characters - 10)

    async def run() -> list[str]:
        session = await server.registry.open("anyone")
        session.take_notes({**session.notes(), "texts": [long, "y" * 10, "z"]})
        await server.registry.close(session, forget=True)
        return session.notes()["texts"]

    texts = asyncio.run_coroutine_threadsafe(run(), server.registry.engine._loop).result(PATIENCE)
    assert texts == ["y" * 10, "z"]


def test_a_session_is_deleted_once(server, monkeypatch):
    """By one of two requests that come while it is put away; who comes back for it then is told."""
    deleted = calls_of(monkeypatch, server.registry, "delete")

    async def run():
        async with watched(server.url) as (_, session):
            with held(server):
                requests = [asyncio.create_task(over_http(server.url, "DELETE", f"/{session}")) for _ in range(2)]
                await until(lambda: len(deleted) == 2)
                requests.append(asyncio.create_task(over_http(server.url, "GET", f"/{session}")))
            answers = await asyncio.gather(*requests)
        assert sorted(answer.status_code for answer in answers) == [200, 404, 404]
        assert session not in server.registry.store.session_ids()

    asyncio.run(run())


def test_another_server_is_waited_for(server, checkpoint, monkeypatch):
    monkeypatch.setattr(registry_module, "OTHERS_SECONDS", PATIENCE)
    with serving(checkpoint, saved=server.registry.store.files.url) as other:
        tried = calls_of(monkeypatch, other.registry.store, "open")

        async def run():
            async with watched(server.url) as (_, session):
                await until(lambda: session in server.registry.store)
                with held(server):
                    returned = asyncio.create_task(everywhere(other.url, session))
                    await until(lambda: tried)  # while the server does not know that its client will go
                    assert session in server.registry.sessions
            assert await returned == [0.0] * 4

        asyncio.run(run())


def test_a_session_that_another_server_has_is_refused(server, checkpoint, monkeypatch):
    monkeypatch.setattr(registry_module, "OTHERS_SECONDS", 0.0)
    with serving(checkpoint, saved=server.registry.store.files.url) as other:

        async def run():
            async with watched(server.url) as (mine, session):
                await until(lambda: session in server.registry.store)
                with pytest.raises(InvalidStatus) as refused:
                    await over_websocket(other.url, session)
                answers = [refused.value.response.body]
                for method in ("GET", "DELETE"):
                    answers.append((await over_http(other.url, method, f"/{session}")).content)
                for answer in answers:
                    assert b"session_in_use" in answer and f"held by {server.registry.store.owner}".encode() in answer
                await mine.frame(*frames_of(60, 2)[1])
                await mine.until("input_video_frame.acknowledged", status="watched")

        asyncio.run(run())


def test_a_session_that_is_put_away_for_too_long_is_refused(server, monkeypatch):
    monkeypatch.setattr(registry_module, "OWN_SECONDS", 0.0)

    async def run():
        async with contextlib.AsyncExitStack() as stack:
            async with watched(server.url) as (_, session):
                stack.enter_context(held(server))
            await until(lambda: session in server.registry._changing)
            error = (await over_http(server.url, "GET", f"/{session}")).json()["error"]
            assert error["code"] == "session_in_use"
            assert "was still being saved after 0 seconds; try again" in error["message"]

    asyncio.run(run())


def test_a_lease_that_could_not_be_given_back_keeps_nobody_out(server, monkeypatch):
    def fail(lease) -> None:
        raise OSError("the store is gone")

    async def run():
        with monkeypatch.context() as broken:
            broken.setattr(Lease, "release", fail)
            async with watched(server.url) as (_, session):
                pass
            await until(lambda: is_closed(server, session))
        assert current_claim(server.registry.store.files.folder(session)).seconds_left > 0
        assert await everywhere(server.url, session) == [0.0] * 4

    asyncio.run(run())


def test_a_server_that_stops_also_gives_back_what_it_is_opening(checkpoint, tmp_path, monkeypatch):
    with serving(checkpoint, saved=tmp_path) as running:
        registry, opened = running.registry, calls_of(monkeypatch, running.registry, "find")

        async def run():
            async with watched(running.url) as (_, session):
                pass
            await until(lambda: is_closed(running, session))
            with held(running):
                returned = asyncio.create_task(over_http(running.url, "GET", f"/{session}"))
                await until(lambda: opened)
                stopping = asyncio.run_coroutine_threadsafe(registry.stop(), registry.engine._loop)
                await until(lambda: registry.stopping)
            await asyncio.wrap_future(stopping)
            await asyncio.gather(returned, return_exceptions=True)
            return session

        session = asyncio.run(run())
        assert not registry.sessions and not registry._changing
        assert current_claim(registry.store.files.folder(session)).seconds_left <= 0
