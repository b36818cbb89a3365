"""Which checkpoint a folder or Hub id stands for: the checkpoint itself, or the base model of an adapter."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from ..conversation import FAMILIES

OWN_CHECKPOINT = Path(__file__).resolve().parent.parent  # installed with the package
ADAPTER_CONFIG = "adapter_config.json"
HUB_ID = r"[\w.-]+(/[\w.-]+)?"


class Found(NamedTuple):
    """`base` (`str`): folder or Hub id of a checkpoint; `adapter` (`Path`, *optional*): the adapter to put on it."""

    base: str
    adapter: Path | None


def find_checkpoint(model: str | Path | None = None) -> Found:
    """Find a checkpoint without loading it. A Hub id is taken as it is.

    Args:
        model: folder of a checkpoint or an adapter, or a Hub id; the checkpoint of the package by default.

    Raises:
        `FileNotFoundError`: if a folder holds no checkpoint, or the name is neither a folder nor a Hub id.
        `ValueError`: if an adapter does not name its base model, or for a model that has to be built first.
    """
    if model is None:
        return Found(str(OWN_CHECKPOINT), None)
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if folder.exists() or str(model).startswith((".", "/", "~")) or not re.fullmatch(HUB_ID, str(model)):
            raise FileNotFoundError(f"`--model` must be a folder with a checkpoint or a Hub id, got {model}")
        return Found(str(model), None)
    if (folder / "config.json").is_file():
        refuse_original(str(model), folder / "config.json")
        if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
            raise FileNotFoundError(f"`--model` holds no weights: there is no *.safetensors in {model}")
        return Found(str(folder), None)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise FileNotFoundError(
            f"`--model` holds no checkpoint: there is no config.json in {model}, and no {ADAPTER_CONFIG}"
        )
    return Found(base_of(folder), folder)


def refuse_original(source: str, config: Path) -> None:
    """Raise `ValueError` if the configuration is that of a model which `videollm-mod build --vlm` takes."""
    try:
        model_type = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError):
        return  # whoever loads it says so
    if model_type in FAMILIES:
        raise ValueError(
            f"{source} holds a {model_type} model, of which a streaming model can be built: run `videollm-mod build "
            f"--vlm {source} --output FOLDER`, and pass FOLDER as `--model`"
        )


def base_of(adapter: Path) -> str:
    """The folder or Hub id of the checkpoint that an adapter was trained on.

    Raises:
        `FileNotFoundError`: if there is no adapter, or if the folder of its base model is gone.
        `ValueError`: if the adapter does not name its base model.
    """
    path = adapter / ADAPTER_CONFIG
    if not adapter.is_dir():
        raise FileNotFoundError(f"{adapter}: no such folder")
    if not path.is_file():
        raise FileNotFoundError(f"no adapter ({ADAPTER_CONFIG}) in {adapter}")
    try:
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not the configuration of an adapter: {error}") from error
    if not base or not isinstance(base, str):
        raise ValueError(f"{path} names no base model (`base_model_name_or_path`)")
    folder = Path(base).expanduser()
    if not folder.is_dir():
        if re.match(r"[./~]", base) or not re.fullmatch(HUB_ID, base):
            raise FileNotFoundError(f"the base model of {adapter} is not a folder: {base}")
        return base
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"the base model of {adapter} holds no checkpoint: there is no config.json in {base}")
    return str(folder)


__all__ = ["OWN_CHECKPOINT", "Found", "base_of", "find_checkpoint", "refuse_original"]
