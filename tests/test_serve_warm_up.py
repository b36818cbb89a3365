"""A server captures its graphs before it serves: all that its streams use. Here static steps run in plain torch."""

import asyncio
import threading

import httpx
import pytest
import torch
from running_servers import Running, client, frames_of, serving
from waiting import until

from videollm_mod import StreamPool, static_vision
from videollm_mod import steps as steps_module
from videollm_mod.serving import warm_up
from videollm_mod.serving.keys import Keys
from videollm_mod.serving.limits import Limits
from videollm_mod.serving.server import make_app
from videollm_mod.static_graphs import GRAPHS, StaticLanguageModel
from videollm_mod.static_step import MAX_CAPTURED, PlainOps
from videollm_mod.steps import Encode, in_pieces

SESSIONS = 6


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


class Recording(StaticLanguageModel):
    """Notes the shapes that it is asked to capture, which it runs, and those that streams use."""

    def __init__(self, model):
        super().__init__(model, PlainOps)
        self.used, self.captured, self.threads = set(), [], set()
        self._graphs.capture = self._note

    def _note(self, shape, function):
        function()
        self.captured.append(shape)
        self.threads.add(threading.current_thread().name)

    def _run_streams(self, shape, streams, has_output):
        self.used.add(shape)
        return super()._run_streams(shape, streams, has_output)

    def _warm_up(self, options):
        pytest.fail("streams capture what they use themselves")


@pytest.fixture
def static(checkpoint, monkeypatch):
    found = Recording(checkpoint[0])
    for module in (steps_module, warm_up):
        monkeypatch.setattr(module, "static_language_model", lambda model: (found, found.why_not))
    return found


@pytest.mark.parametrize("rule", ["trained", "verify"])
def test_all_steps_of_a_server_are_captured_before(checkpoint, static, rule):
    """Any number of streams, which watch a frame each, all speak or some, and then watch on."""
    model, processor = checkpoint
    options = {"max_cached_frames": 9, "speak_rule": rule, "max_new_tokens": 3}
    for work in warm_up.preparations(model, processor, options, [model.keep_ratio], SESSIONS):
        work()
    assert len(static.captured) == len(set(static.captured)) <= GRAPHS and not static.used
    pool, frames = StreamPool(model, processor), frames_of(60, 4)
    while len(pool.streams) < SESSIONS:
        pool.join(**options)
        for number, (frame, _) in enumerate(frames):
            for index, stream in enumerate(pool.streams):
                speaks = number == 1 or (number == 2 and index == 0)
                stream.session.speak_threshold = float(speaks)
                stream.push(frame[None])
            pool.run()
    used = {shape for shape in static.used if shape.all_tokens <= MAX_CAPTURED}
    assert {shape.streams for shape in used} == {1, 2, 4, 8} and any(shape.every for shape in used) == (
        rule == "verify"
    )
    assert used <= set(static.captured)


def test_each_keep_ratio_has_its_steps(checkpoint, static):
    """The usual one in full; then those of many streams first, as far as graphs are kept."""
    processor = checkpoint[1]
    ratios = [0.8, 0.5, 0.2]
    shapes = warm_up.step_shapes(static, processor, False, ratios, 64)
    alone = warm_up.step_shapes(static, processor, False, ratios[:1], 64)
    assert shapes[: len(alone)] == alone and len(shapes) == len(set(shapes)) == GRAPHS
    kept = [static.shapes(processor.stream_ids([0.0], True)[0], ratio)[0].num_kept for ratio in ratios]
    assert len(set(kept)) == 3
    most = max(shape.streams for shape in alone if shape.frames)
    assert any(shape.num_kept == kept[1] and shape.streams == most for shape in shapes)
    assert max(shape.streams for shape in alone) == 64


@pytest.mark.parametrize("sessions", [1, 5, 15, 16, 23, 24, 64, 100])
def test_all_numbers_of_frames_are_encoded_before(checkpoint, sessions):
    """As the pool cuts a frame of each of any number of streams."""
    frame = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    sizes = set()
    for count in range(1, sessions + 1):
        steps = [Encode(checkpoint[0], None, frame) for _ in range(count)]
        pieces = in_pieces(steps, torch.device("cuda"))
        sizes |= {sum(len(frames) for _, frames in piece) for piece in pieces}
    assert warm_up.frame_counts(sessions) == sorted(sizes) and len(sizes) <= static_vision.GRAPHS


def test_a_server_says_that_it_starts(checkpoint, static, capfd):
    """Until all is captured, in the engine's thread, sessions and chats are refused for the time being."""
    from videollm_mod.commands.serve import show_progress

    go, there = threading.Event(), threading.Event()
    app = make_app(*checkpoint, "nano", Limits(sessions=2), Keys())
    registry = app.state.registry
    total = len(registry.preparations)
    registry.preparations.insert(1, lambda: (there.set(), go.wait()))
    registry.on_prepared = lambda *progress: show_progress("http://here", *progress)
    running = Running(app)
    try:
        until(there.is_set)
        health = httpx.get(f"{running.url}/health")
        assert health.status_code == 503
        assert health.json() == {"status": "starting", "prepared": 1, "of": total + 1}
        for path, body in (
            ("streaming/sessions", {}),
            ("chat/completions", {"model": "any", "messages": [{"role": "user", "content": "?"}]}),
        ):
            refused = httpx.post(f"{running.url}/v1/{path}", json=body)
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "server_starting"
            assert f"1 of {total + 1} CUDA graphs are captured" in refused.json()["error"]["message"]
        go.set()
        until(lambda: httpx.get(f"{running.url}/health").status_code == 200)
        assert static.threads == {"videollm-mod engine"} and len(static.captured) == total
        out, err = capfd.readouterr()
        assert out == "serving on http://here\n" and f"starting: 1 of {total + 1} CUDA graphs" in err

        async def open_one():
            async with client(running.url) as mine:
                await mine.until("session.created")

        asyncio.run(open_one())
    finally:
        go.set()
        running.stop()


def test_a_server_that_cannot_prepare_serves(checkpoint, static, caplog):
    app = make_app(*checkpoint, "nano", Limits(), Keys())
    registry, told = app.state.registry, []
    registry.preparations = [lambda: 1 / 0, lambda: told.append("next")]
    registry.on_prepared = lambda done, total: told.append((done, total))
    running = Running(app)
    try:
        until(lambda: (2, 2) in told)
        assert told == [(0, 2), (2, 2)] and httpx.get(f"{running.url}/health").status_code == 200
        assert "could not prepare everything" in caplog.text
    finally:
        running.stop()


def test_a_cpu_prepares_nothing(checkpoint):
    with serving(checkpoint) as running:
        assert running.registry.preparations == [] and httpx.get(f"{running.url}/health").json()["status"] == "ok"
