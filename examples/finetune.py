"""Fine-tune on your own videos with the HF Trainer: python examples/finetune.py streams.jsonl --output runs/own --lora

On several GPUs: torchrun --nproc_per_node N examples/finetune.py ... With `--lora` the result is an adapter, which
`videollm-mod merge runs/own --output DIR` merges into a checkpoint.
"""

import argparse

import torch
from transformers import Trainer, TrainingArguments

from videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor
from videollm_mod.data.collator import StreamCollator
from videollm_mod.data.streams import load_streams
from videollm_mod.speaking import learn_silence
from videollm_mod.training.adapters import LoraOptions, add_lora
from videollm_mod.training.freezing import freeze_unreached

parser = argparse.ArgumentParser(description="Fine-tune on your own videos.")
parser.add_argument("data", help="a JSONL file of streams")
parser.add_argument("--output", required=True)
parser.add_argument("--model", default=".")
parser.add_argument("--lora", action="store_true", help="train an adapter instead of all weights")
parser.add_argument("--steps", type=int, default=200)
arguments = parser.parse_args()
processor = VideoLLMMoDProcessor.from_pretrained(arguments.model)
model = VideoLLMMoDForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
learn_silence(model, processor)
model.model.vision_tower.requires_grad_(False)
if arguments.lora:
    model = add_lora(model, LoraOptions())
dataset = load_streams(arguments.data, processor)
freeze_unreached(model, given_features="video_features" in dataset[0])


def collate(examples: list[dict]) -> dict:
    batch = StreamCollator(processor.tokenizer.pad_token_id)(examples)
    if "frames" in batch:
        batch |= processor.video_processor(batch.pop("frames"), return_tensors="pt")
    return batch


trainer = Trainer(
    model=model.train(),
    args=TrainingArguments(
        output_dir=arguments.output,
        max_steps=arguments.steps,
        per_device_train_batch_size=2,
        learning_rate=3e-4,
        bf16=torch.cuda.is_available(),
        logging_steps=10,
        remove_unused_columns=False,  # the data set makes its columns on the fly
        ddp_find_unused_parameters=False,
    ),
    train_dataset=dataset,
    data_collator=collate,
    processing_class=processor,
)
trainer.train()
trainer.save_model()
