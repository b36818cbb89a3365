"""Servers that share a store: killed and paused, with clients that stream."""

import asyncio
import signal

import httpx
import pytest
from fresh_process import TINY_WORLD
from plain_http import web
from running_servers import client, data_url, frames_of, serving, serving_elsewhere
from waiting import PATIENCE, until
from websockets.exceptions import ConnectionClosed

from videollm_mod.serving.store import SessionStore


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


def test_after_a_crash_an_http_client_learns_where_its_session_goes_on(checkpoint, tmp_path):
    """A frame that it sent in ignorance would leave a gap."""
    images = [{"image_url": data_url(image), "timestamp": time} for image, time in frames_of(67, 6)]
    arguments = ("--model", str(TINY_WORLD), "--store", str(tmp_path), "--save-seconds", "0.1")
    with serving_elsewhere(*arguments) as (url, _):
        at = f"{url}/v1/streaming/sessions"
        session = web.post(at).json()["id"]
        web.post(f"{at}/{session}/frames", json={"frames": images[:3]})
        last = web.post(f"{at}/{session}/commit").json()["last_event"]
        until(lambda: (SessionStore(str(tmp_path)).notes(session) or {"sequence": 0})["sequence"] >= last)
    with serving(checkpoint, saved=tmp_path) as running, httpx.Client(timeout=PATIENCE) as http:
        at = f"{running.url}/v1/streaming/sessions"
        for request, body in (("frames", {"frames": images[4:]}), ("ask", {"question": "Why?"}), ("commit", None)):
            refused = http.post(f"{at}/{session}/{request}", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "session_restored")
        assert http.get(f"{at}/{session}").json()["time"] == images[2]["timestamp"]
        assert http.post(at, json={"session_id": session}).json()["time"] == images[2]["timestamp"]
        sent = http.post(f"{at}/{session}/frames", json={"frames": images[3:]})
        assert (sent.status_code, sent.json()["timestamps"]) == (202, [image["timestamp"] for image in images[3:]])


def test_a_paused_server_is_fenced_off(tmp_path):
    """Another one continues its session after the lease, and the first one writes nothing more."""
    arguments = ("--model", str(TINY_WORLD), "--store", str(tmp_path), "--save-seconds", "0.2", "--lease-seconds", "2")
    frames = frames_of(66, 8)

    async def play(first_url: str, first, second_url: str) -> None:
        async with client(first_url) as mine:
            session = (await mine.until("session.created"))["session"]["id"]
            for image, time in frames[:3]:
                await mine.frame(image, time)
            await mine.until("input_video_frame.acknowledged", timestamp=frames[2][1])
            while (SessionStore(str(tmp_path)).notes(session) or {"sequence": 0})["sequence"] < 4:
                await asyncio.sleep(0.05)
            first.send_signal(signal.SIGSTOP)
            try:
                query, events = f"?session_id={session}&after={mine.events[-1]['sequence']}", []
                while not events:
                    try:
                        async with client(second_url, query) as other:
                            events.append(await other.until("session.updated"))
                            assert events[0]["session"]["time"] == frames[2][1]
                            first.send_signal(signal.SIGCONT)
                            told = await mine.until("error")
                            assert told["error"]["code"] == "session_moved"
                            with pytest.raises(ConnectionClosed) as caught:
                                await mine.next()
                            assert caught.value.rcvd.code == 1012
                            await other.frame(*frames[3])
                            seen = await other.until("input_video_frame.acknowledged", timestamp=frames[3][1])
                    except OSError as held:
                        raise AssertionError("no server") from held
                    except Exception as refused:
                        if "409" not in str(refused):
                            raise
                        await asyncio.sleep(0.2)
            finally:
                first.send_signal(signal.SIGCONT)
        async with client(second_url, f"?session_id={session}&after={seen['sequence']}") as other:
            assert (await other.until("session.updated"))["session"]["time"] == frames[3][1]

    with serving_elsewhere(*arguments) as (first_url, first), serving_elsewhere(*arguments) as (second_url, _):
        asyncio.run(asyncio.wait_for(play(first_url, first, second_url), PATIENCE))


def test_sessions_are_deleted_from_the_store_and_only_by_their_owner(checkpoint, tmp_path):
    keys = ("a-key-for-tests-0123456789", "another-key-0123456789")
    mine, other = ({"Authorization": f"Bearer {key}"} for key in keys)
    with serving(checkpoint, keys=keys, saved=tmp_path) as running, httpx.Client(timeout=PATIENCE) as http:
        url = f"{running.url}/v1/streaming/sessions"
        session = http.post(url, headers=mine).json()["id"]
    with serving(checkpoint, keys=keys, saved=tmp_path) as running, httpx.Client(timeout=PATIENCE) as http:
        url = f"{running.url}/v1/streaming/sessions"
        assert http.post(url, headers=other, json={"session_id": session}).status_code == 404
        assert http.delete(f"{url}/{session}", headers=other).status_code == 404
        assert http.delete(f"{url}/{session}", headers=mine).status_code == 200
        assert http.post(url, headers=mine, json={"session_id": session}).status_code == 404
    assert SessionStore(str(tmp_path)).session_ids() == []
