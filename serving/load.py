"""What the server does when frames come faster than the model watches them: it first keeps fewer vision tokens of each
frame, and only then drops frames. When the load falls, it keeps more again."""

from ..configuration_videollm_mod import check_keep_ratio, num_kept_tokens

LEVELS = 8  # keep ratios within the range, at most
BEHIND = 4  # waiting frames of one stream that mean too much load
CALM = 8  # updates in a row without waiting frames, before the ratio rises


class KeepRatioControl:
    """
    Chooses the keep ratio of a pool, step by step within a range. It starts with the highest.

    Args:
        low, high (`float`): the range, in (0, 1]. The same number twice turns the control off.
        num_frame_tokens (`int`): of a frame; ratios that keep equally many of them are one step.
        behind (`int`): waiting frames of one stream from which on the ratio falls.

    Raises:
        `ValueError`: for a ratio out of range, or `low` above `high`.
    """

    def __init__(self, low: float, high: float, num_frame_tokens: int, behind: int = BEHIND):
        check_keep_ratio("keep_ratio_range", low)
        check_keep_ratio("keep_ratio_range", high)
        if low > high:
            raise ValueError(f"`keep_ratio_range` must be a lower and a higher share, got {low} and {high}")
        self.levels = levels_between(low, high, num_frame_tokens)
        self.behind, self._level, self._calm = behind, 0, 0

    @property
    def ratio(self) -> float:
        return self.levels[self._level]

    @property
    def at_highest(self) -> bool:
        """Whether there is no load that lowers the ratio."""
        return self._level == 0

    @property
    def at_lowest(self) -> bool:
        """Whether only dropping frames is left."""
        return self._level == len(self.levels) - 1

    def update(self, waiting: int, idle: bool = False) -> float:
        """The ratio for the next step.

        Args:
            waiting (`int`): frames that wait in the stream that has most of them.
            idle (`bool`): whether the model has nothing to do now.
        """
        if waiting >= self.behind:
            self._calm = 0
            self._level = min(self._level + 1, len(self.levels) - 1)
        elif waiting > 1:
            self._calm = 0
        else:
            self._calm += 1
            if self._level and (idle or self._calm >= CALM):
                self._level, self._calm = self._level - 1, 0
        return self.ratio


def levels_between(low: float, high: float, num_frame_tokens: int) -> list[float]:
    """At most `LEVELS` ratios from the high one down to the low one, each of which keeps fewer tokens."""
    ratios = [high + (low - high) * step / (LEVELS - 1) for step in range(LEVELS - 1)] + [low]
    levels: list[float] = []
    for ratio in ratios:
        kept = num_kept_tokens(ratio, num_frame_tokens)
        if not levels or kept < num_kept_tokens(levels[-1], num_frame_tokens):
            levels.append(ratio)
    return levels


__all__ = ["KeepRatioControl"]
