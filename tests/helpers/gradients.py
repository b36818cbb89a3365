"""Models in training, and their losses and gradients, for tests of recomputing and fused kernels."""

import torch
from comparing import TOLERANCE, assert_near, assert_near_gradients
from short_training import stream_labels
from tiny_models import random_batch, tiny_model
from torch import nn

from videollm_mod.training.adapters import LoraOptions, add_lora


def trainable(seed: int, lora: LoraOptions | None = None, **options):
    """A model in training, with adapters or without, and a batch with padding."""
    model = tiny_model(seed, **options)
    batch, _ = random_batch(model, seed, [2, 1])
    batch["labels"] = stream_labels(batch, seed)
    if lora is not None:
        model = add_lora(model, lora)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    return model.train(), batch


def enable(model, recompute) -> None:
    model.gradient_checkpointing_enable({"use_reentrant": False, "recompute": recompute})


def loss_and_gradients(model, batch, **options) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(0)  # of dropout
    loss = model(**batch, **options).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(got, expected, tolerance: float = TOLERANCE) -> None:
    assert_near(got[0], expected[0], tolerance)
    assert_near_gradients(got[1], expected[1], tolerance)
