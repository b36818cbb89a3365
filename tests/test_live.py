"""Live sources: real servers that are slow, disconnect and come back, and timestamps that are wrong."""

import io
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from comparing import assert_same_events
from fork_server import ForkedProcess
from fresh_process import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from media_servers import FileServer, RtspServer, Slow
from narrating import NOTE
from PIL import Image
from video_files import moving, write_video
from waiting import PATIENCE, until

from videollm_mod.containers import open_container
from videollm_mod.data.world import world_stream
from videollm_mod.decoding import decode_video
from videollm_mod.narration.narrate import narrate
from videollm_mod.narration.options import NarrateOptions
from videollm_mod.sources import live_source, source
from videollm_mod.sources.live import WAITING, BoundedQueue, LiveWatch
from videollm_mod.sources.live_source import LiveClock, LiveCounts, LiveFrame, LiveSource

COMMAND = [sys.executable, "-m", "videollm_mod.commands.cli", "narrate"]


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """No source is lost because this machine stands still."""
    monkeypatch.setattr(source, "TIMEOUT", float(PATIENCE))


@pytest.fixture
def rtsp():
    try:
        server = RtspServer(fps=20)
    except OSError as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))
    yield server
    server.kill()


@pytest.fixture
def serve():
    servers = []

    def start(path, **options):
        servers.append(FileServer(path, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


# --- real servers


def test_a_stream_continues_after_its_server_was_killed(checkpoint, rtsp):
    session = checkpoint[0].stream(checkpoint[1], speak_threshold=1.0, max_cached_frames=8, max_new_tokens=4)
    times, killed = [], None
    with LiveWatch(session, source.open_source(rtsp.url, 4.0).live) as live:
        for frame, watched in live:
            assert frame.image.shape == (192, 192, 3) and watched.event is not None
            times.append(frame.time)
            if len(times) == 5:
                rtsp.kill()
                # two failed attempts, with pauses of 0.75 seconds in all; the next pause is 1 second
                until(lambda: live.source.counts.attempts_failed >= 2, "another attempt to connect")
                rtsp.start()
                killed = len(times)
            # frames that were decoded before the gap come out first
            if killed and (max(np.diff(times)) >= 0.9 or len(times) > killed + 100):
                break
    stats = live.stats
    assert times == sorted(times) and stats["connections_lost"] >= 1 and stats["seconds_lost"] >= 1
    assert max(np.diff(times)) >= 0.9  # lost time counts as time of the stream
    assert stats["latency"]["event"]["count"] == len(times)


def test_a_slow_model_sees_fewer_but_recent_frames(checkpoint, rtsp):
    session = Slow(checkpoint[0].stream(checkpoint[1], speak_threshold=0.0, max_cached_frames=8), 0.1)
    seen, waiting = [], []
    with LiveWatch(session, source.open_source(rtsp.url, 20.0).live) as live:
        for frame, _ in live:
            seen.append(frame.time)
            sampled = live.stats["sampled"]
            waiting.append(sampled - live.stats["dropped"]["behind"] - len(seen))
            if len(seen) == 30:
                break
    stats = live.stats
    assert stats["dropped"]["behind"] > 10 and "dropped" in stats["when_behind"]
    assert stats["sampled"] >= len(seen) + stats["dropped"]["behind"]
    # `WAITING` frames each at most: decoded, in the encoder, encoded, and before the session
    assert max(waiting) <= 4 * WAITING
    assert seen == sorted(seen) and seen[-1] > 2  # it keeps up with the stream


def test_an_interrupted_live_narration_ends_with_statistics(rtsp, tmp_path):
    output = tmp_path / "out.jsonl"
    command = [*COMMAND, rtsp.url, "--output", output, "--threshold", "1", "--query", "What is there?@0.5"]
    process = ForkedProcess(command)
    until(lambda: process.poll() is not None or (output.exists() and output.read_text().count("\n") >= 4))
    assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    *events, last = map(json.loads, output.read_text().splitlines())
    assert (process.returncode, out, err) == (130, "", NOTE)
    assert {"narration", "answer"} == {event["kind"] for event in events}
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    assert last["stats"]["live"]["latency"]["event"]["p95"] > 0
    assert last["stats"]["live"]["dropped"]["behind"] >= 0


def test_a_file_looped_over_http_plays_in_real_time(checkpoint, tmp_path, serve):
    path = write_video(tmp_path / "a.ts", moving(20, 48, 64), "mpeg2video", fps=20)  # a second
    server = serve(path, rounds=3, pause=0.1)
    session = checkpoint[0].stream(checkpoint[1], speak_threshold=0.0, max_cached_frames=8)
    opened, times = source.open_source(f"{server.url}/loop", 5.0), []
    assert opened.live is not None and opened.duration is None
    start = None
    with LiveWatch(session, opened.live) as live:
        for frame, _ in live:
            start = start or time.monotonic()
            times.append(frame.time)
            if frame.time > 6:
                break
    stats = live.stats
    assert time.monotonic() - start > 5  # real time, although the whole file was there at once
    assert times == sorted(times) and stats["connections_lost"] >= 1
    assert stats["jumps"] + stats["reversed"] >= 2  # where the file begins again
    assert server.requests >= 3


def test_a_recording_over_http_is_watched_in_full(checkpoint, tmp_path, serve):
    file = write_video(tmp_path / "a.ts", world_stream(61).frames(4, 192)[:24], "mpeg4", fps=4)
    server, found = serve(file), []
    for source_name in (str(file), f"{server.url}/once", f"{server.url}/cut"):
        events = []
        options = NarrateOptions(source=source_name, output=tmp_path / "o.jsonl", fps=2.0)
        found.append((narrate(options, load=lambda _: checkpoint, echo=events.append), events))
    (local, expected), *others = found
    assert expected
    for stats, events in others:
        assert_same_events(events, expected)
        assert "live" not in stats and stats["frames"] == local["frames"] == 12


def watch(source: str, checkpoint, folder) -> tuple[list, dict]:
    """`[(time, text)]` and the statistics of a source; no frame is dropped."""
    events = []
    options = NarrateOptions(source=source, output=folder / "o.jsonl", fps=2.0, when_behind="wait")
    stats = narrate(options, load=lambda _: checkpoint, echo=events.append)
    return [(event.time, event.text) for event in events], stats


ENDS = {
    "webm in chunks": ("a.webm", "libvpx", "chunks", False),
    "webm until it hangs up": ("a.webm", "libvpx", "plain", False),
    "flv in chunks": ("a.flv", "libx264", "chunks", False),
    "ts in chunks": ("a.ts", "libx264", "chunks", True),
    "ts until it hangs up": ("a.ts", "libx264", "plain", True),
    "mp4 in fragments and chunks": ("a.mp4", "libx264", "chunks", True),
    "a list of parts": ("a.m3u8", "libx264", "a.m3u8", False),
}


@pytest.mark.parametrize("name", ENDS)
def test_stream_is_watched_to_its_end(checkpoint, tmp_path, serve, name, monkeypatch):
    unpaced = lambda *args, **options: LiveSource(*args, **options | {"paced": False})  # noqa: E731
    monkeypatch.setattr(source, "LiveSource", unpaced)
    file, codec, path, live = ENDS[name]
    stream, sound = world_stream(61), "libopus" if file.endswith("webm") else "aac"
    options = {"movflags": "frag_keyframe+empty_moov"} if file.endswith("mp4") else {}
    if file.endswith("m3u8"):
        options = {"hls_time": "1", "hls_list_size": "0", "hls_playlist_type": "vod"}
    file = write_video(tmp_path / file, stream.frames(4, 192)[:16], codec, fps=4, audio=sound, **options)
    server = serve(file)
    events, stats = watch(f"{server.url}/{path}", checkpoint, tmp_path)
    assert events == watch(str(file), checkpoint, tmp_path)[0]
    assert [time for time, _ in events] == [time for time, _ in stream.narrations if time < 4] != []
    assert ("live" in stats) == live and stats["frames"] == 8
    if live:
        assert stats["live"]["connections_lost"] == 0 and stats["live"]["decoded"] == 16


def test_a_playlist_is_as_long_as_its_segments(tmp_path, serve):
    options = {"hls_time": "1", "hls_list_size": "0", "hls_playlist_type": "vod"}
    file = write_video(tmp_path / "a.m3u8", moving(40, 48, 64), "libx264", fps=10, audio="aac", **options)
    assert source.open_source(f"{serve(file).url}/a.m3u8", 2.0).duration == pytest.approx(4, abs=0.2)


def test_an_unfinished_playlist_is_live_until_it_is_complete(tmp_path, serve):
    """Decoding ends when no new segment comes; only the playlist, read again, tells whether it is complete."""
    options = {"hls_time": "1", "hls_list_size": "0", "hls_playlist_type": "event"}
    file = write_video(tmp_path / "a.m3u8", moving(40, 48, 64), "libx264", fps=10, g="10", **options)
    whole = file.read_text()
    file.write_text(whole.replace("#EXT-X-ENDLIST", ""))
    opened = source.open_source(f"{serve(file).url}/a.m3u8", 2.0)
    assert opened.live is not None and opened.duration is None
    seen = []
    for frame in opened.live:
        seen.append(frame.time)
        file.write_text(whole)
    assert len(seen) >= 2 and opened.live.counts.attempts_failed == 0


def test_a_file_address_is_a_path(checkpoint, tmp_path):
    stream = world_stream(61)
    path = write_video(tmp_path / "a b%c.ts", stream.frames(4, 192)[:16], "libx264", fps=4)
    for address in (path.as_uri(), path.as_uri().replace("file:///", "FILE://localhost/")):
        assert "%20" in address
        events, stats = watch(address, checkpoint, tmp_path)
        assert events == watch(str(path), checkpoint, tmp_path)[0]
        assert [time for time, _ in events] == [time for time, _ in stream.narrations if time < 4] != []
        assert "live" not in stats and stats["frames"] == 8
        assert len(decode_video(address, 2)[0]) == 8
    with pytest.raises(OSError, match=re.escape(f"there is no video {tmp_path}/no such.mp4")):
        source.open_source((tmp_path / "no such.mp4").as_uri(), 2.0)
    with pytest.raises(ValueError, match="must be `file:///` and a path of this machine, got 'file://a.mp4'"):
        source.open_source("file://a.mp4", 2.0)
    with pytest.raises(ValueError, match="`--output` would overwrite the source"):
        NarrateOptions(source=path.as_uri(), output=path).check()


def test_a_broken_download_is_continued(tmp_path, serve, monkeypatch):
    """The last, empty chunk is missing."""
    monkeypatch.setattr(live_source, "FIRST_DELAY", 0.01)
    path = write_video(
        tmp_path / "a.ts", moving(100, 48, 64), "mpeg2video", fps=20
    )  # more than FFmpeg analyses at first
    server, seen = serve(path, rounds=1), []
    live = source.open_live(f"{server.url}/loop", 5.0)
    live.paced = False
    for frame in live:
        seen.append(frame.time)
        if live.counts.connections_lost == 2:
            live.stop()
    assert len(seen) > 40 and live.counts.attempts_failed == 0 and server.requests == 2 * 3


def test_only_file_server_streams_may_end():
    assert source.open_live("rtmp://127.0.0.1/live", 2.0).endless
    assert source.open_live("rtsp://127.0.0.1/live", 2.0).endless
    assert not source.open_live("https://127.0.0.1/live", 2.0).endless


def test_messages_do_not_show_passwords(tmp_path):
    with pytest.raises(OSError, match=r"rtsp://127.0.0.1:9/x") as caught:
        source.open_source("rtsp://me:secret@127.0.0.1:9/x", 2.0)
    assert "secret" not in str(caught.value) and "me:" not in str(caught.value)


def test_standard_input_waits_for_the_model_by_default(checkpoint, tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.ts", moving(40, 48, 64), "mpeg2video", fps=20)
    options = {"source": "-", "output": tmp_path / "o.jsonl", "fps": 20.0, "threshold": 0.0}
    stats = {}
    for policy in ("wait", "drop"):
        with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=cat.stdout))
            stats[policy] = narrate(NarrateOptions(**options, when_behind=policy), load=lambda _: checkpoint)
    assert stats["wait"]["frames"] == 40 and "live" not in stats["wait"]
    live = stats["drop"]["live"]
    assert stats["drop"]["frames"] + live["dropped"]["behind"] == live["sampled"] > 30


# --- what is asked for


def test_cameras_are_opened_with_the_driver_of_the_system(monkeypatch):
    asked = []
    monkeypatch.setattr(source, "open_container", lambda address, **options: asked.append((address, options)))
    for platform, name in (("linux", "/dev/video3"), ("darwin", "3"), ("win32", "video=3")):
        monkeypatch.setattr(sys, "platform", platform)
        source.open_live("webcam:3", 2.0).connect()
        assert asked[-1] == (name, {"format": source.CAMERAS[platform][0]})
    for wrong in ("webcam:", "webcam:1_0", "webcam:\u0661", "webcam:-1", "webcam:1234567"):
        with pytest.raises(ValueError, match="a camera is `webcam:` and its number"):
            source.open_live(wrong, 2.0)
    with pytest.raises(ValueError, match="a live source is"):
        source.open_live("a.mp4", 2.0)


def test_frames_of_a_recording_are_never_dropped():
    with pytest.raises(ValueError, match="is a recording; no frames of a recording are dropped"):
        source.open_source(str(ROOT / "media" / "world.mp4"), 2.0, when_behind="drop")
    with pytest.raises(ValueError, match="`--when-behind` must be drop or wait, got 'skip'"):
        NarrateOptions(source="x", when_behind="skip").check()


# --- clocks


@settings(max_examples=60)
@given(st.lists(st.one_of(st.none(), st.floats(-1e12, 1e12), st.integers(-3, 3).map(float)), max_size=30), st.data())
def test_time_never_goes_back_whatever_the_timestamps(stamps, data):
    counts, now, last = LiveCounts(), 0.0, 0.0
    clock = LiveClock(counts, gap=1.0)
    for seconds in stamps:
        now += data.draw(st.floats(0, 2))
        found = clock(seconds, now)
        assert math.isfinite(found) and last <= found <= max(last, now) + live_source.AHEAD + 1
        last = found
    assert counts.missing == sum(seconds is None for seconds in stamps)


def test_implausible_timestamps_are_counted():
    counts = LiveCounts()
    clock = LiveClock(counts, gap=1.0)
    stamps = [100.0, 100.5, 100.5, 100.3, 101.0, None, 102.0, 105.0, 50.0, 50.5, 99_999.0, 99_999.5]
    arrived = [7.0, 7.5, 7.5, 7.5, 8.0, 8.5, 9.0, 12.0, 12.5, 13.0, 13.5, 14.0]
    times = [clock(seconds, now) for seconds, now in zip(stamps, arrived, strict=True)]
    assert times == [0.0, 0.5, 0.5, 0.5, 1.0, 1.5, 2.0, 5.0, 5.5, 6.0, 6.5, 7.0]
    found = (counts.repeated, counts.reversed, counts.missing, counts.jumps, counts.gaps, counts.gap_seconds)
    assert found == (1, 1, 1, 2, 1, 3.0)


# --- stages


def test_watching_features_equals_watching_frames(checkpoint):
    frames, times = world_stream(63).frames(2, 96)[:12], world_stream(63).frame_times(2).tolist()[:12]
    model, processor = checkpoint
    one, other = model.stream(processor), model.stream(processor)
    features = LiveWatch(one, None).encode([LiveFrame(image, 0.0, 0.0) for image in frames])
    watched = list(one.watch_encoded(features, times))
    events = [w.event for w in watched if w.event]
    assert_same_events(events, other.push(frames, times))  # in other batches
    assert events != []


def test_questions_between_frames_lose_no_frame(checkpoint):
    frames, times = world_stream(64).frames(2, 96)[:12], world_stream(64).frame_times(2).tolist()[:12]
    model, processor = checkpoint
    one, other = model.stream(processor), model.stream(processor)
    live, events, expected = LiveWatch(one, None), [], []
    block = [LiveFrame(image, time, 0.0) for image, time in zip(frames, times, strict=True)]
    for frame, encoded in zip(block, live.encode(block), strict=True):
        frame.features = encoded
    for index, (_, watched) in enumerate(live.watch(block)):
        events += [watched.event] if watched.event else []
        if index % 7 == 3:
            events += one.ask("What happened last?")
    for index, (image, moment) in enumerate(zip(frames, times, strict=True)):
        expected += other.push(image[None], [moment])
        if index % 7 == 3:
            expected += other.ask("What happened last?")
    assert [(e.time, e.kind, e.text) for e in events] == [(e.time, e.kind, e.text) for e in expected]


def test_a_full_queue_drops_its_oldest_item():
    queue = BoundedQueue(3, drop=True)
    for item in range(10):
        assert queue.put(item)
    assert queue.take() == [7, 8, 9] and queue.dropped == 7
    queue.put(1)
    queue.end(OSError("cable"))
    assert queue.take() == [1] and not queue.put(2)
    with pytest.raises(OSError, match="cable"):
        queue.take()


def test_an_error_in_a_stage_is_raised(checkpoint, monkeypatch):
    rng = random.Random(5)
    images = [np.full((8, 8, 3), rng.randrange(256), np.uint8) for _ in range(3)]

    class Fails:
        counts = LiveCounts()

        def __iter__(self):
            yield from (LiveFrame(image, index / 2, time.perf_counter()) for index, image in enumerate(images))
            raise OSError("the cable was pulled")

        def stop(self):
            pass

    session, seen = checkpoint[0].stream(checkpoint[1], speak_threshold=0.0), []
    with pytest.raises(OSError, match="cable"), LiveWatch(session, Fails(), "wait") as live:
        for frame, _ in live:
            seen.append(frame.time)
    assert seen == [0.0, 0.5, 1.0]  # the frames before the error have been watched

    session = checkpoint[0].stream(checkpoint[1])
    monkeypatch.setattr(
        session.model, "encode_frames", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
    )
    with pytest.raises(torch.OutOfMemoryError), LiveWatch(session, Fails(), "wait") as live:
        list(live)


def test_lost_source_is_given_up_after_a_while(monkeypatch):
    monkeypatch.setattr(live_source, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(live_source, "LONGEST_DELAY", 0.05)
    now = 0.0
    monkeypatch.setattr(live_source, "monotonic", lambda: now)

    def connect():
        nonlocal now
        now += 0.1
        raise OSError("connection refused")

    lost = LiveSource("camera", connect, 2.0, give_up_after=0.35)
    with pytest.raises(OSError, match="connection refused"):  # it was never there
        list(lost)
    assert now == 0.1
    lost._came = True
    with pytest.raises(OSError, match="camera did not come back for 0.35 seconds: connection refused"):
        list(lost)
    assert lost.counts.attempts_failed == 3  # after the lost connection


def test_pictures_without_timestamps_follow_the_wall_clock(tmp_path):
    """`multipart/x-mixed-replace` of cameras has no timestamps; FFmpeg makes them up, 25 per second."""
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(picture := io.BytesIO(), "jpeg")
    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture.getvalue())}\r\n\r\n"
    (tmp_path / "camera").write_bytes((head.encode() + picture.getvalue() + b"\r\n") * 3)
    source_of = LiveSource("camera", lambda: open_container(str(tmp_path / "camera"), format="mpjpeg"), 2.0)
    assert [seconds for _, seconds in source_of._decoded()] == [None] * 3
