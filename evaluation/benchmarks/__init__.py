"""Benchmarks of streaming video: how the official code scores them, and a strict reading beside it."""

from .outcome import Benchmark, Outcome

BENCHMARKS: dict[str, Benchmark] = {}

__all__ = ["BENCHMARKS", "Benchmark", "Outcome"]
