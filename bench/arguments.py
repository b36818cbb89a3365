"""Arguments that benchmarks share, refused before anything is measured."""

import argparse
import math
from pathlib import Path

from ..narration.options import plain_float


def result_file(text: str) -> Path:
    """Where a result goes, as JSON; its plot lies beside it under the same name."""
    path = Path(text)
    if path.suffix != ".json":
        raise argparse.ArgumentTypeError(f"must end in .json, got {text!r}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, {text} is a directory")
    if (file := next((folder for folder in path.parents if folder.exists()), None)) and not file.is_dir():
        raise argparse.ArgumentTypeError(f"{file} is a file, so {text} can not lie in it")
    return path


def minutes(text: str) -> float:
    """Longer than none."""
    value = plain_float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


__all__ = ["minutes", "result_file"]
