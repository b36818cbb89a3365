"""4-bit weights."""

import torch
from transformers import BitsAndBytesConfig


def four_bit() -> BitsAndBytesConfig:
    """NF4 with double quantisation and bfloat16 arithmetic for the language model's layers, as in QLoRA (arXiv
    2305.14314). The model keeps the precision of the rest.

    Raises:
        `ImportError`: without bitsandbytes.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ImportError("4-bit weights need bitsandbytes: pip install videollm-mod[quant]") from error
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
