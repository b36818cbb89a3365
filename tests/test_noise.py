"""Commands do not print warnings of their libraries that the user cannot act on."""

import os
import subprocess
import sys

import pytest
from fresh_process import ROOT
from small_data import small_model

CONFIG = f"""
model: model
data: {ROOT / "media" / "world.jsonl"}
output_dir: out
lora: {{}}
stream_stage: {{max_steps: 1, per_device_train_batch_size: 1, gradient_checkpointing: true, disable_tqdm: true}}
"""


def test_training_on_a_cpu_prints_no_warnings(tmp_path):
    for part in small_model(tie_word_embeddings=True):
        part.save_pretrained(tmp_path / "model")
    (tmp_path / "train.yaml").write_text(CONFIG, encoding="utf-8")
    command = [sys.executable, "-m", "videollm_mod.commands.cli", "train", "train.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = ("Warning", "warn", "kernels", "Failed", "deprecated", "pin_memory", "tie")
    assert [line for line in done.stderr.splitlines() if any(word in line for word in words)] == []


@pytest.mark.parametrize(("given", "level"), [({}, 40), ({"HF_HUB_VERBOSITY": "info"}, 20)])
def test_every_command_silences_retries_unless_told_otherwise(given, level):
    program = (
        "from videollm_mod.commands import cli\ncli.main(['validate', 'none'])\n"
        "from huggingface_hub.utils import logging\nprint(logging.get_verbosity())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_VERBOSITY"} | given
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{level}\n"
