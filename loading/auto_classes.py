"""Registers this package with the Auto classes of transformers when these are imported.

`import videollm_mod` must not import transformers and torch, and the Auto classes may be imported later or never. So
imports of both packages are watched. Once a module of Auto classes has been imported, and no watched import is still
under way, the matching module of this package is imported and registered.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType

PACKAGE = __package__.partition(".")[0]
CONFIGURATION, MODELING = "transformers.models.auto.configuration_auto", "transformers.models.auto.modeling_auto"
PROCESSING, VIDEO_PROCESSING = (
    "transformers.models.auto.processing_auto",
    "transformers.models.auto.video_processing_auto",
)
OWN = {
    CONFIGURATION: f"{PACKAGE}.configuration_videollm_mod",
    VIDEO_PROCESSING: f"{PACKAGE}.video_processing_videollm_mod",
    PROCESSING: f"{PACKAGE}.processing_videollm_mod",
    MODELING: f"{PACKAGE}.modeling_videollm_mod",
}
MODEL_OF = {
    "AutoModel": "VideoLLMMoDModel",
    "AutoModelForCausalLM": "VideoLLMMoDForConditionalGeneration",
    "AutoModelForImageTextToText": "VideoLLMMoDForConditionalGeneration",
    "AutoModelForMultimodalLM": "VideoLLMMoDForConditionalGeneration",
}


def register(auto: ModuleType, own: ModuleType) -> None:
    """Register the classes of `own`, a module of this package, with the Auto classes of `auto`."""
    config = import_module(OWN[CONFIGURATION]).VideoLLMMoDConfig
    if auto.__name__ == CONFIGURATION:
        auto.AutoConfig.register(config.model_type, config, exist_ok=True)
    elif auto.__name__ == PROCESSING:
        auto.AutoProcessor.register(config, own.VideoLLMMoDProcessor, exist_ok=True)
    elif auto.__name__ == VIDEO_PROCESSING:
        auto.AutoVideoProcessor.register(config, own.VideoLLMMoDVideoProcessor, exist_ok=True)
    else:
        for name, model in MODEL_OF.items():
            getattr(auto, name).register(config, getattr(own, model), exist_ok=True)


class Watcher(MetaPathFinder):
    """Finds modules through the other finders, and registers after their import."""

    def __init__(self) -> None:
        self._under_way: set[str] = set()  # watched modules whose import is under way
        self._registered: set[str] = set()
        self._searched: set[str] = set()

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ("transformers", PACKAGE) or name in self._searched:
            return None
        self._searched.add(name)  # another finder may also ask all finders
        try:
            others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
            spec = next((spec for finder in others if (spec := finder.find_spec(name, path, target))), None)
        finally:
            self._searched.discard(name)
        if spec is not None and spec.loader is not None:
            spec.loader = WatchedLoader(spec.loader, self)
        return spec

    def execute(self, loader: Loader, module: ModuleType) -> None:
        self._under_way.add(module.__name__)
        try:
            loader.exec_module(module)
        finally:
            self._under_way.discard(module.__name__)
        self.settle()

    def settle(self) -> None:
        """Register with the Auto classes that are imported, unless an import is still under way."""
        for auto, own in OWN.items():
            if not self._under_way and auto in sys.modules and auto not in self._registered:
                self._registered.add(auto)
                register(sys.modules[auto], import_module(own))


class WatchedLoader(Loader):
    """The loader of a watched module; it leaves no trace in the module."""

    def __init__(self, loader: Loader, watcher: Watcher):
        self._loader, self._watcher = loader, watcher

    def __getattr__(self, name: str):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None  # the import system has set it
        module.__spec__.loader = module.__loader__ = self._loader
        self._watcher.execute(self._loader, module)


def register_on_import() -> None:
    """Register with the Auto classes that are imported already, and with the others when they are."""
    watcher = Watcher()
    sys.meta_path.insert(0, watcher)
    watcher.settle()


__all__ = ["register_on_import"]
