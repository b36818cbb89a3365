"""Pixel values of other families: within one grey level of their own image processors, which need no torchvision."""

from pathlib import Path

import numpy as np
import pytest
import torch
from family_tokenizers import family
from PIL import Image
from test_families import messages
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from videollm_mod.benchmarks import stock_pixels
from videollm_mod.conversation import family_frames
from videollm_mod.processing_videollm_mod import VideoLLMMoDProcessor
from videollm_mod.video_processing_videollm_mod import VideoLLMMoDVideoProcessor

SIZES = [(480, 640), (720, 1280), (640, 360), (240, 241), (96, 96), (1000, 333)]
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP_336 = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
SIDE_512 = {"max_image_size": {"longest_edge": 512}, **HALF}
# the family, its image processor with the options of published checkpoints or others, and whether images are split
STOCK = {
    "LLaVA 1.5": ("llava", CLIPImageProcessorPil(**CLIP_336)),
    "LLaVA 1.5, its own class": ("llava", LlavaImageProcessorPil(**CLIP_336)),
    "LLaVA, small crop": (
        "llava",
        CLIPImageProcessorPil(size={"shortest_edge": 90}, crop_size={"height": 64, "width": 80}),
    ),
    "interleave": ("llava", SiglipImageProcessorPil(size={"height": 384, "width": 384}, **HALF)),
    "OneVision's videos": ("llava_onevision", SiglipImageProcessorPil(size={"height": 384, "width": 384}, **HALF)),
    "SmolVLM2's videos": (
        "smolvlm",
        SmolVLMImageProcessorPil(size={"longest_edge": 512}, do_image_splitting=False, **SIDE_512),
    ),
    "Idefics3's frames": ("idefics3", Idefics3ImageProcessorPil(do_image_splitting=False, **HALF)),
}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Edges, a gradient and noise, uint8 `[height, width, 3]`."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 200, (8, 10, 3))[np.arange(height) * 8 // height][:, np.arange(width) * 10 // width]
    noise = rng.integers(0, 16, (height, width, 3))
    return (blocks + np.linspace(0, 39, width)[None, :, None] + noise).astype(np.uint8)


def options_of(stock) -> dict:
    return stock.to_dict()


def grey_levels(ours: torch.Tensor, theirs, stock) -> float:
    """The largest difference, of 255."""
    difference = (ours - torch.as_tensor(np.asarray(theirs))).abs()
    return float((difference * torch.tensor(stock.image_std)[:, None, None] * 255).max())


# every second size for each processor, since several processors compute alike
PAIRS = [(name, size) for index, name in enumerate(STOCK) for size in SIZES[index % 2 :: 2]]


@pytest.mark.parametrize(("name", "size"), PAIRS, ids=str)
def test_frames_are_those_of_the_image_processor(name, size):
    model_type, stock = STOCK[name]
    ours = VideoLLMMoDVideoProcessor(**family_frames(model_type, options_of(stock)))
    frame = picture(*size)
    theirs = np.asarray(stock(Image.fromarray(frame), return_tensors="np")["pixel_values"])
    pixels = ours(frame[None])["pixel_values_videos"]
    assert list(pixels.shape[-2:]) == ours.frame_size
    assert grey_levels(pixels[0], theirs.reshape(pixels[0].shape), stock) <= 1.001
    streamed = ours.to_pixels(torch.from_numpy(frame).movedim(-1, 0)[None])
    assert torch.equal(streamed, pixels)


@pytest.mark.parametrize("size", [*SIZES, (512, 512), (513, 2000)], ids=str)
@pytest.mark.parametrize("splits", [True, False])
@pytest.mark.parametrize("name", ["smolvlm", "idefics3"])
def test_images_are_split_as_by_the_image_processor(name, splits, size):
    kinds = {"smolvlm": SmolVLMImageProcessorPil, "idefics3": Idefics3ImageProcessorPil}
    side, edge = (96, 300) if name == "smolvlm" else (64, 256)
    options = {"size": {"longest_edge": edge}, "max_image_size": {"longest_edge": side}, "do_image_splitting": splits}
    stock = kinds[name](**options, **HALF)
    model_type, tokenizer, template = family(name)
    video = {"video_sampling": {"video_size": {"longest_edge": side}, "fps": 1, "max_frames": 64}}
    pixels = VideoLLMMoDVideoProcessor(
        **family_frames(model_type, stock.to_dict(), video if name == "smolvlm" else None)
    )
    processor = VideoLLMMoDProcessor.of_family(model_type, pixels, tokenizer, template, num_frame_tokens=2)
    image = Image.fromarray(picture(*size))
    theirs = stock([[image]], return_tensors="np", return_row_col_info=True)
    conversation = messages(["image", "What?"])
    conversation[0]["content"][0]["image"] = image
    inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True)
    (tiles,) = theirs["pixel_values"]
    assert inputs["pixel_values_videos"].shape == tiles.shape
    assert grey_levels(inputs["pixel_values_videos"], tiles, stock) <= 1.001
    rows, columns = theirs["rows"][0][0], theirs["cols"][0][0]
    assert len(tiles) == rows * columns + 1
    assert inputs["input_ids"][0].count(processor.video_token_id) == 2 * len(tiles)
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    assert text.count("<row_") == rows * columns and (f"<row_{rows}_col_{columns}>" in text or not rows)
    called = processor(processor.apply_chat_template(conversation), images=image)
    assert called["input_ids"] == inputs["input_ids"]
    assert torch.equal(called["pixel_values_videos"], inputs["pixel_values_videos"])


RECORDED = np.load(Path(__file__).with_name("stock_pixels.npz"))


@pytest.mark.parametrize("name", [name for name in RECORDED if "/" in name])
def test_frames_are_those_of_the_video_processor(name):
    """Recorded by benchmarks/stock_pixels.py, with the versions that the file states."""
    model_type, size = name.split("/")
    _, options = stock_pixels.OPTIONS[model_type]
    image = {"max_image_size": options.get("max_image_size")}
    chosen = family_frames(model_type, image, options)
    if model_type == "smolvlm":
        chosen["resample"] = stock_pixels.SMOLVLM_RESAMPLE
    frame = stock_pixels.frame(*map(int, size.split("x")))
    pixels = VideoLLMMoDVideoProcessor(**chosen)(frame[None])["pixel_values_videos"][0]
    pixels, stride = pixels[:, :: stock_pixels.STRIDE, :: stock_pixels.STRIDE], RECORDED[name].astype(np.float32)
    levels = (pixels - torch.from_numpy(stride)).abs() * 127.5
    assert float((levels > 1.13).float().mean()) < 1e-4  # the file is rounded
    assert float(levels.max()) <= 2.13  # torchvision rounds each of SmolVLM's two resizings more than PIL does


def test_options_of_a_video_processor_come_before_those_of_images():
    video = {"video_sampling": {"video_size": {"longest_edge": 512}, "fps": 1, "max_frames": 64}}
    image = SmolVLMImageProcessorPil(size={"longest_edge": 2048}, **SIDE_512).to_dict()
    options = family_frames("smolvlm", image, video)
    assert options["size"] == {"longest_edge": 512} and options["image_size"] == {"longest_edge": 2048}
    assert options["fps"] == 1.0 and options["do_image_splitting"]
    with pytest.raises(ValueError, match="pads images to squares of the mean colour is not supported"):
        family_frames("llava", LlavaImageProcessorPil(do_pad=True).to_dict())
