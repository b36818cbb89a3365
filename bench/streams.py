"""Random models and streams of a geometry, made where they are needed."""

import torch

from ..configuration_videollm_mod import VideoLLMMoDConfig
from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
from .geometries import BOS, END, EOS, FIRST_WORD, SEPARATOR, START, VIDEO, config_values

FRAMES_PER_REPLY, REPLY_TOKENS = 20, 24  # the end of the sequence among them


def random_model(
    geometry: str, device: str, tokens: int = 10, dtype: torch.dtype = torch.bfloat16, seed: int = 0, **mod_options
) -> VideoLLMMoDForConditionalGeneration:
    """A model in `dtype`, its routers in float32, made on `device`."""
    config = VideoLLMMoDConfig(**config_values(geometry, tokens, **mod_options))
    torch.manual_seed(seed)
    with torch.device(device):
        model = VideoLLMMoDForConditionalGeneration._from_config(config, dtype=dtype)
    for layer in model.model.language_model.layers:  # scores that tell tokens apart
        if layer.layer_expert is not None:
            torch.nn.init.normal_(layer.layer_expert.weight, std=config.text_config.hidden_size**-0.5)
    return model


def random_stream(model, frames: int, device: str, batch: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    """`input_ids` and `labels` `[batch, T]` and `video_features` `[batch * frames, N, Dv]` of streams that differ in
    their features alone: a reply of 24 tokens after every 20th frame, labels as the processor makes them."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    ids, labels = [BOS], [-100]

    def say(tokens: list[int], learned: bool) -> None:
        ids.extend(tokens)
        labels.extend(tokens if learned else [-100] * len(tokens))

    for first in range(0, frames, FRAMES_PER_REPLY):
        turn = min(FRAMES_PER_REPLY, frames - first)
        say([START], False)
        for index in range(turn):
            say([VIDEO] * config.num_frame_tokens, False)
            say([SEPARATOR if index < turn - 1 else END], True)
        words = torch.randint(FIRST_WORD, config.text_config.vocab_size, (REPLY_TOKENS - 1,), generator=generator)
        say([*words.tolist(), EOS], True)
    shape = (batch * frames, config.num_frame_tokens, config.vision_config.hidden_size)
    features = torch.randn(shape, generator=generator)
    return {
        "input_ids": torch.tensor([ids] * batch, device=device),
        "labels": torch.tensor([labels] * batch, device=device),
        "video_features": features.to(device, model.dtype),
    }
