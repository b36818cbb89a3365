"""Sessions over HTTP, forks, saving and coming back, and what happens to responses that are cancelled."""

import asyncio
import json
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import httpx
import pytest
from comparing import PROBABILITY, assert_near
from fresh_process import TINY_WORLD
from plain_http import web
from running_servers import client, data_url, frames_of, held, metric, plain, png, serving, serving_elsewhere
from waiting import PATIENCE, until
from websockets.exceptions import ConnectionClosed

QUESTION = "How many objects are there?"


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


@pytest.fixture(scope="module")
def server(checkpoint):
    with serving(checkpoint) as running:
        yield running


@pytest.fixture
def http(server):
    with httpx.Client(base_url=f"{server.url}/v1/streaming", timeout=PATIENCE) as http:
        yield http


def as_json(frames) -> dict:
    return {"frames": [{"image_url": data_url(image), "timestamp": time} for image, time in frames]}


def is_answer(event: dict) -> bool:
    return event["type"] == "response.done" and event["response"]["metadata"]["kind"] == "answer"


def server_sent(http: httpx.Client, session: str, is_last=is_answer, **headers: str) -> list[dict]:
    """The events of a session, up to the end of an answer."""
    events = []
    with http.stream("GET", f"/sessions/{session}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        number = None
        for line in answer.iter_lines():
            if line.startswith("id: "):
                number = int(line[4:])
            elif line.startswith("data: "):
                events.append(json.loads(line[6:]))
                assert events[-1]["sequence"] == number
                if is_last(events[-1]):
                    break
    return events


def test_a_stream_over_http_equals_one_over_a_websocket(server, http):
    frames = frames_of(61, 8)
    session = http.post("/sessions", json={"instructions": "Narrate the scene."}).json()["id"]
    assert http.post(f"/sessions/{session}/frames", json=as_json(frames[:6])).status_code == 202
    for image, time in frames[6:]:
        options = {"params": {"timestamp": time}, "headers": {"content-type": "image/png"}}
        answer = http.post(f"/sessions/{session}/frames", content=png(image), **options)
        assert answer.json()["timestamps"] == [time]
    assert http.post(f"/sessions/{session}/commit").json()["waiting"] == 0
    answer = http.post(f"/sessions/{session}/ask", json={"question": QUESTION}).json()
    events = server_sent(http, session)

    async def over_websocket():
        async with client(server.url) as mine:
            await mine.send("session.update", session={"instructions": "Narrate the scene."})
            for image, time in frames:
                await mine.frame(image, time)
            await mine.ask(QUESTION)
            while not is_answer(await mine.until("response.done")):
                pass
        return mine.events

    assert plain(events) == plain(asyncio.run(over_websocket()))
    assert answer["text"] == events[-1]["response"]["output"][0]["content"][0]["text"] != ""
    again = server_sent(http, session, **{"Last-Event-ID": "3"})
    assert again == events[3:]
    assert http.delete(f"/sessions/{session}").json()["deleted"]
    assert http.get(f"/sessions/{session}").json()["error"]["code"] == "session_not_found"


def test_a_connection_ends_with_the_events_that_came_over_it(server, http, monkeypatch):
    """Also where nobody is left to close it, as in a program that is stopped."""
    monkeypatch.setattr(server.server.config, "timeout_keep_alive", 10 * PATIENCE)
    session, address = http.post("/sessions", json={}).json()["id"], server.listening.getsockname()
    with socket.create_connection(address, timeout=PATIENCE) as opened:
        opened.sendall(f"GET /v1/streaming/sessions/{session}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b" 200 " in opened.recv(1000)
        http.delete(f"/sessions/{session}")
        while opened.recv(1000):
            pass


def test_a_fork_leaves_the_stream_undisturbed(http):
    frames = as_json(frames_of(62, 6))
    answers = []
    for with_fork in (True, False):
        session = http.post("/sessions").json()["id"]
        http.post(f"/sessions/{session}/frames", json=frames)
        if with_fork:
            what_if = http.post(f"/sessions/{session}/fork", json={"question": QUESTION}).json()
            seen = events_so_far(http, session)
            assert [event["sequence"] for event in seen] == list(range(1, len(seen) + 1))
            assert not [event for event in seen if is_answer(event)]
        answers.append(http.post(f"/sessions/{session}/ask", json={"question": QUESTION}).json()["text"])
        http.delete(f"/sessions/{session}")
    assert answers[0] == answers[1] == what_if["text"] and what_if["time"] == 2.5


def test_sessions_keep_their_own_share_and_take_it_along(checkpoint, tmp_path):
    """Beside others in one server, each as alone. It is saved, and can be given up."""
    model, processor = checkpoint
    frames, ratios, sessions = frames_of(68, 6), (None, 0.1, 1.0), []

    def silence(http: httpx.Client, session: str) -> list[float]:
        http.post(f"/sessions/{session}/commit")
        seen = [event for event in events_so_far(http, session) if event["type"] == "input_video_frame.acknowledged"]
        return [event["silence_probability"] for event in seen if event["status"] == "watched"]

    def url(running) -> dict:
        return {"base_url": f"{running.url}/v1/streaming", "timeout": PATIENCE}

    with serving(checkpoint, saved=tmp_path) as running, httpx.Client(**url(running)) as http:
        for ratio in ratios:
            sessions.append(http.post("/sessions", json={} if ratio is None else {"keep_ratio": ratio}).json()["id"])
        with held(running):
            for session in sessions:
                http.post(f"/sessions/{session}/frames", json=as_json(frames[:3]))
        first = [silence(http, session) for session in sessions]
        assert http.post("/sessions", json={"keep_ratio": 0}).json()["error"]["param"] == "keep_ratio"
    with serving(checkpoint, saved=tmp_path) as running, httpx.Client(**url(running)) as http:
        for session, ratio, before in zip(sessions, ratios, first, strict=True):
            opened = http.post("/sessions", json={"session_id": session}).json()
            assert opened["keep_ratio"] == (ratio or model.keep_ratio)
            http.post(f"/sessions/{session}/frames", json=as_json(frames[3:]))
            seen = before + silence(http, session)[-3:]
            alone = model.stream(processor, keep_ratio=ratio)
            expected = [own.silence_probability for image, time in frames for own in alone.watch(image[None], [time])]
            assert_near(seen, expected, PROBABILITY)
        http.post("/sessions", json={"session_id": sessions[2], "keep_ratio": None})
        http.post(f"/sessions/{sessions[2]}/commit")
        assert http.get(f"/sessions/{sessions[2]}").json()["keep_ratio"] == model.keep_ratio


def events_so_far(http: httpx.Client, session: str) -> list[dict]:
    last = http.get(f"/sessions/{session}").json()["last_event"]
    return server_sent(http, session, lambda event: event["sequence"] == last)


def test_wrong_requests_are_answered_with_errors(server, http):
    session = http.post("/sessions").json()["id"]
    wrong = [
        http.post("/sessions", json={"speak_threshold": 2}),
        http.post(f"/sessions/{session}/ask", json={}),
        http.post(f"/sessions/{session}/ask", json={"question": " "}),
        http.post(f"/sessions/{session}/frames", content=b"x", headers={"content-type": "text/plain"}),
        http.post(f"/sessions/{session}/frames", json={"frames": []}),
        http.post(f"/sessions/{session}/cancel"),
        http.post(f"/sessions/{session}/frames", content=b"{", headers={"content-type": "application/json"}),
        http.post("/sessions", json={"session_id": "../../etc/passwd"}),
        http.post(f"/sessions/{session}/frames", content='"\\ud800"', headers={"content-type": "application/json"}),
    ]
    assert wrong[-1].json()["error"]["message"].startswith("`body`: Invalid JSON")
    codes = [(answer.status_code, answer.json()["error"]["code"]) for answer in wrong]
    assert codes == [
        (400, "invalid_request"),
        (400, "invalid_request"),
        (400, "empty_text"),
        (415, "unsupported_media_type"),
        (400, "invalid_request"),
        (400, "response_cancel_not_active"),
        (400, "invalid_request"),
        (404, "session_not_found"),
        (400, "invalid_request"),
    ]
    http.delete(f"/sessions/{session}")
    names = {"/v1/streaming/sessions", "/v1/models", "/health", "/metrics"}
    assert names <= set(web.get(f"{server.url}/openapi.json").json()["paths"])


def test_one_question_at_a_time(server):
    async def run():
        async with client(server.url) as mine:
            await mine.until("session.created")
            with held(server):
                await mine.ask(QUESTION)
                await mine.ask(QUESTION)
                error = (await mine.until("error"))["error"]
            assert error["code"] == "conversation_already_has_active_response"
            await mine.until("response.done")
            await mine.send("response.create")  # the second question still waits for its answer
            assert (await mine.until("response.done"))["response"]["status"] == "completed"

    asyncio.run(run())


def test_a_response_is_cancelled_in_the_queue_and_midway(checkpoint):
    """With a question before any frame, and a model that takes many tokens for it."""

    async def run(url: str):
        async with client(url) as mine:
            for image, time in frames_of(63, 6):
                await mine.frame(image, time)
            await mine.ask(QUESTION)  # waits behind the frames
            await mine.send("response.cancel")
            await mine.send("session.update", session={"speak_threshold": 1.0})  # from now on it narrates every frame
            await mine.until("session.updated")
            await mine.frame(*frames_of(63, 8)[7])
            delta = await mine.until("response.output_text.delta")
            await mine.send("session.update", session={"instructions": "Narrate the scene."})
            await mine.send("response.cancel", response_id=delta["response_id"])
            await mine.until("session.updated")
        return mine.events

    with serving(checkpoint) as running:
        events = asyncio.run(asyncio.wait_for(run(running.url), PATIENCE))
    done = [event["response"] for event in events if event["type"] == "response.done"]
    answer = next(each for each in done if each["metadata"]["kind"] == "answer")
    assert (answer["status"], answer["status_details"]["reason"]) == ("cancelled", "client_cancelled")
    assert done[-1]["metadata"]["kind"] == "narration" and done[-1]["status"] in ("cancelled", "completed")
    for name in ("response.created", "response.done"):
        assert len([event for event in events if event["type"] == name]) == len(done)


def test_a_new_connection_replaces_the_old_one(server):
    async def run():
        async with client(server.url) as old:
            first = await old.until("session.created")
            query = f"?session_id={first['session']['id']}&after={first['sequence']}"
            async with client(server.url, query) as new:
                assert (await new.next())["type"] == "session.updated"
                with pytest.raises(ConnectionClosed) as caught:
                    while True:
                        await old.next()
                assert caught.value.rcvd.code == 4009
                await new.frame(*frames_of(60, 1)[0])
                await new.until("input_video_frame.acknowledged", status="watched")

    asyncio.run(run())


def test_a_session_that_was_idle_is_closed(server):
    async def run():
        async with client(server.url) as mine:
            await mine.until("session.created")
            loop_of_server = server.registry.engine._loop
            closing = server.registry.close_idle(monotonic() + 601)
            asyncio.run_coroutine_threadsafe(closing, loop_of_server)
            assert (await mine.until("error"))["error"]["code"] == "session_idle"
            with pytest.raises(ConnectionClosed) as caught:
                await mine.next()
            assert caught.value.rcvd.code == 4010

    asyncio.run(run())


@pytest.mark.parametrize("work", ["frames", "ask", "fork"])
def test_who_waits_for_an_answer_is_not_idle(server, http, work):
    """However long the server takes for it."""
    registry, registry_loop = server.registry, server.registry.engine._loop

    def close_idle() -> None:
        asyncio.run_coroutine_threadsafe(registry.close_idle(monotonic() + 601), registry_loop).result(PATIENCE)

    session = http.post("/sessions", json={}).json()["id"]
    with ThreadPoolExecutor() as threads:
        with held(server):
            content = as_json(frames_of(60, 4)) if work == "frames" else {"question": QUESTION}
            answer = threads.submit(http.post, f"/sessions/{session}/{work}", json=content)
            until(lambda: registry.sessions[session].is_working)
            close_idle()
        assert answer.result(PATIENCE).is_success
    until(lambda: not registry.sessions[session].is_working)
    registry.sessions[session].touched = monotonic()
    close_idle()
    assert session not in registry.sessions


def test_a_stopped_server_saves_its_sessions_and_another_one_continues(tmp_path):
    frames = frames_of(64, 10)

    async def first(url, process):
        async with client(url) as mine:
            for image, time in frames[:5]:
                await mine.frame(image, time)
            await mine.until("input_video_frame.acknowledged", timestamp=frames[0][1])
            process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as caught:
                while True:
                    await mine.next()
            assert caught.value.rcvd.code == 1012
        notice = mine.events[-1]
        assert notice["error"]["code"] == "server_stopping" and "was saved" in notice["error"]["message"]
        return mine.events

    async def second(url, query, rest):
        async with client(url, query) as mine:
            resumed = await mine.until("session.updated") if query else await mine.until("session.created")
            for image, time in rest(resumed["session"]["time"]):
                await mine.frame(image, time)
            await mine.ask(QUESTION)
            while not is_answer(await mine.until("response.done")):
                pass
        return mine.events

    arguments = ("--model", str(TINY_WORLD), "--store", str(tmp_path))
    with serving_elsewhere(*arguments) as (url, process):
        before = asyncio.run(asyncio.wait_for(first(url, process), PATIENCE))
        assert process.wait(PATIENCE) == 0
    session = before[0]["session"]["id"]
    assert (tmp_path / session / "manifests").is_dir()
    with serving_elsewhere(*arguments) as (url, process):
        query = f"?session_id={session}&after={before[-2]['sequence']}"
        after = asyncio.run(second(url, query, lambda last: [f for f in frames if f[1] > last]))
        whole = asyncio.run(second(url, "", lambda last: frames))
        until(lambda: metric(url, "videollm_mod_sessions") == 0, "the end of the session")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    numbers = [event["sequence"] for event in (*before[:-1], *after)]
    assert numbers == list(range(1, len(numbers) + 1))  # none is lost, none doubled

    def said(events):
        return [line for line in plain(events) if line["type"] in ("response.done", "response.output_text.done")]

    assert said([*before, *after]) == said(whole)
