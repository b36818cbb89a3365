"""The tables: a level of the world and a number of layers, and how all rows of it are trained.

A table has the name of its level, with the number of layers behind it if there are more than four: `hard`, `crowd_12`.
"""

from dataclasses import dataclass

LAYERS = 4
STREAMS = 20_000  # to learn from, and as many lessons
DEPTHS = (4, 8, 12, 16, 24)
# (level, steps, streams per step): among 50 tokens per frame nothing is found in two minutes, unless few came first
PRETRAINING = {"hard": ("hard_small", 4000, 128), "crowd": ("crowd_small", 3000, 128)}
# steps at which dense has learned it; `results/world_routing_search.md` and `world_crowd_search.md` say how chosen
STAGES = {"hard_small": ("hard_small", 500, 128), "hard": ("hard", 700, 64), "crowd": ("crowd", 1000, 64)}
RATES = (1e-3, 5e-4, 2e-3)  # that rows of four layers choose from
DEEP_RATE = 5e-4  # beyond twelve layers dense learns nothing at 1e-3


@dataclass(frozen=True)
class Table:
    """`pretraining` and `stage` are `(level, steps, streams per step)`; the best of `rates` is that of a row."""

    name: str
    level: str
    layers: int
    pretraining: tuple[str, int, int]
    pretraining_lr: float
    stage: tuple[str, int, int]
    rates: tuple[float, ...]
    hidden: int = 128

    @property
    def start(self) -> str:
        """The name of the dense model that all rows of a seed start from."""
        return f"pretrained_{self.pretraining[0].split('_')[0]}_{self.layers}x{self.hidden}"


def _table(level: str, layers: int) -> Table:
    rate = 1e-3 if layers <= 12 else DEEP_RATE
    rates = RATES if layers == LAYERS else (rate,)
    name = level if layers == LAYERS else f"{level}_{layers}"
    return Table(name, level, layers, PRETRAINING[level.split("_")[0]], rate, STAGES[level], rates)


TABLES = {table.name: table for level in STAGES for layers in DEPTHS for table in [_table(level, layers)]}
