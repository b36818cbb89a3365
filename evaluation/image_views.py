"""Models that take images or a video with each question, and remember nothing: a server, or a stock model.

Shapes: F frames, H and W pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from .benchmark_views import Cost
from .chat_server import ChatServer
from .video_window import images_of, spaced


class ServerModel:
    """The model of a chat server. Frames go there as images, without their times."""

    def __init__(self, server: ChatServer):
        self.server, self.decoding = server, server.settings

    def reply(self, images: list[np.ndarray], frames: Sequence[int], fps: float, text: str, limit: int):
        """The answer, and the numbers of tokens and of bytes that the cache held, None if they are unknown."""
        reply = self.server.answer(text, images, limit)
        return reply.text, reply.tokens, None


class StockModel:
    """A model of transformers: its processor's chat template gets a video, or images if it has no video processor.

    Raises:
        `ValueError`, `OSError`, `ImportError`: if it cannot be loaded, or its processor has no chat template.
    """

    decoding = {"greedy": True}

    def __init__(self, folder: Path, device: torch.device, dtype: str):
        try:
            self.processor = AutoProcessor.from_pretrained(folder)
            self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
            self.model.to(device)
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"cannot load a model that reads images from {folder}: {error}") from error
        if getattr(self.processor, "chat_template", None) is None:
            raise ValueError(f"the processor of {folder} has no chat template")
        self.takes_video = getattr(self.processor, "video_processor", None) is not None

    @torch.no_grad()
    def reply(self, images: list[np.ndarray], frames: Sequence[int], fps: float, text: str, limit: int):
        """As `ServerModel.reply`."""
        media: list[dict] = [{"type": "image", "image": image} for image in images]
        options = {}
        if images and self.takes_video:
            media = [{"type": "video", "video": np.stack(images)}]
            metadata = {
                "fps": fps,
                "frames_indices": list(frames),
                "total_num_frames": frames[-1] + 1,
                "duration": (frames[-1] + 1) / fps,
            }
            options = {"processor_kwargs": {"video_metadata": [metadata], "do_sample_frames": False}}
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": [*media, {"type": "text", "text": text}]}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            **options,
        ).to(self.model.device, self.model.dtype)
        output = self.model.generate(
            **inputs, do_sample=False, num_beams=1, max_new_tokens=limit, return_dict_in_generate=True
        )
        ids, prompt = output.sequences[0], inputs["input_ids"].shape[1]
        cache = getattr(output, "past_key_values", None)
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in getattr(cache, "layers", ())) or None
        return self.processor.decode(ids[prompt:], skip_special_tokens=True).strip(), len(ids), held


class ImageModel:
    """
    Either of them under the protocols of benchmarks.

    Args:
        of (`ServerModel` or `StockModel`).
        fps (`float`): frames per second that it is shown.
        max_frames (`int`, *optional*): at most so many for one question, evenly spaced.
    """

    speaks = routes = False

    def __init__(self, of: ServerModel | StockModel, fps: float, max_frames: int | None):
        self.of, self.fps, self.max_frames, self.decoding = of, fps, max_frames, of.decoding

    def view(self, video: str, max_new_tokens: int, dense: bool = False) -> "ImageView":
        return ImageView(self, video, max_new_tokens)


class ImageView:
    """It before one video."""

    def __init__(self, of: ImageModel, video: str, max_new_tokens: int):
        self.of, self.video, self.limit, self.cost = of, video, max_new_tokens, Cost()

    def answer(self, frames: range, text: str) -> str:
        chosen = spaced(frames, self.of.max_frames)
        images = list(images_of(self.video, self.of.fps, chosen))
        answer, tokens, held = self.of.of.reply(images, chosen[: len(images)], self.of.fps, text, self.limit)
        self.cost.add(len(images), tokens, held)
        return answer

    def stream(self, before: range, after: range, text: str, always: bool = False) -> list[tuple[float, str]]:
        """Its answer, since it speaks only when asked."""
        return [(before[-1] / self.of.fps if before else 0.0, self.answer(before, text))]


__all__ = ["ImageModel", "ServerModel", "StockModel"]
