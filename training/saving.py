"""Save checkpoints, also of models sharded by FSDP, and load the Trainer's weights."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration


def save(model, processor, folder: Path, dtype: torch.dtype) -> None:
    """Write a checkpoint in `dtype`, with LayerExperts in float32."""
    routers = {name: p.detach().clone() for name, p in model.named_parameters() if "layer_expert" in name}
    model.to(dtype)
    for name, value in routers.items():
        model.get_parameter(name).data = value
    if not processor.sequence.one_turn:  # other families may have several
        model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def load_weights(model, checkpoint: Path) -> None:
    """Load the weights of a Trainer checkpoint into a model, which may have adapters."""
    if hasattr(model, "peft_config"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(checkpoint / "adapter_model.safetensors"))
        return
    files = sorted(checkpoint.glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(f"there are no weights (model.safetensors) in {checkpoint}")
    own, missing = model.state_dict(), set(model.state_dict())
    for file in files:  # a large model is saved in several files
        missing.intersection_update(model.load_state_dict(load_file(file), strict=False).missing_keys)
    loaded = {own[name].data_ptr() for name in own.keys() - missing}
    # a missing name is fine if its tensor is tied to a loaded one
    lacking = sorted(name for name in missing if own[name].data_ptr() not in loaded)
    if lacking:
        raise ValueError(f"{checkpoint} lacks weights of this model: {', '.join(lacking[:5])}")


def unsharded(model, state: dict[str, torch.Tensor]) -> VideoLLMMoDForConditionalGeneration:
    """The plain model of an FSDP-sharded one, with the gathered weights `state`. FSDP changes a model's class, but
    `save_pretrained` writes the class name and its code."""
    with torch.device("meta"):
        plain = VideoLLMMoDForConditionalGeneration(model.config)
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain
