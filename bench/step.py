"""One training step in the ways that are compared: routed or dense, which logits exist, what is recomputed."""

import contextlib
import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

import torch
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ..modeling_text import VideoLLMMoDRMSNorm
from ..training.adapters import LoraOptions, add_lora
from ..training.freezing import freeze_unreached
from .arithmetic import synchronise
from .streams import random_model, random_stream


class Deadline:
    def __init__(self, minutes: float):
        self.end = time.perf_counter() + 60 * minutes

    def passed(self) -> bool:
        return time.perf_counter() > self.end


@dataclass(frozen=True)
class Way:
    """
    Args:
        routed: mixture of depths; otherwise every token enters every layer.
        all_logits: compute the loss as transformers does, from the logits of all tokens.
        stock: use transformers' norms, rotation and activation, and peft's LoRA layer.
        recompute: choices of `recomputing`, written `choice:layers+choice:layers`.
    """

    routed: bool
    all_logits: bool = False
    stock: bool = False
    recompute: str = "layer"

    @property
    def name(self) -> str:
        name = "MoD" if self.routed else "dense"
        return name + ", all logits" * self.all_logits + ", stock layers" * self.stock

    def choices(self, num_layers: int) -> dict[str, int]:
        parts = [part.partition(":") for part in self.recompute.split("+")]
        return {choice: int(count) if count else num_layers for choice, _, count in parts}


class Bench:
    """A model with adapters, its optimizer and one stream.

    Adapters and their optimizer state are in the model's dtype. In a run of `videollm-mod train` both are in float32,
    which takes 4 GiB more at Llama-3-8B's geometry. Connector and routers are in float32, with bfloat16 autocast, as
    in the Trainer.
    """

    def __init__(self, geometry: str, frames: int, tokens: int, device: str, dtype=torch.bfloat16, **mod_options):
        self.device, self.rank = device, LoraOptions().r
        self.model = random_model(geometry, device, tokens, dtype, **mod_options)
        self.inputs = random_stream(self.model, frames, device)
        self.adapted = add_lora(self.model, LoraOptions())
        freeze_unreached(self.model, given_features=True)
        torch.manual_seed(0)
        for name, parameter in self.adapted.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(device, dtype)
            if "lora_B" in name:  # with zeros, no gradient would reach A
                torch.nn.init.normal_(parameter, std=0.02)
        self.adapted.to(device).train()
        self.optimizer = torch.optim.AdamW(
            [p for p in self.adapted.parameters() if p.requires_grad], lr=1e-5, fused=device != "cpu"
        )

    def use_stream(self, frames: int, tokens: int, batch: int = 1) -> None:
        """Replace the streams: `batch` streams of `frames` frames with `tokens` tokens each."""
        side = int((tokens - 1) ** 0.5)
        self.model.config.frame_token_pooled = [side, side] if side else None
        self.inputs = random_stream(self.model, frames, self.device, batch)

    def set(self, way: Way) -> None:
        text = self.model.config.text_config
        text.vision_routing = "mod" if way.routed else "full"
        choices = way.choices(text.num_hidden_layers)
        self.model.activation_checkpointing_enable({"recompute": choices})

    def loss(self, way: Way) -> torch.Tensor:
        with torch.autocast(self.device, self.model.dtype, enabled=self.model.dtype == torch.bfloat16):
            if not way.all_logits:
                return self.model(**self.inputs, use_cache=False).loss
            labels = self.inputs["labels"]
            inputs = {name: value for name, value in self.inputs.items() if name != "labels"}
            hidden_states = self.model.model(**inputs, use_cache=False).last_hidden_state
            return ForCausalLMLoss(self.model.lm_head(hidden_states), labels, self.model.vocab_size)

    def backward(self, way: Way) -> torch.Tensor:
        """Compute gradients and return the loss, without waiting for the device."""
        self.set(way)
        with stock_layers() if way.stock else contextlib.nullcontext():
            loss = self.loss(way)
            loss.backward()
        return loss.detach()

    def step(self, way: Way) -> tuple[float, float, float]:
        """Run forward, backward and optimizer. Return the loss, seconds, and peak GiB (0 on a CPU)."""
        cuda = self.device != "cpu"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        synchronise(self.device)
        start = time.perf_counter()
        loss = self.backward(way)
        self.optimizer.step()
        self.optimizer.zero_grad()
        synchronise(self.device)
        seconds = time.perf_counter() - start
        return loss.item(), seconds, torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0

    def try_step(self, way: Way) -> tuple[float, float, float] | None:
        """As `step`, or None if memory runs out."""
        try:
            return self.step(way)
        except RuntimeError as error:  # cuBLAS has an error of its own
            if not isinstance(error, torch.OutOfMemoryError) and "ALLOC_FAILED" not in str(error):
                raise
        # the frames of the traceback no longer hold tensors here
        self.clear()
        return None

    def try_alone(self, way: Way) -> tuple[float, float, float] | None:
        """As `try_step`, independent of earlier steps. The second of two steps counts: the first one selects kernels
        and allocates memory."""
        self.clear()
        return self.try_step(way) and self.try_step(way)

    def clear(self) -> None:
        """Free everything of earlier steps, such as cached memory in sizes that the next way does not use."""
        self.optimizer.zero_grad()
        gc.collect()
        torch.cuda.empty_cache()


@contextlib.contextmanager
def stock_layers() -> Iterator[None]:
    """Use transformers' norms, rotation and activation, and peft's LoRA layer."""
    from peft.tuners.lora import Linear

    from .. import fused
    from ..training.lora_linear import LoraLinear

    with (
        mock.patch.object(VideoLLMMoDRMSNorm, "forward", LlamaRMSNorm.forward),
        mock.patch.object(LoraLinear, "forward", Linear.forward),
        mock.patch.object(fused, "_kernels", lambda: None),
    ):
        yield
