"""Writing checkpoints, in one dtype with routers in float32, also from a model that FSDP has sharded; loading them."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration


def save(model, processor, folder: Path, dtype: torch.dtype) -> None:
    """Write a checkpoint in `dtype`, LayerExperts in float32."""
    routers = {name: p.detach().clone() for name, p in model.named_parameters() if "layer_expert" in name}
    model.to(dtype)
    for name, value in routers.items():
        model.get_parameter(name).data = value
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def load_weights(model, checkpoint: Path) -> None:
    """Give a model, or one with adapters, the weights that the Trainer wrote into a checkpoint."""
    if hasattr(model, "peft_config"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(checkpoint / "adapter_model.safetensors"))
        return
    files = sorted(checkpoint.glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no weights (model.safetensors) in {checkpoint}")
    own, missing = model.state_dict(), set(model.state_dict())
    for file in files:  # of a large model each holds a part
        missing.intersection_update(model.load_state_dict(load_file(file), strict=False).missing_keys)
    loaded = {own[name].data_ptr() for name in own.keys() - missing}
    lacking = sorted(
        name for name in missing if own[name].data_ptr() not in loaded
    )  # others are tied to what is there
    if lacking:
        raise ValueError(f"{checkpoint} lacks weights of this model: {', '.join(lacking[:5])}")


def unsharded(model, state: dict[str, torch.Tensor]) -> VideoLLMMoDForConditionalGeneration:
    """The plain model that FSDP sharded, around its gathered `state`: FSDP changes the class of what it shards, and
    `save_pretrained` writes class names and code."""
    with torch.device("meta"):
        plain = VideoLLMMoDForConditionalGeneration(model.config)
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain
