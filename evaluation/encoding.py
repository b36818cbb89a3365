"""Encode frames with the vision tower in small batches."""

import torch

BATCH_SIZE = 64  # frames encoded together


@torch.no_grad()
def encode(model, processor, frames: torch.Tensor) -> torch.Tensor:
    """Features `[F, N, Dv]` on the model's device, from uint8 frames `[F, 3, H, W]`. Features are only moved there."""
    if frames.ndim == 3:
        return frames.to(model.device, model.dtype)
    encoded = []
    for batch in frames.split(BATCH_SIZE):
        pixels = processor.video_processor(
            batch.to(model.device), return_tensors="pt", input_data_format="channels_first"
        )["pixel_values_videos"]
        encoded.append(model.encode_frames(pixels).pooler_output)
    return torch.cat(encoded)
