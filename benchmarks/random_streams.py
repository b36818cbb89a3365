"""Streams of random frames as a data set, and a run of the Trainer on them: what training costs does not depend on
what the numbers are."""

import torch
from transformers import TrainerCallback, TrainingArguments

from videollm_mod import VideoLLMMoDConfig, VideoLLMMoDForConditionalGeneration
from videollm_mod.bench.geometries import BOS, END, EOS, FIRST_WORD, SEPARATOR, START, VIDEO
from videollm_mod.data.collator import StreamCollator
from videollm_mod.training.adapters import LoraOptions, add_lora
from videollm_mod.training.freezing import freeze_unreached
from videollm_mod.training.trainer import StreamTrainer


class RandomStreams(torch.utils.data.Dataset):
    """Streams of `num_frames` frames as features, with a reply of 12 words after every 20th; the labels are those of
    the processor: what follows each frame, and the replies.

    The features come from a few tensors that repeat, so that making them costs the run nothing.
    """

    def __init__(self, config: VideoLLMMoDConfig, num_frames: int, length: int = 10_000, seed: int = 0):
        self.config, self.num_frames, self.length, self.seed = config, num_frames, length, seed
        shape = (num_frames, config.num_frame_tokens, config.vision_config.hidden_size)
        generator = torch.Generator().manual_seed(seed)
        self.features = [torch.randn(shape, generator=generator).bfloat16() for _ in range(4)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(self.seed * self.length + range(self.length)[index])
        ids, labels = [BOS], [-100]

        def say(tokens: list[int], learned: bool) -> None:
            ids.extend(tokens)
            labels.extend(tokens if learned else [-100] * len(tokens))

        frames_left = self.num_frames
        while frames_left:
            turn = min(20, frames_left)
            say([START], False)
            for index_in_turn in range(turn):
                say([VIDEO] * self.config.num_frame_tokens, False)
                say([SEPARATOR if index_in_turn < turn - 1 else END], True)
            words = torch.randint(FIRST_WORD, self.config.text_config.vocab_size, (12,), generator=generator)
            say([*words.tolist(), EOS], True)
            frames_left -= turn
        return {"input_ids": ids, "labels": labels, "video_features": self.features[index % len(self.features)]}


def train_lora(
    model: VideoLLMMoDForConditionalGeneration,
    arguments: TrainingArguments,
    num_frames: int,
    lora: LoraOptions,
    callback: TrainerCallback,
) -> dict:
    """Train adapters on random streams, and return the losses and gradient norms of the steps, and how many parameters
    were trained."""
    dataset = RandomStreams(model.config, num_frames)
    torch.manual_seed(0)  # so that the adapters start alike however many processes there are
    model = add_lora(model, lora)
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
