"""The model that all visitors share, and a dense twin with the same weights."""

import copy
import os
import threading

import torch

from ..commands.threads import allowed_cores
from ..loading.checkpoint import load_checkpoint
from ..memory import frames_in_context
from ..speaking import default_threshold

try:
    import spaces

    gpu = spaces.GPU  # has no effect outside ZeroGPU
except ImportError:

    def gpu(function):
        return function


ZERO_GPU = bool(os.environ.get("SPACES_ZERO_GPU"))  # only `gpu` functions have a GPU, each call in its own process


def dense_twin(model):
    """A copy of the model without routing that shares all its weights."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    twin.config.text_config.vision_routing = "full"
    return twin


class Models:
    """
    Args:
        model (`VideoLLMMoDForConditionalGeneration`), processor (`VideoLLMMoDProcessor`).
    """

    def __init__(self, model, processor):
        self.processor = processor
        self.lanes = {"mod": model, "dense": dense_twin(model)}
        self.config, self.device = model.config, model.device
        self.fps = float(processor.video_processor.fps)
        self.max_frames = frames_in_context(model.config)
        self.default_keep_ratio = model.keep_ratio
        self.default_threshold = default_threshold(self.config.speak_rule, self.config.verify_margin)
        self.slots = threading.Semaphore(1)  # requests that may run at the same time
        if self.device.type == "cpu":
            # several streams are faster with one core each than with all cores for one
            torch.set_num_threads(1)
            self.slots = threading.Semaphore(allowed_cores())

    @classmethod
    def load(cls, checkpoint: str | None = None) -> "Models":
        """Load a folder or Hub id, by default the checkpoint of the package."""
        return cls(*load_checkpoint(checkpoint))

    def warm_up(self) -> None:
        """Watch two frames and say a word with each model, so that no visitor waits for lazy initialisation."""
        for model in self.lanes.values():
            session = model.stream(self.processor, max_new_tokens=2, speak_threshold=1.0)
            side = self.processor.video_processor.size["height"]
            session.push(torch.zeros(2, 3, side, side, dtype=torch.uint8))

    def describe(self) -> dict:
        """What the page needs to know: the grid of patches, the routed layers, and the ranges of the controls."""
        config, text = self.config, self.config.text_config
        grid = config.frame_token_pooled or (1, 1)
        return {
            "domain": config.domain,
            "fps": self.fps,
            "grid": list(grid),
            "class_token": config.frame_token_cls,
            "letterbox": bool(self.processor.video_processor.do_pad),
            "tokens": config.num_frame_tokens,
            "layers": text.num_hidden_layers,
            "routed_layers": list(text.routed_layers),
            "keep_ratio": self.default_keep_ratio,
            "threshold": self.default_threshold,
            "max_frames": self.max_frames,
            "parameters": sum(p.numel() for p in self.lanes["mod"].parameters()),
            "device": self.device.type,
        }


__all__ = ["ZERO_GPU", "Models", "dense_twin", "gpu"]
