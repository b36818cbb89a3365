"""Times of frames if a recording's timestamps jump, or its duration is unknown."""

import itertools
import json
from pathlib import Path

import pytest
from fresh_process import ROOT
from narrating import NOTE
from small_data import said, small_model, write_lines
from video_files import moving, write_video

from videollm_mod.commands.cli import main
from videollm_mod.containers import video_duration
from videollm_mod.data.frames import video_seconds
from videollm_mod.data.jsonl import validate
from videollm_mod.data.streams import StreamExamples
from videollm_mod.decoding import decode_video, iter_video_frames, measured_duration

WORLD = ROOT / "media" / "world.mp4"


def joined(folder: Path, frames, clock: float) -> Path:
    """Two joined recordings at 10 fps, the first of 8 seconds; timestamps of the second start at `clock` seconds."""
    parts = []
    for index, (part, start) in enumerate(((frames[:80], 0.0), (frames[80:], clock))):
        times = [start + number / 10 for number in range(len(part))]
        parts.append(write_video(folder / f"{index}.ts", part, "libx264", times=times).read_bytes())
    path = folder / "joined.ts"
    path.write_bytes(b"".join(parts))
    return path


CLOCKS = {"the same": 0.0, "later": 50_000.0, "minutes later": 600.0, "a little later": 20.0}


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_duration_of_joined_recordings_is_that_of_the_decoded_frames(tmp_path, clock):
    path = joined(tmp_path, moving(155, 32, 32), clock)
    times = [time for _, time in iter_video_frames(path, 2)]
    assert times == [index / 2 for index in range(len(times))] and len(times) in (31, 32)
    steps = [time for _, time in iter_video_frames(path, None)]
    assert len(steps) == 155 and max(b - a for a, b in itertools.pairwise(steps)) < 0.2
    assert video_duration(path) is None  # FFmpeg estimates one from the first and last timestamps
    assert video_seconds(path) == measured_duration(path) == pytest.approx(15.5, abs=0.15)


def test_joined_recordings_are_narrated_to_the_end(tmp_path, capfd):
    path = joined(tmp_path, decode_video(WORLD, 10)[0], 50_000.0)
    assert main(["narrate", str(path), "--format", "jsonl"]) == 0
    out, err = capfd.readouterr()
    *events, last = map(json.loads, out.splitlines())
    line = json.loads(WORLD.with_suffix(".jsonl").read_text(encoding="utf-8"))
    assert [event["text"] for event in events] == [turn["content"] for turn in line["turns"]]
    for event, turn in zip(events, line["turns"], strict=True):
        assert event["time"] == pytest.approx(turn["time"], abs=0.5)
    assert last["stats"]["frames"] in (31, 32) and err == NOTE


def test_reply_after_a_timestamp_reset_is_correct(tmp_path):
    joined(tmp_path, moving(155, 32, 32), 0.0)
    lines = [{"video": "joined.ts", "turns": [said(time, "It leaves.")]} for time in (12.5, 15.0, 20.0)]
    (fault,) = validate(write_lines(tmp_path / "a.jsonl", lines))
    assert str(fault).startswith("3: turns[0].time: 20.0 is beyond the end of the video; a time within its 15.")


def test_windows_place_a_reply_correctly_after_a_timestamp_reset(tmp_path):
    path, processor = joined(tmp_path, moving(155, 32, 32), 0.0), small_model()[1]
    turns = [said(time, f"It leaves {time}.") for time in (1.0, 6.0, 12.5, 15.0)]
    line = {"line": 1, "video": str(path), "turns": turns}
    examples = StreamExamples("x", processor, max_tokens=120)
    cut = examples.lines(line)
    assert len(cut) > 1 and examples.num_frames(line) in (31, 32)
    ends = {turn["content"]: window["end"] for window in cut for turn in window["turns"]}
    assert cut[-1]["end"] > 15.0 and ends["It leaves 15.0."] > 15.0 and ends["It leaves 12.5."] > 12.5
    assert sum(len(examples.read(window)[2]) for window in cut) >= 31  # no frame is left out


def test_unfinished_recordings_are_measured(tmp_path):
    """Fragmented recordings, of which FFmpeg sums up only the first fragments, and recordings made by browsers."""
    fragments = write_video(
        tmp_path / "a.mp4", moving(60, 32, 32), "libx264", movflags="frag_keyframe+empty_moov+default_base_moof"
    )
    piped = write_video(tmp_path / "a.mkv", moving(60, 32, 32), "mjpeg", seekable=False)
    for path in (fragments, piped):
        assert video_duration(path) is None and video_seconds(path) == pytest.approx(6.0, abs=0.01)


def test_picture_may_stay_for_minutes_with_reliable_timestamps(tmp_path):
    times = [index / 10 for index in range(10)] + [600 + index / 10 for index in range(10)]
    path = write_video(tmp_path / "a.mkv", moving(20, 32, 32), "mjpeg", times=times)
    assert sum(1 for _ in iter_video_frames(path, 0.1)) == 61
