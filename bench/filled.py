"""Sessions that have seen many frames already, without having seen them: what a step takes does not depend on what the
keys are."""

import torch

from ..configuration_videollm_mod import num_kept_tokens


def fill(session, frames: int) -> None:
    """Let a new session hold random keys and values of as many frames, with the stream open after them."""
    model, cache = session.model, session.cache
    text, per_frame = model.config.text_config, model.config.num_frame_tokens
    kept = num_kept_tokens(session.keep_ratio or text.mod_keep_ratio, per_frame)
    routed = text.routed_layers if text.vision_routing == "mod" else ()
    total = frames * (per_frame + 1)
    for index, layer in enumerate(cache.layers):
        length = frames * (kept + 1) if index in routed else total
        layer.reserve(length, (text.num_key_value_heads, text.head_dim), model.dtype, model.device)
        for name in ("keys", "values"):
            layer.rooms[name].room[:, :, :length].normal_()
        layer.rooms["positions"].room[:, :length] = torch.arange(length, device=model.device) * total // length
        layer.lengthen(length)
    cache.advance_stream(total, range(per_frame, total, per_frame + 1), model.device)
    session._pending, session._in_stream, session.time = [], True, float(frames)
    session._counts["frames"] = frames
