"""`POST /v1/chat/completions`: the official `openai` client against the command in another process, and what is
refused."""

import asyncio
import base64
import http.server
import threading

import httpx
import numpy as np
import openai
import pytest
import torch
from fresh_process import ROOT, TINY_WORLD
from pages import python_blocks
from plain_http import web
from running_servers import client, data_url, frames_of, png, serving, serving_elsewhere
from stock_vlms import save_vlm
from video_files import write_video
from waiting import PATIENCE, until

from videollm_mod.modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
from videollm_mod.serving import fetching, registry
from videollm_mod.serving.chat import Stops
from videollm_mod.serving.chat_session import ChatSession, Prompt
from videollm_mod.serving.errors import ApiError
from videollm_mod.serving.pool import StreamPool

KEY = "a-key-for-tests-0123456789"
PAGE = ROOT / "docs" / "how-to" / "serving.md"
FRAMES = np.stack([frame for frame, _ in frames_of(60, 12)])
QUESTION = "How many objects are there?"


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("chat") / "clip.mp4", FRAMES, "libx264", fps=2)


def video_url(path) -> str:
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


def user(*parts: dict | str) -> dict:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def part(kind: str, url: str) -> dict:
    return {"type": kind, kind: {"url": url}}


def in_process(model, processor, conversation: list[dict], **options) -> tuple[str, int, int]:
    """What `generate` answers, and the numbers of tokens."""
    inputs = processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    with torch.no_grad():
        ids = model.generate(**inputs, do_sample=False, **options)[0]
    prompt = inputs["input_ids"].shape[1]
    text = processor.decode(ids[prompt:], skip_special_tokens=True).strip()
    return text, prompt, len(ids) - prompt


@pytest.fixture(scope="module")
def url():
    with serving_elsewhere("--model", str(TINY_WORLD), "--dtype", "float32", VIDEOLLM_MOD_API_KEYS=KEY) as (url, _):
        yield url


@pytest.fixture(scope="module")
def remote(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE)


@pytest.fixture(scope="module")
def server(checkpoint):
    with serving(checkpoint, limits={"chat_frames": 20, "chats": 2, "message_bytes": 2_000_000}) as running:
        yield running


def test_the_official_client_gets_what_generate_says(remote, checkpoint, video):
    seen = user(part("video_url", video_url(video)), QUESTION)
    conversation = [
        {"role": "system", "content": "You watch a video."},
        {"role": "user", "content": [{"type": "video", "video": str(video)}, {"type": "text", "text": QUESTION}]},
    ]
    text, prompt, completion = in_process(*checkpoint, conversation, max_new_tokens=24)
    asked = {"model": "any", "messages": [{"role": "system", "content": "You watch a video."}, seen]}
    found = remote.chat.completions.create(**asked, max_completion_tokens=24)
    choice = found.choices[0]
    assert choice.message.content == text and text and choice.message.role == "assistant"
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (prompt, completion)
    kinds, per_frame = found.usage.prompt_tokens_details, checkpoint[0].config.num_frame_tokens
    assert kinds.text_tokens + kinds.image_tokens == prompt and not kinds.cached_tokens
    assert kinds.image_tokens and kinds.image_tokens % per_frame == 0
    assert prompt > 12 * checkpoint[0].config.num_frame_tokens
    assert choice.finish_reason == ("length" if completion == 24 else "stop") and found.model == TINY_WORLD.name

    chunks = list(
        remote.chat.completions.create(**asked, max_tokens=24, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == text and len(chunks) > 4
    assert chunks[0].choices[0].delta.role == "assistant" and len({c.id for c in chunks}) == 1
    assert chunks[-2].choices[0].finish_reason == choice.finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage == found.usage


def test_earlier_turns_and_images_are_part_of_the_prompt(remote, checkpoint):
    first, second = FRAMES[0], FRAMES[8]
    said = {"role": "assistant", "content": "A red ball."}
    conversation = [
        {"role": "user", "content": [{"type": "image", "image": first}, {"type": "text", "text": "What is it?"}]},
        said,
        {"role": "user", "content": [{"type": "image", "image": second}, {"type": "text", "text": QUESTION}]},
    ]
    text, prompt, _ = in_process(*checkpoint, conversation, max_new_tokens=16)
    messages = [
        user(part("image_url", data_url(first)), "What is it?"),
        said,
        user(part("image_url", data_url(second)), QUESTION),
    ]
    found = remote.chat.completions.create(model="any", messages=messages, max_tokens=16, temperature=0)
    assert (found.choices[0].message.content, found.usage.prompt_tokens) == (text, prompt)


def test_length_stop_and_seed(remote):
    asked = {"model": "any", "messages": [user(part("image_url", data_url(FRAMES[0])), QUESTION)]}
    create = remote.chat.completions.create
    short = create(**asked, max_tokens=2)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)
    whole = create(**asked, max_tokens=16).choices[0].message.content
    cut = whole[2:5]
    for stream in (False, True):
        found = create(**asked, max_tokens=16, stop=["never said", cut], stream=stream)
        if stream:
            *pieces, last = list(found)
            text, reason = "".join(c.choices[0].delta.content or "" for c in pieces), last.choices[0].finish_reason
        else:
            text, reason = found.choices[0].message.content, found.choices[0].finish_reason
        assert (text, reason) == (whole[: whole.index(cut)], "stop")
    hot = {"model": "any", "messages": [user("Describe the scene.")], "temperature": 2.0, "max_tokens": 12}
    greedy = {**hot, "temperature": 0}
    assert create(**{**hot, "temperature": 1e-300}).choices[0].message == create(**greedy).choices[0].message
    drawn = [create(**hot, seed=seed).choices[0].message.content for seed in (1, 1, 2, 3, 4, 5)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 2


def test_errors_reach_the_client_as_its_own_kinds(remote):
    asked = {"model": "any", "messages": [user("Hi")]}
    for name, value in {"n": 2, "logprobs": True, "frequency_penalty": 0.5}.items():
        with pytest.raises(openai.BadRequestError) as caught:
            remote.chat.completions.create(**asked, **{name: value})
        body = caught.value.body
        assert (body["param"], body["code"], body["type"]) == (name, "unsupported_parameter", "invalid_request_error")
        assert f"`{name}`" in body["message"]
    neutral = {"n": 1, "frequency_penalty": 0, "user": "me", "response_format": {"type": "text"}}
    assert remote.chat.completions.create(**asked, max_tokens=1, **neutral).usage.completion_tokens == 1
    with pytest.raises(openai.AuthenticationError, match="the key is wrong"):
        remote.with_options(api_key="another-key-0123456789").chat.completions.create(**asked)
    assert [model.id for model in remote.models.list()] == [TINY_WORLD.name]


def test_the_example_of_the_docs_runs(url, video, monkeypatch, capsys):
    code = dict(python_blocks(PAGE))["run by tests/test_serve_chat.py: with a server"]
    monkeypatch.setenv("VIDEOLLM_MOD_API_KEYS", KEY)
    monkeypatch.chdir(video.parent)
    exec(code.replace("http://localhost:8000", url), {})
    assert capsys.readouterr().out.strip()


def refusal(server, message: dict, **fields) -> tuple[int, str]:
    body = {"model": "any", "messages": [message], **fields}
    answer = web.post(f"{server.url}/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert set(error) == {"type", "code", "message", "param"} and error["message"]
    return answer.status_code, error["code"]


def test_bad_media_are_refused(server, video, tmp_path, monkeypatch):
    monkeypatch.chdir(video.parent)  # where a playlist could find the file that it names
    playlist = base64.b64encode(b"ffconcat version 1.0\nfile " + video.name.encode() + b"\n").decode()
    playlist_url = "data:video/mp4;base64," + playlist
    long = write_video(tmp_path / "long.mp4", np.tile(FRAMES, (2, 1, 1, 1)), "libx264", fps=2)
    assert refusal(server, user(part("image_url", "data:image/png;base64,AAAA"), "?")) == (400, "invalid_image")
    assert refusal(server, user(part("image_url", "file:///etc/passwd"), "?")) == (400, "invalid_image_url")
    assert refusal(server, user(part("video_url", "/etc/passwd"), "?")) == (400, "invalid_video_url")
    assert refusal(server, user(part("video_url", "data:video/mp4;base64,AAAA"), "?")) == (400, "invalid_video")
    assert refusal(server, user(part("video_url", playlist_url), "?")) == (400, "invalid_video")
    assert refusal(server, user(part("video_url", video_url(long)), "?")) == (400, "too_many_frames")
    assert refusal(server, user(part("image_url", "https://example.org/a.png"), "?")) == (400, "url_not_allowed")
    assert refusal(server, user("?"), max_tokens=10**6) == (400, "context_length_exceeded")
    assert refusal(server, {"role": "system", "content": [part("image_url", data_url(FRAMES[0]))]})[0] == 400
    assert refusal(server, {"role": "tool", "content": "?"}) == (400, "invalid_request")
    assert refusal(server, user("")) == (400, "empty_text")


def test_text_that_cannot_fit_is_not_encoded(server, monkeypatch):
    """It would keep a thread busy for a minute, and the chats that wait for it."""
    prepared = []
    monkeypatch.setattr(server.app.state.chats, "prepare", lambda *given: prepared.append(given))
    assert refusal(server, user("x " * 4000), messages=[user("x " * 4000)] * 50) == (400, "context_length_exceeded")
    assert not prepared


@pytest.fixture
def endless(monkeypatch):
    """Answers end only at the limit of their tokens."""
    made = ChatSession.__init__

    def make(session, *arguments, **options):
        made(session, *arguments, **options)
        session.sampler.ends = frozenset()

    monkeypatch.setattr(ChatSession, "__init__", make)


@pytest.mark.usefixtures("endless")
def test_a_client_that_hangs_up_ends_its_answer(server, monkeypatch):
    """Both ways, while the model speaks: nothing of the chat is left, and others are answered."""
    body = {"model": "any", "messages": [user(part("image_url", data_url(FRAMES[0])), "?")], "max_tokens": 10**5}
    engine, chats = server.registry.engine, server.app.state.chats
    monkeypatch.setattr(chats, "context", 10**6)
    address = f"{server.url}/v1/chat/completions"
    with web.stream("POST", address, json={**body, "stream": True}) as answer:
        lines = answer.iter_lines()
        until(lambda: '"content": "' in next(lines), "text")
        assert len(engine.streams) == 1 and len(chats.running) == 1
    until(lambda: not engine.streams and not chats.running, "the end of the streamed chat")

    async def hang_up():
        async with httpx.AsyncClient(timeout=PATIENCE) as own:
            asking = asyncio.ensure_future(own.post(address, json=body))
            while not (engine.streams and engine.streams[0].pooled.session.reply.ids):
                await asyncio.sleep(0.01)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(hang_up())
    until(lambda: not engine.streams and not chats.running, "the end of the chat")


def test_a_frame_is_watched_between_the_pieces_of_a_prompt(checkpoint):
    model, processor = checkpoint
    conversation = [{"role": "user", "content": [{"type": "video", "video": FRAMES}, {"type": "text", "text": "?"}]}]
    inputs = processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    session, pool = ChatSession(model, processor, Prompt.of(inputs), 8), StreamPool(model, processor)
    chat, live = pool.join(session), pool.join(speak_threshold=0.0)
    chat.ask("chat")
    live.push(FRAMES[0])
    while live.busy:
        pool.tick()
    assert live.session.stats.frames == 1
    assert 0 < session.cache.get_seq_length() < len(session.prompt.ids)
    read = session.cache.get_seq_length()
    pool.leave(chat)  # as when its client hangs up: at most one more piece is read, and nothing said
    assert session.cache.get_seq_length() - read < len(session.prompt.ids) / 2 and not session.reply.ids
    live.push(FRAMES[1])
    pool.run()
    assert live.session.stats.frames == 2


def test_a_live_stream_says_the_same_beside_chats(server, video):

    async def live() -> list:
        async with client(server.url) as stream:
            await stream.until("session.created")
            for image, time in frames_of(60, 12):
                await stream.frame(image, time)
            await stream.send("input_video_frame.commit")
            await stream.until("input_video_frame.acknowledged", status="committed")
            return [(e["type"], e.get("delta"), e.get("timestamp")) for e in stream.events if "session" not in e]

    async def chat() -> str:
        body = {"model": "any", "messages": [user(part("video_url", video_url(video)), QUESTION)], "max_tokens": 16}
        async with httpx.AsyncClient(timeout=PATIENCE) as own:
            answer = await own.post(f"{server.url}/v1/chat/completions", json=body)
            return answer.json()["choices"][0]["message"]["content"]

    async def both():
        return await asyncio.gather(live(), chat(), chat())

    alone, said = asyncio.run(live()), asyncio.run(chat())
    assert asyncio.run(both()) == [alone, said, said] and said


def test_more_chats_than_the_limit_are_refused(server):
    chats = server.app.state.chats
    chats.running |= {object(), object()}
    try:
        assert refusal(server, user("Hi")) == (429, "chat_limit_exceeded")
    finally:
        chats.running.clear()


def test_a_failure_midway_is_told_and_others_go_on(server, monkeypatch):
    made = ChatSession.__init__

    def failing(session, *arguments, **options):
        made(session, *arguments, **options)
        sample = session.sampler.__call__

        class Sampler:
            ends = frozenset()
            generator = None

            def __call__(self, said, logits):
                if len(said) == 3:
                    raise ValueError("the weights are damaged")
                return sample(said, logits)

        session.sampler = Sampler()

    with monkeypatch.context() as patch:
        patch.setattr(ChatSession, "__init__", failing)
        assert refusal(server, user("Hi")) == (500, "generation_failed")
        own = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any-key-does", max_retries=0, timeout=PATIENCE)
        with pytest.raises(openai.APIError, match="the weights are damaged"):
            list(own.chat.completions.create(model="any", messages=[user("Hi")], stream=True))
    answered = own.chat.completions.create(model="any", messages=[user("Hi")], max_tokens=3)
    assert answered.choices[0].message.content is not None and not server.app.state.chats.running


@pytest.mark.usefixtures("endless")
def test_a_chat_is_told_that_the_server_stops(checkpoint, monkeypatch):
    monkeypatch.setattr(registry, "SETTLE_SECONDS", 0.1)
    with serving(checkpoint) as own:
        own.app.state.chats.context = 10**6
        own_client = openai.OpenAI(base_url=f"{own.url}/v1", api_key="any-key-does", max_retries=0, timeout=PATIENCE)
        told = own_client.chat.completions.create(model="any", messages=[user("Hi")], max_tokens=10**5, stream=True)
        next(told)
        own.server.should_exit = True
        with pytest.raises(openai.APIError, match="the server stops"):
            list(told)


KINDS = {"llava": {"tower": "clip_vision_model"}, "llava_onevision": {"side": 6}, "smolvlm": {"scale_factor": 2}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_family_prompt_is_answered_as_by_generate(kind, tmp_path):
    """Read in pieces in a pool, with another stream beside it."""
    model, processor = VideoLLMMoDForConditionalGeneration.from_vlm(save_vlm(tmp_path / kind, kind, **KINDS[kind]))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 20, 30, 3), dtype=np.uint8)
    blocks = {"image": {"type": "image", "image": images[0]}, "video": {"type": "video", "video": images}}
    pool = StreamPool(model, processor)
    other = pool.join(max_new_tokens=4)
    for block in blocks.values():
        conversation = [{"role": "user", "content": [block, {"type": "text", "text": "Why?"}]}]
        text, prompt_tokens, count = in_process(model, processor, conversation, max_new_tokens=6)
        inputs = processor.apply_chat_template(
            conversation, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        session = ChatSession(model, processor, Prompt.of(inputs), 6)
        stream = pool.join(session)
        stream.ask("chat")
        other.push(images[:3])
        events = [event for own, event in pool.run() if own is stream]
        assert [event.text for event in events] == [text]
        assert (len(session.prompt.ids), session.completion_tokens) == (prompt_tokens, count)
        assert session.cache.get_seq_length() <= prompt_tokens + 6 and session.cache.num_bytes <= session.max_kv_bytes
        pool.leave(stream)


@pytest.mark.parametrize("pieces", [["a", "bc", "d"], ["abcd"], ["ab", "ab", "cd"]])
def test_what_may_begin_a_stop_is_held_back(pieces):
    stops = Stops(["bcd"])
    shown = [stops.add(piece) for piece in pieces]
    assert "".join(shown) == "".join(pieces).removesuffix("bcd") and stops.found
    stops = Stops(["bcd"])
    assert [stops.add("abc"), stops.add("x"), stops.add("b"), stops.rest()] == ["a", "bcx", "", "b"]
    assert not stops.found


@pytest.mark.parametrize(
    ("address", "allowed"),
    {
        "8.8.8.8": True,
        "2606:4700::1111": True,
        "127.0.0.1": False,
        "10.1.2.3": False,
        "169.254.169.254": False,
        "100.64.0.1": False,
        "0.0.0.0": False,
        "224.0.0.1": False,
        "::1": False,
        "fe80::1%eth0": False,
        "::ffff:127.0.0.1": False,
        "64:ff9b::7f00:1": False,
        "2002:7f00:1::": False,
    }.items(),
)
def test_only_public_addresses_are_fetched(address, allowed):
    assert fetching.is_public(address) is allowed


class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/private":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/latest")
            self.end_headers()
            return
        if self.path == "/loop":
            self.send_response(302)
            self.send_header("Location", "/loop")
            self.end_headers()
            return
        if self.path == "/slow":
            self.server.released.wait()
        self.send_response(200 if self.path in ("/a.png", "/slow") else 404)
        self.end_headers()
        self.wfile.write(png(FRAMES[0]))

    def log_message(self, *_):
        pass


@pytest.fixture
def pages():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as web:
        web.released = threading.Event()
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_address[1]}"
        web.released.set()
        web.shutdown()


def test_fetching_has_limits_and_checks_redirects(pages, monkeypatch):
    async def code(path: str, **options) -> str:
        with pytest.raises(ApiError) as caught:
            await fetching.fetch(pages + path, **{"max_bytes": 10**7, "seconds": PATIENCE, **options})
        return caught.value.code

    async def run():
        assert await code("/a.png") == "url_not_allowed"
        assert await code("", max_bytes=1) == "url_not_allowed"
        public = fetching.is_public
        monkeypatch.setattr(fetching, "is_public", lambda ip: ip == "127.0.0.1" or public(ip))
        assert await fetching.fetch(pages + "/a.png", 10**7, PATIENCE) == png(FRAMES[0])
        assert await code("/a.png", max_bytes=100) == "url_too_large"
        assert await code("/none") == "url_not_read"
        assert await code("/loop") == "url_not_read"
        assert await code("/private") == "url_not_allowed"
        assert await code("/slow", seconds=0.2) == "url_timeout"

    asyncio.run(run())


def test_an_address_is_fetched_where_the_server_allows_it(checkpoint, pages, monkeypatch):
    monkeypatch.setattr(fetching, "is_public", lambda ip: True)
    monkeypatch.setattr("videollm_mod.serving.chat.FETCH_SECONDS", PATIENCE)
    with serving(checkpoint, allow_urls=True) as own:
        texts = []
        for url in (pages + "/a.png", data_url(FRAMES[0])):
            body = {"model": "any", "messages": [user(part("image_url", url), QUESTION)], "max_tokens": 8}
            answer = web.post(f"{own.url}/v1/chat/completions", json=body).json()
            texts.append(answer["choices"][0]["message"]["content"])
        assert texts[0] == texts[1] and texts[0]
        monkeypatch.undo()
        assert refusal(own, user(part("image_url", pages + "/a.png"), "?")) == (403, "url_not_allowed")
