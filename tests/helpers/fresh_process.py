"""Run a function of a test file in a new Python process, with a clean environment."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HELPERS = Path(__file__).resolve().parent
ROOT = HELPERS.parents[1]


def run_fresh(function: Callable[..., dict], folder: Path, *arguments: object, **environment: str) -> dict:
    """Call `function(*arguments)` in a new process, with arguments converted to `str`, and return the dict it returns.

    The process starts in `folder`, with its own empty caches there and no `PYTHONPATH`, and cannot open connections.

    Raises:
        `AssertionError`: with what the process printed, if it fails.
    """
    folder.mkdir(parents=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    clean |= {"HOME": str(folder), "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    result_file = folder / "result.json"
    test_file = sys.modules[function.__module__].__file__
    process = subprocess.run(
        [sys.executable, "-P", __file__, test_file, function.__name__, str(result_file), *map(str, arguments)],
        cwd=folder,
        env=clean | environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, f"{function.__name__}:\n{process.stdout}\n{process.stderr}"
    return json.loads(result_file.read_text())


def _refuse_connections(event: str, arguments: tuple) -> None:
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"a test opened a connection: {arguments}")


if __name__ == "__main__":
    import runpy

    sys.addaudithook(_refuse_connections)
    test_file, function_name, result_file, *arguments = sys.argv[1:]
    sys.path += [str(HELPERS), str(HELPERS.parent)]
    result = runpy.run_path(test_file)[function_name](*arguments)
    Path(result_file).write_text(json.dumps(result))
