"""Before streams: teach the vision tower to name what is where in a frame, and what came of what.

A language model that learns to see only through narrations learns slowly; naming first takes the tower two minutes.
"""

import torch
from torch import nn

from ..data.world_basic import ABSENT, KINDS, NUM_STATES


class CellNamer(nn.Module):
    """The frame tokens of a model's vision tower, each with a linear classifier of every kind of thing: a pooled cell
    names all that is in it, the class token all that is in the frame.

    A cell may hold several things, so the classes are not kinds but, for each kind, its state: not there, there, or
    instead of which other. That is what a language model looks up, and it stays readable where features of several
    things were averaged.
    """

    accepts_loss_kwargs = False  # the Trainer would take the loss for a mean over the tokens of all processes

    def __init__(self, model):
        super().__init__()
        self.vision_tower = model.model.vision_tower
        self.head = nn.Linear(model.config.vision_config.hidden_size, len(KINDS) * NUM_STATES)
        # at first nearly nothing is anywhere, which need not be learned
        self.head.bias.data.view(len(KINDS), NUM_STATES)[:, ABSENT] = 8.0
        # not a submodule: only the tower and the head are trained and saved in this stage
        self._encode_frames = model.model.encode_frames
        self._has_class_token = model.config.frame_token_cls

    def forward(self, pixel_values_videos: torch.Tensor, labels: torch.Tensor | None = None) -> dict:
        """
        Args:
            pixel_values_videos (`[F, 3, H, W]`), labels (`int64 [F, h * w, kinds]`): states in each cell; a kind is in
                one cell of a frame at most.

        Returns:
            `loss`, in nats a thing, and `logits` `[F, N, kinds, states]`.
        """
        tokens = self._encode_frames(pixel_values_videos).pooler_output
        logits = self.head(tokens).unflatten(-1, (len(KINDS), NUM_STATES))
        if labels is None:
            return {"loss": None, "logits": logits}
        if self._has_class_token:
            labels = torch.cat([labels.amax(1, keepdim=True), labels], dim=1)
        loss = nn.functional.cross_entropy(logits.flatten(0, 2).float(), labels.flatten(), reduction="sum")
        return {"loss": loss / (labels > 0).sum().clamp(min=1), "logits": logits}
