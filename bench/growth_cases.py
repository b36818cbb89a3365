"""The sizes that `bench growth` measures, and the memory that a cache of each size takes."""

import torch

from ..cache import buffer_size
from ..configuration_videollm_mod import num_kept_tokens

FRAMES, TOKENS = (100, 300, 600, 1200, 2400, 4800, 9600, 20_000), (1, 10, 50, 101)
BATCHES, KEEP_RATIOS = (1, 2, 4, 8, 16), (0.1, 0.2, 0.5, 1.0)
MIDDLE: dict = {"frames": 600, "tokens": 10, "batch": 1, "keep_ratio": 0.2}  # of a size that does not vary
WORKING_BYTES = 2 * 2**30  # an upper bound for what a step takes besides weights and caches


def key_of(case: dict) -> tuple:
    """What tells cases, and rows of results, apart."""
    return tuple(case[name] for name in ("frames", "tokens", "batch", "keep_ratio", "way"))


def cases(frames: tuple[int, ...], tokens: tuple[int, ...]) -> list[dict]:
    """Everything to measure, smaller sizes first."""
    found = [{**MIDDLE, "frames": count, "tokens": each} for each in tokens for count in frames]
    middle = {**MIDDLE, "frames": min(frames, key=lambda count: abs(count - MIDDLE["frames"]))}
    middle["tokens"] = min(tokens, key=lambda count: abs(count - MIDDLE["tokens"]))
    found += [{**middle, "batch": count} for count in BATCHES]
    found = [{**case, "way": way} for case in found for way in ("mod", "dense")]
    found += [{**middle, "keep_ratio": ratio, "way": "mod"} for ratio in KEEP_RATIOS]
    unique = {key_of(case): case for case in found}
    return sorted(unique.values(), key=lambda case: case["frames"] * case["tokens"] * case["batch"])


def layer_lengths(text, frames: int, tokens: int, keep_ratio: float, routed: bool) -> list[int]:
    """How many tokens each layer holds after `frames` frames, each with a separator."""
    layers = set(text.routed_layers) if routed else set()
    kept = num_kept_tokens(keep_ratio, tokens)
    return [frames * (1 + (kept if index in layers else tokens)) for index in range(text.num_hidden_layers)]


def cache_bytes(text, lengths: list[int], itemsize: int) -> tuple[int, int]:
    """Bytes of the keys and values of one stream, and bytes that are allocated for them: more, since buffers grow in
    steps and also hold the position of each token."""
    per_token = 2 * text.num_key_value_heads * text.head_dim * itemsize
    return sum(lengths) * per_token, sum(map(buffer_size, lengths)) * (per_token + torch.long.itemsize)
