"""Tokens that a response took, and answers that are cut off at their limit."""

import asyncio
import contextlib
import json
import threading

import pytest
from running_servers import client, frames_of, held, metric, serving
from waiting import PATIENCE, until

from videollm_mod.serving.outputs import Piece
from videollm_mod.serving.store import SessionStore

QUESTION = "How many objects are there?"


@pytest.fixture(scope="module")
def server(checkpoint):
    with serving(checkpoint, options={"max_cached_frames": 6}) as running:
        yield running


async def asked(mine) -> dict:
    """Ask, and get the answer."""
    await mine.ask(QUESTION)
    while (done := await mine.until("response.done"))["response"]["metadata"]["kind"] != "answer":
        pass
    return done["response"]


def test_tokens_of_each_response_add_up_to_what_the_model_has_read(server, checkpoint):
    per_frame = checkpoint[0].config.num_frame_tokens

    def read() -> float:
        return metric(server.url, "videollm_mod_tokens_total")

    async def run():
        start = read()
        async with client(server.url) as mine:
            await mine.send("session.update", session={"speak_threshold": 0.0})  # only answers
            frames = frames_of(60, 9)
            for image, time in frames[:4]:
                await mine.frame(image, time)
            first = (await asked(mine))["usage"]
            details = first["input_token_details"]
            assert details["image_tokens"] == 4 * per_frame and details["cached_tokens"] == 0
            assert details["text_tokens"] + details["image_tokens"] == first["input_tokens"]
            assert first["total_tokens"] == first["input_tokens"] + first["output_tokens"]
            once = read() - start
            assert once == first["total_tokens"] - 1  # the token that ends the answer is read with what follows
            await mine.frame(*frames[4])
            second = (await asked(mine))["usage"]
            details = second["input_token_details"]
            assert details["image_tokens"] == 5 * per_frame and details["cached_tokens"] == once
            assert read() - start == second["total_tokens"] - 1
            for image, time in frames[5:]:
                await mine.frame(image, time)
            third = (await asked(mine))["usage"]
            details = third["input_token_details"]
            assert per_frame < details["image_tokens"] <= 6 * per_frame  # which the session remembers
            assert 0 < details["cached_tokens"] < third["input_tokens"] < read() - start

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


def test_a_narration_has_its_own_tokens(server):
    async def run():
        async with client(server.url) as mine:
            await mine.send("session.update", session={"instructions": "Narrate the scene.", "speak_threshold": 1.0})
            for image, time in frames_of(60, 2):
                await mine.frame(image, time)
            first, second = [(await mine.until("response.done"))["response"]["usage"] for _ in range(2)]
            assert first["input_token_details"]["cached_tokens"] == 0 < first["output_tokens"]
            assert second["input_token_details"]["cached_tokens"] == first["total_tokens"] - 1

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


def test_an_answer_that_is_cut_off_is_incomplete(server):
    async def run():
        async with client(server.url) as mine:
            await mine.send("session.update", session={"max_output_tokens": 2, "speak_threshold": 0.0})
            await mine.frame(*frames_of(60, 1)[0])
            response = await asked(mine)
            assert (response["status"], response["usage"]["output_tokens"]) == ("incomplete", 2)
            details = {"type": "incomplete", "reason": "max_output_tokens", "error": None}
            assert response["status_details"] == details and response["output"][0]["status"] == "incomplete"

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


def test_a_limit_of_one_response_leaves_the_others_alone(server):
    async def run():
        async with client(server.url) as mine:
            await mine.send("session.update", session={"max_output_tokens": 40, "speak_threshold": 0.0})
            await mine.frame(*frames_of(60, 1)[0])
            for limit, status in ((1, "incomplete"), (None, "completed")):
                options = {"instructions": QUESTION, **({} if limit is None else {"max_output_tokens": limit})}
                await mine.send("response.create", response=options)
                response = (await mine.until("response.done"))["response"]
                assert response["status"] == status and (limit is None or response["usage"]["output_tokens"] == limit)
            await mine.send("session.update", session={})
            assert (await mine.until("session.updated"))["session"]["max_output_tokens"] == 40
            for wrong in ({"max_output_tokens": 0}, {"input": [{}]}, {"tools": [{}]}):
                await mine.send("response.create", response={"instructions": QUESTION, **wrong})
                error = (await mine.until("error"))["error"]
                assert error["param"] == f"response.{next(iter(wrong))}"

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


def test_instructions_of_a_response_come_before_the_texts_since(server):
    async def run():
        async with client(server.url) as mine:
            item = {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}
            await mine.send("conversation.item.create", item=item)
            await mine.send("response.create", response={"instructions": "Be brief."})
            await mine.until("response.done")
            session = next(iter(server.registry.sessions.values()))
            assert session.stream.pooled.session.query == f"Be brief.\n{QUESTION}"

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


@contextlib.contextmanager
def held_after_a_piece(running):
    """Keep the engine's thread busy from the first piece of text on. Yields what waits for that."""
    go, there = threading.Event(), threading.Event()
    engine = running.registry.engine
    put = engine.put

    def put_and_wait(stream, output) -> None:
        put(stream, output)
        if isinstance(output, Piece):
            there.set()
            go.wait()

    engine.put = put_and_wait
    try:
        yield lambda: until(there.is_set, "a piece")
    finally:
        go.set()


@pytest.mark.parametrize("is_begun", [True, False], ids=["spoken", "asked"])
def test_a_limit_of_one_response_ends_with_its_connection(checkpoint, tmp_path, is_begun):
    """The session that is saved has the usual limit. The engine stands still while the connection ends: after a piece
    of the answer, or before it has come to the question."""

    async def leave(running) -> str:
        async with client(running.url) as mine:
            session = (await mine.until("session.created"))["session"]["id"]
            await mine.send("session.update", session={"max_output_tokens": 40, "speak_threshold": 0.0})
            await mine.frame(*frames_of(60, 1)[0])
            await mine.until("input_video_frame.acknowledged")
            own = running.registry.sessions[session]
            with contextlib.ExitStack() as stack:
                there = stack.enter_context((held_after_a_piece if is_begun else held)(running))
                await mine.send("response.create", response={"instructions": QUESTION, "max_output_tokens": 5})
                while own._asked is None:
                    await asyncio.sleep(0.01)
                if is_begun:
                    await asyncio.to_thread(there)
                await mine.socket.close()
                while not own.closed:
                    await asyncio.sleep(0.01)
        return session

    with serving(checkpoint, saved=tmp_path) as running:
        session = asyncio.run(asyncio.wait_for(leave(running), PATIENCE))
    saved = SessionStore(str(tmp_path)).open(session)
    events = [json.loads(text) for _, text in saved.read_events()]
    (done,) = [event["response"] for event in events if event["type"] == "response.done"]
    assert saved.notes["closed"] and done["status_details"]["reason"] == "session_closed"
    assert saved.restore(*checkpoint).max_new_tokens == 40
