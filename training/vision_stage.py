"""The first training stage: the vision tower learns to classify what is where in a frame.

Learning to see from narrations alone is slow; this stage takes two minutes.
"""

import torch
from torch import nn

from ..data.world_basic import ABSENT, KINDS, NUM_STATES


class CellClassifier(nn.Module):
    """A linear classifier on each frame token of a model's vision tower. A pooled cell predicts all objects in it, the
    class token all objects in the frame.

    A cell may hold several objects, so there is one prediction per kind of object, of its state: absent, present, or
    in place of which other kind. The language model needs this information, and it stays linearly readable when the
    features of several objects are averaged.
    """

    accepts_loss_kwargs = False  # otherwise the Trainer would scale the loss as a mean over all processes' tokens

    def __init__(self, model):
        super().__init__()
        self.vision_tower = model.model.vision_tower
        self.head = nn.Linear(model.config.vision_config.hidden_size, len(KINDS) * NUM_STATES)
        # most kinds are absent from most cells, so start there
        self.head.bias.data.view(len(KINDS), NUM_STATES)[:, ABSENT] = 8.0
        # the model itself is not a submodule, so that only the tower and the head are trained and saved
        self._encode_frames = model.model.encode_frames
        self._has_class_token = model.config.frame_token_cls

    def forward(self, pixel_values_videos: torch.Tensor, labels: torch.Tensor | None = None) -> dict:
        """
        Args:
            pixel_values_videos (`[F, 3, H, W]`).
            labels (`int64 [F, h * w, kinds]`): state of each kind in each cell; a kind is in at most one cell.

        Returns:
            `loss`, in nats per object, and `logits` `[F, N, kinds, states]`.
        """
        tokens = self._encode_frames(pixel_values_videos).pooler_output
        logits = self.head(tokens).unflatten(-1, (len(KINDS), NUM_STATES))
        if labels is None:
            return {"loss": None, "logits": logits}
        if self._has_class_token:
            labels = torch.cat([labels.amax(1, keepdim=True), labels], dim=1)
        loss = nn.functional.cross_entropy(logits.flatten(0, 2).float(), labels.flatten(), reduction="sum")
        return {"loss": loss / (labels > 0).sum().clamp(min=1), "logits": logits}
