"""Everything that differs between releases of transformers, or that transformers does not document, and how quantised
weights lie in memory.

Tested with transformers 5.17.0, 5.23.0 and 5.24.0, bitsandbytes 0.49.0 and 0.50.2, torchao 0.18.0. If a release
removes one of these parts, `tests/test_compat.py` or `tests/test_quantised_steps.py` fails and names it.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache, wraps
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
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


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """
    The weight `[N, K]` of a linear layer as it lies in memory. A number of a quantised weight is its value, or what
    its code stands for, times the scale of its block.

    Attributes:
        values (`[N, K]`, or uint8 `[N, K // 2]`): values in the model's dtype, float8_e4m3fn or int8; or two codes in
            each byte, the first in its high half.
        scale (float32 `[ceil(N / rows), ceil(K / columns)]`, *optional*): of each block.
        rows, columns (`int`): of a block.
        code (float32 `[16]`, *optional*): what each code stands for.
    """

    values: torch.Tensor
    scale: torch.Tensor | None = None
    rows: int = 1
    columns: int = 1
    code: torch.Tensor | None = None

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """`[N, K]` in `dtype`; the values themselves where they are not quantised."""
        if self.scale is None:
            return self.values
        if self.code is None:
            values = self.values.float()
        else:
            codes = torch.stack([self.values >> 4, self.values & 15], dim=-1).flatten(1)
            values = self.code[codes.long()]
        scale = self.scale.repeat_interleave(self.rows, 0)[: len(values)].repeat_interleave(self.columns, 1)
        return (values * scale[:, : values.shape[1]]).to(dtype)


# of quantised layers: the parameter, and how it is stored, some of which was computed
_stored: WeakKeyDictionary[nn.Module, tuple[torch.Tensor, StoredWeight | None]] = WeakKeyDictionary()
EIGHT_BITS = (torch.float8_e4m3fn, torch.int8)


def stored_weight(linear: nn.Module) -> StoredWeight | None:
    """The weight of a linear layer of torch, bitsandbytes (8 bits, NF4 and FP4), torchao (float8 and int8) or
    transformers (`FP8Linear`); None if it is stored in another way."""
    weight: Any = linear.weight
    if type(linear) is nn.Linear and type(weight.data) is torch.Tensor:
        return StoredWeight(weight.data) if weight.is_floating_point() else None
    known, stored = _stored.get(linear, (None, None))
    if known is not weight or (stored is not None and stored.values.device != known.device):
        stored = _quantised_weight(linear, weight)
        _stored[linear] = weight, stored
    return stored


def dense_weight(linear: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """`[N, K]` in `dtype`: a copy of a weight that is quantised, in a way that `stored_weight` knows."""
    stored = stored_weight(linear)
    assert stored is not None
    return stored.dense(dtype)


def _quantised_weight(linear: Any, weight: Any) -> StoredWeight | None:
    if (state := getattr(weight, "quant_state", None)) is not None:
        return _of_four_bits(weight.data, state)
    if type(linear).__name__ == "Linear8bitLt":
        scale = getattr(weight, "SCB", None)
        scale = linear.state.SCB if scale is None else scale
        return None if scale is None else _of_blocks(weight.data, scale[:, None] / 127, (1, weight.shape[1]))
    if type(linear).__name__ == "FP8Linear":
        return _of_blocks(weight.data, linear.weight_scale_inv.data, linear.block_size)
    if hasattr(weight, "qdata") and type(linear) is nn.Linear:
        zero = getattr(weight, "zero_point", None)
        is_symmetric = zero is None or not zero.any()
        if is_symmetric and getattr(weight, "act_pre_scale", None) is None:
            return _of_blocks(weight.qdata, weight.scale, weight.block_size)
    return None


def _of_four_bits(values: torch.Tensor, state: Any) -> StoredWeight | None:
    rows, columns = state.shape
    if columns % state.blocksize or values.dtype != torch.uint8:
        return None
    scale = state.absmax
    if state.nested:  # the scales are quantised too
        of_blocks = state.state2.absmax.repeat_interleave(state.state2.blocksize)[: scale.numel()]
        scale = state.state2.code[scale.long()] * of_blocks + state.offset
    scale = scale.float().view(rows, -1).contiguous()
    return StoredWeight(values.view(rows, columns // 2), scale, 1, state.blocksize, state.code.float())


def _of_blocks(values: torch.Tensor, scale: torch.Tensor, block: Any) -> StoredWeight | None:
    """block: rows and columns, or None for all."""
    if values.dtype not in EIGHT_BITS or values.dim() != 2 or not values.is_contiguous():
        return None
    rows, columns = values.shape if block is None or scale.numel() == 1 else block
    scale = scale.to(values.device, torch.float32).reshape(-(-values.shape[0] // rows), -(-values.shape[1] // columns))
    return StoredWeight(values, scale.contiguous(), rows, columns)


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
    "StoredWeight",
    "capture_outputs",
    "check_arguments",
    "dense_weight",
    "rename_cache",
    "stored_weight",
    "takes_either_cache_name",
]
