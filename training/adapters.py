"""LoRA: which weights get low-rank adapters, which are trained whole, and how an adapter becomes a checkpoint."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..data.files import written_whole
from ..loading.adapters import with_adapter
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
