"""The model that all visitors share, and a dense twin with the same weights."""

import copy
import os
import threading
from pathlib import Path

import torch

from ..commands.threads import allowed_cores
from ..data.world import DOMAIN
from ..loading.checkpoint import load_checkpoint
from ..memory import frames_in_context
from ..narration.overlay import frame_fit
from ..speaking import default_threshold

try:
    import spaces

    gpu = spaces.GPU  # has no effect outside ZeroGPU
except ImportError:

    def gpu(function):
        return function


INSTRUCTION = "Narrate what happens."  # of a model whose processor has no `default_query`
QUESTIONS = ["What do you see?", "What is happening?", "What happened last?", "How many people are there?"]
# of the models of a domain
KNOWN_QUESTIONS = {
    DOMAIN: [
        "How many objects are there?",
        "What happened last?",
        "What is at the center?",
        "Where is the red circle?",
    ]
}
ZERO_GPU = bool(os.environ.get("SPACES_ZERO_GPU"))  # only `gpu` functions have a GPU, each call in its own process


def dense_twin(model):
    """A copy of the model without routing that shares all its weights."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    twin.config.text_config.vision_routing = "full"
    return twin


def speak_rules(config) -> dict[str, float]:
    """The speaking rules that a model can follow, its own first, with their thresholds."""
    learned = config.frame_separator_token_id is not None  # else it has not learned when to be silent
    rules = dict.fromkeys([config.speak_rule, *(["trained"] if learned else []), "verify"])
    return {rule: default_threshold(rule, config.verify_margin) for rule in rules}


class Models:
    """
    Args:
        model (`VideoLLMMoDForConditionalGeneration`), processor (`VideoLLMMoDProcessor`).
        name (`str`): title of the page.

    Attributes:
        rules (`dict[str, float]`): see `speak_rules`.
        instruction (`str`): how a stream opens unless the visitor says otherwise.
    """

    is_remote = False  # see `RemoteModels`

    def __init__(self, model, processor, name: str = "VideoLLM-MoD"):
        self.processor, self.name = processor, name
        self.lanes = {"mod": model, "dense": dense_twin(model)}
        self.config, self.device = model.config, model.device
        self.fps = float(processor.video_processor.fps)
        self.max_frames = frames_in_context(model.config)
        self.default_keep_ratio = model.keep_ratio
        self.rules = speak_rules(self.config)
        self.instruction = processor.default_query or INSTRUCTION
        self.slots = threading.Semaphore(1)  # requests that may run at the same time
        if self.device.type == "cpu":
            # several streams are faster with one core each than with all cores for one
            torch.set_num_threads(1)
            self.slots = threading.Semaphore(allowed_cores())

    @classmethod
    def load(cls, checkpoint: str | None = None) -> "Models":
        """Load a folder or Hub id, by default the checkpoint of the package."""
        named = {} if checkpoint is None else {"name": Path(checkpoint).resolve().name}
        return cls(*load_checkpoint(checkpoint), **named)

    def warm_up(self) -> None:
        """Watch two frames and say a word with each model, so that no visitor waits for lazy initialisation."""
        for model in self.lanes.values():
            session = model.stream(self.processor, max_new_tokens=2, speak_threshold=1.0)
            side = self.config.vision_config.image_size
            session.push(torch.zeros(2, 3, side, side, dtype=torch.uint8))

    def describe(self) -> dict:
        """What the page needs to know: what the model is and can be asked, the grid of patches, the routed layers, and
        the ranges of the controls."""
        config, text = self.config, self.config.text_config
        grid = config.frame_token_pooled or (1, 1)
        return {
            "name": self.name,
            "domain": config.domain,
            "rules": self.rules,
            "instruction": self.instruction,
            "questions": KNOWN_QUESTIONS.get(config.domain, QUESTIONS),
            "fps": self.fps,
            "grid": list(grid),
            "class_token": config.frame_token_cls,
            "fit": frame_fit(self.processor.video_processor),
            "tokens": config.num_frame_tokens,
            "layers": text.num_hidden_layers,
            "routed_layers": list(text.routed_layers),
            "keep_ratio": self.default_keep_ratio,
            "max_frames": self.max_frames,
            "parameters": sum(p.numel() for p in self.lanes["mod"].parameters()),
            "device": self.device.type,
        }


__all__ = ["ZERO_GPU", "Models", "dense_twin", "gpu", "speak_rules"]
