"""When the model speaks: after each frame it says how probable silence is, and below a threshold it speaks."""

import torch


def silence_probability(logits: torch.Tensor, separator_token_id: int) -> torch.Tensor:
    """Probability of the frame separator, which means to stay silent, as the token after a frame.

    Args:
        logits (`[..., V]`): of a frame's last token.
        separator_token_id (`int`): `config.frame_separator_token_id`.

    Returns:
        float32 `[...]`.
    """
    return logits.float().softmax(-1)[..., separator_token_id]


def speaks(silence: torch.Tensor, threshold: float) -> torch.Tensor:
    """bool `[...]`: speak unless silence is at least as probable as the threshold (VideoLLM-online, section 3.3)."""
    return silence < threshold


__all__ = ["silence_probability", "speaks"]
