"""A small checkpoint, videos and JSONL files for several test files."""

import json
from pathlib import Path

import numpy as np
import torch

from videollm_mod.data.world import texts
from videollm_mod.training.initialise import initialise

OPTIONS = {
    "text_config": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,  # large enough that a wrong mask or position shows in the logits
        "mod_keep_ratio": 0.4,
    },
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
    "frame_token_pooled": [2, 2],
}


def small_model(seed: int = 0, **text):
    """`(model, processor)`: frames of 32 x 32 pixels and 5 tokens, a vocabulary of the world's words."""
    options = {**OPTIONS, "text_config": {**OPTIONS["text_config"], **text}}
    model, processor = initialise(options, texts(range(20)), vocab_size=400, seed=seed)
    for name, parameter in model.named_parameters():
        if "layer_expert" in name:
            torch.nn.init.normal_(parameter, std=0.5)  # so that scores and gates are far from their neutral values
    return model, processor


def write_video(path: Path, num_frames: int, fps: int = 4, size: tuple[int, int] = (48, 64), seed: int = 0) -> Path:
    """A video whose frames all differ."""
    import av

    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps)
        video.height, video.width, video.pix_fmt = *size, "yuv420p"
        for _ in range(num_frames):
            tiles = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
            image = tiles.repeat(8, axis=0).repeat(8, axis=1)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())
    return path


def write_lines(path: Path, lines: list) -> Path:
    """Write one line per item: bytes as they are, other values as JSON."""
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in raw))
    return path


def said(time: float, content: str, role: str = "assistant") -> dict:
    return {"time": time, "role": role, "content": content}
