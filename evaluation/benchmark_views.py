"""What the protocols of benchmarks ask of a model, whatever it is: views of one video each."""

from dataclasses import dataclass
from typing import Protocol


@dataclass
class Cost:
    """
    What answering took.

    Args:
        seconds (`float`): on the clock, with decoding.
        frames (`int`): that the model processed; one that is shown again counts again.
        tokens (`int`, *optional*): that went through the language model; None if a server does not say.
        peak_cache_bytes (`int`, *optional*): largest size of the key-value cache; None if it cannot be seen.
    """

    seconds: float = 0.0
    frames: int = 0
    tokens: int | None = 0
    peak_cache_bytes: int | None = 0

    def add(self, frames: int, tokens: int | None, cache_bytes: int | None) -> None:
        """Count one step; `cache_bytes` is what the cache holds after it."""
        self.frames += frames
        self.tokens = None if tokens is None or self.tokens is None else self.tokens + tokens
        held = self.peak_cache_bytes
        self.peak_cache_bytes = None if cache_bytes is None or held is None else max(held, cache_bytes)


class View(Protocol):
    """One model before one video. Frames are numbers: frame `i` is on screen at `i / fps` seconds."""

    cost: Cost

    def answer(self, frames: range, text: str) -> str:
        """The answer to `text`, asked anew after these frames alone, which may be none."""

    def stream(self, before: range, after: range, text: str, always: bool = False) -> list[tuple[float, str]]:
        """What the model says, with its times, from when it is told `text` between two parts of a stream that passes
        once. If nothing follows, that is its answer; otherwise what it says by itself.

        Args:
            always (`bool`): it then speaks after every frame, whatever its own decision is.
        """


class Model(Protocol):
    """
    Attributes:
        fps (`float`): frames per second that it watches.
        decoding (`dict`): how answers are decoded, for the record.
        speaks (`bool`): it can speak by itself; others answer once, when asked.
        routes (`bool`): there is the same model without routing, `view(dense=True)`.
    """

    fps: float
    decoding: dict
    speaks: bool
    routes: bool

    def view(self, video: str, max_new_tokens: int, dense: bool = False) -> View: ...


__all__ = ["Cost", "Model", "View"]
