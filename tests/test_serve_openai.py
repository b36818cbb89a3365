"""The official `openai` client, against the command in another process."""

import asyncio
import io
import signal

import openai
import pytest
from fresh_process import ROOT, TINY_WORLD
from pages import python_blocks
from PIL import Image
from running_servers import data_url, frames_of, serving_elsewhere
from waiting import PATIENCE

KEY = "a-key-for-tests-0123456789"
PAGE = ROOT / "docs" / "how-to" / "serving.md"


@pytest.fixture(scope="module")
def url():
    with serving_elsewhere("--model", str(TINY_WORLD), "--max-fps", "1000000", VIDEOLLM_MOD_API_KEYS=KEY) as (
        url,
        process,
    ):
        yield url
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out) == (0, "stopped\n")
        assert err == "note: sessions are not saved; give --store FOLDER to continue them later\n"


def test_the_async_client_narrates_asks_and_cancels(url):
    asyncio.run(asyncio.wait_for(converse(url), PATIENCE))


async def converse(url: str) -> None:
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, timeout=PATIENCE)
    assert [model.id for model in (await client.models.list()).data] == [TINY_WORLD.name]
    assert (await client.models.retrieve(TINY_WORLD.name)).id == TINY_WORLD.name
    async with client.realtime.connect(model=TINY_WORLD.name) as connection:
        first = await connection.recv()
        assert first.type == "session.created" and first.session.type == "realtime" and first.event_id
        await connection.session.update(
            session={"type": "realtime", "instructions": "Narrate the scene.", "output_modalities": ["text"]}
        )
        updated = await connection.recv()
        assert updated.type == "session.updated" and updated.session.instructions == "Narrate the scene."
        for image, time in frames_of(60, 12):
            event = {"type": "input_video_frame.append", "image_url": data_url(image), "timestamp": time}
            await connection.send(event)
        text, done, frames = "", [], 0
        question = {"type": "input_text", "text": "How many objects are there?"}
        await connection.conversation.item.create(item={"type": "message", "role": "user", "content": [question]})
        await connection.response.create(response={"metadata": {"mine": "1"}})
        async for event in connection:
            if event.type == "response.output_text.delta":
                text += event.delta
            elif event.type == "response.output_text.done":
                assert event.text == text
                text = ""
            elif event.type == "input_video_frame.acknowledged":
                frames += event.status == "watched"
            elif event.type == "response.done":
                done.append(event.response)
                if done[-1].metadata.get("mine") == "1":
                    break
        assert frames == 12 and done[-1].metadata["kind"] == "answer" and done[-1].status == "completed"
        narrations = done[:-1]
        assert narrations and all(each.metadata["kind"] == "narration" for each in narrations)
        assert all(each.output[0].content[0].text for each in done)
        await connection.response.cancel()
        error = await connection.recv()
        assert error.type == "error" and error.error.code == "response_cancel_not_active"


def test_the_example_of_the_docs_runs(url, monkeypatch, capsys):
    notes = dict(python_blocks(PAGE))
    code = notes["run by tests/test_serve_openai.py: with a server"]
    monkeypatch.setenv("VIDEOLLM_MOD_API_KEYS", KEY)
    jpegs = []
    for image, _ in frames_of(60, 6):
        Image.fromarray(image).save(file := io.BytesIO(), "jpeg", quality=95)
        jpegs.append(file.getvalue())
    exec(code.replace("http://localhost:8000", url), {"jpegs": jpegs})
    assert capsys.readouterr().out.strip()


def test_a_wrong_key_is_told_at_once(url):
    with pytest.raises(openai.AuthenticationError, match="the key is wrong"):
        openai.OpenAI(base_url=f"{url}/v1", api_key="another-key-0123456789", timeout=PATIENCE).models.list()
