"""What routing saves on a clip: the same frames are watched with routing and by the dense model."""

from dataclasses import dataclass

import numpy as np

from ..configuration_videollm_mod import num_kept_tokens

ROUNDS = 10


@dataclass
class Savings:
    """
    Args:
        frames (`int`): how many were watched.
        kept, tokens (`int`): vision tokens of a frame that a routed layer keeps, and all of them.
        routed_layers, layers (`int`).
        bytes, dense_bytes (`int`): size of the cache after these frames.
        seconds, dense_seconds (`float`): time in the language model, the fastest of `ROUNDS` alternating runs.
    """

    frames: int
    kept: int
    tokens: int
    routed_layers: int
    layers: int
    bytes: int
    dense_bytes: int
    seconds: float
    dense_seconds: float

    def __str__(self) -> str:
        return (
            f"routing over {self.frames} frames: {self.kept} of {self.tokens} vision tokens enter "
            f"{self.routed_layers} of {self.layers} layers\n"
            f"  cache           {self.bytes / 1e6:8.2f} MB, dense {self.dense_bytes / 1e6:8.2f} MB: "
            f"{compared(self.bytes, self.dense_bytes)}\n"
            f"  language model  {self.seconds * 1e3:8.0f} ms, dense {self.dense_seconds * 1e3:8.0f} ms: "
            f"{compared(self.seconds, self.dense_seconds)}"
        )


def compared(value: float, dense: float) -> str:
    change = 100 * (value / dense - 1)
    return f"{abs(change):.0f} % {'less' if change <= 0 else 'more'}"


def measure_savings(model, processor, frames: np.ndarray, keep_ratio: float | None = None) -> Savings:
    """Watch `frames` (uint8 `[F, H, W, 3]`) with routing and dense (`vision_routing="full"`).

    The model never speaks here, so that both do the same work. Its configuration is restored at the end.
    """
    text = model.config.text_config
    routing, held = text.vision_routing, {}
    seconds: dict[str, list[float]] = {"mod": [], "full": []}
    try:
        for _ in range(ROUNDS):
            for mode in seconds:
                text.vision_routing = mode
                session = model.stream(processor, speak_threshold=0.0, keep_ratio=keep_ratio)
                session.push(frames)
                seconds[mode].append(session.stats.seconds["language"])
                held[mode] = session.stats.kv_bytes
    finally:
        text.vision_routing = routing
    tokens = model.config.num_frame_tokens
    return Savings(
        frames=len(frames),
        kept=num_kept_tokens(keep_ratio or model.keep_ratio, tokens),
        tokens=tokens,
        routed_layers=len(text.routed_layers),
        layers=text.num_hidden_layers,
        bytes=held["mod"],
        dense_bytes=held["full"],
        seconds=min(seconds["mod"]),
        dense_seconds=min(seconds["full"]),
    )


__all__ = ["Savings", "measure_savings"]
