"""LoRA and QLoRA: which weights get low-rank adapters, which are trained whole, and how an adapter becomes a model."""

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import BitsAndBytesConfig

from ..data.files import written_whole
from ..loading.find import base_of
from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
from ..processing_videollm_mod import VideoLLMMoDProcessor
from .saving import save

# every linear layer of the language model, and the head; the vision tower has layers of the same names
ADAPTED = r"(.*\.)?language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj|lm_head"


@dataclass
class LoraOptions:
    """
    Args:
        r, alpha (`int`): rank and scale of the adapters. Source: VideoLLM-MoD (arXiv 2408.16730), section 4.
        dropout (`float`): of their input, in [0, 1).
    """

    r: int = 128
    alpha: int = 256
    dropout: float = 0.0

    def __post_init__(self):
        for name in ("r", "alpha"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` of `lora` must be a positive integer, got {value!r}")
        dropout = self.dropout
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ValueError(f"`dropout` of `lora` must be in [0, 1), got {dropout!r}")


def four_bit() -> BitsAndBytesConfig:
    """NF4 with double quantisation and bfloat16 arithmetic for the language model's layers, as in QLoRA (arXiv
    2305.14314). The model keeps the precision of the rest.

    Raises:
        `ImportError`: without bitsandbytes.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ImportError("weights in 4 bit need bitsandbytes: pip install videollm-mod[quant]") from error
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def add_lora(model: VideoLLMMoDForConditionalGeneration, options: LoraOptions, train_vision_tower: bool = False):
    """Freeze `model` and return the `PeftModel` around it: adapters on `ADAPTED`; connector, LayerExperts and, if
    asked, the vision tower trained whole, in float32, and saved with the adapters.

    `PeftModel.from_pretrained(model, folder)` of plain peft loads what its `save_pretrained(folder)` writes.

    Raises:
        `ImportError`: without peft.
    """
    from peft import LoraConfig, get_peft_model

    from .lora_linear import use_lora_linear

    names = ["connector", "layer_expert", *(["vision_tower"] if train_vision_tower else [])]
    whole = [module for name, module in model.named_modules() if name.split(".")[-1] in names]
    for module in whole:
        module.float()  # AdamW's steps would be lost in bfloat16
    config = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=ADAPTED,
        modules_to_save=names,
    )
    adapted = get_peft_model(model, config)
    use_lora_linear(adapted)
    # peft would put the frozen lm_head into every checkpoint: 1 GiB at Llama-3-8B's vocabulary
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted


def merge_adapter(adapter: str | Path, output: str | Path) -> Path:
    """Write the checkpoint that an adapter and its base amount to: a plain Hub folder, in the base's dtype, routers in
    float32.

    Raises:
        `FileNotFoundError`: if there is no adapter, or its base is gone.
        `ValueError`: if `output` holds something already.
    """
    adapter, output = Path(adapter), Path(output)
    base = base_of(adapter)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"`--output` must be a new or empty folder, got {output}")
    model = VideoLLMMoDForConditionalGeneration.from_pretrained(base)
    processor = VideoLLMMoDProcessor.from_pretrained(base)
    dtype = model.dtype
    merged = with_adapter(model, adapter)
    with written_whole(output) as partial:
        save(merged, processor, partial, dtype)
    return output


def with_adapter(model: VideoLLMMoDForConditionalGeneration, adapter: Path, merged: bool = True):
    """The model with an adapter's weights: merged into its own, or beside them, as for weights in 4 bit.

    Raises:
        `ImportError`: without peft.
        `ValueError`: if the adapter does not fit the model, or is damaged.
    """
    from peft import PeftModel

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
