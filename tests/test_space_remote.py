"""The Space on a server: streams of visitors are sessions of `videollm-mod serve`, and the Space has no model."""

import numpy as np
import pytest
from running_servers import held, serving
from space_servers import call
from waiting import PATIENCE, until

from videollm_mod.space import clips
from videollm_mod.space.checks import controls_of
from videollm_mod.space.lane import Controls, Request
from videollm_mod.space.models import Models
from videollm_mod.space.remote import RemoteLane, RemoteModels
from videollm_mod.space.server import Space
from videollm_mod.space.settings import Settings
from videollm_mod.space.stream import Stream

KEY = "a-key-for-tests-0123456789"
QUESTION = "How many objects are there?"


@pytest.fixture(scope="module")
def server(checkpoint):
    with serving(checkpoint, (f"{KEY} sessions=3",), {"waiting_frames": 16}) as running:
        yield running


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    for name in ("ANSWER_SECONDS", "PATIENCE_SECONDS"):
        monkeypatch.setattr(f"videollm_mod.space.remote.{name}", PATIENCE)


@pytest.fixture
def remote(server):
    yield RemoteModels(server.url, KEY)
    until(lambda: not server.registry.sessions, "the end of all sessions")


def scene(folder, seed: int = 121) -> clips.Clip:
    folder.mkdir(exist_ok=True)
    return clips.scene("clip", folder, seed)


def watch_all(stream: Stream) -> Stream:
    while not stream.over:
        stream.advance(float("inf"))
    return stream


def told(stream: Stream) -> list[tuple]:
    return [(event.time, event.kind, event.text, event.query) for event in stream.lanes["mod"].events]


def test_a_stream_on_a_server_says_what_the_model_itself_says(remote, checkpoint, tmp_path):
    streams = []
    for models in (remote, Models(*checkpoint)):
        stream = Stream("id", models, scene(tmp_path / type(models).__name__), Controls(), "Narrate the scene.")
        stream.advance(3.0)
        until(lambda stream=stream: stream.view()["time"] == 3.0, "the frames until then")
        assert stream.ask(QUESTION).kind == "answer"
        streams.append(watch_all(stream))
    there, here = streams
    answers = [[event for event in told(stream) if event[1] == "answer"] for stream in streams]
    assert answers[0] == answers[1] != [] and len(told(there)) > 3
    # the query of a narration is known only where the model is
    assert [event[:3] for event in told(there)] == [event[:3] for event in told(here)]
    pairs = zip(there.lanes["mod"].seen, here.lanes["mod"].seen, strict=True)
    assert all(abs(one.watched.silence_probability - two.watched.silence_probability) < 1e-3 for one, two in pairs)
    view = there.view()
    assert view["server"]["waiting"] == view["server"]["dropped"] == 0 and view["server"]["keep_ratio"] == 0.2
    assert all(there.export(name) for name in ("vtt", "srt", "jsonl"))
    with pytest.raises(ValueError, match="runs on a server"):
        there.write_overlay()
    there.close()


def test_what_needs_the_model_says_why(remote, tmp_path):
    with pytest.raises(ValueError, match="cannot be compared with a dense one"):
        Stream("id", remote, scene(tmp_path), Controls(), compare=True)
    for options in ({"keep_ratio": 0.5}, {"memory": 1}):
        with pytest.raises(ValueError, match="server, which sets the keep ratio and the memory"):
            controls_of(remote, **options)


def test_a_camera_leaves_out_what_finds_no_room(server, remote):
    lane, image = RemoteLane(remote, Controls(threshold=0.0), None), np.zeros((1, 96, 96, 3), np.uint8)
    with held(server):
        for index in range(12):
            lane.run(Request(Controls(), image, (index / 2,), wait=False))
        assert lane.left_out == 4 and lane.state()["waiting"] == 8
    until(lambda: lane.collect() or lane.settled, "the decisions")
    assert len(lane.seen) == 8
    lane.run(Request(Controls(), image, (3.5,), wait=False))  # the same picture again
    assert len(lane.seen) == 8 and lane.settled
    lane.close()


def test_a_server_that_refuses_or_is_not_there_is_reported(server, remote, tmp_path):
    with pytest.raises(ValueError, match="refuses: the key is wrong"):
        RemoteModels(server.url, "another-key-0123456789")
    with pytest.raises(OSError, match="no videollm-mod serve answers at http://127.0.0.1:9"):
        RemoteModels("http://127.0.0.1:9")
    with pytest.raises(ValueError, match="must begin with http"):
        RemoteModels("localhost:8000")
    lanes = [RemoteLane(remote, Controls(), None) for _ in range(3)]
    with pytest.raises(ValueError, match="The server says: 3 sessions of this key are open"):
        Stream("id", remote, scene(tmp_path), Controls())
    for lane in lanes:
        lane.close()


def test_a_server_that_ends_ends_the_stream(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("videollm_mod.space.remote.PATIENCE_SECONDS", 0.1)
    with serving(checkpoint) as running:
        stream = Stream("id", RemoteModels(running.url), scene(tmp_path), Controls(), "Narrate the scene.")
        stream.advance(2.0)
    until(lambda: stream.view()["over"], "the end of the stream")
    assert stream.problem.startswith("The server that runs the model cannot be reached.")
    stream.close()


def test_programs_use_a_space_on_a_server(server, remote):
    space = Space(remote, Settings(running=2, idle_seconds=PATIENCE))
    _, url, _ = space.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        _, clip = call(url, "choose", "scene", 121, "")
        status, view = call(url, "begin", clip["clip"], {"compare": False, "instruction": "Narrate the scene."})
        assert status == 200 and len(server.registry.sessions) == 1
        while not view["over"]:
            _, view = call(url, "advance", view["stream"], 1e9, {}, {}, None)
        assert view["truth"] and {line["verdict"] for line in view["truth"]} >= {"right"}
        status, why = call(url, "begin", clip["clip"], {"compare": True})
        assert status != 200 and "cannot be compared" in why
    finally:
        space.close()
