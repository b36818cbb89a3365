"""The realtime WebSocket: sessions say what they would say alone, and the official client understands them."""

import asyncio

import pytest
from running_servers import Client, client, frames_of, metric, plain, serving

QUESTIONS = ("How many objects are there?", "What happened last?", "Where is the red circle?")


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


@pytest.fixture(scope="module")
def server(checkpoint):
    with serving(checkpoint) as running:
        yield running


async def play(url: str, seed: int) -> Client:
    """A whole session: an instruction, frames, and a question in the middle."""
    async with client(url) as mine:
        await mine.until("session.created")
        await mine.send("session.update", session={"type": "realtime", "instructions": "Narrate the scene."})
        frames = frames_of(seed, 12)
        for index, (image, time) in enumerate(frames):
            await mine.frame(image, time)
            if index == 5 + seed % 4:
                await mine.ask(QUESTIONS[seed % 3])
        await mine.send("input_video_frame.commit")
        await mine.until("input_video_frame.acknowledged", status="committed")
    return mine


def test_eight_sessions_say_what_each_says_alone(server):
    seeds = range(60, 68)

    async def together():
        return await asyncio.gather(*(play(server.url, seed) for seed in seeds))

    both = asyncio.run(together())
    alone = [asyncio.run(play(server.url, seed)) for seed in seeds]
    for one, other in zip(both, alone, strict=True):
        assert plain(one.events) == plain(other.events)
    narrations = [e for mine in both for e in mine.events if e["type"] == "response.done"]
    assert {each["response"]["metadata"]["kind"] for each in narrations} == {"narration", "answer"}
    assert metric(server.url, "videollm_mod_frames_dropped_total") == 0
