"""Before streams: teach the vision tower to name what is in each cell of a frame.

A language model that learns to see only through narrations learns slowly; naming cells first takes the tower a minute.
"""

import torch
from torch import nn


class CellNamer(nn.Module):
    """The frame tokens of a model's vision tower, each pooled cell with a linear classifier."""

    def __init__(self, model, num_kinds: int):
        super().__init__()
        self.vision_tower = model.model.vision_tower
        self.head = nn.Linear(model.config.vision_config.hidden_size, num_kinds)
        # not a submodule: only the tower and the head are trained and saved in this stage
        self._encode_frames = model.model.encode_frames
        self._first_cell = int(model.config.frame_token_cls)

    def forward(self, pixel_values_videos: torch.Tensor, labels: torch.Tensor | None = None, **kwargs) -> dict:
        """
        Args:
            pixel_values_videos (`[F, 3, H, W]`), labels (`int64 [F, h * w]`): the kind in each cell.

        Returns:
            `loss` and `logits` `[F, h * w, kinds]`.
        """
        tokens = self._encode_frames(pixel_values_videos).pooler_output[:, self._first_cell :]
        logits = self.head(tokens)
        loss = None if labels is None else nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return {"loss": loss, "logits": logits}
