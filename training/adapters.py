"""LoRA: add adapters to a model, and merge them into a checkpoint."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..containers import check_count, is_number
from ..data.files import written_whole
from ..loading.adapters import with_adapter, write_rule
from ..loading.find import base_of
from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
from ..processing_videollm_mod import VideoLLMMoDProcessor
from .saving import save

# every linear layer of the language model, and the head, but not the layers of the same names in the vision tower
TARGET_MODULES = r"(.*\.)?language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj|lm_head"


@dataclass
class LoraOptions:
    """
    Args:
        r, alpha (`int`): rank and scale of the adapters. Source: VideoLLM-MoD (arXiv 2408.16730), section 4.
        dropout (`float`): dropout of the adapters' input, in [0, 1).
    """

    r: int = 128
    alpha: int = 256
    dropout: float = 0.0

    def __post_init__(self):
        for name in ("r", "alpha"):
            check_count(f"`{name}` of `lora`", getattr(self, name))
        if not is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` of `lora` must be in [0, 1), got {self.dropout!r}")


def add_lora(model: VideoLLMMoDForConditionalGeneration, options: LoraOptions, train_vision_tower: bool = False):
    """Freeze `model` and return a `PeftModel` around it, with adapters on `TARGET_MODULES`. The connector, the
    LayerExperts and, if `train_vision_tower`, the vision tower are trained in full, in float32, and saved with the
    adapters.

    Plain peft loads the saved adapter with `PeftModel.from_pretrained(model, folder)`.

    Raises:
        `ImportError`: without peft.
    """
    from peft import LoraConfig, get_peft_model

    from .lora_linear import use_lora_linear

    names = ["connector", "layer_expert", *(["vision_tower"] if train_vision_tower else [])]
    for module in [module for name, module in model.named_modules() if name.split(".")[-1] in names]:
        module.float()  # bfloat16 would round away most of AdamW's updates
    config = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=TARGET_MODULES,
        modules_to_save=names,
    )
    adapted = get_peft_model(model, config)
    use_lora_linear(adapted)
    # peft would save the frozen lm_head in every checkpoint: 1 GiB with the vocabulary of Llama-3-8B
    save_all = partial(adapted.save_pretrained, save_embedding_layers=False)

    def slim(folder: str | Path, *arguments, **kwargs) -> None:
        save_all(str(folder), *arguments, **kwargs)
        write_rule(model.config, Path(folder))

    adapted.save_pretrained = slim  # type: ignore[method-assign, assignment]  # of this object alone
    return adapted


def merge_adapter(adapter: str | Path, output: str | Path) -> Path:
    """Merge an adapter into its base model, and write the result as a plain Hub folder in the dtype of the base, with
    routers in float32.

    Raises:
        `FileNotFoundError`: if the adapter or its base does not exist.
        `ValueError`: if `output` is not empty.
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
