"""The Space without a browser: streams, visitors, the waiting line, and the API for programs."""

import base64
import io
import json
import math
import os
import random
import threading
import time as clock
from functools import partial

import av
import httpx
import numpy as np
import pytest
import space_servers
import torch
from comparing import PROBABILITY, assert_near, assert_same_events
from fresh_process import ROOT, TINY_WORLD
from pages import python_blocks
from PIL import Image
from plain_http import web
from space_servers import call, launched, upload
from stock_vlms import save_vlm
from video_files import moving, write_sound, write_video
from waiting import PATIENCE, until

from videollm_mod import VideoLLMMoDConfig, VideoLLMMoDForConditionalGeneration
from videollm_mod.data.world import world_stream
from videollm_mod.data.world_clip import write_clip
from videollm_mod.decoding import decode_video
from videollm_mod.loading.find import OWN_CHECKPOINT
from videollm_mod.space import clips
from videollm_mod.space.lane import Controls
from videollm_mod.space.line import Line, LineIsFull
from videollm_mod.space.models import Models, dense_twin, speak_rules
from videollm_mod.space.settings import Settings
from videollm_mod.space.stream import Stream
from videollm_mod.space.visitors import Gone, Visitors

INSTRUCTION = "Narrate what happens."
# of a tiny model; where what it says must be right, `space_servers.models()`
models = partial(space_servers.models, TINY_WORLD)
PATIENT = {"httpx_kwargs": {"timeout": PATIENCE}}  # of gradio's client


@pytest.fixture(scope="module")
def served():
    """A running Space of the tiny model, and its address."""
    with launched(TINY_WORLD) as running:
        yield running


@pytest.fixture(scope="module")
def served_bundled():
    """A running Space of the bundled checkpoint, and its address."""
    with launched() as running:
        yield running


@pytest.fixture
def scene(tmp_path):
    """`scene(seed)`: a clip of the world."""
    return lambda seed: clips.scene(f"clip-{seed}", tmp_path, seed)


def session(lane="mod", **options):
    options = {"max_cached_frames": models().max_frames, **options}
    started = models().lanes[lane].stream(models().processor, **options)
    started.instruct(INSTRUCTION)
    return started


def finish(stream: Stream) -> Stream:
    while not stream.over:
        stream.advance(float("inf"))
    return stream


# ---- the line and the settings


@pytest.mark.parametrize("seed", range(3))
def test_line_is_first_come_first_served_and_drops_silent_tickets(seed):
    now, rng = [0.0], random.Random(seed)
    running, waiting = rng.randint(1, 3), rng.randint(2, 4)
    line = Line(running, waiting, patience=10, clock=lambda: now[0])
    tickets = [f"t{i}" for i in range(running + waiting)]
    places = [line.place(ticket) for ticket in tickets]
    assert places == [0] * running + list(range(1, waiting + 1))
    with pytest.raises(LineIsFull):
        line.place("one too many")
    line.leave(tickets[0])
    assert line.place(tickets[running]) == 0
    now[0] += 6
    line.place(tickets[-1])
    now[0] += 6  # all others have been silent for 12 seconds
    assert line.place("new") == max(0, 2 - running) and line.place(tickets[-1]) == 0
    assert line.place(tickets[0]) == max(0, 3 - running)  # back again, at the end


def test_settings_come_from_the_environment():
    given = {"VIDEOLLM_MOD_RUNNING": "7", "VIDEOLLM_MOD_IDLE_SECONDS": "2.5", "VIDEOLLM_MOD_WAITING": ""}
    settings = Settings.from_environment(given)
    assert (settings.running, settings.idle_seconds, settings.waiting) == (7, 2.5, Settings.waiting)
    with pytest.raises(ValueError, match="VIDEOLLM_MOD_RUNNING must be a number, got 'many'"):
        Settings.from_environment({"VIDEOLLM_MOD_RUNNING": "many"})
    with pytest.raises(ValueError, match="must be more than 0"):
        Settings.from_environment({"VIDEOLLM_MOD_WAITING": "0"})


# ---- streams


def test_dense_twin_shares_weights_and_equals_model_without_routing():
    model = models().lanes["mod"]
    twin, frames = dense_twin(model), world_stream(11).frames()[:9]
    before = [watched.silence_probability for watched in session().watch(frames)]
    for (name, one), (_, other) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert one is other, name
    dense = [watched.silence_probability for watched in session("dense").watch(frames)]
    try:
        model.config.text_config.vision_routing = "full"
        assert_near([watched.silence_probability for watched in session().watch(frames)], dense, PROBABILITY)
    finally:
        model.config.text_config.vision_routing = "mod"
    assert_near([watched.silence_probability for watched in session().watch(frames)], before, PROBABILITY)
    assert max(abs(one - other) / one for one, other in zip(before, dense, strict=True)) > 10 * PROBABILITY


def test_both_models_see_what_was_encoded_once(scene):
    stream, calls = Stream("id", models(), scene(12), Controls(), INSTRUCTION, compare=True), []
    towers = {models().lanes[lane].model.vision_tower for lane in ("mod", "dense")}
    hooks = [tower.register_forward_hook(lambda *_: calls.append(1)) for tower in towers]
    for seconds in (0.0, 0.5, 2.0):
        stream.advance(seconds)
    for hook in hooks:
        hook.remove()
    assert len(calls) == 3 and len(stream.lanes["dense"].seen) == len(stream.lanes["mod"].seen) == 5


@pytest.mark.parametrize("seed", [21])
def test_stream_in_any_steps_equals_one_session(scene, seed):
    """For any sequence of calls, with a question in between, and with the dense twin."""
    rng, clip = random.Random(seed), scene(seed)
    frames, times = decode_video(clip.path, models().fps)
    asked = rng.randrange(2, len(times) - 2)
    stream = Stream("id", models(), clip, Controls(), INSTRUCTION, compare=True)
    seconds = 0.0
    while stream.time < times[asked]:
        seconds = min(seconds + rng.uniform(0, 2.5), times[asked])
        stream.advance(seconds)
        stream.advance(rng.uniform(0, seconds))  # a page that seeks back
    assert stream.ask("How many objects are there?").kind == "answer"
    finish(stream)
    for lane in ("mod", "dense"):
        one = session(lane)
        events = one.push(frames[: asked + 1], times[: asked + 1].tolist())
        events += one.ask("How many objects are there?")
        events += one.push(frames[asked + 1 :], times[asked + 1 :].tolist())
        assert_same_events(stream.lanes[lane].events, events)
        assert [seen.watched.time for seen in stream.lanes[lane].seen] == times.tolist()
        assert stream.lanes[lane].seen[-1].kv_bytes == one.stats.kv_bytes
    assert stream.stats()["mod"]["kv_bytes"] < stream.stats()["dense"]["kv_bytes"]
    said = [(event.time, event.text) for event in stream.lanes["mod"].events if event.kind == "narration"]
    judged = stream.score_narrations()
    assert [(entry["time"], entry["text"]) for entry in judged if entry["verdict"] != "wrong"] == clip.truth
    right = [entry for entry in judged if entry["verdict"] == "right"]
    assert len(right) == len(set(said) & set(clip.truth)) >= 1


def test_controls_take_effect_at_the_next_frame(scene):
    clip = scene(31)
    stream = Stream("id", models(), clip, Controls(), INSTRUCTION)
    stream.advance(2.0, Controls(keep_ratio=0.2))
    stream.advance(4.0, Controls(keep_ratio=0.8, threshold=0.0))
    kept = [[len(tokens) for tokens in row[2]] for row in stream.view()["lanes"]["mod"]["frames"]]
    assert kept[0] == [1] * 2 and kept[4] == [1] * 2 and kept[5] == [4] * 2 and kept[-1] == [4] * 2
    assert not [event for event in stream.lanes["mod"].events if event.time > 2]
    before = stream.lanes["mod"].seen[-1].kv_bytes
    stream.advance(5.0, Controls(keep_ratio=0.2, threshold=0.0, memory=4))
    assert stream.lanes["mod"].seen[-1].kv_bytes < before
    assert all(row[1] is not None for row in stream.view({"mod": [9, 0]})["lanes"]["mod"]["frames"])


def test_memory_changed_at_the_start_equals_memory_given():
    frames = world_stream(41).frames()[:14]
    given, changed = session(max_cached_frames=6), session(max_cached_frames=30)
    changed.remember(6)
    assert_same_events(given.push(frames), changed.push(frames))
    assert given.stats.kv_bytes == changed.stats.kv_bytes
    with pytest.raises(ValueError, match="at least 1, got 0"):
        changed.remember(0)
    with pytest.raises(ValueError, match="only in a session that was made with a bound"):
        session(max_cached_frames=None).remember(8)


@pytest.mark.parametrize(
    ("options", "rules"),
    [
        ({}, {"trained": 0.725, "verify": 1.0}),
        ({"speak_rule": "verify", "verify_margin": 2.0}, {"verify": math.exp(-2), "trained": 0.725}),
        (
            {"speak_rule": "verify", "verify_margin": 2.0, "frame_separator_token_id": None},
            {"verify": math.exp(-2)},
        ),
    ],
)
def test_rules_are_those_that_the_model_can_follow(options, rules):
    assert list(speak_rules(VideoLLMMoDConfig(**options)).items()) == list(rules.items())


def test_stream_that_verifies_equals_one_session(scene):
    clip = scene(21)
    frames, times = decode_video(clip.path, models().fps)
    stream = Stream("id", models(), clip, Controls(), INSTRUCTION, rule="verify")
    while stream.advance(4.0):
        pass
    one = session(speak_rule="verify")
    assert_same_events(stream.lanes["mod"].events, one.push(frames[:9], times[:9].tolist()))
    assert stream.lanes["mod"].events[0].time == 0.0 and one.stats.verified == 8  # it speaks after the first frame


@pytest.mark.parametrize("kind", ["llava", "llava_onevision", "smolvlm"])
def test_models_made_from_pretrained_ones_are_served(kind, tmp_path):
    stock = save_vlm(tmp_path / "stock", kind, side=6, **({"scale_factor": 2} if kind == "smolvlm" else {}))
    model, processor = VideoLLMMoDForConditionalGeneration.from_vlm(stock)
    threads = torch.get_num_threads()
    served = Models(model, processor, "a family")
    torch.set_num_threads(threads)
    for lane in served.lanes.values():
        lane.stream = partial(lane.stream, max_new_tokens=6)  # these models never end a narration
    served.warm_up()
    about = served.describe()
    assert (about["rules"], about["instruction"], about["domain"]) == ({"verify": 1.0}, "What do you see?", None)
    fps, path = served.fps, write_video(tmp_path / "ball.mp4", moving(30, 40, 60), "libx264")
    clip = clips.upload("id", tmp_path, path, "ball.mp4", 180.0)
    stream = finish(Stream("id", served, clip, Controls(), served.instruction, compare=True))
    frames, times = decode_video(path, fps)
    for lane in ("mod", "dense"):
        one = served.lanes[lane].stream(processor, max_cached_frames=served.max_frames)
        one.instruct("What do you see?")
        assert_same_events(stream.lanes[lane].events, one.push(frames, times.tolist()))
    assert len(stream.lanes["mod"].seen) == len(frames) and stream.ask("Why?").kind == "answer"
    assert len(decode_video(stream.write_overlay(), fps)[0]) >= len(frames)


def jpeg(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def of_no_domain(monkeypatch):
    """Let the model speak about any video, as one with general sight."""
    monkeypatch.setattr(space_servers.models().config, "domain", None)


def test_camera_pictures_are_watched_as_they_arrive(tmp_path, of_no_domain):
    world = world_stream(51)
    stream = Stream(
        "id", space_servers.models(), clips.camera("c", tmp_path), Controls(), INSTRUCTION, max_seconds=6.0
    )
    for image, seconds in zip(world.frames(height=192), world.frame_times(2.0), strict=True):
        stream.watch_picture(jpeg(image), float(seconds))
    assert stream.over and stream.time == 5.5
    said = [(event.time, event.text) for event in stream.lanes["mod"].events]
    assert said == [(seconds, text) for seconds, text in world.narrations if seconds < 6]
    assert len(decode_video(stream.write_overlay(), 2.0)[0]) == 12
    for wrong, why in {"": "cannot be read", "data:image/jpeg;base64,AAAA": "cannot be read"}.items():
        with pytest.raises(ValueError, match=why):
            stream.watch_picture(wrong, 1.0)
    with pytest.raises(ValueError, match="1024 pixels"):
        stream.watch_picture(jpeg(np.zeros((8, 1100, 3), np.uint8)), 1.0)


def test_downloads_hold_the_events_and_kept_patches(scene):
    stream = Stream("id", models(), scene(61), Controls(), INSTRUCTION)
    with pytest.raises(ValueError, match="nothing to show yet"):
        stream.write_overlay()
    stream.advance(1.0)
    stream.ask("What is at the <center>?")
    finish(stream)
    events = stream.lanes["mod"].events
    lines = [json.loads(line) for line in stream.export("jsonl").splitlines()]
    assert [line["text"] for line in lines[:-1]] == [event.text for event in events] and "stats" in lines[-1]
    assert stream.export("vtt").startswith("WEBVTT") and "&lt;center&gt;" in stream.export("vtt")
    assert stream.export("srt").startswith("1\n") and all(event.text in stream.export("srt") for event in events)
    frames, _ = decode_video(stream.write_overlay(), models().fps)
    assert len(frames) >= len(stream.lanes["mod"].seen)


def test_stopped_stream_does_not_watch_but_still_answers(scene):
    stream = Stream("id", models(), scene(71), Controls(), INSTRUCTION)
    stream.advance(2.0)
    frames = len(stream.lanes["mod"].seen)
    stream.stop()
    assert stream.advance(float("inf")) is False and len(stream.lanes["mod"].seen) == frames == 5
    assert stream.ask("What happened last?").text
    with pytest.raises(ValueError, match="Type a question"):
        stream.ask("  ")


def test_a_video_outside_the_domain_is_watched_without_a_word(tmp_path):
    path = OWN_CHECKPOINT / "media" / "cup.mp4"
    stream = Stream("id", models(), clips.upload("c", tmp_path, path, "cup.mp4", 180.0), Controls(threshold=1.0))
    assert not stream.advance(1.0, Controls(keep_ratio=0.4, threshold=1.0))
    finish(stream)
    rows = stream.view()["lanes"]["mod"]["frames"]
    assert stream.lanes["mod"].events == [] and len(rows) == 17
    assert [len(row[2][0]) for row in rows] == [2] * 17 and rows[0][3] < rows[-1][3]  # the other controls work
    with pytest.raises(ValueError, match="^This model knows only the procedural world, so its words"):
        stream.ask("What do you see?")
    assert len(decode_video(stream.write_overlay(), models().fps)[0]) == 17
    # the file says what it shows, whatever its name is
    world, _ = write_clip(tmp_path / "holiday.mp4", 31)
    folder = tmp_path / "world"
    folder.mkdir()
    assert Stream("id", models(), clips.upload("w", folder, world, "holiday.mp4", 180.0), Controls()).describes


def test_a_program_is_told_why_nothing_is_said(served):
    from gradio_client import Client, handle_file

    _, url = served
    path = OWN_CHECKPOINT / "media" / "cup.mp4"
    result = Client(url, verbose=False, **PATIENT).predict(handle_file(path), threshold=1.0, api_name="/narrate")
    assert result["events"] == [] and result["stats"]["mod"]["frames"] == 17
    assert (
        result["notice"]
        == "This model knows only the procedural world, so its words about this video would mean nothing."
    )


# ---- clips and visitors


def test_uploads_are_checked_and_made_playable(tmp_path):
    frames = moving(20, 120, 160)
    plain = write_video(tmp_path / "plain.mp4", frames, "libx264")
    odd = write_video(tmp_path / "odd.mkv", frames, "mpeg4")
    for index, (path, same) in enumerate(((plain, True), (odd, False))):
        folder = tmp_path / str(index)
        folder.mkdir()
        clip = clips.upload("id", folder, path, "my clip.mp4", 180.0)
        assert (clip.shown == clip.path) is same and clips.playable(clip.shown)
        assert clip.title == "my clip.mp4" and clip.notice == ""
        assert len(decode_video(clip.path, 2.0)[0]) == 4
    folder = tmp_path / "long"
    folder.mkdir()
    assert "first 0.01" in clips.upload("id", folder, plain, "long.mp4", 0.6).notice
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(plain.read_bytes()[:300])
    for path in (broken, write_sound(tmp_path / "sound.mp4")):
        folder = tmp_path / path.stem
        folder.mkdir()
        with pytest.raises((ValueError, OSError), match="holiday.mp4") as caught:
            clips.upload("id", folder, path, "holiday.mp4", 180.0)
        assert str(tmp_path) not in str(caught.value)


def test_idle_streams_are_deleted_and_used_ones_stay(tmp_path):
    uploads = [tmp_path / name for name in ("old.mp4", "new.mp4")]
    kept = set(map(str, uploads))
    visitors = Visitors(models(), Settings(running=1, idle_seconds=100.0), lambda: kept)
    old, used = (visitors.add_clip(clips.scene, seed) for seed in (1, 2))
    streams = [visitors.begin(clip, Controls(), None, False) for clip in (old, used)]
    assert visitors.line.place(streams[1].id) == 1
    for file in uploads:
        file.touch()
    os.utime(uploads[0], (1, 1))
    for thing in (*streams, old, used):
        thing.touched = clock.monotonic() - 101
    visitors.stream(streams[1].id)
    visitors.sweep()
    assert [file.exists() for file in uploads] == [False, True] and kept == {str(uploads[1])}
    assert not old.path.exists() and used.path.exists() and streams[0].over and not streams[1].over
    assert visitors.line.place(streams[1].id) == 0
    with pytest.raises(Gone, match="choose it again"):
        visitors.clip(old.id)
    with pytest.raises(Gone, match="start again"):
        visitors.stream(streams[0].id)
    visitors.close()
    assert streams[1].over and not used.path.exists()


# ---- the server


def test_only_page_and_assets_are_served_with_a_policy(served):
    _, url = served
    page = web.get(url)
    assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
    assert "http://" not in page.text and "https://" not in page.text
    for name in ("main.js", "style.css", "icon.svg"):
        assert web.get(f"{url}assets/{name}").status_code == 200
    for path in ("assets/server.py", "media/nothing", "download/nothing/narration.vtt"):
        assert web.get(url + path).status_code == 404, path
    names = web.get(f"{url}gradio_api/info").json()["named_endpoints"]
    assert set(names) == {"/narrate", "/ask"}
    for option in names["/narrate"]["parameters"]:
        assert f"{option['parameter_name']}: " in names["/narrate"]["description"]


def test_wrong_calls_get_one_sentence(served, tmp_path):
    _, url = served
    secret = tmp_path / "secret.mp4"
    write_clip(secret, 1)
    status, clip = call(url, "choose", "example", "world", "")
    assert status == 200
    long = "x" * 301
    for name, data, message in [
        ("choose", ["example", "nothing", ""], "There is no example 'nothing'; the examples are world, cup"),
        ("choose", ["tape", None, ""], "The kind must be example, scene, camera or upload, got 'tape'."),
        ("choose", ["upload", {"path": str(secret)}, "x"], "There is no such upload. Please upload the video again."),
        ("choose", ["upload", "../../etc/passwd", "x"], "There is no such upload. Please upload the video again."),
        ("choose", ["upload", [1], "x"], "There is no such upload. Please upload the video again."),
        ("begin", ["unknown", {}], "This video no longer exists. Please choose it again."),
        ("begin", [clip["clip"], {"keep_ratio": 0}], "The keep ratio must be above 0 and at most 1, got 0."),
        ("begin", [clip["clip"], {"threshold": "high"}], "The threshold must be a number, got 'high'."),
        ("begin", [clip["clip"], {"rule": "always"}], "The speaking rule must be trained or verify, got 'always'."),
        ("begin", [clip["clip"], {"memory": 0}], "The memory must be between 1 and 64 frames, got 0."),
        (
            "begin",
            [clip["clip"], {"instruction": long}],
            "The instruction may have at most 300 characters, but has 301.",
        ),
        ("advance", ["unknown", 0, {}, {}, None], "This stream was deleted because it was idle for too long."),
        ("begin", [clip["clip"], 7], "Something went wrong on the server. Please start again."),
    ]:
        status, answer = call(url, name, *data)
        assert status == 500 and answer.startswith(message), (name, data, answer)


def test_too_large_upload_is_refused(tmp_path):
    with launched(TINY_WORLD, upload_megabytes=1) as (_, url):
        path = tmp_path / "large.mp4"
        path.write_bytes(bytes(1_200_000))
        with pytest.raises(httpx.HTTPStatusError, match="413"):
            upload(url, path)


def test_a_closed_space_leaves_nothing_running():
    with launched(TINY_WORLD) as (_, url):
        assert web.get(url).status_code == 200
        before = threading.active_count()
        with launched(TINY_WORLD) as (other, elsewhere):
            clip = call(elsewhere, "choose", "scene", 81, "")[1]["clip"]
            call(elsewhere, "begin", clip, {})
            (stream,) = other.visitors.streams.values()
        until(lambda: threading.active_count() <= before, "the end of its threads")
        assert stream.over and not other.visitors.clips[clip].folder.exists()
        with pytest.raises(httpx.ConnectError):
            web.get(elsewhere)
        assert web.get(url).status_code == 200


def test_line_has_a_limit_and_moves_on():
    with launched(TINY_WORLD, running=1, waiting=1, patience_seconds=PATIENCE) as (space, url):
        assert web.get(f"{url}about.json").json()["limits"]["waiting"] == 1
        clip = call(url, "choose", "scene", 81, "")[1]["clip"]
        first, second = (call(url, "begin", clip, {})[1] for _ in range(2))
        assert (first["waiting"], second["waiting"]) == (0, 1)
        assert call(url, "begin", clip, {}) == (
            500,
            "Too many people are here right now. Please try again in a minute.",
        )
        waiting = call(url, "advance", second["stream"], 2.0, {}, {}, None)[1]
        assert waiting["waiting"] == 1 and waiting["lanes"]["mod"]["frames"] == []
        call(url, "stop", first["stream"], {})
        going = call(url, "advance", second["stream"], 2.0, {}, {}, None)[1]
        assert going["waiting"] == 0 and len(going["lanes"]["mod"]["frames"]) == 5
        call(url, "stop", second["stream"], {})
        assert len(space.visitors.line._heard) == 0


def test_example_of_the_docs_runs(served_bundled, tmp_path, monkeypatch, capsys):
    import re

    from gradio_client import Client

    _, url = served_bundled
    ((_, block),) = python_blocks(ROOT / "docs" / "how-to" / "space.md")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gradio_client.Client", partial(Client, **PATIENT))
    _, truth = write_clip(tmp_path / "video.mp4", seed=3)
    address = re.search(r"http://[\d.:]+/?", block)[0]
    exec(block.replace(address, url), {})
    printed = capsys.readouterr().out
    for turn in json.loads(truth.read_text())["turns"]:
        assert turn["content"] in printed
    assert (tmp_path / "video.vtt").read_text().startswith("WEBVTT")
    assert printed.rstrip().endswith("s  " + world_stream(3).narrations[-1][1])  # what happened last


def test_two_programs_do_not_share_a_stream(served_bundled, tmp_path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    _, url = served_bundled
    clients = [Client(url, verbose=False, **PATIENT) for _ in range(2)]
    paths = [write_clip(tmp_path / f"{seed}.mp4", seed)[0] for seed in (91, 92)]
    jobs = [
        client.submit(handle_file(path), compare=client is clients[0], api_name="/narrate")
        for client, path in zip(clients, paths, strict=True)
    ]
    for client, job, seed in zip(clients, jobs, (91, 92), strict=True):
        result = job.result(timeout=PATIENCE)
        said = [(event["time"], event["text"]) for event in result["events"]]
        assert set(said) <= set(world_stream(seed).narrations) and len(said) >= 3
        for earlier in job.outputs():  # in the order of arrival
            assert earlier["events"] == result["events"][: len(earlier["events"])]
        assert 0 < len(job.outputs()[0]["events"]) < len(said)
        assert client is not clients[0] or result["stats"]["mod"]["kv_bytes"] < result["stats"]["dense"]["kv_bytes"]
        answer = client.predict("What happened last?", api_name="/ask")
        assert answer["text"] == world_stream(seed).narrations[-1][1]
    with pytest.raises(AppError, match="idle for too long"):
        Client(url, verbose=False, **PATIENT).predict("What happened last?", api_name="/ask")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(AppError, match="broken.mp4") as caught:
        clients[0].predict(handle_file(broken), api_name="/narrate")
    assert "Traceback" not in str(caught.value)


def test_call_without_a_session_is_asked_about_by_its_id_only(served, tmp_path):
    from gradio import Request

    space, url = served
    path, _ = write_clip(tmp_path / "clip.mp4", 93)
    *_, last = space.narrate({"path": upload(url, path)}, request=Request())
    with pytest.raises(Gone):  # it may be the call of another visitor
        space.ask("What happened last?", request=Request())
    assert space.ask("What happened last?", last["stream"], request=Request())["kind"] == "answer"


def test_downloads_over_http(served):
    _, url = served
    clip = call(url, "choose", "scene", 95, "")[1]["clip"]
    stream = call(url, "begin", clip, {})[1]["stream"]
    view = {"more": True}
    while view.get("more"):
        view = call(url, "advance", stream, 3.0, {}, {}, None)[1]
    for name, kind in {"narration.vtt": "text/vtt", "narration.srt": "text/plain", "overlay.mp4": "video/mp4"}.items():
        response = web.get(f"{url}download/{stream}/{name}")
        assert response.status_code == 200 and response.headers["content-type"].startswith(kind)
        assert response.headers["content-disposition"].startswith('attachment; filename="Random-scene-95')
    with av.open(io.BytesIO(response.content)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 7
    part = web.get(f"{url}media/{clip}", headers={"Range": "bytes=0-99"})
    assert part.status_code == 206 and len(part.content) == 100
    assert call(url, "stop", stream, {})[1]["over"]
