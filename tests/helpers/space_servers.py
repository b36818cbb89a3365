"""Servers of the Space for tests: each checkpoint is loaded once. A server that nobody uses any more is closed, since
what else runs in its process would take twice as long beside a few of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from plain_http import web

from videollm_mod.space.models import Models
from videollm_mod.space.server import Space
from videollm_mod.space.settings import Settings


@cache
def loaded(checkpoint: Path | None) -> Models:
    threads = torch.get_num_threads()
    found = Models.load(checkpoint and str(checkpoint))
    torch.set_num_threads(threads)
    return found


def models(checkpoint: Path | None = None) -> Models:
    """Of a checkpoint, or of that of the package."""
    return loaded(checkpoint)


@contextmanager
def launched(checkpoint: Path | None = None, **settings) -> Iterator[tuple[Space, str]]:
    """A running Space and its address, which ends in a slash."""
    space = Space(models(checkpoint), Settings(**{"running": 4, **settings}))
    try:
        yield space, space.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")[1]
    finally:
        space.close()


def call(url: str, name: str, *data):
    """Call an endpoint like the page does: `(status, result or message)`."""
    response = web.post(f"{url}gradio_api/run/{name}", json={"data": list(data)})
    body = response.json()
    return response.status_code, body["data"][0] if response.status_code == 200 else body["error"]


def upload(url: str, path) -> str:
    """Upload a file, and return its path on the server."""
    with open(path, "rb") as file:
        response = web.post(f"{url}gradio_api/upload", files={"files": (path.name, file)})
    response.raise_for_status()
    return response.json()[0]
