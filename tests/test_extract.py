"""`videollm-mod extract`: features equal the model's, and interrupted runs resume to the same result."""

import json
import multiprocessing
import os
import random
import socket
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from comparing import assert_near
from safetensors.torch import load
from small_data import said, small_model, write_lines, write_video
from waiting import PATIENCE, killed_in

from videollm_mod.commands import cli
from videollm_mod.data.extract import extract
from videollm_mod.data.features import read_features, read_metadata
from videollm_mod.data.jsonl import read_streams, validate
from videollm_mod.data.streams import check_features, load_streams

NUM_VIDEOS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint, and videos, some of which are used several times at two rates."""
    folder = tmp_path_factory.mktemp("extract")
    model, processor = small_model()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    lines = []
    for index in range(NUM_VIDEOS):
        video = write_video(folder / "clips" / f"{index % 3}" / f"v{index}.mp4", num_frames=9 + 4 * index, seed=index)
        line = {"video": str(video.relative_to(folder)), "turns": [said(0.5, "Ä red square appears.")]}
        lines += [line, {**line, "start": 1.0, "turns": [said(1.25, "It leaves.")]}]
    lines.append({**lines[0], "fps": 4.0})
    write_lines(folder / "streams.jsonl", lines)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_same_files(made: dict[str, bytes], whole: dict[str, bytes]) -> None:
    """Files are equal to those of `whole`, but for the last bits of features, which depend on the threads."""
    for name, data in made.items():
        if name.endswith(".safetensors"):
            assert_near(load(data)["video_features"], load(whole[name])["video_features"])
        else:
            assert data == whole[name]


@pytest.fixture(scope="module")
def whole(folder) -> dict[str, bytes]:
    """The output of an uninterrupted run."""
    extract(folder / "streams.jsonl", folder / "model", folder / "whole", batch_size=4)
    return contents(folder / "whole")


def test_extracted_features_equal_those_of_the_frames(folder, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    model, processor = small_model()
    result = folder / "whole" / "streams.jsonl"
    assert validate(result) == []
    check_features(result, model, processor.video_processor)
    videos, features = load_streams(folder / "streams.jsonl", processor), load_streams(result, processor)
    assert len(videos) == len(features) == 2 * NUM_VIDEOS + 1
    for video, feature in zip(videos, features, strict=True):
        assert video["input_ids"] == feature["input_ids"] and video["labels"] == feature["labels"]
        pixels = processor.video_processor(video["frames"], return_tensors="pt")["pixel_values_videos"]
        with torch.no_grad():
            expected = model.encode_frames(pixels).pooler_output
        assert_near(feature["video_features"], expected)

    index = json.loads(whole["index.json"])
    files = {name for name in whole if name.endswith(".safetensors")}
    assert set(index) == files and len(files) == NUM_VIDEOS + 1
    assert set(whole) == {*files, "index.json", "streams.jsonl"}
    for name, about in index.items():
        assert about == read_metadata(folder / "whole" / name)
        assert about["num_frames"] == len(read_features(folder / "whole" / name))
    given, made = list(read_streams(folder / "streams.jsonl")), list(read_streams(result))
    for one, other in zip(given, made, strict=True):
        assert (one["turns"], one.get("start"), one.get("fps", 2.0)) == (
            other["turns"],
            other.get("start"),
            other["fps"],
        )


@pytest.mark.parametrize("seed", range(2))
def test_run_killed_at_random_moments_resumes_to_the_same_result(folder, whole, seed):
    """Killed in the middle of a file, or between its last byte and its renaming."""
    rng, output, kills = random.Random(seed), folder / f"cut{seed}", 0
    kept: set[str] = set()

    def run(come) -> None:
        write = Path.write_bytes

        def write_slowly(path: Path, data: bytes) -> None:
            write(path, data[: len(data) // 2])
            come()
            write(path, data)
            come()

        Path.write_bytes = write_slowly
        extract(folder / "streams.jsonl", folder / "model", output, batch_size=4)

    while killed_in(run, rng.randint(1, 6)):
        kills += 1
        there = {name for name in contents(output) if not name.endswith(".partial")}
        assert kept <= there, "a file that was whole is gone"
        kept = there
        assert_same_files({name: data for name, data in contents(output).items() if name in kept}, whole)
    assert kills >= 2
    made = contents(output)
    assert made.keys() == whole.keys()
    assert_same_files(made, whole)


def test_existing_features_are_not_recomputed(folder, whole):
    output = folder / "whole"
    before = {file.name: file.stat().st_mtime_ns for file in output.glob("*.safetensors")}
    damaged, missing, *_ = sorted(before)
    (output / damaged).write_bytes(whole[damaged][:-7])
    (output / missing).unlink()
    (output / "left.safetensors.partial").write_bytes(b"half")
    extract(folder / "streams.jsonl", folder / "model", output, batch_size=4)
    assert contents(output) == whole
    after = {file.name: file.stat().st_mtime_ns for file in output.glob("*.safetensors")}
    assert {name for name in after if after[name] != before[name]} == {damaged, missing}


def test_changed_video_is_encoded_again(folder, tmp_path):
    write_video(tmp_path / "a.mp4", num_frames=8)
    file = write_lines(tmp_path / "a.jsonl", [{"video": "a.mp4", "turns": [said(0, "x")]}])
    (first,) = read_streams(extract(file, folder / "model", tmp_path / "out"))
    before = read_features(first["features"])
    write_video(tmp_path / "a.mp4", num_frames=12, seed=5)
    (second,) = read_streams(extract(file, folder / "model", tmp_path / "out"))
    assert len(before) == 4 and len(read_features(second["features"])) == 6
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        Path(second["features"]).write_bytes(Path(second["features"]).read_bytes()[:50])
        read_metadata(second["features"])


def test_processes_split_the_videos(folder, whole, tmp_path):
    """Two processes on one machine, started like those of `accelerate launch` and `torchrun`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    output = folder / "shared"
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    logs = [tmp_path / f"{rank}.log" for rank in range(2)]

    def run(rank: int) -> None:
        torch.set_num_threads(1)  # a fork does not copy the threads of its parent
        PartialState._reset_state()  # a new process knows nothing of its parent's
        os.environ |= {**world, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        sys.stderr = open(logs[rank], "w", buffering=1)  # noqa: SIM115 (of a process that ends)
        extract(folder / "streams.jsonl", folder / "model", output, batch_size=4)

    processes = [multiprocessing.get_context("fork").Process(target=run, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0, 0], [log.read_text() for log in logs]
    made = contents(output)
    assert made.keys() == whole.keys()
    assert_same_files(made, whole)
    assert "4/4" in logs[0].read_text()  # four of the seven videos; the other process shows no progress
    assert "videos" not in logs[1].read_text()


def test_features_of_another_model_are_refused(folder, whole, tmp_path, capsys):
    model, processor = small_model(seed=1)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    arguments = ["extract", str(folder / "streams.jsonl"), "--output", str(folder / "whole"), "--model"]
    assert cli.main([*arguments, str(tmp_path / "model")]) == 2
    assert "was made by another vision tower or preprocessing" in capsys.readouterr().err
    assert contents(folder / "whole") == whole


def test_wrong_arguments_give_a_clear_error_and_write_nothing(folder, tmp_path, capsys):
    video = {"video": str(write_video(tmp_path / "a.mp4", 4)), "turns": [said(0, "x")]}
    good = write_lines(tmp_path / "good.jsonl", [video])
    gone = write_lines(tmp_path / "gone.jsonl", [video, {**video, "video": "b.mp4"}])
    features = write_lines(tmp_path / "features.jsonl", [{"features": "a.mp4", "turns": [said(0, "x")]}])
    before = sorted(tmp_path.rglob("*"))
    for file, output, options, message in [
        (good, tmp_path / "out", ["--batch-size", "0"], "`batch_size` must be at least 1, got 0"),
        (good, tmp_path / "none" / "out", [], "the folder of the output does not exist"),
        (good, tmp_path, [], "`output` must not be the folder of"),
        (gone, tmp_path / "out", [], "1 missing file,"),
        (features, tmp_path / "out", [], "features.jsonl:1: the line has `features` already"),
    ]:
        arguments = ["extract", str(file), "--model", str(folder / "model"), "--output", str(output), *options]
        assert cli.main(arguments) == 2
        assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
