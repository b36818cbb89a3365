"""Files in a store that several machines share, through `fsspec`: a folder, or a bucket of an object store.

Every file is written whole or not at all, and is on the disk before its write returns. `create` fails if the file is
there already. An object store needs three things for that: a file appears at once with all of its content, what was
written is seen by the next read and listing, and `pipe_file(mode="create")` is a conditional put. S3 (`s3fs`) and GCS
(`gcsfs`) have all three.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem


class SharedFolder:
    """
    A folder of a shared store. Names in it are relative, with `/` between folders, which exist once a file is written.
    All methods raise `OSError` if the store cannot be reached.

    Args:
        url (`str`): a path, or any URL that `fsspec` knows, such as `s3://bucket/folder` or `memory://folder`.

    Raises:
        `ValueError`: for a URL that `fsspec` does not know; `ImportError` if its package is missing.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.fs, self.path = fsspec.url_to_fs(self.url, use_listings_cache=False)
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def folder(self, name: str) -> "SharedFolder":
        return SharedFolder(f"{self.url}/{name}")

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Raise the errors of all file systems as `OSError`."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"cannot reach {self.url}: {error}") from error

    def read(self, name: str) -> bytes:
        """Raises `FileNotFoundError` if there is no such file."""
        with self._reached():
            return self.fs.cat_file(f"{self.path}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Write a file, or replace it."""
        path = f"{self.path}/{name}"
        if self.is_local:
            write_local(path, data, os.replace)
            return
        with self._reached():
            self.fs.pipe_file(path, data)

    def create(self, name: str, data: bytes) -> None:
        """Write a new file. Of several processes that create it at once, one succeeds.

        Raises:
            `FileExistsError`: if it exists.
        """
        path = f"{self.path}/{name}"
        if self.is_local:
            write_local(path, data, os.link)
            return
        with self._reached():
            self.fs.pipe_file(path, data, mode="create")

    def names(self, folder: str = "") -> list[str]:
        """Sorted names of the files and folders in a folder; none if it does not exist."""
        path = f"{self.path}/{folder}".rstrip("/")
        try:
            with self._reached():
                found = os.listdir(path) if self.is_local else self.fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(os.path.basename(name.rstrip("/")) for name in found)

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all in it, if it is there."""
        try:
            with self._reached():
                self.fs.rm(f"{self.path}/{name}".rstrip("/"), recursive=True)
        except FileNotFoundError:
            return


def write_local(path: str, data: bytes, give_name: Callable[[str, str], None]) -> None:
    """Write a file under a temporary name, and then call `give_name(temporary, path)`. Bytes and names are on the disk
    afterwards."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    partial = os.path.join(folder, f".{name}.{uuid4().hex}.partial")
    try:
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        give_name(partial, path)
    finally:
        if os.path.lexists(partial):
            os.unlink(partial)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["SharedFolder"]
