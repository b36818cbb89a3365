"""Put the weights of an adapter on a model."""

import json
import warnings
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration

RULE = "speaking.json"  # beside an adapter: the part of the model's configuration that was learned with it
RULE_FIELDS = ("frame_separator_token_id", "decision_offset", "speak_rule")
RANGE = "mod_keep_ratio_range"


def write_rule(config, adapter: Path) -> None:
    """Note beside an adapter that a model with the prompts of another family has learned when to be silent, and with
    which keep ratios it was trained."""
    values = {} if config.decision_offset is None else {name: getattr(config, name) for name in RULE_FIELDS}
    if config.text_config.mod_keep_ratio_range is not None:
        values[RANGE] = list(config.text_config.mod_keep_ratio_range)
    if values:
        (adapter / RULE).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_rule(config, adapter: Path) -> None:
    """Enter what `write_rule` noted into the configuration of the base model."""
    if not (adapter / RULE).is_file():
        return
    try:
        values = json.loads((adapter / RULE).read_text(encoding="utf-8"))
        if RANGE in values:
            config.text_config.mod_keep_ratio_range = values.pop(RANGE)
            config.text_config.check_routing()
        for name in RULE_FIELDS if values else ():
            setattr(config, name, values[name])
        config.check_frames()
        config.check_speaking()
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{adapter / RULE} is damaged: {error!r}") from error


def with_adapter(model: VideoLLMMoDForConditionalGeneration, adapter: Path, merged: bool = True):
    """The model with an adapter's weights: merged into its own, or beside them, as for weights in 4 bit.

    Raises:
        `ImportError`: without peft.
        `ValueError`: if the adapter does not fit the model, or is damaged.
    """
    from peft import PeftModel

    model.config.domain = None  # the adapter may have learned anything
    read_rule(model.config, adapter)
    if merged:
        untie_head(model)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")
            adapted = PeftModel.from_pretrained(model, str(adapter))
    except (RuntimeError, LookupError, TypeError, ValueError, Warning, SafetensorError) as error:
        raise ValueError(f"the adapter {adapter} does not fit its base model, or is damaged: {error}") from error
    return adapted.merge_and_unload() if merged else adapted.get_base_model()


def untie_head(model: VideoLLMMoDForConditionalGeneration) -> None:
    """Give the head weights of its own, so that merging into it leaves the embeddings as they are."""
    if model.config.tie_word_embeddings:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
