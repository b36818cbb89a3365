"""The Python client: light, each event exactly once whatever breaks, and clear errors."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys

import pytest
from fresh_process import ROOT, TINY_WORLD
from pages import python_blocks
from PIL import Image
from running_servers import Client, client, frames_of, png, serving, serving_elsewhere
from waiting import PATIENCE, until

from videollm_mod.benchmarks.serve_resume import Switch
from videollm_mod.client import Dropped, Refused, Resumed, Said, Saying, SessionLost, Unreachable, Watched, connect
from videollm_mod.client import sync as sync_client
from videollm_mod.serving.store import SessionStore

KEY = "a-key-for-tests-0123456789"
INSTRUCTIONS = "Narrate the scene."
QUESTION = "How many objects are there?"


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


@pytest.fixture(scope="module")
def server(checkpoint):
    with serving(checkpoint, keys=(KEY,)) as running:
        yield running


class Wire(Switch):
    """Passes bytes between clients and a server, until it is cut."""

    def __init__(self, target: str):
        super().__init__(target)
        self.busy = lambda: False  # while it is true, clients wait
        self.failing = 0  # of so many connections to come, this is a proxy whose server has just gone

    async def _accept(self, reader, writer) -> None:
        while self.busy():
            await asyncio.sleep(0.01)
        if self.failing:
            self.failing -= 1
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops")
            await writer.drain()
            writer.close()
            return
        await super()._accept(reader, writer)


class Listener:
    """Reads a stream's events beside what a test does."""

    def __init__(self, stream):
        self.stream, self.events = stream, []
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self.stream:
            self.events.append(event)

    async def end(self) -> list:
        await asyncio.gather(self.stream.finish(), self._task)
        return self.events

    async def watched(self, time: float) -> None:
        while not any(isinstance(event, Watched) and event.time == time for event in self.events):
            assert not self._task.done(), self._task.exception()
            await asyncio.sleep(0.01)


def run(work):
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


def said(events: list) -> list[Said]:
    return [event for event in events if isinstance(event, Said)]


def watched_times(events: list) -> list[float]:
    return [event.time for event in events if isinstance(event, Watched)]


def test_import_is_light():
    code = "import sys, videollm_mod.client.sync; print(sorted({'numpy', 'torch', 'transformers'} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "[]\n"


def test_the_example_of_the_docs_runs(server, monkeypatch, capsys):
    note, code = python_blocks(ROOT / "docs" / "how-to" / "serving.md")[0]
    assert note == "run by tests/test_client.py: with a server"
    monkeypatch.setenv("VIDEOLLM_MOD_API_KEYS", KEY)
    exec(code, names := {})
    images = [image for image, _ in frames_of(60, 6)]
    answer = run(names["narrate"](server.url, images))
    assert answer in capsys.readouterr().out


async def undisturbed(url: str, frames, key: str | None = None, at: int = 8) -> list:
    async with connect(url, key=key, instructions=INSTRUCTIONS) as stream:
        listener = Listener(stream)
        for index, (image, time) in enumerate(frames):
            await stream.push(png(image), time)
            if index == at - 1:
                await stream.ask(QUESTION)
        return await listener.end()


def test_events_are_those_of_the_protocol(server):
    frames = frames_of(60, 12)

    async def plainly() -> Client:
        async with client(server.url, additional_headers={"Authorization": f"Bearer {KEY}"}) as mine:
            await mine.send("session.update", session={"instructions": INSTRUCTIONS})
            for image, time in frames[:8]:
                await mine.frame(image, time)
            await mine.ask(QUESTION)
            for image, time in frames[8:]:
                await mine.frame(image, time)
            await mine.send("input_video_frame.commit")
            await mine.until("input_video_frame.acknowledged", status="committed")
        return mine

    events = run(undisturbed(server.url, frames, KEY))
    raw = run(plainly()).events
    texts = [event["text"] for event in raw if event["type"] == "response.output_text.done"]
    assert [event.text for event in said(events)] == texts
    assert {event.kind for event in said(events)} == {"narration", "answer"}
    (answer,) = [event for event in said(events) if event.kind == "answer"]
    assert answer.question == QUESTION and answer.status == "completed"
    assert watched_times(events) == [time for _, time in frames]
    pieces = [event["delta"] for event in raw if event["type"] == "response.output_text.delta"]
    assert len([event for event in events if isinstance(event, Saying)]) == len(pieces)
    silence = [event.silence_probability for event in events if isinstance(event, Watched)]
    assert all(0 <= each <= 1 for each in silence)


def test_a_connection_that_is_cut_loses_and_doubles_nothing(checkpoint, tmp_path):
    """Whatever the server was doing: only a narration that it was writing may end early."""
    frames = frames_of(61, 24)

    async def play(url: str):
        async with Wire(url) as wire, connect(wire.url, instructions=INSTRUCTIONS, in_flight=4) as stream:
            listener = Listener(stream)
            for index, (image, time) in enumerate(frames):
                await stream.push(image, time)
                if index == 12:
                    asking = asyncio.create_task(stream.ask(QUESTION))
                if index in (4, 9, 13, 20):  # with frames, and once a question, on their way
                    await listener.watched(frames[index - 4][1])
                    wire.cut()
            return await asking, await listener.end()

    with serving(checkpoint, saved=tmp_path) as running:
        answer, events = run(play(running.url))
    assert watched_times(events) == [time for _, time in frames]
    keys = [(event.kind, event.time) for event in said(events)]
    assert len(set(keys)) == len(keys) and answer.status == "completed" and answer in events
    resumed = [event for event in events if isinstance(event, Resumed)]
    assert 1 <= len(resumed) <= 4 and all(event.complete for event in resumed)


def test_a_proxy_that_has_lost_the_server_is_asked_again(server):
    frames = frames_of(61, 4)

    async def play():
        async with Wire(server.url) as wire:
            wire.failing = 1
            with pytest.raises(Unreachable, match="only a proxy before it, with HTTP 500"):
                async with connect(wire.url, key=KEY):
                    pass
            async with connect(wire.url, key=KEY) as stream:
                wire.failing = 2
                wire.cut()
                for image, time in frames:
                    await stream.push(image, time)
                await stream.finish()
                return wire.failing, watched_times(stream.pending())

    assert run(play()) == (0, [time for _, time in frames])


def test_a_server_that_is_killed_loses_and_doubles_nothing(checkpoint, tmp_path):
    """Once before anything was saved, so that the session begins anew, and once after a save that is too old."""
    frames = frames_of(62, 12)
    arguments = (
        "--model",
        str(TINY_WORLD),
        "--store",
        str(tmp_path),
        "--max-fps",
        "1000000",
        "--save-seconds",
        str(PATIENCE),
    )

    async def play():
        async with contextlib.AsyncExitStack() as running:
            url, process = running.enter_context(serving_elsewhere(*arguments))
            wire = await running.enter_async_context(Wire(url))
            stream = await running.enter_async_context(connect(wire.url, instructions=INSTRUCTIONS))
            listener = Listener(stream)

            async def watch(first: int, last: int) -> None:
                for image, time in frames[first:last]:
                    await stream.push(png(image), time)
                await listener.watched(frames[last - 1][1])

            async def kill(process) -> object:
                process.send_signal(signal.SIGKILL)
                process.wait()
                url, process = running.enter_context(serving_elsewhere(*arguments))
                wire.target = url
                return process

            await watch(0, 3)
            process = await kill(process)  # nothing was saved
            await watch(3, 6)
            wire.busy = lambda: SessionStore(str(tmp_path)).notes(stream.session["id"]) is None
            wire.cut()  # the session is saved before its client is back
            await watch(6, 8)
            answer = await stream.ask(QUESTION)
            await kill(process)
            await watch(8, 12)
            assert await listener.end() is listener.events
            return answer, listener.events, await undisturbed(wire.target, [(i, t) for i, t in frames])

    answer, events, expected = run(play())
    assert watched_times(events) == [time for _, time in frames]
    assert said(events) == said(expected) and answer in said(events)
    begun_anew, cut, restored = [event for event in events if isinstance(event, Resumed)]
    assert (begun_anew.time, begun_anew.complete) == (None, True) and 3 <= begun_anew.sent_again <= 6
    assert (cut.time, restored.time) == (frames[5][1], frames[5][1]) and restored.complete
    assert 2 <= restored.sent_again <= 6


def test_frames_that_are_refused_are_told_of(server):
    good, bad = frames_of(63, 1)[0][0], b"\xff\xd8\xff and no more"

    async def play():
        async with connect(server.url, key=KEY) as stream:
            listener = Listener(stream)
            assert await stream.push(Image.fromarray(good), 0)
            await stream.push(bad, 0.5)
            with pytest.raises(ValueError, match=r"after that of the last frame, got 0\.25"):
                await stream.push(good, 0.25)
            with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\].*got <f4 \[2, 2, 3\]"):
                await stream.push(good[:2, :2].astype("float32"), 1)
            with pytest.raises(ValueError, match="JPEG, PNG or WebP"):
                await stream.push(b"GIF89a", 1)
            with pytest.raises(Refused, match="must not be empty") as refused:
                await stream.ask(" ")
            assert refused.value.code == "empty_text"
            with pytest.raises(Refused, match="speak_threshold"):
                await stream.update(speak_threshold=2)
            return await listener.end()

    events = run(play())
    assert watched_times(events) == [0]
    (dropped,) = [event for event in events if isinstance(event, Dropped)]
    assert (dropped.time, dropped.reason) == (0.5, "invalid_image") and "cannot be decoded" in dropped.message


def test_wrong_keys_and_addresses_are_told_at_once(server):
    async def enter(url: str, **options) -> None:
        async with connect(url, **options):
            pass

    with pytest.raises(Refused, match="the key is wrong") as refused:
        run(enter(server.url, key="another-key-0123456789"))
    assert (refused.value.code, refused.value.status) == ("invalid_api_key", 401)
    with pytest.raises(Refused, match="a key is needed"):
        run(enter(server.url))
    with pytest.raises(Refused, match="is it videollm-mod serve"):
        run(enter(f"{server.url}/elsewhere", key=KEY))
    with pytest.raises(Refused, match="instructions"):
        run(enter(server.url, key=KEY, instructions="x" * 10_000))
    with socket.socket() as taken:  # it is bound, and does not listen
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match=r"cannot reach ws://127\.0\.0\.1"):
            run(enter(f"http://127.0.0.1:{taken.getsockname()[1]}"))
    with pytest.raises(ValueError, match="must begin with http://"):
        connect("localhost:8000")


def test_a_server_that_stops_ends_the_stream_with_its_reason(checkpoint):
    async def play(running):
        async with connect(running.url, patience=0) as stream:
            await stream.push(frames_of(60, 1)[0][0], 0)
            running.server.should_exit = True
            with pytest.raises(Unreachable, match="given up after 0 seconds"):
                async for _ in stream:
                    pass
            with pytest.raises(Unreachable):
                await stream.push(frames_of(60, 1)[0][0], 1)

    with serving(checkpoint) as running:
        run(play(running))


def test_a_loop_without_asyncio_skips_frames_instead_of_waiting(server):
    frames = frames_of(64, 12)
    with sync_client.connect(server.url, key=KEY, instructions=INSTRUCTIONS, in_flight=2) as stream:
        events: list = []
        taken = []
        for image, time in frames:
            if stream.push(image[..., ::-1][..., ::-1], time, wait=False):
                taken.append(time)
            events += stream.events()
        until(lambda: stream.push(frames[0][0], 100.0, wait=False), "room for a frame")
        answer = stream.ask(QUESTION)
        stream.finish()
        events += stream.events()
    assert taken[:2] == [0.0, 0.5] and watched_times(events) == [*taken, 100.0] and answer in events
    with pytest.raises(Refused, match="the key is wrong"):
        sync_client.connect(server.url, key="another-key-0123456789")


def test_a_server_that_saves_nothing_gets_everything_again_or_the_stream_is_lost(checkpoint):
    async def play(url: str, keep_bytes: int) -> list:
        async with Wire(url) as wire, connect(wire.url, keep_bytes=keep_bytes) as stream:
            listener = Listener(stream)
            for index, (image, time) in enumerate(frames_of(60, 6)):
                await stream.push(image, time)
                if index in (1, 3):
                    await listener.watched(time)
                if index == 3:
                    wire.busy = lambda: running.registry.sessions or running.registry._changing
                    wire.cut()
            return await listener.end()

    with serving(checkpoint) as running:
        events = run(play(running.url, 2**20))
        assert watched_times(events) == [time for _, time in frames_of(60, 6)]
        (resumed,) = [event for event in events if isinstance(event, Resumed)]
        assert resumed.time is None and resumed.complete
        with pytest.raises(SessionLost, match="its first frames are not kept here"):
            run(play(running.url, 1))


def test_another_connection_takes_the_session_over(server):
    async def play() -> None:
        async with connect(server.url, key=KEY) as stream:
            query = f"?session_id={stream.session['id']}"
            async with client(server.url, query, additional_headers={"Authorization": f"Bearer {KEY}"}):
                with pytest.raises(Refused, match="another connection continues the session") as refused:
                    async for _ in stream:
                        pass
        assert refused.value.code == "session_taken_over"

    run(play())
