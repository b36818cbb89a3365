"""A configuration file for `videollm-mod train` that trains a tiny model for a few steps."""

from pathlib import Path

import yaml
from fresh_process import ROOT

STAGE = {
    "max_steps": 8,
    "save_steps": 2,
    "save_total_limit": 10,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "use_cpu": True,
    "disable_tqdm": True,
    "logging_steps": 1,
}


def write_config(folder: Path, name: str, **options) -> Path:
    """Write `NAME.yaml` for a run in `folder/NAME`; `options` replace fields of the configuration."""
    config = yaml.safe_load((ROOT / "training" / "configs" / "nano.yaml").read_text())
    config["model"]["text_config"] |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config["model"]["text_config"] |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    config["model"]["vision_config"] |= {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    config["model"]["vision_config"] |= {"num_hidden_layers": 1, "image_size": 48, "patch_size": 16}
    stream = {"freeze_vision_tower": False, **STAGE}
    config |= {"output_dir": str(folder / name), "vision_stage": STAGE, "stream_stage": stream, **options}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
