"""Benchmarks of streaming video: how the official code scores them, and a strict reading beside it."""

from .livesports_3k import LiveSports
from .omnimmi_pa import OmniMMIAlerting
from .omnipro import OmniPro
from .outcome import Benchmark, Outcome
from .ovo_bench import OvoBench
from .proactivevideoqa import ProactiveVideoQA
from .streamingbench import StreamingBench

BENCHMARKS: dict[str, Benchmark] = {
    "ovo-bench": OvoBench(),
    "streamingbench": StreamingBench(),
    "proactivevideoqa": ProactiveVideoQA(),
    "omnimmi-pa": OmniMMIAlerting(),
    "omnipro": OmniPro(),
    "livesports-3k": LiveSports(),
}

__all__ = ["BENCHMARKS", "Benchmark", "Outcome"]
