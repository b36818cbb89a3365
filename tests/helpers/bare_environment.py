"""A Python environment in which only a few packages and their requirements can be imported."""

import os
import sys
import sysconfig
import venv
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NEEDED = ("transformers", "torch", "pillow", "av")  # what the model card requires


def required(names: tuple[str, ...]) -> set[str]:
    """The packages themselves and their requirements without extras."""
    found, open_names = set(), [canonicalize_name(name) for name in names]
    while open_names:
        name = open_names.pop()
        if name in found:
            continue
        found.add(name)
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                open_names.append(canonicalize_name(requirement.name))
    return found


def bare_python(folder: Path, names: tuple[str, ...] = NEEDED) -> Path:
    """Make a virtual environment in `folder` and return its Python. What it holds are links to the files that the
    packages' own records name."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    assert site.is_dir(), sysconfig.get_paths()
    for name in required(names):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files if file.parts[0] not in ("..", "__pycache__")}:
            source, target = Path(found.locate_file(top)), site / top
            if source.exists() and not target.exists():
                os.symlink(source, target, target_is_directory=source.is_dir())
    return python
