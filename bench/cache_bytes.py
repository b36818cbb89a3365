"""Bytes of keys and values per frame, counted from a `MoDCache` that a model has filled.

How many tokens a layer holds depends only on routing. A model with narrow layers therefore fills the cache, and the
bytes are those of the geometry's attention heads.
"""

import torch

from ..cache import MoDCache
from ..configuration_videollm_mod import VideoLLMMoDConfig
from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
from .geometries import SEPARATOR, SMALL_TOWER, VIDEO, config_values


def held_tokens(geometry: str, frames: int, tokens: int, keep_ratio: float, chunk: int = 2) -> list[int]:
    """The tokens that each layer holds after `frames` frames, each with a separator, in calls of `chunk` frames."""
    values = config_values(geometry, tokens, mod_keep_ratio=keep_ratio)
    narrow = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "head_dim": 2}
    narrow |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    values |= {"text_config": {**values["text_config"], **narrow}, "vision_config": SMALL_TOWER}
    model = VideoLLMMoDForConditionalGeneration(VideoLLMMoDConfig(**values)).eval()
    frame, cache = [VIDEO] * tokens + [SEPARATOR], MoDCache(model.config)
    with torch.inference_mode():
        for first in range(0, frames, chunk):
            count = min(chunk, frames - first)
            features = torch.randn(count, tokens, SMALL_TOWER["hidden_size"])
            inputs = torch.tensor([frame * count])
            model.model(input_ids=inputs, video_features=features, cache=cache, use_cache=True)
    return [layer.get_seq_length() for layer in cache.layers]


def bytes_per_frame(geometry: str, tokens: int, keep_ratio: float = 0.2, frames: int = 4) -> dict[str, float]:
    """Bytes of bfloat16 keys and values for a frame and its separator, routed and dense, and their ratio."""
    text = VideoLLMMoDConfig(**config_values(geometry, tokens)).text_config
    per_token = 2 * text.num_key_value_heads * text.head_dim * torch.bfloat16.itemsize  # of one layer
    routed = sum(held_tokens(geometry, frames, tokens, keep_ratio)) * per_token / frames
    dense = sum(held_tokens(geometry, frames, tokens, 1.0)) * per_token / frames
    return {"mod": routed, "dense": dense, "ratio": routed / dense}
