"""Freeze the parameters that get no gradient.

DDP waits for the gradient of every trainable parameter, and FSDP expects the same gradients on every rank. Freezing is
exact and free, while `find_unused_parameters` would search the graph in every step.
"""

import re

from torch import nn

from ..configuration_videollm_mod import VideoLLMMoDConfig


def names_without_gradient(config: VideoLLMMoDConfig, given_features: bool) -> tuple[str, ...]:
    """Parts of the names of parameters that the loss of a stream does not depend on.

    Args:
        given_features (`bool`): frames are given as `video_features`, so the vision tower does not run.
    """
    text, vision = config.text_config, config.vision_config
    names = []
    if text.mod_gate == "none" or text.vision_routing != "mod":
        names.append(".layer_expert.")
    if given_features:
        names.append("vision_tower.")
    elif vision.model_type == "clip_vision_model":
        names.append(".post_layernorm.")  # only used for CLIP's pooled output; our class token comes before it
    elif not config.frame_token_cls:
        names.append(".head.")  # SigLIP's pooling head
    return tuple(names)


def freeze_unreached(model, given_features: bool) -> None:
    """Set `requires_grad=False` for the parameters of `names_without_gradient`, and leave the others as they are."""
    for name, parameter in model.named_parameters():
        if any(part in f".{name}" for part in names_without_gradient(model.config, given_features)):
            parameter.requires_grad_(False)


def frozen_modules(model: nn.Module) -> str | None:
    """A pattern that matches the names of the modules that hold parameters and train none of them. None if there are
    no such modules: an empty pattern would match the model itself."""
    names = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            names.append(re.escape(name))
    return "|".join(names) or None
