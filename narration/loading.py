"""A checkpoint for a command: which device and dtype, whose code, and nothing printed while it loads."""

import json
import warnings
from pathlib import Path

from .options import OWN_CHECKPOINT, NarrateOptions


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
    """`(model, processor)` of `options.model`.

    The classes are this package's own. Those of a checkpoint that brings other code are used with
    `trust_remote_code` only.

    Raises:
        `ValueError`, `OSError`: if it is no such model, incomplete or damaged.
        `ImportError`: if 4 bit needs bitsandbytes.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")

    device = choose_device(options.device)
    source = options.model or str(OWN_CHECKPOINT)
    arguments = {}
    if options.load_in_4bit:
        try:
            import bitsandbytes  # noqa: F401
        except ImportError as error:
            raise ImportError("`--load-in-4bit` needs bitsandbytes: pip install videollm-mod[quant]") from error
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=["vision_tower", "connector", "layer_expert", "lm_head"],
        )
        arguments["device_map"] = {"": device}
    # CPUs are no faster in half precision, and float32 makes blocks of frames equal to single ones
    dtype = options.dtype if options.dtype != "auto" or device.type != "cpu" else "float32"
    arguments["dtype"] = dtype if dtype == "auto" else getattr(torch, dtype)
    if options.trust_remote_code:
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
        model = AutoModelForImageTextToText.from_pretrained(source, trust_remote_code=True, **arguments)
    else:
        from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
        from ..processing_videollm_mod import VideoLLMMoDProcessor

        check_model_type(source)
        try:
            processor = VideoLLMMoDProcessor.from_pretrained(source)
            model = VideoLLMMoDForConditionalGeneration.from_pretrained(source, **arguments)
        # options of a wrong type, a truncated file, weights of other shapes
        except (StrictDataclassError, SafetensorError, RuntimeError, KeyError, TypeError) as error:
            raise ValueError(f"can not load the checkpoint {source}: {error}") from error
    if not options.load_in_4bit:
        model = model.to(device)
    return model.eval(), processor


def check_model_type(source: str) -> None:
    """Raise `ValueError` if a folder's checkpoint is of another kind of model."""
    path = Path(source).expanduser() / "config.json"
    if not path.is_file():
        return  # on the Hub
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
