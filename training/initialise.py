"""A model and its processor before anything is learned: random weights, and a tokenizer made from given texts.

`python -m videollm_mod.training.initialise FOLDER` writes a small checkpoint with every file of a Hub repository; the
same bytes for the same seed.
"""

import argparse
from pathlib import Path

import torch

from ..configuration_videollm_mod import VideoLLMMoDConfig
from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
from ..processing_videollm_mod import VideoLLMMoDProcessor, VideoLLMMoDVideoProcessor
from .tokenizer import VIDEO, learn_tokenizer

TINY = {
    "text_config": {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 96,
        "patch_size": 16,
    },
}


def initialise(
    options: dict, texts: list[str], vocab_size: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor]:
    """
    Args:
        options (`dict`): of `VideoLLMMoDConfig`; ids and vocabulary size come from the tokenizer.
        texts (`list[str]`), vocab_size (`int`): what the tokenizer is made from, and its tokens at most.
        dtype (`torch.dtype`): of the weights; LayerExperts stay in float32.
    """
    tokenizer = learn_tokenizer(texts, vocab_size)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = VideoLLMMoDConfig(
        **{
            **options,
            "text_config": {**options["text_config"], "vocab_size": len(tokenizer), **ids},
            "video_token_id": tokenizer.convert_tokens_to_ids(VIDEO),
            "frame_separator_token_id": tokenizer.convert_tokens_to_ids(","),
        }
    )
    side = config.vision_config.image_size
    processor = VideoLLMMoDProcessor(
        VideoLLMMoDVideoProcessor(size={"height": side, "width": side}),
        tokenizer,
        num_frame_tokens=config.num_frame_tokens,
    )
    torch.manual_seed(seed)
    return VideoLLMMoDForConditionalGeneration._from_config(config, dtype=dtype).eval(), processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model, processor = initialise(TINY, texts=[], vocab_size=260, seed=arguments.seed, dtype=torch.bfloat16)
    model.save_pretrained(arguments.folder)
    processor.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
