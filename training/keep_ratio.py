"""Schedules of the keep ratio: a warm-up that lowers it from 1, or a random ratio in each step."""

import random

from transformers import TrainerCallback


class KeepRatioSchedule(TrainerCallback):
    """Sets the model's `keep_ratio` for each optimizer step and restores it afterwards, so that evaluation and
    checkpoints use the model's own ratio.

    The ratio depends only on the seed and the step number, so it is the same in every process, and a resumed run
    continues with the same ratios.

    Args:
        warmup_steps (`int`): number of steps over which the ratio falls linearly from 1.
        elastic (`[low, high]`, *optional*): draw the ratio of each step uniformly from this range instead of using the
            model's own, so that one checkpoint works at every ratio in it.
        seed (`int`): seed of the draws.
    """

    def __init__(self, warmup_steps: int = 0, elastic: list[float] | None = None, seed: int = 0):
        self.warmup_steps, self.elastic, self.seed = warmup_steps, elastic, seed
        self.own: float | None = None  # the model's, while a step runs with another
        self.last: float | None = None  # of the latest step

    def ratio(self, step: int, own: float) -> float:
        """The keep ratio of step `step` (0-based) for a model whose own ratio is `own`."""
        target = random.Random(f"{self.seed} {step}").uniform(*self.elastic) if self.elastic else own
        if step >= self.warmup_steps:
            return target
        return 1 - (1 - target) * step / self.warmup_steps

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        text_config = model.config.text_config  # a `PeftModel` has no `keep_ratio` property
        if self.own is None:  # otherwise the last step was aborted, for example by `auto_find_batch_size`
            self.own = text_config.mod_keep_ratio
        self.last = text_config.mod_keep_ratio = self.ratio(state.global_step, self.own)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        model.config.text_config.mod_keep_ratio, self.own = self.own, None
