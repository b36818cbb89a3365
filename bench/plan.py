"""`videollm-mod bench plan`: a page that scales measurements on one or two GPUs to fleets of GPUs.

Every number of the page is a result in a file, or arithmetic on results. Where a result is missing, the page names the
command that makes it.
"""

from pathlib import Path

import torch

from ..configuration_videollm_mod import VideoLLMMoDConfig
from ..data.files import STANDARD, beside, write_whole
from ..modeling_videollm_mod import VideoLLMMoDForConditionalGeneration
from .geometries import config_values
from .plan_arithmetic import GEOMETRY, TOKENS
from .plan_page import page
from .plan_results import MEASURED, growth_rows, read
from .record import RESULTS, ROOT

PAGE = ROOT / "docs" / "planning.md"  # of a checkout; made from the results there


def sizes() -> dict[str, int]:
    """Of the geometry: bytes of the weights in bfloat16, and the width of features."""
    config = VideoLLMMoDConfig(**config_values(GEOMETRY, TOKENS))
    with torch.device("meta"):
        model = VideoLLMMoDForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return {"weights": weights, "width": config.vision_config.hidden_size}


def bench(results: Path | None, output: Path | None) -> None:
    """Print the page, or write it to a file.

    Args:
        results (`Path`, *optional*): folder of results; in a checkout of the repository, its own by default.
        output (`Path`, *optional*): file to write; standard output by default.

    Raises:
        `ValueError`: without `results` outside a checkout, or if it is not a folder with results.
    """
    if results is None and not RESULTS.is_dir():
        raise ValueError("--results must be given: only a checkout of the repository holds results")
    results, output = results or RESULTS, output or STANDARD
    if not results.is_dir():
        raise ValueError(f"--results must be a folder, got {results}")
    found = read(results)
    if not found:
        raise ValueError(f"--results must hold summary.json and the results that it names, found none in {results}")
    write_whole(output, page(found, sizes(), growth_rows(results)))
    messages = beside(output)
    if output != STANDARD:
        print(output, file=messages)
    for command in dict.fromkeys(wanted.command for name, wanted in MEASURED.items() if name not in found):
        print(f"missing: {command}", file=messages)
