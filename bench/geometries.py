"""Sizes of the models to measure. Weights are random, which does not change what a step costs."""

import json
import math
import os
from pathlib import Path

GEOMETRIES = {
    "llama3-8b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 524_288,
        "rope_theta": 500_000.0,
    },
    # for checks: as wide as a small Llama, and quick to build
    "middle": {
        "vocab_size": 32_000,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 524_288,
        "rope_theta": 500_000.0,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 524_288,
    },
}
NAMES = (*GEOMETRIES, "nano")
WEIGHTS = ("bf16", "fp8", "int8", "nf4")  # how the layers' weights are stored
LARGE = 40 << 30  # bytes that Llama-3-8B's geometry takes in float32, activations included
SMALL_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 384,
    "patch_size": 16,
}
BOS, EOS, PAD, VIDEO, SEPARATOR, START, END, FIRST_WORD = range(8)  # token ids of random streams


def config_values(name: str, tokens: int = 10, **mod_options) -> dict:
    """Arguments of `VideoLLMMoDConfig` for a geometry with `tokens` tokens per frame: a class token, and a square grid
    of pooled tokens. The vision tower is SigLIP-L/16 at 384 pixels; `nano` has its own, and `tiny` a small one.

    Raises:
        `ValueError`: if `tokens` is not 1 more than a square.
    """
    side = math.isqrt(tokens - 1) if tokens > 0 else -1
    if side * side != tokens - 1:
        raise ValueError(f"`tokens` must be 1 more than a square, as 1, 10 or 50 are, got {tokens}")
    values: dict = {"frame_token_pooled": [side, side] if side else None, "video_token_id": VIDEO}
    values["frame_separator_token_id"] = SEPARATOR
    if name == "nano":
        stored = json.loads((Path(__file__).parent.parent / "config.json").read_text(encoding="utf-8"))
        text, values["vision_config"] = stored["text_config"], stored["vision_config"]
        text.pop("dtype"), values["vision_config"].pop("dtype")
    else:
        text = GEOMETRIES[name]
        if name == "tiny":
            values["vision_config"] = SMALL_TOWER
    ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    return {**values, "text_config": {**text, **ids, **mod_options}}


def check_fits(geometry: str, device: str) -> None:
    """Refuse a model that is too large for the memory of a CPU: the system would kill the process without a message.

    Raises:
        `ValueError`: if it is too large.
    """
    if device != "cpu" or geometry != "llama3-8b":
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory < LARGE:
        raise ValueError(
            f"--geometry llama3-8b takes up to {LARGE >> 30} GiB on a CPU, and this machine has {memory >> 30} GiB: "
            "use --geometry nano"
        )
