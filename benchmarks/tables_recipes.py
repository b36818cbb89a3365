"""The tables: a level of the world and a number of layers, and how all rows of it are trained.

A table has the name of its level, with the number of layers behind it if there are more than four: `hard`, `crowd_12`.
"""

from dataclasses import dataclass

LAYERS = 4
STREAMS = 20_000  # to learn from, and as many lessons
DEPTHS = (4, 8, 12, 16, 24)
Stage = tuple[str, int, int]  # level, steps, streams per step
# Among 50 tokens per frame nothing is found in two minutes, unless few came first. In a crowd, whether a row learns to
# follow chains in time differs by seed, so that rows start from a dense model that has learned the level itself
PRETRAINING: dict[str, tuple[Stage, ...]] = {
    "hard": (("hard_small", 4000, 128),),
    "crowd": (("crowd_small", 6000, 128), ("crowd", 2000, 64)),
}
ENDS_AT = {"crowd": 99.5}  # percent of exact narrations at which a stage of pretraining ends early
# steps at which dense has learned it; `results/world_routing_search.md` and `world_crowd_search.md` say how chosen
STAGES: dict[str, Stage] = {
    "hard_small": ("hard_small", 500, 128), "hard": ("hard", 700, 64), "crowd": ("crowd", 1000, 64)
}  # fmt: skip
RATES = (1e-3, 5e-4, 2e-3)  # that rows of four layers choose from
DEEP_RATE = 5e-4  # beyond twelve layers dense learns nothing at 1e-3
# of that rate, for rows that start from a model which has learned their level: larger ones can undo what it knows
ADAPTING = (1, 0.2, 0.05)


@dataclass(frozen=True)
class Table:
    """How the rows of a table are trained: the stages of `pretraining` one after the other with dense, each until
    `ends_at` percent of narrations are exact if it is given, then `stage`. The best of `rates` is that of a row."""

    name: str
    level: str
    layers: int
    pretraining: tuple[Stage, ...]
    pretraining_lr: float
    ends_at: float | None
    stage: Stage
    rates: tuple[float, ...]
    hidden: int = 128

    @property
    def start(self) -> str:
        """The name of the dense model that all rows of a seed start from."""
        return f"pretrained_{self.pretraining[0][0].split('_')[0]}_{self.layers}x{self.hidden}"

    @property
    def recipe(self) -> dict:
        """What all runs of a table have in common."""
        pretraining = [value for stage in self.pretraining for value in stage]
        pretraining += [*([] if self.ends_at is None else [self.ends_at]), self.pretraining_lr]
        shape = {"layers": self.layers, "hidden": self.hidden, "streams": STREAMS}
        return {"pretraining": pretraining, "stage": list(self.stage), **shape}


def _table(level: str, layers: int) -> Table:
    rate = 1e-3 if layers <= 12 else DEEP_RATE
    kind = level.split("_")[0]
    rates = (
        RATES
        if layers == LAYERS
        else tuple(round(share * rate, 6) for share in ADAPTING if share == 1 or level == "crowd")
    )
    name = level if layers == LAYERS else f"{level}_{layers}"
    return Table(name, level, layers, PRETRAINING[kind], rate, ENDS_AT.get(kind), STAGES[level], rates)


TABLES = {table.name: table for level in STAGES for layers in DEPTHS for table in [_table(level, layers)]}
