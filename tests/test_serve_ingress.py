"""An ingress before several replicas: clients see one server, and sessions move from one replica to another."""

import asyncio
import contextlib

import httpx
import pytest
from local_cluster import cluster
from running_servers import client, data_url, frames_of, plain, png, serving
from test_serve_realtime import play
from waiting import PATIENCE
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

KEY, OTHER = "a-key-for-tests-0123456789", "another-key-for-tests-0123456789"


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
