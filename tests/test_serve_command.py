"""`videollm-mod serve`: what is wrong is told before the model is loaded, and a trained range of ratios is used."""

import socket

import pytest
from running_servers import metric, serving_elsewhere
from small_data import small_model

from videollm_mod.commands import cli
from videollm_mod.commands.messages import message_of


def failed(capsys, *arguments: str) -> str:
    assert cli.main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_wrong_options_are_one_line(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in failed(capsys, "--port", str(port))
    assert "keys: no such file" in failed(capsys, "--keys", str(tmp_path / "keys"))
    (tmp_path / "short").write_text("secret\n")
    error = failed(capsys, "--keys", str(tmp_path / "short"))
    assert "at least 16 printable ASCII characters" in error and "secret" not in error
    assert "`sessions` must be a finite number > 0, got 0" in failed(capsys, "--max-sessions", "0")


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client", "websockets"])
def test_a_missing_package_names_the_extra(package):
    error = ModuleNotFoundError(f"No module named {package!r}", name=package)
    assert message_of(error).endswith("pip install videollm-mod[serve]")


def test_a_checkpoint_says_which_ratios_it_was_trained_with(tmp_path):
    model, processor = small_model(0)
    model.config.text_config.mod_keep_ratio_range = [0.1, 0.7]
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with serving_elsewhere("--model", str(tmp_path)) as (url, _):
        assert metric(url, "videollm_mod_keep_ratio") == 0.7
