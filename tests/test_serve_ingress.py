"""An ingress before several replicas: clients see one server, and sessions move from one replica to another."""

import asyncio
import contextlib
import json

import httpx
import numpy as np
import pytest
from local_cluster import cluster
from running_servers import client, data_url, frames_of, plain, png, serving
from test_serve_realtime import play
from waiting import PATIENCE
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from videollm_mod.client import Refused, Resumed, Said, Watched
from videollm_mod.client import connect as connect_client

KEY, OTHER = "a-key-for-tests-0123456789", "another-key-for-tests-0123456789"


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


def test_a_session_through_an_ingress_equals_one_at_a_server(checkpoint):
    async def run():
        async with cluster(checkpoint, count=1) as one:
            return await play(one.url, 60), one.replicas.delivered

    through, sent = asyncio.run(run())
    with serving(checkpoint) as server:
        assert plain(through.events) == plain(asyncio.run(play(server.url, 60)).events)
    frames = [png(image) for image, _ in frames_of(60, 12)]
    assert [message["bytes"][12:] for message in sent if message.get("bytes")] == frames  # not encoded on the way


def test_http_finds_its_session_at_any_replica(checkpoint):
    frames = {"frames": [{"image_url": data_url(image), "timestamp": time} for image, time in frames_of(61, 4)]}

    async def run():
        async with cluster(checkpoint, keys=(KEY, OTHER)) as both, httpx.AsyncClient(timeout=PATIENCE) as http:
            headers, at = {"Authorization": f"Bearer {KEY}"}, f"{both.url}/v1/streaming/sessions"
            assert (await http.post(at)).json()["error"]["code"] == "missing_api_key"
            both.replicas.placed = Alternating()
            ids = [(await http.post(at, headers=headers)).json()["id"] for _ in range(4)]
            assert [len(both.sessions(place)) for place in (0, 1)] == [2, 2]
            answers = []
            for session in ids:
                assert (await http.post(f"{at}/{session}/frames", json=frames, headers=headers)).status_code == 202
                asked = {"json": {"question": "How many objects are there?"}, "headers": headers}
                answers.append((await http.post(f"{at}/{session}/ask", **asked)).json()["text"])
                other = await http.get(f"{at}/{session}", headers={"Authorization": f"Bearer {OTHER}"})
                assert other.json()["error"]["code"] == "session_not_found"
            assert len(set(answers)) == 1 and answers[0]
            health = (await http.get(f"{both.url}/health")).json()
            assert health == {"status": "ok", "model": "nano", "sessions": 4, "replicas": 2}
            metrics = (await http.get(f"{both.url}/metrics")).text
            assert (await http.delete(f"{at}/{ids[0]}", headers=headers)).json()["deleted"]
            assert len(both.sessions(0)) == 1
            return metrics

    metrics = asyncio.run(run())
    for place in (0, 1):
        assert f'videollm_mod_frames_watched_total{{replica="{place}"}} 8.0' in metrics
    assert metrics.count("# TYPE videollm_mod_frames_watched_total counter") == 1


class Alternating(dict):
    """Places new sessions at the two replicas in turn."""

    def get(self, key, default=None):
        return self.setdefault(key, len(self) % 2)


def test_chats_are_answered_through_an_ingress(checkpoint):
    message = {"role": "user", "content": "What do you see?"}

    async def run():
        async with cluster(checkpoint) as both, httpx.AsyncClient(timeout=PATIENCE) as http:
            asked = {"model": "nano", "messages": [message], "max_tokens": 8}
            whole = (await http.post(f"{both.url}/v1/chat/completions", json=asked)).json()
            streamed = (await http.post(f"{both.url}/v1/chat/completions", json={**asked, "stream": True})).text
            models = (await http.get(f"{both.url}/v1/models")).json()
            return whole, streamed, models

    whole, streamed, models = asyncio.run(run())
    assert whole["choices"][0]["message"]["content"] and streamed.endswith("data: [DONE]\n\n")
    assert [model["id"] for model in models["data"]] == ["nano"]


@contextlib.contextmanager
def closed_with(code: int):
    with pytest.raises(ConnectionClosed) as closed:
        yield
    assert closed.value.rcvd is not None and closed.value.rcvd.code == code


def test_too_large_and_too_many_messages_are_refused(checkpoint):
    async def run():
        async with cluster(checkpoint, count=1, limits={"message_bytes": 4096}) as one:
            async with client(one.url) as mine:
                await mine.next()
                with closed_with(1009):
                    await mine.socket.send(b"x" * 5000)
                    await mine.until("never")
            async with connect_client(one.url) as stream:
                with pytest.raises(Refused, match="the server takes 4096: send a smaller image") as refused:
                    await stream.push(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8), 0.0)
                assert refused.value.code == "message_too_large"
                await stream.push(np.zeros((96, 96, 3), np.uint8), 0.0)
                await stream.finish()
                assert [event.time for event in stream.pending() if isinstance(event, Watched)] == [0.0]
            async with httpx.AsyncClient(timeout=PATIENCE) as http:
                answer = await http.post(f"{one.url}/v1/chat/completions", content=b"x" * 5000)
                assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
            one.replicas.deliver = lambda *_: asyncio.Event().wait()  # takes nothing
            async with client(one.url) as mine:
                await mine.next()
                with closed_with(1008):
                    for _ in range(16):
                        await mine.socket.send("x" * 4000)
                    await mine.until("never")

    asyncio.run(run())


def test_pages_of_allowed_sites_may_read_what_an_ingress_refuses(checkpoint):
    async def run():
        allowed = {"origins": ("https://example.org",), "keys": (KEY,)}
        async with cluster(checkpoint, count=1, **allowed) as one, httpx.AsyncClient(timeout=PATIENCE) as http:
            for origin, shown in (("https://example.org", "https://example.org"), ("https://other.org", None)):
                asked = {"headers": {"Origin": origin, "Authorization": f"Bearer {OTHER}"}}
                for answer in (
                    await http.post(f"{one.url}/v1/chat/completions", json={}, **asked),
                    await http.get(f"{one.url}/v1/models", **asked),
                    await http.get(f"{one.url}/health", **asked),
                ):
                    assert answer.status_code == (200 if answer.url.path == "/health" else 401)
                    assert answer.headers.get_list("access-control-allow-origin") == ([shown] if shown else [])

    asyncio.run(run())


def test_a_replica_that_dies_sends_its_clients_away(checkpoint):
    async def run():
        async with cluster(checkpoint) as both, httpx.AsyncClient(timeout=PATIENCE) as http:
            async with client(both.url) as mine:
                await mine.next()
                both.replicas.lost.add(0)
                with closed_with(1012):
                    await mine.until("never")
            with pytest.raises(InvalidStatus) as refused:
                async with connect(both.url.replace("http", "ws", 1) + "/v1/realtime"):
                    pass
            assert refused.value.response.status_code == 503 and b"replica_lost" in refused.value.response.body
            answer = await http.post(f"{both.url}/v1/streaming/sessions")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replica_lost")
            assert (await http.get(f"{both.url}/health")).json()["replicas"] == 1
            both.replicas.lost.add(1)
            assert (await http.get(f"{both.url}/health")).status_code == 503
            both.replicas.lost.clear()

    asyncio.run(run())


async def until(condition) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def move(both, session: str) -> None:
    """Route a session to the other replica, and wait until it is there."""
    both.replicas.placed[session] = 1
    await until(lambda: session in both.sessions(1))


@pytest.mark.parametrize("meanwhile", ["frames", "nothing"])
def test_a_session_that_is_routed_elsewhere_goes_on_there(checkpoint, tmp_path, meanwhile):
    """While frames come, the ingress notices that the session has moved; without any, its replica does."""

    async def run(moves: bool) -> list:
        async with (
            cluster(checkpoint, saved=tmp_path / str(moves)) as both,
            connect_client(both.url, instructions="Narrate the scene.") as stream,
        ):
            for index, (image, time) in enumerate(frames_of(62, 12)):
                await stream.push(image, time)
                if moves and index == 6 and meanwhile == "frames":
                    both.replicas.placed[stream.session["id"]] = 1
                elif moves and index == 6:
                    await move(both, stream.session["id"])
            await stream.finish()
            assert [len(both.sessions(place)) for place in (0, 1)] == ([0, 1] if moves else [1, 0])
            return stream.pending()

    alone, moved = asyncio.run(run(False)), asyncio.run(run(True))
    assert [event for event in moved if isinstance(event, Resumed)]
    for kind in (Watched, Said):
        mine, theirs = ([e for e in events if isinstance(e, kind)] for events in (moved, alone))
        assert [(e.time, getattr(e, "text", "")) for e in mine] == [(e.time, getattr(e, "text", "")) for e in theirs]


def test_http_sessions_move_too(checkpoint, tmp_path):
    images = [{"image_url": data_url(image), "timestamp": time} for image, time in frames_of(61, 8)]

    async def run():
        async with cluster(checkpoint, saved=tmp_path) as both, httpx.AsyncClient(timeout=PATIENCE) as http:
            at = f"{both.url}/v1/streaming/sessions"
            session = (await http.post(at)).json()["id"]
            await http.post(f"{at}/{session}/frames", json={"frames": images[:4]})
            both.replicas.placed[session] = 1
            await until(lambda: session not in both.sessions(0) and not both.registry(0)._changing)
            assert (await http.get(f"{at}/{session}")).json()["time"] == 1.5
            await http.post(f"{at}/{session}/frames", json={"frames": images[4:]})
            state = (await http.post(f"{at}/{session}/commit")).json()
            both.registry(1).sessions[session].log.close()  # so that the answer ends
            events = (await http.get(f"{at}/{session}/events")).text
            assert (await http.delete(f"{at}/{session}")).json()["deleted"] and not (tmp_path / session).exists()
            return state, [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: ")]

    state, events = asyncio.run(run())
    assert [event["sequence"] for event in events] == list(range(1, state["last_event"] + 1))
    watched = [event["timestamp"] for event in events if event["type"] == "input_video_frame.acknowledged"]
    assert watched == [image["timestamp"] for image in images]
    assert "session_moved" in [event["error"]["code"] for event in events if event["type"] == "error"]


def test_a_replica_that_has_lost_a_session_tells_its_client(checkpoint, tmp_path):
    async def is_dead(session_id: str, process: str) -> bool:
        return True

    async def run():
        async with cluster(checkpoint, saved=tmp_path, save_seconds=0.05) as both, client(both.url) as mine:
            session = (await mine.next())["session"]["id"]
            await mine.frame(*frames_of(62, 1)[0])
            await mine.until("input_video_frame.acknowledged")
            former, other = (both.registry(place) for place in (0, 1))
            await until(lambda: former._savings[session].saved.time == 0.0)
            both.replicas.replicas[0]._watching.cancel()  # as if it did not answer
            both.replicas.placed[session], other.take_over = 1, is_dead
            taken = await other.find("anyone", session)
            assert taken.describe()["time"] == 0.0
            assert (await mine.until("error"))["error"]["code"] == "session_moved"
            with closed_with(1012):
                await mine.next()
            assert session not in former.sessions and not other._savings[session].saved.lost

    asyncio.run(run())
