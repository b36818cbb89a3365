"""Loads a checkpoint for a command: on which device, in which dtype, and with whose code."""

import json
import logging
import warnings
from pathlib import Path

from ..data.words import counted
from .find import find_checkpoint, refuse_original

HUB_TIMEOUT = 8.0  # seconds
# what options of a wrong type or size raise where they are first used
WRONG_OPTIONS = (RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError)


def load_checkpoint(
    model: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    load_in_4bit: bool = False,
    trust_remote_code: bool = False,
):
    """Load `(model, processor)` for inference.

    Args:
        model: folder of a checkpoint, or a Hub id; the checkpoint of the package by default. An adapter is put on its
            base model and merged into it, except in 4 bit.
        device (`str`): `cpu`, `cuda`, `cuda:N` or `mps`; `auto` takes the best one there is.
        dtype (`str`): `float32`, `bfloat16` or `float16`; `auto` is the checkpoint's own, and float32 on a CPU.
        load_in_4bit (`bool`): quantise the language model's layers to NF4.
        trust_remote_code (`bool`): run the Python code that comes with the checkpoint instead of this package's.

    Raises:
        `ValueError`, `OSError`: if there is no such checkpoint, if it is of another kind, incomplete or damaged, or if
            the machine has no such device.
        `ImportError`: if 4 bit needs bitsandbytes.
    """
    base, adapter = find_checkpoint(model)
    device = choose_device(device)
    silence_loading()
    if adapter is not None:
        logging.getLogger(__name__).warning(f"{adapter} is an adapter, its base model is {base}")
    loaded, processor = load_base(base, weights_options(device, dtype, load_in_4bit), trust_remote_code)
    if adapter is not None:
        from .adapters import with_adapter

        loaded = with_adapter(loaded, adapter, merged=not load_in_4bit)
    check_finite(adapter or base, loaded)
    check_processor(base, processor, loaded)
    if not load_in_4bit:
        loaded = loaded.to(device)
    return loaded.eval(), processor


def choose_device(name: str):
    """The `torch.device` of a name; `auto` is the best one there is.

    Raises:
        `ValueError`: if this machine has no such device.
    """
    import torch

    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    device = torch.device(name)
    if (device.index or 0) >= available[device.type]:
        has = ", ".join(kind for kind, count in available.items() if count)
        raise ValueError(f"`--device` {name} is not there: this machine has {has}")
    return device


def silence_loading() -> None:
    """Keep the libraries' warnings and progress bars off the screen: what matters comes back as an error."""
    from transformers.utils import logging as library

    library.set_verbosity_error()
    library.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, and it then looks for its kernels
    warnings.simplefilter("ignore")


def weights_options(device, dtype: str, load_in_4bit: bool) -> dict:
    """What `from_pretrained` is told about the weights."""
    import torch

    # CPUs are no faster in half precision, and in float32 a block of frames gives what single frames give
    if dtype == "auto" and device.type == "cpu":
        dtype = "float32"
    options = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if load_in_4bit:
        from .quantisation import four_bit

        options |= {"quantization_config": four_bit(), "device_map": {"": device}}
    return options


def load_base(base: str, options: dict, trust_remote_code: bool):
    """`(model, processor)` of a checkpoint that is not an adapter; `options` go to the model's `from_pretrained`."""
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    config, trust = fetch_config(base), {"trust_remote_code": True} if trust_remote_code else {}
    if not trust_remote_code:
        check_model_type(base, config)
    try:
        model_class, processor_class = remote_classes(base, config) if trust_remote_code else own_classes()
        processor = processor_class.from_pretrained(base, **trust)
        model, info = model_class.from_pretrained(base, **options, **trust, output_loading_info=True)
    except torch.OutOfMemoryError:
        raise
    # options of a wrong type, a truncated file, weights of other shapes
    except (*WRONG_OPTIONS, StrictDataclassError, SafetensorError) as error:
        raise ValueError(f"cannot load the checkpoint {base}: {error}") from error
    if missing := sorted(info["missing_keys"]):
        lacks = f"{counted(len(missing), 'weight')}, such as {', '.join(missing[:3])}"
        raise ValueError(f"the checkpoint {base} lacks {lacks}")
    return model, processor


def own_classes() -> tuple:
    """This package's classes of model and processor."""
    from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
    from ..processing_videollm_mod import VideoLLMMoDProcessor

    return VideoLLMMoDForConditionalGeneration, VideoLLMMoDProcessor


def remote_classes(base: str, config: Path) -> tuple:
    """The classes that a checkpoint brings, or the Auto classes where it brings none. The Auto classes alone would not
    do: this package has registered its own classes with them."""
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    auto_map = json.loads(config.read_text(encoding="utf-8")).get("auto_map", {})
    auto_classes = AutoModelForImageTextToText, AutoProcessor
    references = [auto_map.get(auto_class.__name__) for auto_class in auto_classes]
    model_class, processor_class = (
        auto_class if reference is None else get_class_from_dynamic_module(reference, base)
        for auto_class, reference in zip(auto_classes, references, strict=True)
    )
    return model_class, processor_class


def check_finite(source: str | Path, model) -> None:
    """Raise `ValueError` if a weight holds nan or infinity, naming it: what such a model says means nothing."""
    import torch

    for name, weight in model.named_parameters():
        # a finite sum proves finite terms and takes no memory; an infinite one may come of the adding
        if not weight.is_floating_point() or weight.detach().sum(dtype=torch.float32).isfinite():
            continue
        if not weight.detach().isfinite().all():
            raise ValueError(f"the checkpoint {source} holds nan or infinity in {name}")


def check_processor(source: str, processor, model) -> None:
    """Raise `ValueError` if the processor belongs to another model, or makes frames of a size that the vision tower
    does not take."""
    import torch

    from ..processing_videollm_mod import check_pair

    try:
        frame = torch.zeros(1, 3, 6, 8, dtype=torch.uint8)
        pixels = processor.video_processor(frame, return_tensors="pt", input_data_format="channels_first")
        shape = list(pixels["pixel_values_videos"].shape)
    except (*WRONG_OPTIONS, ValueError) as error:
        raise ValueError(f"the video processor of {source} has wrong options: {error}") from error
    check_pair(model, processor, f"the processor of {source}")
    side = model.config.vision_config.image_size
    if shape != [1, 3, side, side]:
        raise ValueError(
            f"the video processor of {source} makes frames of {shape[2]} x {shape[3]} pixels, the vision tower takes "
            f"{side} x {side}"
        )


def fetch_config(source: str) -> Path:
    """The path of `config.json` in a folder, in the cache of the Hub, or freshly downloaded. The Hub is asked once and
    must answer within `HUB_TIMEOUT`.

    Raises:
        `OSError`: if there is no such file.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    if Path(source).is_dir():
        return Path(source) / "config.json"
    cached = try_to_load_from_cache(source, "config.json")
    if isinstance(cached, str):
        return Path(cached)
    if constants.HF_HUB_OFFLINE:
        raise OSError(f"{source} is not a folder, and not in the cache of the Hub, which is offline")
    try:
        HfApi().model_info(source, timeout=HUB_TIMEOUT)  # says at once what a download would say after many tries
        return Path(hf_hub_download(source, "config.json", etag_timeout=HUB_TIMEOUT))
    except HfHubHTTPError as error:
        raise OSError(f"{source} is not a folder, and the Hub has no such model: {error}") from error
    except Exception as error:  # of whichever HTTP library huggingface_hub uses
        raise OSError(f"{source} is not a folder, and the Hub cannot be reached: {error}") from error


def check_model_type(source: str, path: Path) -> None:
    """Raise `ValueError` if the configuration at `path` is of another kind of model."""
    refuse_original(source, path)
    try:
        model_type = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a configuration: {error}") from error
    if model_type != "videollm_mod":
        raise ValueError(
            f"{source} holds a model of type {model_type!r}, not 'videollm_mod'; a model that brings its own code "
            "needs `--trust-remote-code`"
        )


__all__ = ["load_checkpoint"]
