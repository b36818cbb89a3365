"""A folder that holds an adapter: which checkpoint it is for."""

import json
import re
from pathlib import Path

NAME = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    return (folder / NAME).is_file() and not (folder / "config.json").is_file()


def base_of(adapter: Path) -> str:
    """The folder or Hub id of the checkpoint that an adapter was trained on.

    Raises:
        `FileNotFoundError`: if there is no adapter, or its base is a folder that is gone.
        `ValueError`: if the adapter does not say.
    """
    path = adapter / NAME
    if not adapter.is_dir():
        raise FileNotFoundError(f"{adapter}: no such folder")
    if not path.is_file():
        raise FileNotFoundError(f"no adapter ({NAME}) in {adapter}")
    try:
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no configuration of an adapter: {error}") from error
    if not base or not isinstance(base, str):
        raise ValueError(f"{path} names no base model (`base_model_name_or_path`)")
    folder = Path(base).expanduser()
    if not folder.is_dir() and (re.match(r"[./~]", base) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base)):
        raise FileNotFoundError(f"the base model of {adapter} is no folder: {base}")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"the base model of {adapter} holds no checkpoint: there is no config.json in {base}")
    return str(folder) if folder.is_dir() else base


__all__ = ["base_of", "is_adapter"]
