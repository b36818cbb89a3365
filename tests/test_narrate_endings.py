"""`videollm-mod narrate` when it is killed, interrupted, or not read any more: its files are whole."""

import json
import random
import signal
import time as clock
from pathlib import Path

import pytest
from fork_server import ForkedProcess
from narrating import COMMAND, cues, truth
from waiting import until

from videollm_mod.data.world import world_stream
from videollm_mod.decoding import decode_video
from videollm_mod.narration import narrate
from videollm_mod.sources import source


def start(clip: Path, folder: Path, *arguments) -> ForkedProcess:
    """A process that writes an overlay too, and speaks after each frame."""
    return ForkedProcess([*COMMAND, clip, "--overlay", folder / "o.mp4", "--threshold", 1, *arguments])


def readable(folder: Path, name: str) -> int:
    """Check the file that a killed process left, and return its number of events."""
    if (folder / "o.mp4").exists() and (folder / "o.mp4").stat().st_size > 5000:
        assert len(decode_video(folder / "o.mp4", 2)[0]) > 0
    if not (folder / name).exists():
        return 0
    text = (folder / name).read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    if name.endswith(".jsonl"):
        return len([json.loads(line) for line in text.splitlines()])
    if not text.strip() or text.strip() == "WEBVTT":
        return 0
    return len(cues(folder / name))


@pytest.mark.parametrize("name", ["out.jsonl", "out.srt", "out.vtt"])
def test_a_killed_process_leaves_whole_files(tmp_path, clip, name):
    rng, counts = random.Random(name), []
    for attempt in range(2):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        process = start(clip, folder, "--output", folder / name, "--fps", 8)
        until(lambda path=folder / name: path.exists() and path.stat().st_size > 20, "the first event")
        until(lambda path=folder / "o.mp4": path.exists() and path.stat().st_size > 0, "the first frame")
        clock.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        counts.append(readable(folder, name))
    assert max(counts) > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_files_properly(tmp_path, clip, number):
    process = start(clip, tmp_path, "--output", tmp_path / "out.vtt", "--fps", 8)
    until(lambda: (tmp_path / "out.vtt").exists() and (tmp_path / "out.vtt").stat().st_size >= 60, "the first event")
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 128 + number and (out, err) == ("", "")
    assert readable(tmp_path, "out.vtt") > 0
    frames = len(decode_video(tmp_path / "o.mp4", 8)[0])
    assert 0 < frames < 8 * world_stream(60).seconds


def test_a_closed_pipe_is_not_an_error(clip):
    process = ForkedProcess([*COMMAND, clip])
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() in (0, 1) and err == ""


def test_frames_decoded_before_an_error_are_watched(checkpoint):
    frames, times = world_stream(62).frames(2, 96), world_stream(62).frame_times(2).tolist()

    def fails():
        yield from zip(frames, times, strict=True)
        raise OSError("the cable was pulled")

    events = []
    session = checkpoint[0].stream(checkpoint[1])
    narration = narrate.Narration(session, source.Source("x", fails()), 2.0, [], events.append, lambda *_: None)
    with pytest.raises(OSError, match="cable"):
        narration.run()
    assert [(event.time, event.text) for event in events] == truth(62)
