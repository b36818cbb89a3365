"""`videollm-mod train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from .options import add_command
from .threads import share_cores


@dataclass
class TrainOptions:
    """The options of `videollm-mod train`."""

    config: Annotated[Path, "YAML file; training/configs holds examples"]


def add(commands) -> None:
    add_command(commands, "train", TrainOptions, run, help="train or fine-tune a model from a YAML config")


def run(options: TrainOptions) -> None:
    share_cores()
    from ..training.train import TrainingConfig, train

    print(train(TrainingConfig.load(options.config)))
