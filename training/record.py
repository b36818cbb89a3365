"""The record of a run's configuration in its output folder, so that another run is not resumed by mistake."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from transformers.utils import logging

from ..data.files import hash_ends, write_whole
from .adapters import LoraOptions

logger = logging.get_logger(__name__)

RECORD = "training.json"
# Outputs of a run; the configuration may be changed until one of them exists.
OUTPUTS = ("final", "vision/tower.safetensors", "*/checkpoint-*", "*/trainer_state.json")
# TrainingArguments that do not affect what the model learns, only logging, saving and waiting.
IGNORED = {
    "logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_level",
    "log_level_replica", "log_on_each_node", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id",
    "trackio_bucket_id", "trackio_static_space_id", "include_num_input_tokens_seen", "skip_memory_metrics", "debug",
    "save_total_limit", "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy",
    "hub_always_push", "hub_revision", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
    "ddp_timeout", "torch_empty_cache_steps",
}  # fmt: skip


class RunRecord:
    """The record of the run in `config.output_dir`. Every process reads it, and the main process writes it.

    Raises:
        `ValueError`: if the folder holds a run with another configuration (the message names the fields that differ),
            or a finished run without a record.
    """

    def __init__(self, config):
        self.folder = Path(config.output_dir)
        self.settings = settings_of(config)
        self.final = self.folder / "final"
        self.finished = False
        if not any(path for pattern in OUTPUTS for path in self.folder.glob(pattern)):
            return
        recorded = self._read()
        if recorded is not None:
            self._compare(recorded["configuration"])
            self.finished = recorded["finished"] and self.final.is_dir()
        elif self.final.is_dir():
            raise ValueError(
                f"`output_dir` {self.folder} holds a finished run without a record of its configuration: choose "
                "another folder"
            )
        else:
            logger.warning(
                f"{self.folder} holds a run without a record of its configuration; it is assumed to be this run"
            )

    def write(self, finished: bool = False) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"configuration": self.settings, "finished": finished}
        write_whole(self.folder / RECORD, json.dumps(content, indent=1) + "\n")

    def _read(self) -> dict | None:
        path = self.folder / RECORD
        try:
            recorded = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(recorded["configuration"], dict) and isinstance(recorded["finished"], bool):
                return recorded
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            pass
        raise ValueError(f"{path} is not a valid record of a run; choose another `output_dir`")

    def _compare(self, before: dict) -> None:
        now = json.loads(json.dumps(self.settings))
        pairs = {name: (before.get(name), now.get(name)) for name in sorted(before.keys() | now.keys())}
        differ = {name: pair for name, pair in pairs.items() if hash_or_value(pair[0]) != hash_or_value(pair[1])}
        if differ:
            changes = ", ".join(f"`{name}` (was {shown(was)}, is {shown(is_)})" for name, (was, is_) in differ.items())
            raise ValueError(
                f"`output_dir` {self.folder} holds a run with another configuration, which differs in {changes}: "
                "choose another folder, or restore the configuration of that run"
            )


def settings_of(config) -> dict:
    """Dotted name -> value of every setting that affects the result, defaults included. Files and folders are
    identified by their content, not by their path."""
    options = asdict(config)
    del options["output_dir"], options["data"]
    if config.lora is not None:
        options["lora"] = asdict(LoraOptions(**config.lora))
    if isinstance(config.model, str):
        options["model"] = identify(config.model)
    if config.data is None:
        options["world"] = {"validation": config.validation, **asdict(config.world_data())}
    else:
        data = {"streaming": False, "missing": "stop", "validation": None, **config.data_options}
        held_out = data["validation"]
        data["validation"] = identify(held_out) if isinstance(held_out, str) else held_out
        options["data"] = data | {"path": identify(data["path"])}
    return flatten(options)


def flatten(options: dict, prefix: str = "") -> dict:
    settings: dict = {}
    for name, value in options.items():
        if name in IGNORED:
            continue
        if isinstance(value, dict) and "sha256" not in value:
            settings |= {f"{prefix}{name}": {}} | flatten(value, f"{prefix}{name}.")
        else:
            settings[f"{prefix}{name}"] = as_number(value)
    return settings


def as_number(value):
    """YAML reads `1e-3` as a string, which must equal 0.001."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def identify(source: str) -> str | dict:
    """Name and hash of a file, or of a checkpoint's configuration and the ends of its weights. A Hub id is returned
    as it is."""
    path = Path(source).expanduser()
    if path.is_file():
        with open(path, "rb") as file:
            return {"name": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    if not path.is_dir():
        return source
    files = [*(path / name for name in ("config.json", "processor_config.json", "tokenizer.json"))]
    files += sorted(path.glob("*.safetensors"))
    ends = b"".join(file.name.encode() + hash_ends(file) for file in files if file.is_file())
    return {"name": path.resolve().name, "sha256": hashlib.sha256(ends).hexdigest()}


def hash_or_value(value):
    return value["sha256"] if isinstance(value, dict) and "sha256" in value else value


def shown(value) -> str:
    if isinstance(value, dict) and "sha256" in value:
        return f"{value['name']} with sha256 {value['sha256'][:12]}"
    return "not set" if value is None else repr(value)
