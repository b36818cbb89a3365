"""The machine and the package versions that a result depends on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch


def surroundings(*packages: str) -> dict:
    """GPUs, CPU cores, and the versions of Python, torch, transformers and `packages` (None if not installed)."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("torch", "transformers", *packages):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {"machine": {"gpus": gpus, "cpu_cores": os.cpu_count()}, "versions": versions}
