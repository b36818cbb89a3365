"""Under load the server keeps fewer tokens, then drops the oldest frames, and recovers. Failures stay apart."""

import asyncio
import json

import pytest
from plain_http import web
from running_servers import Running, client, frames_of, held, metric, plain, serving
from waiting import PATIENCE, until
from websockets.exceptions import ConnectionClosed

from videollm_mod.cache import PackedCache
from videollm_mod.serving.load import CALM, KeepRatioControl


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


def test_the_ratio_falls_step_by_step_and_recovers():
    control = KeepRatioControl(0.1, 0.4, num_frame_tokens=10)
    assert control.levels == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=0.09) and control.levels[-1] == 0.1
    fallen = [control.update(waiting=4) for _ in range(5)]
    assert fallen == [*control.levels[1:], 0.1, 0.1] and control.at_lowest
    assert {control.update(waiting=3) for _ in range(3 * CALM)} == {0.1}  # neither more nor less
    risen = [control.update(waiting=0) for _ in range(3 * CALM)]
    assert risen[CALM - 2 : CALM] == [0.1, control.levels[2]] and risen[-1] == 0.4
    control.update(waiting=9)
    assert control.update(waiting=0, idle=True) == 0.4


def test_a_range_of_one_ratio_is_no_control():
    control = KeepRatioControl(0.2, 0.2, num_frame_tokens=10)
    assert control.update(waiting=99) == 0.2 and control.at_lowest


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.5), (0.5, 0.2), (0.2, 1.5)])
def test_wrong_ranges_are_refused(low, high):
    with pytest.raises(ValueError, match="keep_ratio_range"):
        KeepRatioControl(low, high, num_frame_tokens=10)


@pytest.mark.parametrize("ratio", [None, 1.0])
def test_overload_lowers_the_ratio_then_drops_the_oldest_frames(checkpoint, ratio):
    """Also that of a session with a ratio of its own."""
    model = checkpoint[0]
    own = model.keep_ratio
    with serving(checkpoint, limits={"waiting_frames": 4}, keep_ratio_range=(0.1, 0.4)) as running:
        asyncio.run(asyncio.wait_for(overload(running, ratio), PATIENCE))
        assert metric(running.url, "videollm_mod_frames_dropped_total") == 2
        assert metric(running.url, "videollm_mod_keep_ratio") == 0.4
    assert model.keep_ratio == own


async def overload(running: Running, ratio: float | None) -> None:
    frames = frames_of(60, 12)
    async with client(running.url) as mine:
        assert (await mine.until("session.created"))["session"]["keep_ratio"] == 0.4
        await mine.send("session.update", session={"keep_ratio": ratio})
        assert (await mine.until("session.updated"))["session"]["keep_ratio"] == (ratio or 0.4)
        with held(running):
            for image, time in frames[:10]:
                await mine.frame(image, time)
            lost = [await mine.until("input_video_frame.acknowledged") for _ in range(2)]
        # twice as many as usual may wait until the ratio is at its lowest
        assert [(each["timestamp"], each["status"], each["reason"]) for each in lost] == [
            (0.0, "dropped", "overload"),
            (0.5, "dropped", "overload"),
        ]
        assert lost[-1]["dropped"] == 2 and lost[-1]["waiting"] == 8
        seen = [await mine.until("input_video_frame.acknowledged") for _ in range(8)]
        assert [each["timestamp"] for each in seen] == [time for _, time in frames[2:10]]
        assert {each["status"] for each in seen} == {"watched"} and seen[0]["keep_ratio"] < 0.4
        while True:
            last = seen[-1]["timestamp"] + 0.5
            await mine.frame(frames[-1][0], last)
            seen.append(await mine.until("input_video_frame.acknowledged"))
            if seen[-1]["keep_ratio"] == (ratio or 0.4):
                break


def test_memory_of_waiting_frames_is_bounded(checkpoint):
    with serving(checkpoint) as running:
        image = frames_of(60, 1)[0][0]
        running.registry.engine.max_waiting_bytes = 3 * image.nbytes

        async def run():
            async with client(running.url) as mine:
                with held(running):
                    for index in range(4):
                        await mine.frame(image, index)
                    lost = await mine.until("input_video_frame.acknowledged")
                assert (lost["timestamp"], lost["reason"], lost["waiting"]) == (0.0, "memory", 3)
                await mine.until("input_video_frame.acknowledged", timestamp=3.0, status="watched")

        asyncio.run(asyncio.wait_for(run(), PATIENCE))
        assert running.registry.engine.waiting_bytes == 0


async def narrated(url: str, seed: int, started: asyncio.Event | None = None) -> list:
    async with client(url) as mine:
        await mine.until("session.created")
        if started is not None:
            await started.wait()
        for image, time in frames_of(seed, 6):
            await mine.frame(image, time)
        await mine.send("input_video_frame.commit")
        while True:
            event = await mine.next()
            if event.get("status") == "committed":
                return mine.events


def test_a_step_that_fails_for_all_is_tried_for_each(checkpoint):
    """For example when memory runs out for all streams together, but not for one."""
    language_model, failures = checkpoint[0].model.language_model, []

    def fail(module, args, kwargs):
        if isinstance(kwargs.get("past_key_values", kwargs.get("cache")), PackedCache):
            failures.append(1)
            raise MemoryError("no memory")

    async def both(url):
        return await asyncio.gather(narrated(url, 60), narrated(url, 61))

    with serving(checkpoint) as running:
        alone = [asyncio.run(narrated(running.url, seed)) for seed in (60, 61)]
        hook = language_model.register_forward_pre_hook(fail, with_kwargs=True)
        try:
            together = asyncio.run(asyncio.wait_for(both(running.url), PATIENCE))
        finally:
            hook.remove()
    kept = ("response.output_text.done", "input_video_frame.acknowledged")
    for one, other in zip(together, alone, strict=True):
        lines = [[line for line in plain(events) if line["type"] in kept] for events in (one, other)]
        assert [line for line in lines[0] if line.get("status") != "failed"] == lines[1]


def test_a_stream_that_fails_again_is_closed_and_the_others_go_on(checkpoint):
    async def run(running):
        good, bad = await asyncio.gather(narrated(running.url, 60), broken(running))
        assert good[-1]["status"] == "committed"
        assert bad[-1]["error"]["code"] == "server_error"

    async def broken(running):
        async with client(running.url) as mine:
            first = await mine.until("session.created")
            session = running.registry.sessions[first["session"]["id"]]
            session.stream.pooled.session.processor = None
            await mine.frame(*frames_of(60, 1)[0])
            await mine.until("error")
            return mine.events

    with serving(checkpoint) as running:
        asyncio.run(asyncio.wait_for(run(running), PATIENCE))
        until(lambda: not running.registry.engine.streams, "the end of both streams")
        assert running.registry.engine.alive


def test_fifty_clients_that_come_and_go_leave_nothing(checkpoint):
    garbage = json.dumps({"type": "response.cancel"})

    async def come_and_go(url: str, number: int) -> None:
        async with client(url) as mine:
            await mine.until("session.created")
            image, time = frames_of(60, 1)[0]
            await mine.frame(image, time)
            await mine.socket.send(garbage)
            if number % 5 == 0:
                await mine.ask("How many objects are there?")
                await mine.send("response.cancel")
            if number % 2:
                mine.socket.transport.abort()
            else:
                await mine.until("input_video_frame.acknowledged")

    async def all_of(url: str) -> None:
        await asyncio.gather(*(come_and_go(url, number) for number in range(50)))

    with serving(checkpoint) as running:
        asyncio.run(asyncio.wait_for(all_of(running.url), PATIENCE))
        registry = running.registry
        until(lambda: not registry.sessions and not registry.engine.streams, "the end of all sessions")
        assert not registry.engine.pool.streams and registry.engine.waiting_bytes == 0
        assert metric(running.url, "videollm_mod_sessions_opened_total") == 50


def test_when_the_engine_fails_every_client_is_told(checkpoint):
    async def run(running):
        async with client(running.url) as mine:
            await mine.until("session.created")
            running.registry.engine._tick = None
            await mine.frame(*frames_of(60, 1)[0])
            error = (await mine.until("error"))["error"]
            assert error["code"] == "server_error" and "the server has failed" in error["message"]
            with pytest.raises(ConnectionClosed) as caught:
                while True:
                    await mine.next()
            assert caught.value.rcvd.code == 1011

    with serving(checkpoint) as running:
        asyncio.run(asyncio.wait_for(run(running), PATIENCE))
        assert web.get(f"{running.url}/health").status_code == 503
