"""The HF Trainer for streams: frames travel as uint8 and become pixel values on the device."""

import torch
from transformers import Trainer


class StreamTrainer(Trainer):
    """A `Trainer` whose batches may hold `frames`, uint8 `[F, 3, H, W]`, instead of `pixel_values_videos`: a quarter
    of the bytes to copy, and the preprocessing is done where the model is.

    Args:
        video_processor: turns frames into pixel values; needed where batches hold `frames`.
    """

    def __init__(self, *args, video_processor=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.video_processor = video_processor

    def _prepare_inputs(self, inputs: dict) -> dict[str, torch.Tensor]:
        inputs = super()._prepare_inputs(inputs)
        frames, index = inputs.pop("frames", None), inputs.pop("frame_index", None)
        if frames is None:
            return inputs
        pixels = self.video_processor(frames, return_tensors="pt")["pixel_values_videos"]
        if index is None:
            return {**inputs, "pixel_values_videos": pixels}
        model = self.accelerator.unwrap_model(self.model)
        with self.compute_loss_context_manager():  # frames that repeat are encoded once
            features = model.encode_frames(pixels).pooler_output
        return {**inputs, "video_features": features[index]}
