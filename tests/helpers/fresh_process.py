"""Run a function of a test file in another Python process, with a clean environment."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HELPERS = Path(__file__).resolve().parent
ROOT = HELPERS.parents[1]
TINY_WORLD = HELPERS.parent / "tiny_world"  # the checkpoint of the fixture `narrator`


def run_fresh(
    function: Callable[..., dict], folder: Path, *arguments: object, new: bool = False, **environment: str
) -> dict:
    """Call `function(*arguments)` in another process, with arguments converted to `str`, and return the dict it
    returns.

    The process has imported torch, but neither transformers nor this package. It starts in `folder`, with its own
    empty caches there, and cannot open connections.

    Args:
        new (`bool`): start Python anew, without `PYTHONPATH` and with nothing imported: for tests of imports.

    Raises:
        `AssertionError`: with what the process printed, if it fails.
    """
    folder.mkdir(parents=True)
    dropped = ("HF_", "PYTHON") if new else ("HF_",)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    clean |= {"HOME": str(folder), "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment
    result_file = folder / "result.json"
    called = [sys.modules[function.__module__].__file__, function.__name__, result_file, *arguments]
    if new:
        command = [sys.executable, "-P", __file__, *map(str, called)]
        process = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)
    else:
        from fork_server import TORCH, run_forked  # which a new process does not find

        process = run_forked([sys.executable, __file__, *called], cwd=folder, env=clean, preloaded=TORCH)
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
