"""The JSONL format: every fault of every line is found, and nothing is written if there is one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fresh_process import ROOT
from small_data import said, write_lines, write_video

from videollm_mod.commands import cli
from videollm_mod.data.files import written_whole
from videollm_mod.data.jsonl import Fault, line_spans, missing_media, read_streams, validate
from videollm_mod.data.world import world_stream

SEEN = "A red square appears."
TURNS = [said(0.0, "Narrate.", "user"), said(1.0, SEEN), said(2.5, "It leaves.")]
GOOD = {"video": "clips/a.mp4", "fps": 2.0, "turns": TURNS}


def turned(**changes) -> dict:
    """A valid line with a changed second turn; None removes a field."""
    turn = {name: value for name, value in {**TURNS[1], **changes}.items() if value is not None}
    return {**GOOD, "turns": [TURNS[0], turn, TURNS[2]]}


def without(*names: str, **changes) -> dict:
    return {name: value for name, value in {**GOOD, **changes}.items() if name not in names}


TEXT = json.dumps(GOOD).encode()
# kind -> (line, its faults: field and part of the message)
BROKEN = {
    "no JSON": (TEXT[:-1], [("line", "not JSON")]),
    "single quotes": (TEXT.replace(b'"', b"'"), [("line", "not JSON")]),
    "trailing comma": (TEXT[:-1] + b",}", [("line", "not JSON")]),
    "two values": (TEXT + TEXT, [("line", "Extra data")]),
    "empty line": (b"", [("line", "it is empty")]),
    "not UTF-8": (TEXT.replace(b"red", b"r\xe9d"), [("line", "0xe9, is not UTF-8")]),
    "UTF-16": (TEXT.decode().encode("utf-16"), [("line", "is not UTF-8")]),
    "deep nesting": (b"[" * 100_000, [("line", "not JSON")]),
    "long number": (TEXT.replace(b"2.5", b"9" * 5000), [("line", "not JSON")]),
    "a list": ([GOOD], [("line", "it is [{")]),
    "a string": ("clips/a.mp4", [("line", "it is 'clips/a.mp4'")]),
    "null": (None, [("line", "it is None")]),
    "repeated key": (TEXT[:-1] + b', "fps": 4.0}', [("fps", "more than once")]),
    "repeated key of a turn": (TEXT.replace(b'"time": 1.0', b'"time": 1.0, "time": 1.5'), [("turns[1].time", "more")]),
    "unknown field": ({**GOOD, "stat": 1.0}, [("stat", "unknown field")]),
    "no video": (without("video"), [("video", "neither `video` nor `features`")]),
    "both": ({**GOOD, "features": "a.safetensors"}, [("features", "both")]),
    "video no string": ({**GOOD, "video": 3}, [("video", "it is 3")]),
    "video empty": ({**GOOD, "video": " "}, [("video", "it is ' '")]),
    "video missing": ({**GOOD, "video": "clips/c.mp4"}, [("video", "there is no file")]),
    "file address missing": (
        {**GOOD, "video": "file:///no/such%20folder/c.mp4"},
        [("video", "there is no file /no/such folder/c.mp4")],
    ),
    "file address of another machine": (
        {**GOOD, "video": "file://elsewhere/c.mp4"},
        [("video", "it is 'file://else")],
    ),
    "video a folder": ({**GOOD, "video": "clips"}, [("video", "is not a file")]),
    "video unreadable": ({**GOOD, "video": "clips/text.mp4"}, [("video", "cannot decode")]),
    "video cut off": ({**GOOD, "video": "clips/cut.mp4"}, [("video", "cannot decode")]),
    "features no safetensors": (
        without("video", features="clips/a.mp4"),
        [("features", "not a complete")],
    ),
    "fps zero": ({**GOOD, "fps": 0}, [("fps", "it is 0")]),
    "fps nan": (TEXT.replace(b'"fps": 2.0', b'"fps": NaN'), [("fps", "it is nan")]),
    "fps beyond reason": ({**GOOD, "fps": 1e9}, [("fps", "it is 1000000000.0")]),
    "fps true": ({**GOOD, "fps": True}, [("fps", "it is True")]),
    "fps a string": ({**GOOD, "fps": "2"}, [("fps", "it is '2'")]),
    "start negative": ({**GOOD, "start": -1}, [("start", "it is -1")]),
    "start beyond": ({**GOOD, "start": 4.0, "turns": [said(4.0, SEEN)]}, [("start", "beyond the end of the video")]),
    "end infinite": (TEXT[:-1] + b', "end": Infinity}', [("end", "it is inf")]),
    "end before start": ({**GOOD, "start": 3, "end": 2.5, "turns": [said(3, SEEN)]}, [("end", "not after `start`")]),
    "end beyond": ({**GOOD, "end": 60.0}, [("end", "beyond the end of the video")]),
    "no turns": (without("turns"), [("turns", "missing")]),
    "turns an object": ({**GOOD, "turns": {}}, [("turns", "it is {}")]),
    "turns empty": ({**GOOD, "turns": []}, [("turns", "it is empty")]),
    "a turn no object": ({**GOOD, "turns": [SEEN]}, [("turns[0]", "it is 'A red")]),
    "turn without time": (turned(time=None), [("turns[1].time", "missing")]),
    "turn without role": (turned(role=None), [("turns[1].role", "missing")]),
    "turn without content": (turned(content=None), [("turns[1].content", "missing")]),
    "unknown field of a turn": (turned(text=SEEN), [("turns[1].text", "unknown field")]),
    "time a string": (turned(time="1"), [("turns[1].time", "it is '1'")]),
    "time negative": (turned(time=-0.5), [("turns[1].time", "it is -0.5")]),
    "time nan": (turned(time=float("nan")), [("turns[1].time", "it is nan")]),
    "time overflows": (TEXT.replace(b"2.5", b"1e999"), [("turns[2].time", "it is inf")]),
    "time out of order": (turned(time=2.75), [("turns[2].time", "2.5 is before the previous turn")]),
    "time before start": ({**GOOD, "start": 0.5}, [("turns[0].time", "0.0 is outside")]),
    "time after end": ({**GOOD, "end": 2.0}, [("turns[2].time", "2.5 is outside")]),
    "time beyond the video": ({**GOOD, "turns": [said(99, SEEN)]}, [("turns[0].time", "99 is beyond the end")]),
    "role unknown": (turned(role="stream"), [("turns[1].role", "it is 'stream'")]),
    "role no string": (turned(role=["user"]), [("turns[1].role", "it is ['user']")]),
    "system later": (turned(role="system"), [("turns[1].role", "system turn after")]),
    "content empty": (turned(content=" \n"), [("turns[1].content", "it is empty")]),
    "content a list": (turned(content=[SEEN]), [("turns[1].content", "it is ['A red")]),
    "half a character": (turned(content="\ud83d"), [("turns[1].content", "surrogate")]),
    "several": (
        {**GOOD, "video": "clips/c.mp4", "fps": -1, "turns": [said(-1, ""), {"role": "bot", "x": 1}]},
        [
            ("fps", "-1"),
            ("turns[0].time", "-1"),
            ("turns[0].content", "empty"),
            ("turns[1].x", "unknown field"),
            ("turns[1].time", "missing"),
            ("turns[1].content", "missing"),
            ("turns[1].role", "'bot'"),
            ("video", "there is no file"),
        ],
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jsonl")
    whole = write_video(folder / "clips" / "a.mp4", num_frames=16, fps=4).read_bytes()
    (folder / "clips" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "clips" / "text.mp4").write_text("no video")
    return folder


def matches(faults: list[Fault], expected: list[tuple[int, str, str]]) -> bool:
    return len(faults) == len(expected) and all(
        (fault.line, fault.field) == (line, field) and part in fault.problem and fault.expected
        for fault, (line, field, part) in zip(faults, expected, strict=True)
    )


@pytest.mark.parametrize("kind", BROKEN)
def test_fault_names_its_line_and_field(folder, kind):
    line, expected = BROKEN[kind]
    file = write_lines(folder / "one.jsonl", [GOOD, line, GOOD])
    assert matches(validate(file), [(2, *fault) for fault in expected]), validate(file)


def test_all_faults_are_listed_at_once_and_nothing_is_written(folder, capsys):
    file = write_lines(folder / "all.jsonl", [line for line, _ in BROKEN.values()])
    expected = [(n, *fault) for n, (_, faults) in enumerate(BROKEN.values(), start=1) for fault in faults]
    assert matches(validate(file), expected)

    assert cli.main(["validate", str(file)]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: {len(expected)} faults in {file}\n"
    shown = printed.out.splitlines()
    assert len(shown) == len(expected)
    for line, (number, field, _) in zip(shown, expected, strict=True):
        assert line.startswith(f"{file}:{number}: {field}: ") and "; " in line

    before = sorted(folder.rglob("*"))
    assert cli.main(["extract", str(file), "--model", "none", "--output", str(folder / "features")]) == 2
    assert "faults in" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


def test_valid_file_has_no_faults(folder, capsys):
    lines = [
        GOOD,
        {"video": "https://example.org/a.mp4", "turns": [said(0, "Ä\u2028ß\n")]},
        {"video": str(folder / "clips" / "a.mp4"), "start": 1, "end": 3.0, "turns": [said(1, "x"), said(3, "y")]},
        {
            "video": "clips/a.mp4",
            "turns": [said(0, "You narrate.", "system"), said(0, "Go.", "user"), said(0, "Yes.")],
        },
        {"video": "clips/a.mp4", "turns": [said(4.5, "At the end, as rounded by the annotator.")]},
        json.dumps(GOOD, ensure_ascii=False).encode() + b"\r",
    ]
    file = write_lines(folder / "good.jsonl", lines)
    assert validate(file) == []
    assert cli.main(["validate", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: no faults\n"
    assert [stream["line"] for stream in read_streams(file)] == [1, 2, 3, 4, 5, 6]
    assert [stream["turns"] for stream in read_streams(file)][:2] == [TURNS, lines[1]["turns"]]
    assert next(read_streams(file))["video"] == str(folder / "clips" / "a.mp4")
    file.write_bytes(file.read_bytes()[:-1])  # a last line without its line break
    assert validate(file) == []


def test_file_url_is_a_path(folder, tmp_path, capsys):
    """It may be percent-encoded; its times are checked like those of any video."""
    video = write_video(tmp_path / "ü b%.mp4", num_frames=8, fps=4)
    lines = [{"video": video.as_uri(), "turns": [said(1.0, SEEN)]}, {**GOOD, "video": (tmp_path / "c.mp4").as_uri()}]
    file = write_lines(tmp_path / "address.jsonl", [lines[0]])
    assert validate(file) == [] and missing_media(file) == {}
    assert [stream["video"] for stream in read_streams(file)] == [str(video)]
    write_lines(file, [lines[0], {**lines[0], "turns": [said(9.0, SEEN)]}, lines[1]])
    beyond, missing = validate(file)
    assert beyond.line == 2 and "9.0 is beyond the end of the video" in beyond.problem
    assert missing.line == 3 and missing.problem == f"there is no file {tmp_path / 'c.mp4'}"
    assert missing_media(file) == {3: str(tmp_path / "c.mp4")}
    assert cli.main(["validate", str(file)]) == 2
    assert "error: 2 faults" in capsys.readouterr().err


def test_example_is_valid_once_its_clips_exist(tmp_path, capsys):
    """The commands of its README."""
    example = ROOT / "examples" / "own_videos"
    (tmp_path / "clips").mkdir()
    (tmp_path / "streams.jsonl").write_bytes((example / "streams.jsonl").read_bytes())
    commands = [
        line.split() for line in (example / "README.md").read_text().splitlines() if "videollm-mod world" in line
    ]
    for _, *arguments in commands:
        arguments[-1] = str(tmp_path / arguments[-1])
        assert cli.main(arguments) == 0
    assert cli.main(["validate", str(tmp_path / "streams.jsonl")]) == 0
    for stream, arguments in zip(read_streams(tmp_path / "streams.jsonl"), commands, strict=True):
        told = [(turn["time"], turn["content"]) for turn in stream["turns"] if turn["role"] == "assistant"]
        narrations = world_stream(int(arguments[3])).narrations
        assert told[: len(narrations)] == narrations and len(told) <= len(narrations) + 1


def test_byte_order_mark_and_empty_file_are_faults(folder, capsys):
    file = write_lines(folder / "bom.jsonl", [b"\xef\xbb\xbf" + TEXT, {**GOOD, "fps": 0}])
    assert matches(validate(file), [(1, "line", "byte order mark"), (2, "fps", "it is 0")])
    file.write_bytes(b"")
    assert matches(validate(file), [(1, "file", "it is empty")])
    assert cli.main(["validate", str(folder / "none.jsonl")]) == 2
    assert ": no such file" in capsys.readouterr().err


def test_reading_stops_at_a_fault(folder):
    file = write_lines(folder / "read.jsonl", [GOOD, GOOD, without("turns")])
    streams = read_streams(file)
    assert next(streams)["line"] == 1 and next(streams)["line"] == 2
    with pytest.raises(ValueError, match=r"read\.jsonl:3: turns: it is missing"):
        next(streams)


@pytest.mark.parametrize("count", [1, 2, 5, 7, 30])
def test_parts_of_a_file_add_up_to_the_file(folder, count):
    lines = [{**GOOD, "turns": [said(1.0, "x" * (7 * index % 11 + 1))]} for index in range(count)]
    file = write_lines(folder / "parts.jsonl", lines)
    whole = list(read_streams(file))
    assert len(whole) == count
    for parts in (1, 2, 3, 7, 64):
        spans = line_spans(file, parts)
        assert len(spans) == min(parts, count)
        assert [stream for span in spans for stream in read_streams(file, *span)] == whole


def test_features_with_another_rate_are_a_fault(folder):
    import torch

    from videollm_mod.data.features import write_features

    about = {"video": "a.mp4", "video_bytes": 1, "fps": 2.0, "num_frames": 8, "num_frame_tokens": 5}
    about |= {"hidden_size": 4, "fingerprint": "0"}
    write_features(folder / "a.safetensors", torch.zeros(8, 5, 4), about)
    line = {"features": "a.safetensors", "turns": TURNS}
    beyond = {**line, "turns": [said(5.5, "x")]}
    file = write_lines(folder / "features.jsonl", [line, {**line, "fps": 2}, {**line, "fps": 3.0}, beyond])
    assert matches(
        validate(file), [(3, "fps", "extracted at 2.0"), (4, "turns[0].time", "beyond the end of the features")]
    )


def test_validation_does_not_wait_for_torch(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"video": "no.mp4", "turns": TURNS}])
    program = f"import sys; from videollm_mod.commands import cli; cli.main(['validate', {str(file)!r}])"
    done = subprocess.run(
        [sys.executable, "-c", program + "; print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert "there is no file" in done.stdout and done.stdout.endswith("False\n"), done.stderr


@pytest.mark.parametrize("name", ["-", "/dev/stdin", "<(cat)"])
def test_pipe_is_validated(tmp_path, name):
    """Its paths are relative to the working directory."""
    line = {"video": "no.mp4", "turns": [{"time": 1, "role": "assistant", "content": "There."}]}
    command = f"cat | {sys.executable} -m videollm_mod.commands.cli validate {name}"
    if name == "<(cat)":
        command = f"{sys.executable} -m videollm_mod.commands.cli validate <(cat)"
    done = subprocess.run(
        ["bash", "-c", command], input=json.dumps(line) + "\n", cwd=tmp_path, capture_output=True, text=True
    )
    assert ":1: video: there is no file no.mp4;" in done.stdout and "error: 1 fault in" in done.stderr


def test_atomic_write_works_where_folders_cannot_be_opened(tmp_path, monkeypatch):
    """As on Windows."""

    def refuse(path, flags):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    with written_whole(tmp_path / "a.jsonl") as partial:
        partial.write_bytes(b"whole")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.jsonl", b"whole")]


def test_atomic_write_to_standard_output(tmp_path, monkeypatch, capfdbinary):
    monkeypatch.chdir(tmp_path)
    with written_whole("-") as partial:
        partial.write_bytes("在\n".encode())
        assert capfdbinary.readouterr().out == b""
    assert capfdbinary.readouterr().out == "在\n".encode() and list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="broken"), written_whole(Path("-")) as partial:
        partial.write_bytes(b"half")
        raise ValueError("broken")
    assert capfdbinary.readouterr().out == b""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_error_leaves_what_was_there_and_removes_what_was_begun(tmp_path, kind):
    target, begun = tmp_path / "target", tmp_path / "target.partial"
    target.mkdir() if kind == "folder" else target.write_text("before")
    begun.write_text("left by a killed process")

    def write(path, text):
        if kind == "folder":
            path.mkdir()
        (path / "a.json" if kind == "folder" else path).write_text(text)

    with pytest.raises(ValueError, match="broken"), written_whole(target) as partial:
        write(partial, "half")
        raise ValueError("broken")
    assert list(tmp_path.iterdir()) == [target]
    assert list(target.iterdir()) == [] if kind == "folder" else target.read_text() == "before"
    with written_whole(target) as partial:
        write(partial, "whole")
    assert list(tmp_path.iterdir()) == [target]
    assert (target / "a.json" if kind == "folder" else target).read_text() == "whole"
