"""A checkpoint for a command: which device and dtype, whose code, and nothing printed while it loads."""

import json
import logging
import warnings
from pathlib import Path

from ..narration.options import NarrateOptions

HUB_TIMEOUT = 8.0  # seconds
# what comes of options of a wrong type or size, wherever they are used first
WRONG_OPTIONS = (RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError)


def choose_device(name: str):
    """The `torch.device` of `--device`, checked to be there; `auto` is the best there is.

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


def load_checkpoint(options: NarrateOptions):
    """`(model, processor)` of `options.model`; where that is an adapter, of its base, with the adapter merged into it.

    The classes are this package's own. Those of a checkpoint that brings other code are used with
    `trust_remote_code` only.

    Raises:
        `ValueError`, `OSError`: if it is no such model, incomplete or damaged.
        `ImportError`: if 4 bit needs bitsandbytes.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging as library

    library.set_verbosity_error()
    library.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which peft imports, and which looks for kernels then
    warnings.simplefilter("ignore")

    device, source, adapter = choose_device(options.device), options.base, options.adapter
    if adapter is not None:
        logging.getLogger(__name__).warning(f"{adapter} is an adapter, its base model is {source}")
    arguments, trust = {}, {}
    if options.load_in_4bit:
        from ..training.adapters import four_bit

        arguments |= {"quantization_config": four_bit(), "device_map": {"": device}}
    # CPUs are no faster in half precision, and in float32 blocks of frames are as good as equal to single ones
    dtype = options.dtype if options.dtype != "auto" or device.type != "cpu" else "float32"
    arguments["dtype"] = dtype if dtype == "auto" else getattr(torch, dtype)
    config = fetch_config(source)
    if options.trust_remote_code:
        trust = {"trust_remote_code": True}
    else:
        from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration as model_class
        from ..processing_videollm_mod import VideoLLMMoDProcessor as processor_class

        check_model_type(source, config)
    try:
        if options.trust_remote_code:
            model_class, processor_class = (
                brought_class(auto_class, source, config)
                for auto_class in (AutoModelForImageTextToText, AutoProcessor)
            )
        processor = processor_class.from_pretrained(source, **trust)
        model, info = model_class.from_pretrained(source, **arguments, **trust, output_loading_info=True)
    # options of a wrong type, a truncated file, weights of other shapes
    except torch.OutOfMemoryError:
        raise
    except (*WRONG_OPTIONS, StrictDataclassError, SafetensorError) as error:
        raise ValueError(f"cannot load the checkpoint {source}: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"the checkpoint {source} lacks {len(missing)} weights, such as {', '.join(missing[:3])}")
    if adapter is not None:
        from ..training.adapters import with_adapter

        model = with_adapter(model, adapter, merged=not options.load_in_4bit)
    check_finite(adapter or source, model)
    check_processor(source, processor, model)
    if not options.load_in_4bit:
        model = model.to(device)
    return model.eval(), processor


def brought_class(auto_class: type, source: str, config: Path) -> type:
    """The class that a checkpoint brings for an Auto class, or that one itself: where this package is imported, it
    would take the package's own."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    brought = json.loads(config.read_text(encoding="utf-8")).get("auto_map", {}).get(auto_class.__name__)
    return auto_class if brought is None else get_class_from_dynamic_module(brought, source)


def check_finite(source: str | Path, model) -> None:
    """Raise `ValueError` if a weight holds nan or infinity, naming it: what such a model says means nothing."""
    import torch

    for name, weight in model.named_parameters():
        if not weight.is_floating_point() or weight.detach().sum(dtype=torch.float32).isfinite():
            continue  # a sum is as finite as its terms, and takes no memory; where it is not, adding may have done it
        if not weight.detach().isfinite().all():
            raise ValueError(f"the checkpoint {source} holds nan or infinity in {name}")


def check_processor(source: str, processor, model) -> None:
    """Raise `ValueError` if the processor is not the model's, or does not make of a frame what its tower takes."""
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
    """The path of `config.json` in a folder, the Hub's cache, or the Hub itself, asked once and not for long.

    Raises:
        `OSError`: if it cannot be had.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import logging as library

    library.set_verbosity_error()
    if Path(source).is_dir():
        return Path(source) / "config.json"
    cached = try_to_load_from_cache(source, "config.json")
    if isinstance(cached, str):
        return Path(cached)
    if constants.HF_HUB_OFFLINE:
        raise OSError(f"{source} is no folder, and not in the cache of the Hub, which is offline")
    try:
        HfApi().model_info(source, timeout=HUB_TIMEOUT)  # says at once what a download would say after many tries
        return Path(hf_hub_download(source, "config.json", etag_timeout=HUB_TIMEOUT))
    except HfHubHTTPError as error:
        raise OSError(f"{source} is no folder, and the Hub has no such model: {error}") from error
    except Exception as error:  # of whichever HTTP library huggingface_hub uses
        raise OSError(f"{source} is no folder, and the Hub cannot be reached: {error}") from error


def check_model_type(source: str, path: Path) -> None:
    """Raise `ValueError` if the configuration at `path` is of another kind of model."""
    try:
        model_type = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no configuration: {error}") from error
    if model_type != "videollm_mod":
        raise ValueError(
            f"{source} holds a model of type {model_type!r}, not 'videollm_mod'; a model that brings its own code "
            "needs `--trust-remote-code`"
        )


__all__ = ["load_checkpoint"]
