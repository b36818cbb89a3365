"""Noise of libraries that nobody who gives a command can act on."""

import logging
import warnings

NOISE = (
    # adapters and their merging see to tied weights themselves, see training/adapters.py
    "Model has `tie_word_embeddings=True` and a tied layer is part of the adapter",
    # both names of checkpointing work in all releases that are supported
    "`(is_)?gradient_checkpointing(_kwargs)?` is deprecated",
    "'pin_memory' argument is set as true but no accelerator is found",
)


def quiet_libraries() -> None:
    """Let them say nothing of `NOISE`, and bitsandbytes nothing of kernels for 4 bit: PEFT imports it in any case."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


__all__ = ["quiet_libraries"]
