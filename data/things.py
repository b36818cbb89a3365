"""Pictures of everyday things in several styles, for the world's levels `things...`: one file, made once.

    python -m videollm_mod.benchmarks.things_pictures --output things.npz
    export VIDEOLLM_MOD_THINGS="$PWD/things.npz"

`media/things.npz` is such a file with a few things, for demos and tests.
"""

import io
import json
import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from .files import written_whole

TRAINED = (
    "noto",
    "noto-v1",
    "twemoji",
    "emojione",
    "fluent-emoji",
    "fluent-emoji-flat",
    "fxemoji",
    "streamline-emojis",
)
UNSEEN = "openmoji"  # no training stream shows it: it draws all things, with black outlines, which no other style has
PHOTOGRAPHS = "photographs"  # no training stream shows them either
STYLES = (*TRAINED, UNSEEN, PHOTOGRAPHS)
UNKNOWN = ""  # name of a picture of nothing that has a name here
VARIABLE = "VIDEOLLM_MOD_THINGS"  # environment variable with the path of the file
SIDE = 128  # pixels, longer side of a picture
BUNDLED = Path(__file__).resolve().parent.parent / "media" / "things.npz"  # a few things in four styles
HOW = (
    'make the file with "python -m videollm_mod.benchmarks.things_pictures" in a checkout that "pip install -e '
    f"'.[things]'\" has installed, and set {VARIABLE} to its path, or set it to {BUNDLED}, which has a few things"
)


@dataclass(eq=False)
class Pictures:
    """Pictures, each cropped to what it shows: the bytes `files[i]` in the style `styles[i]` is called `names[i]`."""

    files: list[bytes]
    names: list[str]
    styles: list[str]
    licences: dict[str, str]  # style -> licence and author

    @classmethod
    def load(cls, path: str | Path) -> "Pictures":
        """Read a file that `save` wrote.

        Raises:
            `FileNotFoundError`: if there is no such file.
            `ValueError`: if it is another kind of file, or not whole.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file of pictures at {path}: {HOW}")
        try:
            with np.load(path) as stored:
                names, styles = stored["names"].tolist(), stored["styles"].tolist()
                files, sizes = stored["files"], stored["sizes"]
                if files.dtype != np.uint8 or len(files) != sum(sizes) or not len(sizes) == len(names) == len(styles):
                    raise ValueError("its arrays are those of something else")
                parts = np.split(files, np.cumsum(sizes)[:-1])
                licences = json.loads(str(stored["licences"]))
        except (OSError, EOFError, BadZipFile, KeyError, TypeError, ValueError) as error:  # as numpy's reader raises
            raise ValueError(f"{path} is not a whole file of pictures of things: {HOW}") from error
        return cls([part.tobytes() for part in parts], names, styles, licences)

    def save(self, path: str | Path) -> None:
        """Write an `.npz` file, whole or not at all."""
        with written_whole(path) as partial, open(partial, "wb") as opened:
            np.savez(
                opened,
                files=np.frombuffer(b"".join(self.files), dtype=np.uint8),
                sizes=np.array([len(file) for file in self.files]),
                names=np.array(self.names),
                styles=np.array(self.styles),
                licences=np.array(json.dumps(self.licences)),
            )

    @cached_property
    def things(self) -> list[str]:
        """The names of all things, in alphabetical order."""
        return sorted({*self.names} - {UNKNOWN}, key=str.lower)

    @lru_cache(maxsize=32)  # noqa: B019  # as long as the file itself
    def named(self, style: str) -> dict[str, list[int]]:
        """Name -> its pictures in a style."""
        found: dict[str, list[int]] = {}
        for index, (name, of) in enumerate(zip(self.names, self.styles, strict=True)):
            if of == style:
                found.setdefault(name, []).append(index)
        return found

    @lru_cache(maxsize=256)  # noqa: B019
    def picture(self, index: int) -> Image.Image:
        """RGBA, `SIDE` pixels on its longer side."""
        return Image.open(io.BytesIO(self.files[index])).convert("RGBA")


@lru_cache(maxsize=4)
def read(path: str) -> Pictures:
    return Pictures.load(path)


def pictures() -> Pictures:
    """The pictures of the file that `VIDEOLLM_MOD_THINGS` names, read once.

    Raises:
        `FileNotFoundError`: if the variable is not set, or there is no such file.
        `ValueError`: if it is another kind of file.
    """
    if not os.environ.get(VARIABLE):
        raise FileNotFoundError(f"the levels of things need a file of pictures: {HOW}")
    return read(os.environ[VARIABLE])
