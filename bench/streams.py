"""Random models and streams of a geometry. Speed and memory do not depend on the values of weights and features."""

import torch

from ..configuration_videollm_mod import VideoLLMMoDConfig
from ..containers import IGNORE_INDEX
from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
from .geometries import BOS, END, EOS, FIRST_WORD, SEPARATOR, START, VIDEO, config_values

FRAMES_PER_REPLY = 20


def random_model(
    geometry: str,
    device: str | torch.device,
    tokens: int = 10,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    **mod_options,
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


def random_tokens(
    config: VideoLLMMoDConfig, frames: int, words: int, generator: torch.Generator
) -> tuple[list[int], list[int]]:
    """Ids and labels `[T]` of a stream with a reply of `words` random words after every 20th frame and at the end. The
    labels are those that the processor would make."""
    ids, labels = [BOS], [IGNORE_INDEX]

    def say(tokens: list[int], learned: bool) -> None:
        ids.extend(tokens)
        labels.extend(tokens if learned else [IGNORE_INDEX] * len(tokens))

    for first in range(0, frames, FRAMES_PER_REPLY):
        turn = min(FRAMES_PER_REPLY, frames - first)
        say([START], False)
        for index in range(turn):
            say([VIDEO] * config.num_frame_tokens, False)
            say([SEPARATOR if index < turn - 1 else END], True)
        reply = torch.randint(FIRST_WORD, config.text_config.vocab_size, (words,), generator=generator)
        say([*reply.tolist(), EOS], True)
    return ids, labels


def random_stream(model, frames: int, device: str, batch: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch of streams that differ in their features only: `input_ids` and `labels` `[batch, T]`, `video_features`
    `[batch * frames, N, Dv]`. A reply has 23 words and an end."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    ids, labels = random_tokens(config, frames, 23, generator)
    shape = (batch * frames, config.num_frame_tokens, config.vision_config.hidden_size)
    features = torch.randn(shape, generator=generator)
    return {
        "input_ids": torch.tensor([ids] * batch, device=device),
        "labels": torch.tensor([labels] * batch, device=device),
        "video_features": features.to(device, model.dtype),
    }


class RandomStreams(torch.utils.data.Dataset):
    """A data set of streams of `num_frames` frames as features, with replies of 12 words. Only four tensors of
    features are made and used in turn, so that a run does not wait for them."""

    def __init__(self, config: VideoLLMMoDConfig, num_frames: int, length: int = 10_000, seed: int = 0):
        self.config, self.num_frames, self.length, self.seed = config, num_frames, length, seed
        shape = (num_frames, config.num_frame_tokens, config.vision_config.hidden_size)
        generator = torch.Generator().manual_seed(seed)
        self.features = [torch.randn(shape, generator=generator).bfloat16() for _ in range(4)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(self.seed * self.length + range(self.length)[index])
        ids, labels = random_tokens(self.config, self.num_frames, 12, generator)
        return {"input_ids": ids, "labels": labels, "video_features": self.features[index % len(self.features)]}
