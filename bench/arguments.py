"""What benchmarks share of arguments, refused before anything is measured."""

import argparse
import math
import os
from pathlib import Path

from ..narration.options import check_output, plain_float

LARGE = 40 << 30  # bytes that Llama-3-8B's geometry takes in float32, with what is computed


def result_file(text: str) -> Path:
    """Where a result goes, as JSON; its plot lies beside it under the same name."""
    if text == "-":
        raise argparse.ArgumentTypeError("must be a file, its plot lies beside it; rows go to standard output anyway")
    if not text.endswith(".json"):
        raise argparse.ArgumentTypeError(f"must end in .json, got {text!r}")
    check_output("--json", Path(text), "")
    return Path(text)


def minutes(text: str) -> float:
    """None or more."""
    value = plain_float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return value


def check_fits(geometry: str, device: str) -> None:
    """Raise `ValueError` for a model too large for the memory of a CPU; the system would kill it without a word."""
    if device != "cpu" or geometry != "llama3-8b":
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory < LARGE:
        raise ValueError(
            f"--geometry llama3-8b takes up to {LARGE >> 30} GiB on a CPU, this machine has {memory >> 30} GiB: "
            "take --geometry nano"
        )


__all__ = ["check_fits", "minutes", "result_file"]
