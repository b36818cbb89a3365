"""The `TrainingArguments` of a stage, read from its YAML and checked before a model is loaded."""

import contextlib
import json
import math
from dataclasses import fields
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch
from huggingface_hub import HfApi
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from ..containers import is_number
from ..recomputing import choices_of_layers
from .refused import refuse

NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}
NAMES |= {list: "a list", dict: "a mapping"}
MINIMUM = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "max_steps": 1,
    "num_train_epochs": 0,
    "learning_rate": 0,
}
RESERVED = {
    "output_dir": "each stage writes to its own folder in the run's `output_dir`",
    "resume_from_checkpoint": "a run resumes from the last checkpoint in its `output_dir` by itself",
    "save_only_model": "an interrupted run could not resume without the optimizer's state",
}


def stage_arguments(config, name: str, options: dict) -> TrainingArguments:
    """
    Args:
        config (`TrainingConfig`): the run.
        name (`str`): the stage, `vision` or `stream`.
        options (`dict`): the stage's fields of `TrainingArguments`.

    Raises:
        `ValueError`: for an option of the wrong type or value, or one that streams do not support, for a reporter that
            is not installed, and for evaluation without validation data. The message names the option.
    """
    where = f"`{name}_stage`"
    options = {field: convert(where, field, value) for field, value in options.items()}
    for field, reason in RESERVED.items():
        if options.get(field):
            raise ValueError(f"{where} must not set `{field}`, got {options[field]!r}: {reason}")
    reporters = options.get("report_to") or []
    known = {"all", "none", *get_available_reporting_integrations()}
    for reporter in [reporters] if isinstance(reporters, str) else reporters:
        if reporter not in known:
            raise ValueError(
                f"`report_to` of {where} names {reporter!r}, which is not installed or unknown to transformers; "
                f"available are {', '.join(sorted(known))}"
            )
    defaults = {
        "output_dir": str(Path(config.output_dir) / name),
        "seed": config.seed,
        "report_to": [],
        "remove_unused_columns": False,
        "save_strategy": "steps",
        "save_steps": 0.25,
        "save_total_limit": 1,
        "logging_steps": 20,
        "prediction_loss_only": True,
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "ddp_find_unused_parameters": False,  # `freezing` has frozen them
        "per_device_eval_batch_size": options.get("per_device_train_batch_size", 8),
        **validation_defaults(config, name, options),
    }
    try:
        # accelerate would split a batch along dimension 0, which for frames is not the batch dimension
        options["accelerator_config"] = {"dispatch_batches": False, **accelerator_options(options)}
        arguments = TrainingArguments(**{**defaults, **options})
        refuse(arguments)
        check_recompute(arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())}") from error
    for field in options:
        value = getattr(arguments, field) if field.endswith("_kwargs") else None
        if not isinstance(value, dict | NoneType):  # a string that is not a JSON object
            raise ValueError(f"`{field}` of {where} must be a mapping, got {value!r}")
    check_validation(config, name, arguments)
    return arguments


def convert(where: str, field: str, value: Any) -> Any:
    """Convert a YAML value to the type of a field of `TrainingArguments`.

    Raises:
        `ValueError`: if it has the wrong type or is out of range.
    """
    (hint,) = (f.type for f in fields(TrainingArguments) if f.name == field)
    hints = member_types(hint)
    if field == "fsdp":
        hints.append(bool)
    if value is False and field.endswith("_strategy"):
        value = "no"  # YAML reads `no` as false
    if float in hints and isinstance(value, str) and not fits(value, hints):
        with contextlib.suppress(ValueError):  # YAML reads `1e-3` as a string
            value = float(value)
    if not fits(value, hints):
        wanted = list(dict.fromkeys(NAMES.get(get_origin(hint) or hint, "text") for hint in hints))
        raise ValueError(f"`{field}` of {where} must be {' or '.join(wanted)}, got {value!r}")
    minimum = MINIMUM.get(field)
    if is_number(value) and not math.isfinite(value):
        raise ValueError(f"`{field}` of {where} must be a finite number, got {value!r}")
    if is_number(value) and minimum is not None and value < minimum and (field, value) != ("max_steps", -1):
        raise ValueError(f"`{field}` of {where} must be at least {minimum}, got {value!r}")
    return value


def member_types(hint: Any) -> list:
    """The members of a union, flattened, or the type itself."""
    return [kind for part in get_args(hint) for kind in member_types(part)] if is_union(hint) else [hint]


def is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def fits(value: Any, hints: list) -> bool:
    for hint in hints:
        origin = get_origin(hint) or hint
        if origin is Literal:
            if any(value is choice for choice in get_args(hint)):
                return True
        elif origin is Any or (isinstance(origin, type) and issubclass(origin, Enum) and isinstance(value, str)):
            return True
        elif origin in (int, float):
            if isinstance(value, int | origin) and not isinstance(value, bool):
                return True
        elif isinstance(value, origin):
            return True
    return False


def check_recompute(arguments: TrainingArguments) -> None:
    """Raise `ValueError` for unknown choices of `recompute`. The number of layers is not known yet."""
    options = arguments.gradient_checkpointing_kwargs  # may be a string that is not a JSON object
    recompute = options.get("recompute") if isinstance(options, dict) else None
    if recompute is not None:
        choices_of_layers(recompute, sum(recompute.values()) if isinstance(recompute, dict) else 1)


def accelerator_options(options: dict) -> dict:
    """A stage's `accelerator_config`, a mapping or the path of a JSON file."""
    given = options.get("accelerator_config") or {}
    return json.loads(Path(given).read_text(encoding="utf-8")) if isinstance(given, str) else given


def validation_defaults(config, name: str, options: dict) -> dict:
    """Defaults for validation: evaluate four times if there is validation data, and save a checkpoint at each
    evaluation if the best one is to be loaded at the end."""
    defaults = {}
    if config.has_validation and "eval_strategy" not in options:
        defaults = {"eval_strategy": "steps", "eval_steps": options.get("eval_steps", 0.25)}
    stops = config.early_stopping(name) is not None
    if stops:
        defaults |= {"load_best_model_at_end": True, "restore_callback_states_from_checkpoint": True}
    if (stops or options.get("load_best_model_at_end")) and not {"save_strategy", "save_steps"} & options.keys():
        given = defaults | options
        defaults["save_strategy"] = given.get("eval_strategy", "no")
        if given.get("eval_steps"):
            defaults["save_steps"] = given["eval_steps"]
    return defaults


def check_hub_access(arguments: TrainingArguments | None) -> None:
    """Raise `ValueError` if a stage is to be pushed to the Hub, and the Hub does not accept the token."""
    if arguments is None or not arguments.push_to_hub:
        return
    try:
        HfApi().whoami(arguments.hub_token)
    except Exception as error:  # the exception types depend on the version of huggingface_hub
        raise ValueError(
            f"`push_to_hub` needs access to the Hub and a token (`hf auth login`, or `hub_token`): "
            f"{' '.join(str(error).split())}"
        ) from error


def check_validation(config, name: str, arguments: TrainingArguments) -> None:
    where, evaluates = f"`{name}_stage`", arguments.eval_strategy != "no"
    if (evaluates or arguments.eval_on_start) and config.validation is None:
        raise ValueError(
            f"`eval_strategy` of {where} needs validation data: `data: {{path: ..., validation: ...}}`, with a file "
            "or a share of the videos"
        )
    if not evaluates and arguments.load_best_model_at_end:
        raise ValueError(f"`load_best_model_at_end` and early stopping of {where} need an `eval_strategy`")
    if config.early_stopping(name) is not None and not arguments.load_best_model_at_end:
        raise ValueError(f"`early_stopping_patience` of {where} needs `load_best_model_at_end`")
    if arguments.metric_for_best_model not in (None, "loss", "eval_loss"):
        raise ValueError(
            f"`metric_for_best_model` of {where} must be 'loss', got {arguments.metric_for_best_model!r}: training "
            "measures nothing else"
        )


__all__ = ["check_hub_access", "stage_arguments"]
