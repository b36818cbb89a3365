"""`videollm-mod narrate`: videos of all kinds, what it is asked, and every format. `test_narrate_truth.py` shows that
what it says is right."""

import gc
import io
import json
import os
import random
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fork_server import command, run_forked
from fresh_process import ROOT
from narrating import COMMAND, NOTE, broken_checkpoint, is_one_line
from PIL import Image
from video_files import moving, write_video

from videollm_mod import WatchedFrame
from videollm_mod.commands import cli
from videollm_mod.containers import video_duration
from videollm_mod.data.timeline import groups_of
from videollm_mod.data.world import world_stream
from videollm_mod.decoding import MAX_PIXELS, decode_video, iter_video_frames, limited_size
from videollm_mod.loading import checkpoint as loading
from videollm_mod.narration import narrate
from videollm_mod.narration.options import Query
from videollm_mod.sources import source

# --- what it can watch


@pytest.fixture(scope="module")
def checkpoint(narrator):
    return narrator


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """The first six frames of `clip`, after the last of which the model speaks."""
    path = tmp_path_factory.mktemp("short") / "short.mp4"
    return write_video(path, world_stream(60).frames(2, 384)[:6], "libx264", fps=2)


VIDEOS = {
    "webm without duration": ("a.webm", "libvpx-vp9", {"seekable": False}),
    "h265 in mp4 with sound": ("a.mp4", "libx265", {"audio": "aac"}),
    "mpeg4 in avi at 12.5": ("a.avi", "mpeg4", {"fps": 12.5}),
    "mpeg2 in a transport stream at 25": ("a.ts", "mpeg2video", {"fps": 25}),
    "a transport stream that cannot be sought": ("a.ts", "mpeg2video", {"fps": 25, "seekable": False}),
    "vp8": ("a.webm", "libvpx", {"fps": 29.97}),
    "gif": ("a.gif", "gif", {}),
    "flash": ("a.flv", "flv1", {}),
    "prores": ("a.mov", "prores_ks", {}),
    "variable rate": ("a.mkv", "mjpeg", {"times": [0, 0.1, 0.9, 1.5, 1.55, 3.0, 3.1, 4.2, 4.21, 5.0, 5.1, 6.0]}),
    "one frame a second": ("a.mp4", "libx264", {"fps": 1}),
    "120 frames a second": ("a.mp4", "libx264", {"fps": 120}),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_containers_codecs_and_rates_are_narrated(run, tmp_path, name):
    file, codec, options = VIDEOS[name]
    height, width = random.Random(name).choice([(48, 64), (120, 90), (240, 426)])
    count = 4 if options.get("fps") == 1 else 12
    path = write_video(tmp_path / file, moving(count, height, width), codec, **options)
    code, lines, err = run(path, "--format", "jsonl", "--fps", 2)
    events = [json.loads(line) for line in lines]
    assert (code, err) == (0, "")
    frames = sum(1 for _ in iter_video_frames(path, 2))
    assert events[-1]["stats"]["frames"] == frames > 0
    times = [event["time"] for event in events[:-1]]
    assert times == sorted(times) and all(0 <= time < frames / 2 for time in times)
    assert set(events[-1]["stats"]) >= {"tokens", "kv_bytes", "kv_bytes_if_dense", "seconds", "keep_ratio"}


@pytest.mark.parametrize("height, width", [(1, 1), (1, 200), (333, 77), (720, 1280)])
def test_frames_of_any_size_are_narrated(run, tmp_path, height, width):
    path = write_video(tmp_path / "a.mkv", moving(3, height, width), "ffv1")
    code, _, err = run(path, "--overlay", tmp_path / "o.mp4")
    assert (code, err) == (0, "")
    assert len(decode_video(tmp_path / "o.mp4")[0]) == 1


def test_a_frame_of_too_many_pixels_is_scaled_down(run, tmp_path):
    assert MAX_PIXELS < 3200 * 3200
    Image.new("RGB", (3200, 3200), (200, 30, 30)).save(tmp_path / "big.jpg", quality=95)
    code, _, err = run(tmp_path / "big.jpg", "--threshold", 0)
    assert (code, err) == (0, "")
    (frame,), _ = decode_video(tmp_path / "big.jpg")
    assert frame.shape[0] * frame.shape[1] <= MAX_PIXELS and frame.shape[0] == frame.shape[1]
    assert np.abs(frame.astype(int) - (200, 30, 30)).max() <= 2
    assert limited_size(1920, 1080) == (1920, 1080)
    assert limited_size(100_000, 400) == (
        int(100_000 * (MAX_PIXELS / 4e7) ** 0.5),
        int(400 * (MAX_PIXELS / 4e7) ** 0.5),
    )


@pytest.mark.parametrize("fps", [0.001, 0.1, 0.15, 0.2, 0.37, 3])
def test_a_whole_video_is_not_cut_off_at_any_rate(run, fps):
    code, _, err = run(ROOT / "media" / "cup.mp4", "--fps", fps, "--threshold", 0)
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    "file, codec", [("late.mkv", "libx264"), ("late.webm", "libvpx-vp9"), ("late.mp4", "libx264")]
)
def test_a_video_that_starts_late_is_not_cut_off(run, tmp_path, file, codec):
    path = write_video(tmp_path / file, moving(60, 48, 64), codec, times=[30 + index / 10 for index in range(60)])
    code, lines, err = run(path, "--format", "jsonl", "--threshold", 0)
    assert (code, err) == (0, "") and json.loads(lines[-1])["stats"]["frames"] == 12
    assert video_duration(path) == pytest.approx(6.0, abs=0.15)


@pytest.mark.parametrize("jump", [1e5, -2.5])
def test_clock_continues_at_the_average_rate_after_a_jump(tmp_path, jump):
    times = [index / 10 for index in range(30)] + [2.9 + jump + index / 10 for index in range(1, 31)]
    path = write_video(tmp_path / "jump.mkv", moving(60, 48, 64), "mjpeg", times=times) if jump > 0 else None
    if path is None:  # no container writes such timestamps: join two recordings byte by byte
        parts = [write_video(tmp_path / f"{i}.ts", moving(30, 48, 64), "mpeg2video", fps=25) for i in range(2)]
        path = tmp_path / "joined.ts"
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
        times = [index / 25 for index in range(60)]
    found = [time for _, time in iter_video_frames(path, 5)]
    expected = 6.0 if jump > 0 else 2.4
    assert found == [index / 5 for index in range(len(found))] and abs(len(found) / 5 - expected) <= 0.4


def test_file_names_that_look_like_urls_are_files(run, tmp_path, monkeypatch, short):
    monkeypatch.chdir(tmp_path)
    shutil.copy(short, "http:a part 1.mp4")
    code, lines, err = run("http:a part 1.mp4", "--overlay", "file:o.mp4", "--output", "c:out.srt")
    assert (code, lines, err) == (0, [], "")
    assert len(decode_video("file:o.mp4", 2)[0]) > 4 and Path("c:out.srt").stat().st_size > 0


def test_a_pipe_is_sampled_at_the_rate_of_the_checkpoint(tmp_path, clip):
    folder = broken_checkpoint("whole", tmp_path / "checkpoint")
    config = json.loads((folder / "processor_config.json").read_text())
    config["video_processor"]["fps"] = 4.0
    (folder / "processor_config.json").write_text(json.dumps(config))
    path = write_video(tmp_path / "a.ts", decode_video(clip, 10)[0][:30], "mpeg2video", fps=10)
    with open(path, "rb") as file:
        done = run_forked([*COMMAND, "-", "--model", folder, "--format", "jsonl"], stdin=file)
    assert (done.returncode, done.stderr) == (0, NOTE)
    assert json.loads(done.stdout.splitlines()[-1])["stats"]["frames"] == 12


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_closed_standard_streams_are_one_error_line(clip, closed):
    source_name = "-" if closed == "<&-" else clip
    command = " ".join([*map(str, COMMAND), str(source_name), closed])
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2 and is_one_line(done.stderr)


def test_events_equal_those_of_a_session(run, clip, checkpoint):
    model, processor = checkpoint
    code, lines, _ = run(clip, "--format", "jsonl", "--threshold", 0.6, "--keep-ratio", 0.5)
    session = model.stream(processor, speak_threshold=0.6, keep_ratio=0.5)
    frames, times = decode_video(clip)
    expected = [
        event for frame, time in zip(frames, times, strict=True) for event in session.push(frame[None], [time])
    ]
    *events, last = map(json.loads, lines)
    assert code == 0 and len(events) == len(expected) > 0
    for event, other in zip(events, expected, strict=True):
        probability = event.pop("silence_probability")
        assert probability == pytest.approx(other.silence_probability, abs=1e-4)
        assert event == {"time": other.time, "kind": "narration", "text": other.text, "query": None}
    assert last["stats"]["kv_bytes"] == session.stats.kv_bytes and last["stats"]["keep_ratio"] == 0.5


def test_only_a_block_of_frames_is_held_in_memory(monkeypatch):
    """Frames are freed once they have been watched, however long the video is."""
    alive, most = weakref.WeakSet(), 0

    class Frame(np.ndarray):
        __hash__ = object.__hash__

    def frames():
        nonlocal most
        for index in range(500):
            frame = np.zeros((8, 8, 3), np.uint8).view(Frame)
            alive.add(frame)
            most = max(most, len(alive))
            yield frame, index / 2

    class Silent:
        def watch(self, images, times):
            return (WatchedFrame(time, 1.0, ()) for time in times)

    seen = []
    opened = source.Source("frames", frames())
    narrate.Narration(
        Silent(), opened, 2.0, [], on_event=None, on_frame=lambda image, watched: seen.append(watched.time)
    ).run()
    gc.collect()
    assert len(seen) == 500 and most <= narrate.BLOCK_FRAMES + 3 and len(alive) == 0


# --- what it is asked


def test_queries_are_asked_at_their_times(run, clip, checkpoint):
    model, processor = checkpoint
    code, lines, _ = run(
        clip, "--format", "jsonl", "--query", "What happened last?@1000", "--query", "Narrate what happens.",
        "--query", "How many objects are there?@3.2", "--query", "What is at the left?@0", "--query", "Where?@4.5"
    )  # fmt: skip
    session, expected, done = model.stream(processor), [], 0
    frames, times = decode_video(clip)
    session.instruct("Narrate what happens.")
    # as in training, a question at the time of a frame comes after that frame
    stops = {"What is at the left?": 1, "How many objects are there?": 7, "Where?": 10, "What happened last?": None}
    for question, stop in stops.items():
        expected += session.push(frames[done:stop], times[done:stop].tolist()) + session.ask(question)
        done = stop
    *events, last = map(json.loads, lines)
    assert code == 0
    shown = [(e["time"], e["kind"], e["text"], e["query"]) for e in events]
    assert shown == [(e.time, e.kind, e.text, e.query) for e in expected]
    assert last["stats"]["answers"] == 4
    assert [e["time"] for e in events] == sorted(e["time"] for e in events)


@pytest.mark.parametrize("live", [False, True])
def test_questions_are_asked_where_training_places_them(live, monkeypatch):
    """Also where the first frame comes late, and where times of frames are not exact."""
    frames, log = [SimpleNamespace(image=np.zeros((2, 2, 3), np.uint8), time=3 * 0.1 + i / 2) for i in range(4)], []
    times = np.array([frame.time for frame in frames])
    queries = [Query(f"{at}", at) for at in (0.0, 0.3, 0.8, 1.0, 1.8, 9.0)]

    class Session:
        time = None

        def watch(self, images, times):
            for self.time in times:
                log.append(self.time)
                yield WatchedFrame(self.time, 1.0, ())

        def ask(self, question):
            log.append(question)
            return []

    class Live:
        def __init__(self, session, *_):
            self.session = session

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def blocks(self):
            return iter([frames[:3], frames[3:]])

        def watch(self, part):
            yield from zip(part, self.session.watch(part, [frame.time for frame in part]), strict=True)

    monkeypatch.setattr("videollm_mod.sources.live.LiveWatch", Live)
    opened = source.Source("frames", iter([(frame.image, frame.time) for frame in frames]), live=live or None)
    kind = narrate.LiveNarration if live else narrate.Narration
    kind(Session(), opened, 2.0, queries, None, lambda *_: None).run()
    turns = [{"role": "user", "time": query.time, "content": query.text} for query in queries]
    groups = groups_of(turns, times, opening=0)
    groups[:2] = [[], groups[0] + groups[1]]  # nothing can be answered before the first frame
    expected = [[*times[:i][-1:], *(turn["content"] for turn in group)] for i, group in enumerate(groups)]
    assert log == [entry for group in expected for entry in group]


def test_one_instruction_is_all_that_a_family_takes(run, clip, checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint[1], "default_query", "What do you see?")
    queries = ["--query", "Who?", "--query", "Where?", "--query", "When?@1"]
    code, lines, err = run(clip, *queries, "--output", tmp_path / "a.srt")
    assert code == 2 and lines == [] and is_one_line(err) and not (tmp_path / "a.srt").exists()
    assert "narrates after one instruction: give one `--query` without a time, got 2" in err


def test_a_dash_means_standard_output(run, tmp_path, monkeypatch, short):
    monkeypatch.chdir(tmp_path)
    code, lines, err = run(short, "--output", "-", "--format", "jsonl")
    assert (code, err) == (0, "") and "stats" in json.loads(lines[-1]) and list(tmp_path.iterdir()) == []


def test_file_name_with_a_leading_dash_is_explained(run, tmp_path, monkeypatch, short):
    monkeypatch.chdir(tmp_path)
    shutil.copy(short, "-vid.mp4")
    hint = "; write a name that begins with - as ./-vid.mp4, or after --\n"
    for arguments in (["-vid.mp4"], ["a.mp4", "-vid.mp4"], ["a.mp4", "--overlay", "-vid.mp4"]):
        code, _, err = run(*arguments)
        assert code == 2 and is_one_line(err) and err.endswith(hint)
    found = [run(*name) for name in (["--", "-vid.mp4"], ["./-vid.mp4"], [short])]
    assert found[0][:2] == found[1][:2] == found[2][:2] and found[2][1]
    assert "begins with" not in run("a.mp4", "--threshold", "-x")[2]


LOCALES = {
    "a Windows console": {"PYTHONIOENCODING": "cp1252"},
    "ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("format", ["text", "jsonl", "vtt", "srt"])
def test_unprintable_characters_are_replaced_in_text_only(
    monkeypatch, capfdbinary, checkpoint, tmp_path, locale, format
):
    """In this process, with standard output as Python opens it in that locale."""
    ask = "import sys; print(sys.stdout.encoding, sys.stdout.errors)"
    encoding, errors = subprocess.run(
        [sys.executable, "-c", ask], env={**os.environ, **LOCALES[locale]}, capture_output=True, text=True
    ).stdout.split()
    assert encoding in ("cp1252", "ascii", "ANSI_X3.4-1968", "us-ascii")
    monkeypatch.setattr(loading, "load_checkpoint", lambda *_, **__: checkpoint)
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors, newline="\r\n")
    monkeypatch.setattr(sys, "stdout", out)
    question = os.fsencode("在哪里?").decode("ascii", "surrogateescape") if locale == "ASCII" else "在哪里?"
    path = write_video(tmp_path / "a.mkv", world_stream(61).frames(2, 96)[:4], "mjpeg", fps=2)
    arguments = [str(path), "--query", f"{question}@1", "--format", format]
    assert cli.main(["narrate", *arguments]) == 0
    written, err = out.buffer.getvalue(), capfdbinary.readouterr().err
    assert err.decode() == NOTE
    if format == "text":
        assert b"[????] " in written
    else:
        assert "在哪里?" in written.decode("utf-8") and b"\r" not in written


def test_faults_are_printed_on_any_console(tmp_path):
    file = tmp_path / "在.jsonl"
    file.write_text(
        '{"video": "在哪里.mp4", "turns": [{"time": 1, "role": "assistant", "content": "There."}]}\n', "utf-8"
    )
    for locale in LOCALES.values():
        done = subprocess.run(command("validate", file), env={**os.environ, **locale}, capture_output=True)
        assert done.returncode == 2 and b"there is no file" in done.stdout and b"???.mp4" in done.stdout
        assert done.stderr.startswith(b"error: 1 fault in ") and done.stderr.count(b"\n") == 1


def test_queries_are_parsed():
    assert Query.parse("What?@3") == Query("What?", 3.0)
    assert Query.parse("What @home?@0.5") == Query("What @home?", 0.5)
    assert Query.parse("Write to a@b.c") == Query("Write to a@b.c")
    assert Query.parse("Narrate.") == Query("Narrate.")
    for wrong in ("What?@-1", "What?@nan", "What?@inf", "What?@-inf", "@3", " ", ""):
        with pytest.raises(ValueError, match="`?-?-?query"):
            Query.parse(wrong)


# --- what it writes


def test_suffix_of_the_output_selects_the_format(run, short, tmp_path):
    starts = {"a.vtt": "WEBVTT", "a.srt": "1\n00:", "a.jsonl": '{"time"', "a.txt": "     "}
    for name, start in starts.items():
        assert run(short, "--output", tmp_path / name)[0] == 0
        assert (tmp_path / name).read_text().startswith(start)
    run(short, "--output", tmp_path / "a.srt", "--format", "jsonl")
    assert (tmp_path / "a.srt").read_text().startswith('{"time"')
