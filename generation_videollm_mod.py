"""What stock `generate` has to be told about streams: which frames belong to which row, and which cache holds them.

Only public parts of `GenerationMixin` are overridden.

Shapes: B batch, F frames of all rows in row order.
"""

import copy

import torch
from transformers import GenerationMixin

from .cache_videollm_mod import MoDCache
from .compat_videollm_mod import CACHE_NAME, rename_cache

FRAMES = ("pixel_values_videos", "video_features")


class FramesOfRows:
    """The frames of a batch, told apart by row. `generate` repeats tensors along dimension 0 for beams and several
    answers, and would give a row the frames of another; it passes this on untouched.

    Args:
        frames (`[F, ...]`): of all rows, in row order.
        counts (`list[int]`): frames of each row.
    """

    def __init__(self, frames: torch.Tensor, counts: list[int]):
        self.frames, self.counts = frames, counts

    def of_batch(self, batch_size: int) -> torch.Tensor:
        """`[F', ...]`: frames of a batch in which each row stands `batch_size / rows` times in succession."""
        repeats = batch_size // len(self.counts)
        if repeats == 1:
            return self.frames
        return torch.cat([block for block in self.frames.split(self.counts) for _ in range(repeats)])


class StreamGenerationMixin(GenerationMixin):
    """`GenerationMixin` for rows of text with frames, and a `MoDCache`."""

    def generate(self, inputs=None, generation_config=None, *args, **kwargs):
        """As `GenerationMixin.generate`, for `input_ids` or `inputs_embeds` with placeholders and the frames of all
        rows, `pixel_values_videos` or `video_features`. The cache may be given as `cache` or `past_key_values`.

        Raises:
            `ValueError`: if frames and placeholders do not match, or for a cache that cannot hold routed layers.
        """
        kwargs = rename_cache(kwargs, CACHE_NAME)
        config = self.generation_config if generation_config is None else generation_config
        if kwargs.get(CACHE_NAME) is None and kwargs.get("use_cache", config.use_cache) is not False:
            implementation = kwargs.pop("cache_implementation", None) or config.cache_implementation
            if implementation not in (None, "dynamic", "offloaded"):
                raise ValueError(
                    f'`cache_implementation` must be "dynamic" or "offloaded", got {implementation!r}: routed layers '
                    "hold different tokens, which only a MoDCache can do"
                )
            if config.cache_implementation is not None:  # which a given cache would contradict
                generation_config = copy.deepcopy(config)
                generation_config.cache_implementation = None
            kwargs[CACHE_NAME] = MoDCache(self.config, offloading=implementation == "offloaded")
        input_ids = kwargs.get("input_ids") if inputs is None else inputs
        cache = kwargs.get(CACHE_NAME)
        seen = 0 if cache is None else cache.get_seq_length()  # columns whose frames the cache holds
        for name in FRAMES:
            if isinstance(kwargs.get(name), torch.Tensor):
                kwargs[name] = self._of_rows(name, kwargs[name], input_ids, kwargs.get("inputs_embeds"), seen)
        return super().generate(inputs, generation_config, *args, **kwargs)

    def _of_rows(self, name: str, frames: torch.Tensor, input_ids, inputs_embeds, seen: int) -> FramesOfRows:
        has_ids = input_ids is not None and input_ids.numel() > 0
        is_vision = self.model.tokens_with_id(
            self.config.video_token_id, input_ids if has_ids else None, None if has_ids else inputs_embeds
        )
        counts = (is_vision[:, seen:].sum(1) // self.config.num_frame_tokens).tolist()
        if sum(counts) != len(frames):
            raise ValueError(
                f"frames and placeholders do not match: `{name}` holds {len(frames)} frames, the rows have "
                f"placeholders for {counts}"
            )
        return FramesOfRows(frames, counts)

    def prepare_inputs_for_generation(self, input_ids, inputs_embeds=None, is_first_iteration=False, **kwargs):
        cache = kwargs.get(CACHE_NAME)
        if cache is not None and cache.get_seq_length() == 0 and inputs_embeds is None:
            is_first_iteration = True  # assisted decoding does not say so, and an empty cache needs the frames
        # after the prefill the cache holds the frames
        needs_frames = is_first_iteration or not kwargs.get("use_cache", True)
        for name in FRAMES:
            frames = kwargs.pop(name, None)
            if frames is not None and needs_frames:
                batch_size = len(input_ids if inputs_embeds is None else inputs_embeds)
                kwargs[name] = frames.of_batch(batch_size) if hasattr(frames, "of_batch") else frames
        return super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )


__all__ = ["StreamGenerationMixin"]
