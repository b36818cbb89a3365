"""Train adapters, or all weights, on random streams with the Trainer, to measure what training costs."""

import torch
from transformers import TrainerCallback, TrainingArguments

from videollm_mod import VideoLLMMoDForConditionalGeneration
from videollm_mod.bench.streams import RandomStreams
from videollm_mod.data.collator import StreamCollator
from videollm_mod.training.adapters import LoraOptions, add_lora
from videollm_mod.training.freezing import freeze_unreached
from videollm_mod.training.trainer import StreamTrainer


def train_streams(
    model: VideoLLMMoDForConditionalGeneration,
    arguments: TrainingArguments,
    num_frames: int,
    lora: LoraOptions | None,
    callback: TrainerCallback,
) -> dict:
    """Train adapters, or all weights without `lora`. Return the loss and gradient norm of every step, and the number
    of trained parameters."""
    dataset = RandomStreams(model.config, num_frames)
    torch.manual_seed(0)  # so that adapters start the same with any number of processes
    model = model if lora is None else add_lora(model, lora)
    freeze_unreached(model, given_features=True)
    trainer = StreamTrainer(
        model=model.train(),
        args=arguments,
        train_dataset=dataset,
        data_collator=StreamCollator(pad_token_id=2),
        callbacks=[callback],
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "losses": [entry["loss"] for entry in history],
        "grad_norms": [entry["grad_norm"] for entry in history],
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
