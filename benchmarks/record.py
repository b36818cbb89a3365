"""Results as files: one JSON a benchmark, and the map of figures that all benchmarks share."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

RESULTS = Path(__file__).resolve().parent / "results"


def surroundings(*packages: str) -> dict:
    """The machine and the versions that a result depends on."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    versions = {"python": platform.python_version()}
    for package in ("torch", "transformers", *packages):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {"machine": {"gpus": gpus, "cpu_cores": os.cpu_count()}, "versions": versions}


def write_result(name: str, result: dict) -> Path:
    """Write `results/NAME.json`."""
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path


def summarise(figure: str, value: float, source: str, command: str, folder: Path = RESULTS) -> None:
    """Enter one figure into `folder/summary.json`, beside those of other benchmarks."""
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    summary[figure] = {"value": value, "source": source, "command": command}
    path.write_text(json.dumps(dict(sorted(summary.items())), indent=1) + "\n", encoding="utf-8")
