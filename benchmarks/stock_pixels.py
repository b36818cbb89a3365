"""Records what the stock video processors of transformers make of frames, for the tests, where torchvision is missing.

    python -m videollm_mod.benchmarks.stock_pixels tests/stock_pixels.npz

It needs torchvision. The file holds every `STRIDE`-th row and column of the pixel values, as float16, whose rounding
is at most an eighth of a grey level. `SMOLVLM_RESAMPLE` is the filter that was used: before 0.27 torchvision has no
Lanczos filter, and transformers takes the bicubic one.
"""

import sys

import numpy as np
import torch
import transformers
from transformers import LlavaOnevisionVideoProcessor, SmolVLMVideoProcessor

STRIDE = 7
SMOLVLM_RESAMPLE = 3
SIZES = ((480, 640), (720, 1280), (640, 360), (240, 241), (96, 96))  # height, width
# as the published checkpoints configure them: llava-hf/llava-onevision-qwen2-*-ov-hf, HuggingFaceTB/SmolVLM2-*
OPTIONS = {
    "llava_onevision": (
        LlavaOnevisionVideoProcessor,
        {"size": {"height": 384, "width": 384}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    ),
    "smolvlm": (
        SmolVLMVideoProcessor,
        {
            "size": {"longest_edge": 512},
            "max_image_size": {"longest_edge": 512},
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
    ),
}


def frame(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A frame with edges, a gradient and noise, uint8 `[height, width, 3]`."""
    random = np.random.RandomState(seed)  # whose numbers are the same in every release of numpy
    blocks = random.randint(0, 200, (8, 10, 3))
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 10 // width
    gradient = np.linspace(0, 40, width)[None, :, None]
    noise = random.randint(0, 16, (height, width, 3))
    return (blocks[rows][:, columns] + gradient + noise).astype(np.uint8)


def main(path: str) -> None:
    import torchvision

    recorded = {
        "versions": np.array([f"transformers {transformers.__version__}, torchvision {torchvision.__version__}"])
    }
    for family, (kind, options) in OPTIONS.items():
        for size in SIZES:
            video = torch.from_numpy(frame(*size)).movedim(-1, 0)[None]
            outputs = kind(**options)([video], return_tensors="pt")
            pixels = next(outputs[name] for name in ("pixel_values_videos", "pixel_values") if name in outputs)[0, 0]
            recorded[f"{family}/{size[0]}x{size[1]}"] = pixels[:, ::STRIDE, ::STRIDE].numpy().astype(np.float16)
            print(family, size, tuple(pixels.shape), pixels.min().item(), pixels.max().item())
    np.savez_compressed(path, **recorded)


if __name__ == "__main__":
    main(*sys.argv[1:])
