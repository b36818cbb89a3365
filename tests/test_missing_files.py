"""Every command names the file or folder that is missing, whichever argument it was given to."""

import pytest
from fresh_process import ROOT
from small_data import write_lines

from videollm_mod.commands import cli

COMMANDS = {
    "train gone.yaml": "gone.yaml: no such file",
    "validate gone.jsonl": "gone.jsonl: no such file",
    "extract gone.jsonl --model {root} --output out": "gone.jsonl: no such file",
    "extract there.jsonl --model gone/at/all --output out": "must be a folder with a checkpoint or a Hub id",
    "prepare ego4d gone.json --task narration --videos . --output out.jsonl": "gone.json: no such file",
    "prepare ego4d there.jsonl --task narration --videos gone --output out.jsonl": "videos does not exist: gone",
    "evaluate --task step --data gone.jsonl": "gone.jsonl: no such file",
    "evaluate --task step --level hard --categories gone.txt": "gone.txt: no such file",
    "evaluate --task narration --model gone/at/all": "must be a folder with a checkpoint or a Hub id",
    "narrate gone.mp4": "gone.mp4",
    "narrate gone.mp4 --model ./gone": "must be a folder with a checkpoint or a Hub id",
    "merge gone --output out": "gone: no such folder",
    "convert videollm-online gone --output out": "gone: no such folder",
    "build --llm gone/model --vision gone/tower --output out": "`vision` gone/tower is no folder, and",
    "build --llm gone/at/all --vision gone/tower --output out": "`llm` must be a folder or the id of a model",
    "build --llm ./gone --vision {tower} --output out": "`llm` must be a folder or the id of a model",
    "build --llm gone/at/all --vision {tower} --output out": "gone/at/all is no folder",
    "build --llm gone/model --vision {tower} --output out": "`llm` gone/model is no folder, and cannot be loaded",
}


@pytest.fixture(scope="module")
def tower(tmp_path_factory, checkpoint):
    folder = tmp_path_factory.mktemp("tower")
    checkpoint[0].model.vision_tower.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_file_or_folder_is_named(command, tower, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "there.jsonl", [{}])
    assert cli.main([word.format(root=ROOT, tower=tower) for word in command.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and COMMANDS[command] in error
    assert "Errno" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["there.jsonl"]


def test_an_error_begins_with_the_name_of_the_file(tmp_path, capsys):
    assert cli.main(["train", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: is a directory\n"
