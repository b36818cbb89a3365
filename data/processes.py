"""Which of several processes this one is, and on which device it works."""

import os

import torch
from accelerate import PartialState


def process_state(on_cpu: bool = False, **options) -> PartialState:
    """accelerate's `PartialState(**options)`, on the CPU if asked, by `ACCELERATE_USE_CPU` too (of `accelerate launch
    --cpu`), and where there is nothing else: untold, accelerate then takes every process for the only one."""
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "t", "yes", "y", "on")
    return PartialState(cpu=on_cpu or asked or not torch.accelerator.is_available(), **options)
