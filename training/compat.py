"""What training uses of other packages beyond their documented interfaces.

Tested with transformers 5.17.0, 5.23.0 and 5.24.0, with peft 0.19.1 and 0.21.2, and with torch 2.8 to 2.13. If a
release removes one of these parts, tests/test_training_compat.py fails and names it.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import TrainingArguments

if TYPE_CHECKING:  # an extra, which some of these functions do without
    from peft.tuners.lora import LoraLayer


def train_on_one_gpu(arguments: TrainingArguments) -> None:
    """Keep the Trainer from wrapping the model in `nn.DataParallel` when one process sees several GPUs.
    `TrainingArguments.n_gpu` has no setter."""
    arguments._n_gpu = 1


def is_plain(layer: "LoraLayer", adapter: str) -> bool:
    """Whether an adapter of peft's layer is a product of two matrices and nothing else. Only `lora_variant` and
    `lora_bias` of the layer say so."""
    return adapter in layer.lora_A and adapter not in layer.lora_variant and not layer.lora_bias[adapter]


def change_class(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    """Turn modules of the class `old` into `new`, a subclass that differs only in `forward`. The one way to have peft
    build such layers itself, `LoraConfig._register_custom_module`, would also replace quantised ones."""
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new


def check_sharded_norms(max_grad_norm: float | None) -> None:
    """Raise a `ValueError` if torch would clip sharded gradients by a wrong norm: that of torch 2.8 and 2.9 is 1.2 to
    1.4 times the norm of one process."""
    if torch.__version__ < "2.10" and max_grad_norm:
        raise ValueError(
            f"FSDP with `max_grad_norm` needs torch 2.10 or newer, as older ones clip by a wrong norm: this is "
            f"torch {torch.__version__}; train with DDP, or set `max_grad_norm: 0`"
        )
