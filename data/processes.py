"""The rank and device of this process."""

import os

import torch
from accelerate import PartialState


def process_state(on_cpu: bool = False, **options) -> PartialState:
    """accelerate's `PartialState(**options)`. It uses the CPU if `on_cpu` or `ACCELERATE_USE_CPU` (set by `accelerate
    launch --cpu`) asks for it, or if there is no accelerator: without `cpu=True`, accelerate would then treat every
    process as the only one."""
    cpu_requested = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "t", "yes", "y", "on")
    return PartialState(cpu=on_cpu or cpu_requested or not torch.accelerator.is_available(), **options)
