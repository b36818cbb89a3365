"""`videollm-mod narrate` with the bundled checkpoint: what it says is right."""

import json
import subprocess
from types import SimpleNamespace

import av
import numpy as np
import pytest
from fork_server import run_forked
from fresh_process import ROOT
from narrating import COMMAND, NOTE, cues, truth
from video_files import write_video

from videollm_mod import VideoLLMMoDConfig
from videollm_mod.commands import cli
from videollm_mod.data.world import world_stream
from videollm_mod.narration import sight


@pytest.mark.parametrize(
    "file, codec, seed", [("w.webm", "libvpx-vp9", 61), ("w.avi", "mpeg4", 63), ("w.mkv", "libx265", 61)]
)
def test_a_world_clip_is_narrated_correctly_in_any_codec(run, tmp_path, file, codec, seed):
    stream = world_stream(seed)
    options = {"seekable": False} if file.endswith("webm") else {}
    path = write_video(tmp_path / file, stream.frames(4, 192), codec, fps=4, **options)
    code, lines, _ = run(path, "--format", "jsonl")
    said = [(event["time"], event["text"]) for event in map(json.loads, lines[:-1])]
    assert code == 0 and said == truth(seed)


def test_long_streams_are_narrated_correctly(run, tmp_path):
    """More than twice as long as any stream in training: by default the model forgets what exceeds its context.
    `test_memory.py` shows that it narrates as well with other bounds."""
    streams, frames, expected, start = [world_stream(seed) for seed in range(5000, 5004)], [], [], 0.0
    for stream in streams:
        frames.append(stream.frames(2, 192))
        expected += [(time + start, text) for time, text in stream.narrations]
        start += len(frames[-1]) / 2
    path = write_video(tmp_path / "long.mkv", np.concatenate(frames), "mjpeg", fps=2)
    lines = {}
    for limit in ([], ["--max-cached-frames", 10_000]):
        code, out, _ = run(path, "--format", "jsonl", "--query", "Narrate what happens.", *limit)
        assert code == 0
        lines[str(limit)] = [json.loads(line) for line in out]
    exact = {
        limit: len({(e["time"], e["text"]) for e in found[:-1]} & set(expected)) / len(expected)
        for limit, found in lines.items()
    }
    held = {limit: found[-1]["stats"]["kv_bytes"] for limit, found in lines.items()}
    bounded, unbounded = lines
    assert exact[bounded] > 0.95 and exact[unbounded] < 0.7
    assert held[bounded] < held[unbounded] / 2


def test_standard_input_is_narrated_as_a_file(clip):
    # an .mp4 keeps its index at the end, which a pipe cannot wait for
    with av.open(str(clip)) as read, av.open(str(clip.with_suffix(".ts")), "w") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                write.mux(packet)
    with subprocess.Popen(["cat", clip.with_suffix(".ts")], stdout=subprocess.PIPE) as cat:
        done = run_forked([*COMMAND, "-", "--format", "jsonl"], stdin=cat.stdout)
    assert (done.returncode, done.stderr) == (0, NOTE)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(event["time"], event["text"]) for event in said[:-1]] == truth(60)


def test_a_checkpoint_that_knows_one_world_notes_it(tmp_path, clip, capfd):
    """Of a file that states what it shows it knows whether to; of what else it is given, it does not."""
    for arguments in ([ROOT / "media" / "cup.mp4"], [clip], [clip.as_uri()]):
        assert cli.main(["narrate", *map(str, arguments), "--format", "jsonl", "--fps", "0.5"]) == 0
        out, err = capfd.readouterr()
        assert [json.loads(line) for line in out.splitlines()]
        assert err == (NOTE if "cup" in str(arguments) else "")
    assert NOTE.count("\n") == 1 and "videollm-mod build --vlm" in NOTE and "procedural world" in NOTE
    assert sight.notice(VideoLLMMoDConfig(), "-") is sight.notice(SimpleNamespace(), "-") is None


@pytest.mark.parametrize("format", ["vtt", "srt"])
def test_a_player_reads_the_subtitles(run, clip, tmp_path, format):
    path = tmp_path / f"out.{format}"
    code, lines, _ = run(clip, "--output", path, "--query", "Is 1 < 2 & 3 --> 4?@2")
    assert code == 0 and lines == []
    found = cues(path)
    narrations = dict(truth(60))
    spoken = {start: text for start, _, text in found}
    assert {time for time, text in spoken.items() if narrations.get(time, "nothing") in text} >= set(
        list(narrations)[-2:]
    )
    (question,) = [text for text in spoken.values() if text.startswith("Is 1 ")]
    assert len(question.splitlines()) == 2 and "-->" not in question
    for (start, end, _), following in zip(found, [*found[1:], (np.inf,)], strict=True):
        assert start < end <= min(start + 4.001, following[0] + 0.001)
    if format == "vtt":
        assert "Is 1 &lt; 2 &amp; 3 --&gt; 4?" in path.read_text()


def test_text_shows_times_questions_and_answers(run, clip):
    code, lines, _ = run(clip, "--query", "How many objects are there?@2")
    assert code == 0
    assert any(line.startswith("     2.0 s  [How many objects are there?] ") for line in lines)
    narrated = [f"{time:8.1f} s  {text}" for time, text in truth(60)]
    assert [line for line in lines if line in narrated][-2:] == narrated[-2:]
