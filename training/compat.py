"""What training takes of other packages beyond their documented interfaces.

Tried with transformers 5.17.0, 5.23.0 and 5.24.0, and with peft 0.19.1 and 0.21.2. tests/test_training_compat.py names
what a release takes away.
"""

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
