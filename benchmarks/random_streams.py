"""Random weights of Llama-3-8B's geometry, and streams of random frames: what training costs does not depend on what
the numbers are."""

import torch
from transformers import TrainerCallback, TrainingArguments

from videollm_mod import VideoLLMMoDConfig, VideoLLMMoDForConditionalGeneration
from videollm_mod.data.collator import StreamCollator
from videollm_mod.training.adapters import LoraOptions, add_lora
from videollm_mod.training.freezing import freeze_unreached
from videollm_mod.training.trainer import StreamTrainer

BOS, EOS, VIDEO, SEPARATOR, START, END, FIRST_WORD = 0, 1, 3, 4, 5, 6, 7

GEOMETRIES = {
    # Meta-Llama-3-8B; the vision tower is SigLIP-L/16 at 384 pixels, a frame is 1 + 3 x 3 tokens
    "llama-3-8b": {
        "text_config": {
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32_768,
            "rope_theta": 500_000.0,
        },
    },
    # to try a benchmark out on any machine
    "tiny": {
        "text_config": {
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
    },
}


def random_model(geometry: str, device: torch.device, seed: int = 0) -> VideoLLMMoDForConditionalGeneration:
    """A model in bfloat16 (routers in float32), made on `device`."""
    options = {name: {**value} for name, value in GEOMETRIES[geometry].items()}
    config = VideoLLMMoDConfig(**options, video_token_id=VIDEO, frame_separator_token_id=SEPARATOR)
    config.text_config.bos_token_id, config.text_config.eos_token_id, config.text_config.pad_token_id = BOS, EOS, 2
    torch.manual_seed(seed)
    with torch.device(device):
        return VideoLLMMoDForConditionalGeneration._from_config(config, dtype=torch.bfloat16)


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
        generator = torch.Generator().manual_seed(self.seed * self.length + index)
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
