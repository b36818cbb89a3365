"""The keep ratio over a run: lowered from 1 at its start, or drawn anew each step."""

import random

from transformers import TrainerCallback


class KeepRatioSchedule(TrainerCallback):
    """Sets the model's `keep_ratio` for each optimizer step, and puts the checkpoint's own back after it, so that
    what is evaluated and saved has that one.

    The ratio depends on the seed and the number of the step alone: it is the same in every process, and a resumed run
    goes on with the ratios of one that was not cut off.

    Args:
        warmup_steps (`int`): over so many steps the ratio falls from 1 to its value, in a line.
        elastic (`[low, high]`, *optional*): instead of the model's own ratio, one drawn evenly from this range each
            step, so that one checkpoint serves every ratio in it.
        seed (`int`): of the draws.
    """

    def __init__(self, warmup_steps: int = 0, elastic: list[float] | None = None, seed: int = 0):
        self.warmup_steps, self.elastic, self.seed = warmup_steps, elastic, seed
        self.own: float | None = None  # the model's, while a step runs with another
        self.last: float | None = None  # of the latest step

    def ratio(self, step: int, own: float) -> float:
        """The keep ratio of step `step` (0-based) of a model whose own ratio is `own`."""
        target = random.Random(f"{self.seed} {step}").uniform(*self.elastic) if self.elastic else own
        if step >= self.warmup_steps:
            return target
        return 1 - (1 - target) * step / self.warmup_steps

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        text_config = model.config.text_config  # through the adapters' wrapper too, which has no such property
        if self.own is None:  # else a step ended before its end, as where `auto_find_batch_size` begins anew
            self.own = text_config.mod_keep_ratio
        self.last = text_config.mod_keep_ratio = self.ratio(state.global_step, self.own)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        model.config.text_config.mod_keep_ratio, self.own = self.own, None
