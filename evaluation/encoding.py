"""Frames as the language model takes them, encoded a few at a time."""

import torch

FRAMES_AT_ONCE = 64  # that are encoded together


@torch.no_grad()
def encode(model, processor, frames: torch.Tensor) -> torch.Tensor:
    """Features `[F, N, Dv]` on the model's device, of frames uint8 `[F, 3, H, W]` or of features."""
    if frames.ndim == 3:
        return frames.to(model.device, model.dtype)
    encoded = []
    for part in frames.split(FRAMES_AT_ONCE):
        pixels = processor.video_processor(
            part.to(model.device), return_tensors="pt", input_data_format="channels_first"
        )["pixel_values_videos"]
        encoded.append(model.encode_frames(pixels).pooler_output)
    return torch.cat(encoded)
