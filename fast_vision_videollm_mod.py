"""The vision tower as a CUDA graph for each number of frames, where it is on a GPU; SigLIP's in its fast form.

Shapes: F frames, H and W pixels, N vision tokens per frame, Dv hidden size of the vision tower.
"""

import threading
import weakref

import torch

from .fast_tower_videollm_mod import is_plain_siglip, run
from .unchanged_videollm_mod import Unchanged

GRAPHS = 12  # numbers of frames that are captured, those in use last; in a pool they change
MOST_FRAMES = 64  # of one graph; with more, launching takes no time beside the work


class FastVision:
    """The graphs of one model's vision tower."""

    def __init__(self, model):
        self._model = weakref.ref(model)
        tower = model.model.vision_tower
        self._unchanged = Unchanged([model.model], [tower])
        self._graphs: dict[int, tuple] = {}  # number of frames -> graph, pixels, features
        self._seen: set[int] = set()
        self._fails = False
        self._ops = fast_ops(tower)
        self._lock = threading.Lock()
        self._done: torch.cuda.Event | None = None  # the last use of a graph's buffers, on whichever stream

    def __reduce__(self):
        return type(None), ()  # a copy of the model makes its own

    @property
    def is_current(self) -> bool:
        """Whether the tower is still the one whose addresses the graphs hold, and nobody wants to see its calls."""
        return bool(self._unchanged)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        model, count = self._model().model, len(pixels)
        with self._lock, torch.cuda.device(pixels.device):
            is_due = count in self._seen and count <= MOST_FRAMES and not self._fails
            if count not in self._graphs and is_due:
                try:
                    self._capture(model, pixels)
                except RuntimeError:  # out of memory, or a tower that cannot be captured
                    self._fails = True
            self._seen.add(count)
            if count not in self._graphs:
                return self._features(model, pixels)
            graph, own_pixels, features = self._graphs[count] = self._graphs.pop(count)
            stream = torch.cuda.current_stream(pixels.device)
            if self._done is not None:  # threads may have streams of their own
                stream.wait_event(self._done)
            own_pixels.copy_(pixels)
            graph.replay()
            features = features.clone()
            self._done = stream.record_event()
            return features

    def _features(self, model, pixels: torch.Tensor) -> torch.Tensor:
        if self._ops is not None:
            try:
                return model.tokens_of(*run(model.vision_tower, pixels.to(model.vision_tower.dtype), self._ops))
            except torch.OutOfMemoryError:
                raise
            except Exception:  # as where a kernel cannot be compiled
                self._ops = None
        return model.frame_tokens(pixels).pooler_output

    def _capture(self, model, pixels: torch.Tensor) -> None:
        if len(self._graphs) >= GRAPHS:
            self._graphs.pop(next(iter(self._graphs)))
        own_pixels = pixels.to(model.vision_tower.dtype, copy=True)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(pixels.device)
        stream.wait_stream(torch.cuda.current_stream(pixels.device))
        with torch.cuda.stream(stream):
            self._features(model, own_pixels)
        torch.cuda.current_stream(pixels.device).wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            features = self._features(model, own_pixels)
        self._graphs[len(pixels)] = graph, own_pixels, features


def fast_ops(tower):
    """The parts of the tower's fast form; None where it has none."""
    if not is_plain_siglip(tower):
        return None
    try:
        from .fast_tower_kernels_videollm_mod import TowerKernels
    except ImportError:
        return None
    return TowerKernels


def encode(model, pixels: torch.Tensor) -> torch.Tensor:
    """Features `[F, N, Dv]` of frames `[F, 3, H, W]`, as `model.encode_frames`."""
    vision = model.config.vision_config
    right = tuple(pixels.shape[1:]) == (vision.num_channels, vision.image_size, vision.image_size)
    # a graph is of the precision that it was captured in
    if pixels.device.type != "cuda" or model.training or not right or torch.is_autocast_enabled("cuda"):
        return model.encode_frames(pixels).pooler_output
    known = vars(model).get("_vision_graphs")
    if known is None or not known.is_current:
        known = model._vision_graphs = FastVision(model)
        if not known.is_current:  # hooks want to see every call
            return model.encode_frames(pixels).pooler_output
    return known(pixels)


__all__ = ["encode"]
