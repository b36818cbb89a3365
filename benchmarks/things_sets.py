"""The emoji sets whose pictures the world's level `things` shows, as npm packages of named vector pictures."""

import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from ..data.things import TRAINED, UNSEEN

PACKAGES = {  # style -> package, at the version that the list of things was made with
    "noto": "@iconify-json/noto@1.2.9",
    "noto-v1": "@iconify-json/noto-v1@1.2.5",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "emojione": "@iconify-json/emojione@1.2.3",
    "fluent-emoji": "@iconify-json/fluent-emoji@1.2.7",
    "fluent-emoji-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
    "streamline-emojis": "@iconify-json/streamline-emojis@1.2.4",
    "openmoji": "@iconify-json/openmoji@1.2.29",
}
# A model may be trained on pictures with these licences if their authors are named. A licence that asks for the same
# licence on what is made from a picture is good enough for a style that is only tested on.
TRAINABLE = ("Apache-2.0", "MIT", "CC-BY-4.0")
TESTABLE = (*TRAINABLE, "CC-BY-SA-4.0")


def fetch(package: str, folder: Path, command: list[str]) -> None:
    """Bring a package to `folder` by an ordinary client.

    Raises:
        `FileNotFoundError`: if the client is not installed.
    """
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(
            f"{package} is fetched by {command[0]}, which is not installed; or put it into {folder}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE)


def check_licence(style: str, licence: str) -> None:
    """Raise `ValueError` if the licence of a style does not allow what the style is used for."""
    allowed = TRAINABLE if style in TRAINED else TESTABLE if style == UNSEEN else ()
    if licence not in allowed:
        raise ValueError(f"the licence of the style {style!r} must be one of {', '.join(allowed)}, got {licence!r}")


@dataclass
class IconSet:
    """One set: `icons` as iconify stores them, `codepoints` by icon name and icons by category, where it has them."""

    style: str
    licence: str
    author: str
    icons: dict
    codepoints: dict[str, str]
    categories: dict[str, list[str]]

    @classmethod
    def fetch(cls, style: str, folder: Path) -> "IconSet":
        """The set of a style. `npm pack` brings its package to `folder` if it is not there.

        Raises:
            `ValueError`: if the licence in the package does not allow what the style is used for.
        """
        package, _, version = PACKAGES[style].rpartition("@")
        path = folder / f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
        if not path.exists():
            fetch(PACKAGES[style], folder, ["npm", "pack", "--silent", PACKAGES[style]])
        with tarfile.open(path) as archive:
            info, icons, chars, more = (
                json.load(archive.extractfile(f"package/{name}.json"))
                for name in ("info", "icons", "chars", "metadata")
            )
        licence = info["license"]["spdx"]
        check_licence(style, licence)
        author = f"{info['name']} by {info['author']['name']}, {info['author']['url']}"
        codepoints = {name: point for point, name in dict(chars).items()}
        return cls(style, licence, author, icons, codepoints, dict(more).get("categories", {}))

    def __contains__(self, name: str) -> bool:
        return name in self.icons["icons"] or name in self.icons.get("aliases", {})

    def svg(self, name: str) -> str:
        """The picture of an icon as an SVG document.

        Raises:
            `KeyError`: for an unknown icon.
        """
        icon = self.icons["icons"].get(name)
        if icon is None:
            icon = self.icons["icons"][self.icons["aliases"][name]["parent"]]
        left, top, width, height = (
            icon.get(key, self.icons.get(key, default))
            for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'
        )
