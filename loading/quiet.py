"""Silences warnings of libraries that the user of a command cannot act on."""

import logging
import os
import warnings

NOISE = (
    # training/adapters.py takes care of tied weights itself
    "Model has `tie_word_embeddings=True` and a tied layer is part of the adapter",
    # both names of checkpointing work in all supported releases
    "`(is_)?gradient_checkpointing(_kwargs)?` is deprecated",
    "'pin_memory' argument is set as true but no accelerator is found",
)


def quiet_libraries() -> None:
    """Silence `NOISE`, the Hub's retries, and bitsandbytes, which PEFT always imports and which looks for kernels."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # read when huggingface_hub is imported


__all__ = ["quiet_libraries"]
