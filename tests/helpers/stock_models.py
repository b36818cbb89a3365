"""Tiny stock language models, tokenizers and vision towers on disk."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

CORPUS = [
    f"{who} {what} the {thing}, then looks at it: [ ] {n}.\nUser: why?\nAssistant: because.\n"
    for n, (who, what, thing) in enumerate(
        (w, v, t) for w in ("She", "He") for v in ("cuts", "takes", "sees") for t in ("onion", "red cup", "door")
    )
]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
MODELS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM),
}
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT_TOWER = {**TOWER, "vocab_size": 20}


def byte_level() -> PreTrainedTokenizerFast:
    """As Llama 3's: no pad token, and a start token that the tokenizer adds."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|begin|>", "<|end|>"]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>")


def no_start() -> PreTrainedTokenizerFast:
    """As Qwen2's: a pad token, but no start token."""
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>", pad_token="<|begin|>"
    )


def metaspace() -> PreTrainedTokenizerFast:
    """As Llama 2's and TinyLlama's: words and texts start with a mark, and unknown characters become bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.train_from_iterator([x.replace("\n", " ") for x in CORPUS], trainers.BpeTrainer(vocab_size=120))
    pieces = [*special, *(f"<0x{i:02X}>" for i in range(256)), *learned.get_vocab()]
    import json

    merges = [tuple(x) for x in json.loads(learned.to_str())["model"]["merges"]]
    tokenizer.model = models.BPE(
        vocab={x: i for i, x in enumerate(pieces)}, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def unigram() -> PreTrainedTokenizerFast:
    """As SentencePiece's unigram models."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        unk_token="<unk>",
        initial_alphabet=["\n", "<", ">"],
    )
    tokenizer.train_from_iterator([*CORPUS, "\n , ] [ : \n < v >"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


TOKENIZERS = {"byte level": byte_level, "no start": no_start, "metaspace": metaspace, "unigram": unigram}


def save_language_model(path: Path, tokenizer: str = "byte level", kind: str = "llama", spare: int = 0, **options):
    """Write a causal language model with random weights and its tokenizer; returns the folder."""
    words = TOKENIZERS[tokenizer]()
    config_class, model_class = MODELS[kind]
    ids = {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = config_class(**{**SIZES, "vocab_size": len(words) + spare, **ids, **options})
    model = model_class(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "q_norm.weight", "k_norm.weight")):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(path)
    words.save_pretrained(path)
    return path


def save_tower(path: Path, kind: str = "siglip_vision_model") -> Path:
    siglip, clip = {"image_size": 32, "patch_size": 8}, {"image_size": 24, "patch_size": 4}
    make = {
        "siglip_vision_model": lambda: SiglipVisionModel(SiglipVisionConfig(**TOWER, **siglip)),
        "clip_vision_model": lambda: CLIPVisionModel(CLIPVisionConfig(**TOWER, **clip)),
        "siglip": lambda: SiglipModel(SiglipConfig(text_config=TEXT_TOWER, vision_config={**TOWER, **siglip})),
        "clip": lambda: CLIPModel(CLIPConfig(text_config=TEXT_TOWER, vision_config={**TOWER, **clip})),
    }
    make[kind]().save_pretrained(path)
    return path
