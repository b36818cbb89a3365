"""What training takes of other packages beyond their documented interfaces.

Tried with transformers 5.17.0, 5.23.0 and 5.24.0, with peft 0.19.1 and 0.21.2, and with torch 2.8 to 2.13.
tests/test_training_compat.py names what a release takes away.
"""

import torch
from torch import nn
from transformers import TrainingArguments


def train_on_one_gpu(arguments: TrainingArguments) -> None:
    """Keep the Trainer from `nn.DataParallel`, into which it wraps a model where one process sees several GPUs:
    `TrainingArguments.n_gpu` has no setter."""
    arguments._n_gpu = 1


def is_plain(layer: nn.Module, adapter: str) -> bool:
    """Whether an adapter of peft's layer is a product of two matrices and nothing else. What a layer was made of is
    nowhere but in its `lora_variant` and `lora_bias`."""
    return adapter in layer.lora_A and adapter not in layer.lora_variant and not layer.lora_bias[adapter]


def change_class(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    """Have modules of the class `old` compute as `new`, a subclass that only has another `forward`. peft makes layers
    of classes of its own, except by `LoraConfig._register_custom_module`, which would also take quantised ones."""
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new


def check_sharded_norms(max_grad_norm: float | None) -> None:
    """Raise `ValueError` where torch would clip sharded gradients by a wrong norm: torch 2.8 and 2.9 give one that is
    1.2 to 1.4 times that of one process."""
    if torch.__version__ < "2.10" and max_grad_norm:
        raise ValueError(
            f"FSDP with `max_grad_norm` needs torch 2.10 or newer, as older ones clip by a wrong norm: this is "
            f"torch {torch.__version__}; train with DDP, or set `max_grad_norm: 0`"
        )
