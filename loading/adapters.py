"""Put the weights of an adapter on a model."""

import warnings
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration


def with_adapter(model: VideoLLMMoDForConditionalGeneration, adapter: Path, merged: bool = True):
    """The model with an adapter's weights: merged into its own, or beside them, as for weights in 4 bit.

    Raises:
        `ImportError`: without peft.
        `ValueError`: if the adapter does not fit the model, or is damaged.
    """
    from peft import PeftModel

    model.config.domain = None  # the adapter may have learned anything
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
