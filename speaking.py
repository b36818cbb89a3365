"""The speaking rule: after each frame the model says how probable silence is, and below a threshold it speaks.

What comes out are events, of which each watched frame has one or none.

Shapes: V vocabulary, N vision tokens per frame, k of them kept.
"""

from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # commands read the threshold, and must not wait for torch
    import torch

DEFAULT_THRESHOLD = 0.725  # of the probability of silence, as in VideoLLM-online


def silence_probability(logits: "torch.Tensor", separator_token_id: int) -> "torch.Tensor":
    """Probability of the frame separator, which means to stay silent, as the token after a frame.

    Args:
        logits (`[..., V]`): of a frame's last token.
        separator_token_id (`int`): `config.frame_separator_token_id`.

    Returns:
        float32 `[...]`.
    """
    return logits.float().softmax(-1)[..., separator_token_id]


def speaks(silence: "torch.Tensor", threshold: float) -> "torch.Tensor":
    """bool `[...]`: speak unless silence is at least as probable as the threshold (VideoLLM-online, section 3.3)."""
    return silence < threshold


def check_threshold(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be in [0, 1], got {value!r}")


@dataclass(frozen=True)
class StreamEvent:
    """Something the model said.

    Args:
        time (`float`): of the last frame before it, in seconds.
        kind (`str`): `"narration"`, said by itself, or `"answer"`, said because it was asked.
        text (`str`): what it said.
        query (`str`, *optional*): the question or instruction that was current.
        silence_probability (`float`, *optional*): of that frame; None for answers.
    """

    time: float
    kind: str
    text: str
    query: str | None = None
    silence_probability: float | None = None


@dataclass(frozen=True)
class WatchedFrame:
    """What the model thought of one frame.

    Args:
        time (`float`): of the frame, in seconds.
        silence_probability (`float`): how probable silence was after it.
        kept (`tuple`): one entry a layer: int64 `[k]`, which of the frame's N tokens the layer kept, ascending, or
            None where it kept all by design.
        event (`StreamEvent`, *optional*): what the model said after it.
    """

    time: float
    silence_probability: float
    kept: "tuple[torch.Tensor | None, ...]"
    event: StreamEvent | None = None


__all__ = ["DEFAULT_THRESHOLD", "StreamEvent", "WatchedFrame", "check_threshold", "silence_probability", "speaks"]
