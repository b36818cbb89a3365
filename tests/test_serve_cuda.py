"""On a GPU: what a server says equals what sessions and `generate` say in this thread.

A server captures graphs in the engine's thread before it serves. Others are captured where their shape comes for the
second time, in this thread too.
"""

import asyncio

import numpy as np
import pytest
import torch
from fresh_process import ROOT
from plain_http import web
from running_servers import Client, client, data_url, frames_of, metric, serving
from waiting import PATIENCE, until

from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor
from videollm_mod.static_graphs import static_language_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SEEDS = range(900, 908)
FRAMES, ASKED_AFTER, QUESTION = 12, 6, "What happened last?"
DEVICE = "cuda"


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def own(request):
    """`(model, processor)`, whose graphs no other test has captured."""
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT, dtype=request.param).to(DEVICE).eval()
    return model, VideoLLMMoDProcessor.from_pretrained(ROOT)


@pytest.fixture(scope="module")
def server(own):
    with serving(own) as running:
        yield running


async def play(url: str, seed: int) -> Client:
    """A session with a question in the middle, frame by frame."""
    async with client(url) as mine:
        for index, (image, time) in enumerate(frames_of(seed, FRAMES)):
            await mine.frame(image, time)
            await mine.until("input_video_frame.acknowledged", timestamp=time)
            if index + 1 == ASKED_AFTER:
                await mine.ask(QUESTION)
                await mine.until("response.done")
        return mine


async def play_all(url: str) -> list[Client]:
    return await asyncio.gather(*(play(url, seed) for seed in SEEDS))


def told(events: list[dict]) -> tuple[list[tuple], list[float]]:
    """Kinds, times and texts of what was said, and P(silence) after each frame."""
    done = [event["response"] for event in events if event["type"] == "response.done"]
    said = [(each["metadata"]["kind"], float(each["metadata"]["time"]), text_of(each)) for each in done]
    return said, [e["silence_probability"] for e in events if e["type"] == "input_video_frame.acknowledged"]


def text_of(response: dict) -> str:
    assert response["status"] == "completed", response
    return "".join(part["text"] for item in response["output"] for part in item["content"])


def alone(model, processor, seed: int) -> tuple[list[tuple], list[float]]:
    """The same of a session in this thread."""
    session, said, silence = model.stream(processor), [], []
    for index, (image, time) in enumerate(frames_of(seed, FRAMES)):
        for watched in session.watch(image[None], [time]):
            silence.append(watched.silence_probability)
            said += [] if watched.event is None else [watched.event]
        said += session.ask(QUESTION) if index + 1 == ASKED_AFTER else []
    assert session.stats.why_not_static is None
    return [(event.kind, event.time, event.text) for event in said], silence


def in_engine(running, function):
    """Call a function in the engine's thread."""
    engine = running.registry.engine
    return asyncio.run_coroutine_threadsafe(engine.call(function), engine._loop).result(60)


def check_same(found: list[Client], own) -> None:
    for mine, seed in zip(found, SEEDS, strict=True):
        (said, silence), (expected, its_silence) = told(mine.events), alone(*own, seed)
        assert said == expected and {kind for kind, *_ in said} == {"narration", "answer"}
        assert np.abs(np.subtract(silence, its_silence)).max() < (1e-3 if own[0].dtype == torch.float32 else 0.1)


def test_served_sessions_say_what_sessions_say_alone(own, server):
    found = asyncio.run(play_all(server.url))
    check_same(found, own)
    assert metric(server.url, "videollm_mod_frames_dropped_total") == 0
    assert metric(server.url, "videollm_mod_errors_total") == 0
    captured = in_engine(server, lambda: static_language_model(own[0])[0]._graphs.keys)
    assert any(shape.frames and shape.streams > 1 for shape in captured)


def test_a_session_of_another_thread_may_run_beside_the_server(own, server):
    """Such as that of a program that also serves: both use the same graphs at the same time."""
    expected = [alone(*own, seed) for seed in SEEDS]

    async def both() -> list[Client]:
        playing = asyncio.create_task(play_all(server.url))
        beside = await asyncio.to_thread(lambda: [alone(*own, seed) for seed in SEEDS])
        assert [said for said, _ in beside] == [said for said, _ in expected]
        return await playing

    check_same(asyncio.run(both()), own)


def test_the_first_frames_of_a_fresh_server_capture_nothing(own):
    """Of up to eight streams, which watch one frame after the other, and narrate."""
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(ROOT, dtype=own[0].dtype).to(DEVICE).eval()

    async def watch(url: str, seed: int) -> None:
        async with client(url) as mine:
            for image, time in frames_of(seed, 6):
                await mine.frame(image, time)
                await mine.until("input_video_frame.acknowledged", timestamp=time)

    async def watch_all(url: str, count: int) -> None:
        await asyncio.gather(*(watch(url, seed) for seed in SEEDS[:count]))

    def captured(running) -> set:
        language, vision = static_language_model(model)[0]._graphs, model._vision_graphs._graphs
        assert language.why_not is None and vision.why_not is None
        return {("language", key) for key in language.keys} | {("vision", key) for key in vision.keys}

    with serving((model, own[1]), limits={"sessions": len(SEEDS)}) as running:
        until(lambda: web.get(f"{running.url}/health").status_code == 200, "the server being ready")
        before = in_engine(running, lambda: captured(running))
        assert {key.streams for kind, key in before if kind == "language"} == {1, 2, 4, 8}
        assert {key for kind, key in before if kind == "vision"} == set(range(1, len(SEEDS) + 1))
        for count in range(1, len(SEEDS) + 1):
            asyncio.run(asyncio.wait_for(watch_all(running.url, count), PATIENCE))
        assert in_engine(running, lambda: captured(running)) == before


def answer(url: str, messages: list[dict]) -> tuple[str, int]:
    body = {"model": "any", "messages": messages, "max_completion_tokens": 24}
    reply = web.post(f"{url}/v1/chat/completions", json=body).json()
    return reply["choices"][0]["message"]["content"], reply["usage"]["prompt_tokens"]


def test_a_chat_says_what_generate_says(own, server):
    model, processor = own
    images = [frame for frame, _ in frames_of(60, 12)[::4]]
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    question = "How many objects are there?"
    found = [answer(server.url, [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}])]

    async def beside_sessions() -> None:
        playing = asyncio.create_task(play_all(server.url))
        content = [*parts, {"type": "text", "text": question}]
        for _ in range(3):
            found.append(await asyncio.to_thread(answer, server.url, [{"role": "user", "content": content}]))
        check_same(await playing, own)

    asyncio.run(beside_sessions())
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    with torch.no_grad():
        ids = model.generate(**inputs.to(model.device), do_sample=False, max_new_tokens=24)[0]
    prompt = inputs["input_ids"].shape[1]
    text = processor.decode(ids[prompt:], skip_special_tokens=True).strip()
    if model.dtype == torch.float32:
        assert text and found == [(text, prompt)] * 4
    else:  # a word may differ where two are nearly as probable, since `generate` reads the prompt in one piece
        assert [count for _, count in found] == [prompt] * 4 and all(said for said, _ in found)


def test_a_saved_session_continues_on_the_gpu(own, tmp_path):
    """Saving reads the cache in the engine's thread, and restoring writes it there."""
    frames = frames_of(SEEDS[0], FRAMES)

    async def part(url: str, query: str, some: list) -> Client:
        async with client(url, query) as mine:
            for image, time in some:
                await mine.frame(image, time)
                await mine.until("input_video_frame.acknowledged", timestamp=time)
            return mine

    with serving(own, saved=tmp_path) as running:
        first = asyncio.run(part(running.url, "", frames[:7]))
    session_id = first.events[0]["session"]["id"]
    with serving(own, saved=tmp_path) as running:
        second = asyncio.run(part(running.url, f"?session_id={session_id}", frames[7:]))
    session = own[0].stream(own[1])
    expected = [event.text for image, time in frames for event in session.push(image[None], [time])]
    responses = [e["response"] for mine in (first, second) for e in mine.events if e["type"] == "response.done"]
    assert expected and [text_of(each) for each in responses] == expected
