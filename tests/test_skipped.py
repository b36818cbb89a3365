"""A bad example does not stop a long run: it has no labels, and is counted and named at the end."""

import gc
import json
import math
import os
import pickle
import sys
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
import yaml
from fork_server import run_forked
from fresh_process import HELPERS
from small_data import said, small_model, write_lines, write_video
from torch.utils.data import DataLoader

from videollm_mod.commands import cli
from videollm_mod.data import skipped, streams
from videollm_mod.data.collator import StreamCollator
from videollm_mod.data.features import write_features
from videollm_mod.data.frames import read_frames
from videollm_mod.data.streams import load_streams

ABOUT = {"video": "a.mp4", "video_bytes": 1, "fps": 2.0, "hidden_size": 16, "num_frame_tokens": 5, "num_frames": 12}
GOOD = {"video": "a.mp4", "turns": [said(0.0, "Narrate.", "user"), said(2.0, "It leaves.")]}
BEYOND = {**GOOD, "start": 100.0, "end": 110.0, "turns": [said(110.0, "It leaves.")]}  # beyond the end of the video
DAMAGED = {**GOOD, "video": "bad.mp4"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("skipped")
    whole = write_video(folder / "a.mp4", num_frames=24, fps=4).read_bytes()
    (folder / "bad.mp4").write_bytes(whole[:300])
    model, processor = small_model()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def processor():
    return small_model()[1]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def told(monkeypatch):
    """The warnings logged from here on."""
    gc.collect()  # data sets of earlier tests log now
    told = []
    monkeypatch.setattr(skipped.logger, "warning", told.append)
    return told


def is_blank(example: dict) -> bool:
    return set(example["labels"]) == {-100} and len(example["frames"]) == 1 and not example["frames"].any()


@pytest.mark.parametrize("max_tokens", [None, 100])
@pytest.mark.parametrize("streaming", [False, True])
def test_bad_lines_are_blank_and_named_at_the_end(folder, processor, told, streaming, max_tokens):
    file = write_lines(folder / "mixed.jsonl", [GOOD, BEYOND, DAMAGED, GOOD, DAMAGED])
    dataset = load_streams(file, processor, streaming=streaming, max_tokens=max_tokens)
    for _ in range(2):  # epochs
        blank = [is_blank(example) for example in dataset]
        assert sum(blank) == 3 and blank[0] is blank[-2] is False
        assert told == []
    batch = StreamCollator(0)(list(dataset))  # all of one size
    assert batch["frames"].shape[1:] == (3, 32, 32)
    del dataset
    gc.collect()
    (text,) = told
    first, *named = text.splitlines()
    assert first == f"{file}: 3 of 5 lines were left out in whole or in part:"
    assert [line.split(": ")[0].rpartition(":")[2] for line in named] == ["2", "3", "5"]
    assert "ends before 100.0 seconds" in named[0] and "bad.mp4" in named[1]


@pytest.mark.parametrize("streaming", [False, True])
def test_strict_data_set_stops_at_a_bad_line(folder, processor, streaming):
    file = write_lines(folder / "strict.jsonl", [GOOD, BEYOND])
    with pytest.raises(ValueError, match=r"strict\.jsonl:2: .*ends before 100\.0 seconds"):
        list(load_streams(file, processor, streaming=streaming, strict=True))


@pytest.mark.parametrize("streaming", [False, True])
def test_file_with_only_bad_lines_is_an_error(folder, processor, streaming):
    file = write_lines(folder / "none.jsonl", [BEYOND, DAMAGED])
    with pytest.raises(ValueError, match=r"no line of .*none\.jsonl can be used: .*none\.jsonl:2: "):
        list(load_streams(file, processor, streaming=streaming))


def test_line_with_one_usable_window_is_used(folder, processor, told, monkeypatch):
    """Whichever window comes first."""

    def damaged(video, fps, video_processor, first, stop):
        if first:
            raise ValueError("its frames are damaged")
        return read_frames(video, fps, video_processor, first, stop)

    monkeypatch.setattr(streams, "read_frames", damaged)
    turns = [said(0.0, "Narrate.", "user"), *(said(float(second), "It leaves.") for second in (1, 3, 5))]
    dataset = load_streams(write_lines(folder / "windows.jsonl", [{**GOOD, "turns": turns}]), processor, max_tokens=60)
    blank = [is_blank(dataset[index]) for index in reversed(range(len(dataset)))]
    assert blank == [True] * (len(blank) - 1) + [False] and len(blank) > 1
    del dataset
    gc.collect()
    assert len(told) == 1 and "1 of 1 lines were left out in whole or in part" in told[0]


def read_pickled(path: str) -> None:
    """Print which examples of a data set from another process are blank."""
    with open(path, "rb") as file:
        dataset = pickle.load(file)
    sys.stdout.write(json.dumps([is_blank(example) for example in dataset]))


def test_bad_lines_of_all_workers_are_named_once(folder, processor, told):
    file = write_lines(folder / "workers.jsonl", [BEYOND, GOOD, DAMAGED, GOOD])
    dataset = load_streams(file, processor)
    loader = DataLoader(dataset, 1, collate_fn=list, num_workers=2, multiprocessing_context="fork")
    assert [is_blank(example) for (example,) in loader] == [True, False, True, False]
    # a spawned worker gets a pickled copy
    pickled = file.with_suffix(".pickle")
    pickled.write_bytes(ForkingPickler.dumps(dataset))
    call = f"import sys; sys.path += {[str(HELPERS.parent), str(HELPERS)]}; import test_skipped; "
    done = run_forked([sys.executable, "-c", f"{call}test_skipped.read_pickled({str(pickled)!r})"])
    assert done.returncode == 0 and json.loads(done.stdout) == [True, False, True, False], done.stderr
    assert "lines were left out" not in done.stderr
    del dataset, loader
    gc.collect()
    assert len(told) == 1 and "2 of 4 lines were left out" in told[0]


def test_run_survives_deletion_of_the_temporary_file(folder, processor):
    dataset = load_streams(write_lines(folder / "notes.jsonl", [GOOD, BEYOND]), processor)
    os.unlink(dataset.format["format_kwargs"]["transform"].skipped.notes)
    assert [is_blank(example) for example in dataset] == [False, True]


def test_damaged_features_are_blank_too(folder, processor):
    write_features(folder / "a.safetensors", torch.randn(12, 5, 16), {**ABOUT, "fingerprint": "0"})
    (folder / "bad.safetensors").write_bytes((folder / "a.safetensors").read_bytes()[:-9])
    lines = [{"features": name, "turns": [said(2.0, "It leaves.")]} for name in ("bad.safetensors", "a.safetensors")]
    bad, good = load_streams(write_lines(folder / "features.jsonl", lines), processor)
    assert bad["video_features"].shape == (1, 5, 16) and set(bad["labels"]) == {-100}
    assert good["video_features"].shape == (12, 5, 16)


def write_config(folder, tmp_path, workers: int = 0, **data) -> str:
    stage = {"max_steps": 4, "per_device_train_batch_size": 1, "use_cpu": True, "disable_tqdm": True}
    stage |= {"logging_steps": 1, "max_grad_norm": 1.0, "dataloader_num_workers": workers}
    config = {"output_dir": str(tmp_path / "out"), "model": str(folder / "model"), "lora": {"r": 4, "alpha": 8}}
    data |= {"path": str(write_lines(folder / "train.jsonl", [GOOD, BEYOND]))}
    config |= {"data": data, "stream_stage": stage}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return str(tmp_path / "config.yaml")


@pytest.mark.parametrize("workers", [0, 1])
def test_training_continues_after_a_bad_line(folder, tmp_path, told, workers, without_curves):
    """Even if all examples of a step are bad: its loss is 0, and the weights do not change."""
    assert cli.main(["train", write_config(folder, tmp_path, workers)]) == 0
    state = json.loads((tmp_path / "out" / "stream" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == 4 and losses.count(0.0) == 2 and all(map(math.isfinite, losses))
    gc.collect()
    assert any("1 of 2 lines were left out" in text and "train.jsonl:2" in text for text in told)


def test_strict_training_stops_at_a_bad_line(folder, tmp_path, capsys):
    assert cli.main(["train", write_config(folder, tmp_path, strict=True)]) == 2
    assert "train.jsonl:2: " in capsys.readouterr().err.splitlines()[-1]
