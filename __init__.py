"""VideoLLM-MoD: a streaming video language model that skips most vision tokens in its routed layers.

Names are imported on first use, so that `import videollm_mod` does not wait for torch and transformers. From then on
the Auto classes of transformers know the package: they load its checkpoints without remote code.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cache import MoDCache
    from .configuration_videollm_mod import VideoLLMMoDConfig, VideoLLMMoDTextConfig
    from .modeling_videollm_mod import VideoLLMMoDForConditionalGeneration, VideoLLMMoDModel
    from .processing_videollm_mod import VideoLLMMoDProcessor
    from .serving.pool import StreamPool
    from .speaking import StreamEvent, WatchedFrame
    from .streaming import StreamingSession, StreamStats
    from .video_processing_videollm_mod import VideoLLMMoDVideoProcessor

__version__ = "0.1.0"

_MODULE_OF = {
    "MoDCache": "cache",
    "StreamEvent": "speaking",
    "StreamPool": "serving.pool",
    "StreamStats": "streaming",
    "StreamingSession": "streaming",
    "VideoLLMMoDConfig": "configuration_videollm_mod",
    "VideoLLMMoDForConditionalGeneration": "modeling_videollm_mod",
    "VideoLLMMoDModel": "modeling_videollm_mod",
    "VideoLLMMoDProcessor": "processing_videollm_mod",
    "VideoLLMMoDTextConfig": "configuration_videollm_mod",
    "VideoLLMMoDVideoProcessor": "video_processing_videollm_mod",
    "WatchedFrame": "speaking",
}

__all__ = [
    "MoDCache",
    "StreamEvent",
    "StreamPool",
    "StreamStats",
    "StreamingSession",
    "VideoLLMMoDConfig",
    "VideoLLMMoDForConditionalGeneration",
    "VideoLLMMoDModel",
    "VideoLLMMoDProcessor",
    "VideoLLMMoDTextConfig",
    "VideoLLMMoDVideoProcessor",
    "WatchedFrame",
    "__version__",
]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__():
    return sorted({*globals(), *__all__})


if __name__ == "videollm_mod":  # and not under another name, as where pytest runs this file on its own
    from .loading.auto_classes import register_on_import

    register_on_import()
