"""Everything that differs between releases of transformers, or that transformers does not document.

Tested with transformers 5.17.0, 5.23.0 and 5.24.0. If a release removes one of these parts, `tests/test_compat.py`
fails and names it.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache, wraps
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, __version__
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import ProcessorMixin
from transformers.utils import TransformersKwargs
from transformers.video_processing_utils import BaseVideoProcessor

# The name of the key-value cache in arguments and outputs: transformers 5.24 changed it.
CACHE_NAMES = ("cache", "past_key_values")
CACHE_NAME = next((name for name in CACHE_NAMES if name in {f.name for f in fields(BaseModelOutputWithPast)}), "")
if not CACHE_NAME:
    raise ImportError(f"outputs of transformers {__version__} name the cache neither `cache` nor `past_key_values`")
try:
    from transformers.utils.output_capturing import capture_outputs
except ImportError as error:
    raise ImportError(f"transformers {__version__} has no `capture_outputs`, which fills `hidden_states`") from error
OTHER_CACHE_NAME = next(name for name in CACHE_NAMES if name != CACHE_NAME)
# Releases after 5.17 call gradient checkpointing "activation checkpointing".
CHECKPOINTING_RENAMED = hasattr(PreTrainedModel, "activation_checkpointing_enable")
CHECKPOINTING_NAME = "activation_checkpointing" if CHECKPOINTING_RENAMED else "gradient_checkpointing"


def rename_cache(arguments: dict[str, Any], name: str) -> dict[str, Any]:
    """`arguments` with the cache under `name`, whichever of its two names it was given by.

    Raises:
        `ValueError`: if a cache is given by both names.
    """
    given = [arguments[n] for n in CACHE_NAMES if arguments.get(n) is not None]
    if len(given) > 1:
        raise ValueError("give only one of `cache` and `past_key_values`: they are two names of the same argument")
    others = {n: value for n, value in arguments.items() if n not in CACHE_NAMES}
    return others | {name: given[0]} if given else others


def takes_either_cache_name(function: Callable) -> Callable:
    """Let a method with an argument `cache` take it as `past_key_values` too."""

    @wraps(function)
    def wrapper(self, *args, **kwargs):
        return function(self, *args, **(rename_cache(kwargs, "cache") if "past_key_values" in kwargs else kwargs))

    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    alias = inspect.Parameter("past_key_values", inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters = [*parameters[:-1], alias, parameters[-1]]  # before **kwargs
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # not in the stubs
    return wrapper


class EitherCacheName(OrderedDict):
    """Mixin for a `ModelOutput` (an `OrderedDict`) with the field `CACHE_NAME`: the other name reads and writes the
    same cache."""

    def __getitem__(self, key):
        return super().__getitem__(CACHE_NAME if key == OTHER_CACHE_NAME else key)

    def __contains__(self, key) -> bool:
        return super().__contains__(CACHE_NAME if key == OTHER_CACHE_NAME else key)

    def get(self, key, default=None):
        return super().get(CACHE_NAME if key == OTHER_CACHE_NAME else key, default)


setattr(
    EitherCacheName,
    OTHER_CACHE_NAME,
    property(lambda self: getattr(self, CACHE_NAME), lambda self, value: setattr(self, CACHE_NAME, value)),
)


@lru_cache
def _read_by_attention(function: Callable) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def check_arguments(arguments: dict[str, Any], implementation: str) -> None:
    """Raise a `ValueError` for arguments of a model's `forward` that nothing reads.

    Args:
        arguments: the `**kwargs` of the call. None counts as not given.
        implementation (`str`): of attention; the arguments of its function are allowed.
    """
    unread = [n for n, v in arguments.items() if v is not None and n not in TransformersKwargs.__annotations__]
    if not unread:
        return
    attend = ALL_ATTENTION_FUNCTIONS.get(implementation)
    unread = [n for n in unread if attend is None or n not in _read_by_attention(attend)]
    if unread:
        raise ValueError(f"`forward` got arguments that nothing reads: {', '.join(f'`{name}`' for name in unread)}")


class ProcessorWithoutTorchvision(ProcessorMixin):
    """A processor of videos and text. `ProcessorMixin` checks and loads a video processor by classes of transformers
    that are dummies without torchvision.

    Attributes:
        own_video_processor (`type[BaseVideoProcessor]`): the class of its video processor.
    """

    own_video_processor = BaseVideoProcessor

    def check_argument_for_proper_class(self, argument_name, argument):
        if argument_name != "video_processor":
            return super().check_argument_for_proper_class(argument_name, argument)
        if not isinstance(argument, BaseVideoProcessor):
            raise TypeError(
                f"`video_processor` must be a {self.own_video_processor.__name__}, got {type(argument).__name__}"
            )
        return BaseVideoProcessor

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        return [
            cls.own_video_processor.from_pretrained(pretrained_model_name_or_path, **kwargs),
            # The tokenizer's own files name its class. Reading the model's config would ask to trust its code.
            cls._load_tokenizer_from_pretrained(
                "tokenizer", pretrained_model_name_or_path, **{"config": PreTrainedConfig(), **kwargs}
            ),
        ]

    def options_of_parts(self, **kwargs) -> dict[str, dict]:
        """The keyword arguments of a call and the defaults, as `text_kwargs` and `videos_kwargs`."""
        return self._merge_kwargs(
            self.valid_processor_kwargs,  # type: ignore[arg-type]  # annotated as an instance, but it takes the class
            tokenizer_init_kwargs=self.tokenizer.init_kwargs,
            **kwargs,
        )


__all__ = [
    "CACHE_NAME",
    "CACHE_NAMES",
    "CHECKPOINTING_NAME",
    "CHECKPOINTING_RENAMED",
    "EitherCacheName",
    "ProcessorWithoutTorchvision",
    "capture_outputs",
    "check_arguments",
    "rename_cache",
    "takes_either_cache_name",
]
