"""Taking out of training what no gradient can reach.

DDP waits for a gradient of every trainable parameter, and FSDP expects the same ones on every rank. Saying beforehand
which get none is exact and free; `find_unused_parameters` would search the graph in every step.
"""

from ..configuration_videollm_mod import VideoLLMMoDConfig


def unreached(config: VideoLLMMoDConfig, given_features: bool) -> tuple[str, ...]:
    """Names (parts of parameter names) of what a stream's loss does not depend on.

    Args:
        given_features (`bool`): frames come as `video_features`, so that the vision tower does not run.
    """
    text, vision = config.text_config, config.vision_config
    names = []
    if text.mod_gate == "none" or text.vision_routing != "mod":
        names.append(".layer_expert.")
    if given_features:
        names.append("vision_tower.")
    elif vision.model_type == "clip_vision_model":
        names.append(".post_layernorm.")  # only in CLIP's pooled output; the class token is taken before it
    elif not config.frame_token_cls:
        names.append(".head.")  # SigLIP's pooling head
    return tuple(names)


def freeze_unreached(model, given_features: bool) -> None:
    """Set `requires_grad=False` where `unreached` says so; the rest is left as it is."""
    for name, parameter in model.named_parameters():
        if any(part in f".{name}" for part in unreached(model.config, given_features)):
            parameter.requires_grad_(False)
