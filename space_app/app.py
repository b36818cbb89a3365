"""The files of a Hugging Face Space, which starts the demo; the demo itself is the package folder `space/`.

`VIDEOLLM_MOD_MODEL` names a model repository on the Hub, and `VIDEOLLM_MOD_REVISION` one of its commits or tags. Both
the code and the weights come from there, since a model repository is also the package. Without them, the repository
around this folder runs. `--model` names a folder or Hub id with other weights, such as one that `videollm-mod build
--vlm` made. `--server`, or `VIDEOLLM_MOD_SERVER`, names a `videollm-mod serve` that runs the model instead.
"""

import argparse
import importlib.util
import os
import sys
from contextlib import suppress
from pathlib import Path

with suppress(ImportError):
    import spaces  # noqa: F401 -- on ZeroGPU it must be imported before torch


def repository() -> Path:
    """The folder of the model repository.

    Raises:
        `SystemExit`: if there is none, or if no revision is given.
    """
    model, revision = os.environ.get("VIDEOLLM_MOD_MODEL"), os.environ.get("VIDEOLLM_MOD_REVISION")
    if not model:
        folder = Path(__file__).resolve().parent.parent
        if not (folder / "configuration_videollm_mod.py").is_file():
            sys.exit("error: set VIDEOLLM_MOD_MODEL and VIDEOLLM_MOD_REVISION to a model repository and its commit")
        return folder
    if not revision:
        sys.exit(f"error: set VIDEOLLM_MOD_REVISION to the commit of {model} to run, since its code is executed")
    from huggingface_hub import constants, snapshot_download

    # huggingface_hub 1 asks for the list of files even when it is offline
    return Path(snapshot_download(model, revision=revision, local_files_only=constants.HF_HUB_OFFLINE))


def import_package(folder: Path) -> None:
    """Import `folder` as the package `videollm_mod`, whatever its name is."""
    spec = importlib.util.spec_from_file_location(
        "videollm_mod", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["videollm_mod"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve the demo in a browser.", allow_abbrev=False)
    parser.add_argument("--model", help="folder or Hub id of a checkpoint or adapter (default: the repository's)")
    parser.add_argument(
        "--server",
        metavar="URL",
        default=os.environ.get("VIDEOLLM_MOD_SERVER") or None,
        help="address of a `videollm-mod serve` that runs the model (default: VIDEOLLM_MOD_SERVER, if it is set)",
    )
    parser.add_argument(
        "--key-env",
        metavar="NAME",
        default="VIDEOLLM_MOD_API_KEY",
        help="environment variable with the key for that server (default: VIDEOLLM_MOD_API_KEY)",
    )
    options = parser.parse_args()
    if options.model and options.server:
        parser.error("a server has its own model: give --model or --server")
    key = os.environ.get(options.key_env) or None
    if key is None and options.key_env != parser.get_default("key_env"):
        parser.error(f"the environment variable {options.key_env} is not set")
    import_package(repository())
    from videollm_mod.commands.messages import message_of

    try:
        from videollm_mod.space.server import launch

        launch(options.model, options.server, key)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {message_of(error)}")
    except KeyboardInterrupt:  # while it starts; later gradio ends the server
        sys.exit(130)
