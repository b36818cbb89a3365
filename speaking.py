"""The speaking rules: after each frame the session computes how probable silence is, and below a threshold the model
speaks.

- `"trained"`: the model has learned to predict the frame separator for silence. In the prompts of another family this
  is the first token of what opens the next frame, where a reply to the last one would differ.
- `"verify"`, which needs no training: the session scores the last narration as if the model said it now. Its gap is
  the largest difference, over its tokens, between the log probability of the best token and that of the token that was
  said. P(silence) is `exp(-gap)`: a gap of 0 means that greedy decoding would say the same again. Before the first
  narration P(silence) is 0.

Each watched frame has at most one event, which holds what the model said after it.

Shapes: V vocabulary, N vision tokens per frame, k of them kept.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .containers import is_number

if TYPE_CHECKING:  # commands read the threshold, and should not wait for torch
    import torch

NO_SILENCE = (
    "no token can mean silence in the prompts of this model, whose frames follow each other directly; build it with a "
    "token between frames: `from_vlm(..., frame_separator=',')`, `videollm-mod build --frame-separator ,`"
)
DEFAULT_THRESHOLD = 0.725  # a trained model speaks when P(silence) is below this, as in VideoLLM-online


def default_threshold(speak_rule: str, verify_margin: float) -> float:
    """The threshold of P(silence) where none is given: `DEFAULT_THRESHOLD`, or for `"verify"` the one below which the
    gap is larger than the margin. verify_margin: in nats."""
    return math.exp(-verify_margin) if speak_rule == "verify" else DEFAULT_THRESHOLD


def learn_silence(model, processor) -> None:
    """Make `"trained"` the rule of a model that is being trained on streams, or has been, and is saved. A model of
    this package's own sequence has this rule from the beginning.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`): one of `from_vlm` gets a `frame_separator_token_id`, which says
            that it has learned when to be silent.
        processor (`VideoLLMMoDProcessor`): of the model.

    Raises:
        `ValueError`: if no token can mean silence in the family's prompts.
    """
    if processor.frame_separator_token_id is None:
        raise ValueError(NO_SILENCE)
    config = model.config
    if config.frame_separator_token_id is None:
        config.decision_offset = processor.decision_offset
        config.frame_separator_token_id, config.speak_rule = processor.frame_separator_token_id, "trained"


def silence_probability(logits: "torch.Tensor", separator_token_id: int) -> "torch.Tensor":
    """Probability that the token after a frame is the frame separator, which means silence.

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
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be in [0, 1], got {value!r}")


@dataclass
class Reply:
    """What the model said, in tokens.

    Args:
        ids (`list[int]`): its tokens, without the one that ends it.
        ended (`bool`): the model ended it; otherwise it was cut off at the limit of new tokens.
        gaps (`list[float]`): for each token, and for the end if there is one, how much less probable it was than the
            best token when it was said, in nats. Empty where all are 0, as in greedy decoding.
    """

    ids: list[int] = field(default_factory=list)
    ended: bool = False
    gaps: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class StreamEvent:
    """Something the model said.

    Args:
        time (`float`): of the last frame before it, in seconds.
        kind (`str`): `"narration"` for what the model said on its own, `"answer"` for the reply to a question.
        text (`str`): what it said.
        query (`str`, *optional*): the last question or instruction.
        silence_probability (`float`, *optional*): P(silence) after that frame, 0 for the first narration under the
            rule `"verify"`; None for answers.
    """

    time: float
    kind: str
    text: str
    query: str | None = None
    silence_probability: float | None = None


@dataclass(frozen=True)
class WatchedFrame:
    """The result of watching one frame.

    Args:
        time (`float`): of the frame, in seconds.
        silence_probability (`float`): P(silence) after it.
        kept (`tuple`): for each layer the indices of the frame's N tokens that it kept, int64 `[k]`, ascending; None
            for a layer that keeps all tokens by design.
        event (`StreamEvent`, *optional*): what the model said after it.
    """

    time: float
    silence_probability: float
    kept: "tuple[torch.Tensor | None, ...]"
    event: StreamEvent | None = None


__all__ = [
    "DEFAULT_THRESHOLD",
    "NO_SILENCE",
    "Reply",
    "StreamEvent",
    "WatchedFrame",
    "check_threshold",
    "default_threshold",
    "learn_silence",
    "silence_probability",
    "speaks",
]
