"""Tiny stock models that read images, with random weights, and their processors on disk."""

import json
from pathlib import Path

import torch
from family_tokenizers import family
from stock_models import SIZES
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

CLASSES = {
    "llava": (LlavaConfig, LlavaForConditionalGeneration),
    "llava_onevision": (LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration),
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration),
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration),
}
TOKENIZERS = {"llava": "llava interleave"}


def vlm_tokenizer(kind: str):
    _, tokenizer, tokenizer.chat_template = family(TOKENIZERS.get(kind, kind))
    return tokenizer


def stock_vlm(
    kind: str,
    seed: int = 0,
    side: int = 6,
    patch: int = 4,
    tower: str | None = None,
    text: str = "llama",
    spare: int = 3,
    vision: dict | None = None,
    language: dict | None = None,
    **options,
):
    """A model with `side` patches a side, whose weights are large enough that a wrong token shows in the logits.

    Args:
        tower: model type of the tower, `text` that of the language model. `spare`: rows of embeddings without a token.
        vision, language: more fields of their configurations. `options`: of the model's own.
    """
    tokenizer, own = vlm_tokenizer(kind), kind in ("smolvlm", "idefics3")
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": side * patch,
        "patch_size": patch,
        **({} if own else {"model_type": tower or "siglip_vision_model"}),
        **(vision or {}),
    }
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    language = {**SIZES, "model_type": text, "vocab_size": len(tokenizer) + spare, **ids, **(language or {})}
    image, video = (tokenizer.convert_tokens_to_ids(token) for token in ("<image>", "<video>"))
    placeholders = {"image_token_id": image} if own else {"image_token_index": image}
    if kind == "llava_onevision":
        placeholders["video_token_index"] = video
        options = {"image_grid_pinpoints": [[side * patch * 2, side * patch]], **options}
    config_class, model_class = CLASSES[kind]
    torch.manual_seed(seed)
    model = model_class(config_class(vision_config=vision, text_config=language, **placeholders, **options))
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            torch.nn.init.normal_(weight, mean=float("norm" in name and name.endswith("weight")), std=0.3)
        else:
            torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


def save_vlm(path: Path, kind: str, **options) -> Path:
    """Write a model, its tokenizer with a chat template, and the options of an image processor; returns the folder."""
    model = stock_vlm(kind, **options)
    model.save_pretrained(path)
    vlm_tokenizer(kind).save_pretrained(path)
    side = model.config.vision_config.image_size
    image = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "resample": 2, "rescale_factor": 1 / 255}
    if kind in ("smolvlm", "idefics3"):  # images become tiles: 2 rows and 3 columns of 70 x 30 pixels
        image |= {"size": {"longest_edge": 3 * side}, "max_image_size": {"longest_edge": side}, "resample": 1}
        image |= {"video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": side}}}
    elif options.get("tower") == "clip_vision_model":
        image |= {
            "size": {"shortest_edge": side},
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
        }
    else:
        image["size"] = {"height": side, "width": side}
    image["image_processor_type"] = {"llava": "CLIPImageProcessor"}.get(kind, CLASSES[kind][0].__name__)
    (path / "preprocessor_config.json").write_text(json.dumps(image))
    return path


def with_small_pictures(processor):
    """The processor of a tiny model, without making frames 1456 pixels wide first as SmolVLM and Idefics3 do: that
    takes longer than the model."""
    pixels = processor.video_processor
    if pixels.size.longest_edge:
        pixels.size = type(pixels.size)(longest_edge=3 * pixels.max_image_size["longest_edge"])
    return processor
