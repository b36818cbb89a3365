"""What comes out of a streaming session: events, watched frames and statistics.

Shapes: N vision tokens per frame, k of them kept.
"""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import ModelOutput


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
    kept: tuple[torch.Tensor | None, ...]
    event: StreamEvent | None = None


@dataclass
class StreamStats(ModelOutput):
    """What a session did and holds; readable by name and by key.

    Args:
        frames, narrations, answers (`int`): so far.
        tokens (`int`): of the stream, vision and text.
        kv_bytes (`int`): of the cache, and `kv_bytes_if_dense` of one where every layer holds every token.
        seconds (`dict[str, float]`): spent in each stage: `preprocess`, `vision`, `language` (watching frames) and
            `generation` (narrations and answers); on a CUDA device as that counts them.
        why_not_static (`str`, *optional*): why the last call ran the model as it is, which on a GPU is slower than
            `fast_step_videollm_mod`; None where it did not.
    """

    frames: int | None = None
    narrations: int | None = None
    answers: int | None = None
    tokens: int | None = None
    kv_bytes: int | None = None
    kv_bytes_if_dense: int | None = None
    seconds: dict | None = None
    why_not_static: str | None = None


__all__ = ["StreamEvent", "StreamStats", "WatchedFrame"]
