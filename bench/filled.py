"""Sessions with a long past that was never computed: the time of a step does not depend on the values of the keys."""

import torch

from ..cache import MoDCache
from ..configuration_videollm_mod import num_kept_tokens


def fill(session, frames: int) -> None:
    """Let a new session hold random keys and values of as many frames, with the stream open after them."""
    state = session.state
    state.cache = filled_cache(session.model, frames, session.keep_ratio)
    state.pending, state.in_stream, state.time = [], True, float(frames)
    state.counts["frames"] = frames


def filled_cache(model, frames: int, keep_ratio: float | None = None) -> MoDCache:
    """A cache of random keys and values of as many frames, with a separator each."""
    cache, text, per_frame = MoDCache(model.config), model.config.text_config, model.config.num_frame_tokens
    kept = num_kept_tokens(keep_ratio or text.mod_keep_ratio, per_frame)
    routed = text.routed_layers if text.vision_routing == "mod" else ()
    total = frames * (per_frame + 1)
    for index, layer in enumerate(cache.layers):
        length = frames * (kept + 1) if index in routed else total
        layer.reserve(length, (text.num_key_value_heads, text.head_dim), model.dtype, model.device)
        for name in ("keys", "values"):
            layer.growing[name].buffer[:, :, :length].normal_()
        layer.growing["positions"].buffer[:, :length] = torch.arange(length, device=model.device) * total // length
        layer.lengthen(length)
    cache.advance_stream(total, range(per_frame, total, per_frame + 1), model.device)
    return cache
