"""Build checkpoints from other ones: a language model with a vision tower, or an adapter of VideoLLM-online.

Layout of the adapter (showlab/videollm-online, `models/modeling_live.py`): a PEFT folder with LoRA on projections of
`model.*` and on `lm_head`, and the full `connector`, a `Sequential` of linear, GELU, linear. Its placeholder id is one
past the vocabulary and has no embedding. A frame is a class token and 3 x 3 pooled patches; frames are separated by
`,`.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..building import read_config
from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration

PREFIX = "base_model.model."
CONNECTOR = {"connector.0": "linear_1", "connector.2": "linear_2"}


def new_folder(output: Path) -> Path:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"`output` must be a new or empty folder, got {output}")
    if not output.parent.is_dir():
        raise ValueError(f"the folder of `output` does not exist: {output.parent}")
    return output


def write(model, processor, output: Path) -> str:
    model.save_pretrained(output)
    processor.save_pretrained(output)
    parameters = sum(x.numel() for x in model.parameters())
    return f"{output}: {parameters:,} parameters, {model.config.num_frame_tokens} tokens per frame"


def build_folder(
    llm: str | None, vision: str | None, output: Path, vlm: str | None = None, seed: int = 0, **options
) -> str:
    """Write the model of `from_components(llm, vision, **options)`, or of `from_vlm(vlm, **options)`, as a Hub folder.
    Options that are None are ignored."""
    if (vlm is None) == (llm is None) or (vlm is None) == (vision is None):
        raise ValueError("give `--vlm`, or both `--llm` and `--vision`")
    options = {name: value for name, value in options.items() if value is not None}
    for name, option in {"gguf_file": "--gguf-file", "frame_token_cls": "--no-class-token"}.items():
        if vlm is not None and name in options:
            raise ValueError(f"`{option}` goes with `--llm` and `--vision`, not with `--vlm`")
    new_folder(output)
    torch.manual_seed(seed)
    if vlm is None:
        model, processor = VideoLLMMoDForConditionalGeneration.from_components(llm, vision, **options)
    else:
        model, processor = VideoLLMMoDForConditionalGeneration.from_vlm(vlm, **options)
    return write(model, processor, output)


def convert_folder(
    path: Path, output: Path, vision: str, base: str | None = None, mod: bool = False, **options
) -> str:
    """Merge an adapter of VideoLLM-online into its base, and write it as a Hub folder. Without `mod` no layer is
    routed."""
    options = {name: value for name, value in options.items() if value is not None}
    if options and not mod:
        raise ValueError(f"`{next(iter(options))}` needs `mod`: a dense model has no routed layers")
    new_folder(output)
    model, processor = convert(path, vision, base, **options, **({} if mod else {"vision_routing": "full"}))
    return write(model, processor, output)


def convert(path: Path, vision, base: str | None = None, **options):
    """`(model, processor)` of an adapter of VideoLLM-online.

    Args:
        path (`Path`): the PEFT folder, with `adapter_config.json`, `adapter_model.safetensors` (or `.bin`), and
            optionally the tokenizer.
        vision, options: as in `from_components`.
        base: id or path of the language model; by default the one named in the adapter.

    Raises:
        `ValueError`: for a folder with another layout; the message names what is missing or unexpected.
    """
    settings, adapter = read_adapter(Path(path))
    tokenizer = path if (Path(path) / "tokenizer_config.json").is_file() else None
    base = base or settings.get("base_model_name_or_path")
    if not base:
        raise ValueError("the adapter does not name its language model; pass `base`")
    # the head needs its own weights: LoRA on `lm_head` must not change embeddings tied to it
    llm = VideoLLMMoDForConditionalGeneration.from_components
    model, processor = llm(untied(base), vision, tokenizer=tokenizer or base, **options)
    merge(model, settings, adapter)
    return model, processor


def untied(base: str):
    from transformers import AutoModelForCausalLM

    read_config("base", base)  # raises a clear error for a bad `base`
    llm = AutoModelForCausalLM.from_pretrained(base)
    if llm.config.tie_word_embeddings:
        llm.config.tie_word_embeddings = False
        embeddings = llm.get_input_embeddings().get_parameter("weight")
        llm.lm_head.weight = torch.nn.Parameter(embeddings.detach().clone())
    return llm


def read_adapter(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """`adapter_config.json`, and the tensors by their names without PEFT's prefix."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    if not (path / "adapter_config.json").is_file():
        raise ValueError(f"there is no adapter_config.json in {path}")
    settings = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    if settings.get("peft_type") != "LORA" or settings.get("use_dora") or settings.get("bias", "none") != "none":
        raise ValueError(f"the adapter in {path} is not a plain LoRA")
    if (path / "adapter_model.safetensors").is_file():
        tensors = load_file(path / "adapter_model.safetensors")
    elif (path / "adapter_model.bin").is_file():
        tensors = torch.load(path / "adapter_model.bin", map_location="cpu", weights_only=True)
    else:
        raise ValueError(f"there is no adapter_model.safetensors in {path}")
    return settings, {name.removeprefix(PREFIX): value for name, value in tensors.items()}


@torch.no_grad()
def merge(model, settings: dict, adapter: dict[str, torch.Tensor]) -> None:
    """Add `B A * scale` to each weight that has a LoRA, and copy the connector. Vocabulary rows that the adapter lacks
    stay as they are."""
    left = set(adapter)
    parameters = dict(model.named_parameters())
    for theirs, ours in CONNECTOR.items():
        for kind in ("weight", "bias"):
            name = f"{theirs}.{kind}"
            if name not in adapter:
                raise ValueError(f"the adapter has no {PREFIX}{name}")
            target = parameters[f"model.connector.{ours}.{kind}"]
            if target.shape != adapter[name].shape:
                raise ValueError(
                    f"{PREFIX}{name} is {list(adapter[name].shape)}; the given base and vision tower need "
                    f"{list(target.shape)}"
                )
            target.copy_(adapter[name])
            left.discard(name)
    # PEFT also stores the frozen head and the embeddings if `lm_head` has a LoRA
    for name in sorted(left):
        module = name.removesuffix(".weight").removesuffix(".base_layer")
        if module in ("lm_head", "model.embed_tokens"):
            target = parameters[module.replace("model.", "model.language_model.") + ".weight"]
            if target.shape[1:] != adapter[name].shape[1:] or target.shape[0] < adapter[name].shape[0]:
                raise ValueError(f"{PREFIX}{name} does not fit the given base")
            target[: adapter[name].shape[0]] = adapter[name].to(target.dtype)
            left.discard(name)
    for name in sorted(adapter):
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removesuffix(".lora_A.weight")
        down, up = adapter[name].float(), adapter[f"{module}.lora_B.weight"].float()
        target = parameters.get(re.sub(r"^model\.", "model.language_model.", module) + ".weight")
        if target is None or target.shape[1] != down.shape[1] or target.shape[0] < up.shape[0]:
            raise ValueError(f"{PREFIX}{name} does not fit the given base")
        target[: up.shape[0]] = (
            target[: up.shape[0]].float() + scale(settings, module, down.shape[0]) * up @ down
        ).to(target.dtype)
        left -= {name, f"{module}.lora_B.weight"}
    if left:
        raise ValueError(f"the adapter has {PREFIX}{min(left)}, which is not part of VideoLLM-online's layout")


def scale(settings: dict, module: str, rank: int) -> float:
    """`alpha / r`, or `alpha / sqrt(r)` with rank-stabilised LoRA. Patterns match the end of module names."""
    alpha = settings["lora_alpha"]
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = value
            break
    return alpha / rank**0.5 if settings.get("use_rslora") else alpha / rank


__all__ = ["build_folder", "convert", "convert_folder"]
