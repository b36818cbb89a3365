"""A command says what concerns who gave it, and nothing of what its libraries tell each other."""

import subprocess
import sys

from fresh_process import ROOT

CONFIG = f"""
model: {ROOT}
data: {ROOT / "media" / "world.jsonl"}
output_dir: out
lora: {{}}
stream_stage: {{max_steps: 1, per_device_train_batch_size: 1, gradient_checkpointing: true, disable_tqdm: true}}
"""


def test_training_on_a_cpu_warns_of_nothing(tmp_path):
    (tmp_path / "train.yaml").write_text(CONFIG, encoding="utf-8")
    command = [sys.executable, "-m", "videollm_mod.cli", "train", "train.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = ("Warning", "warn", "kernels", "Failed", "deprecated", "pin_memory", "tie")
    assert [line for line in done.stderr.splitlines() if any(word in line for word in words)] == []
