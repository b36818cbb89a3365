"""A new model and its processor: random weights, and a tokenizer trained on given texts."""

import math

import torch

from ..configuration_videollm_mod import VideoLLMMoDConfig
from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
from ..processing_videollm_mod import VideoLLMMoDProcessor, VideoLLMMoDVideoProcessor
from .tokenizer import VIDEO, train_tokenizer


def initialise(
    options: dict, texts: list[str], vocab_size: int, seed: int = 0
) -> tuple[VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor]:
    """
    Args:
        options (`dict`): options of `VideoLLMMoDConfig`; ids and vocabulary size come from the tokenizer.
        texts (`list[str]`): texts to train the tokenizer on.
        vocab_size (`int`): maximum number of tokens of the tokenizer.
        seed (`int`): seed of the weights.
    """
    tokenizer = train_tokenizer(texts, vocab_size)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = VideoLLMMoDConfig(
        **{
            **options,
            "text_config": {**options["text_config"], "vocab_size": len(tokenizer), **ids},
            "video_token_id": tokenizer.convert_tokens_to_ids(VIDEO),
            "frame_separator_token_id": tokenizer.convert_tokens_to_ids(","),
        }
    )
    side = config.vision_config.image_size
    processor = VideoLLMMoDProcessor(
        VideoLLMMoDVideoProcessor(size={"height": side, "width": side}),
        tokenizer,
        num_frame_tokens=config.num_frame_tokens,
    )
    torch.manual_seed(seed)
    model = VideoLLMMoDForConditionalGeneration(config).eval()
    init_position_embeddings(model.model.vision_tower)
    return model, processor


@torch.no_grad()
def init_position_embeddings(tower: torch.nn.Module, scale: float = 0.5, longest: float = 100.0) -> None:
    """Initialise a new tower's position embeddings with sines and cosines of row and column instead of noise. A shift
    is then the same linear map everywhere, so the tower needs fewer steps to learn relative positions."""
    name = "position_embedding.weight"
    weight = next(value for key, value in tower.named_parameters() if key.endswith(name))
    side, quarter = math.isqrt(len(weight)), weight.shape[1] // 4  # a class token adds one row at the start
    angles = torch.arange(side)[:, None] * longest ** (-torch.arange(quarter) / quarter)
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = line[:, None].expand(side, side, -1), line[None].expand(side, side, -1)
    weight[len(weight) - side * side :, : 4 * quarter] = scale * torch.cat([rows, columns], dim=-1).flatten(0, 1)
