"""Photographs of things with English names, from the Debian package `tuxpaint-stamps-default` (GPL-2), to test on."""

import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from .things_sets import fetch

PACKAGE = "tuxpaint-stamps-default"
LICENCE = f"GPL-2, {PACKAGE} by Bill Kendrick and contributors, https://tuxpaint.org"
DRAWN = ("cartoon", "symbols", "seasonal", "flags", "roadsigns")  # folders that hold no photographs
SYNONYMS = {  # ends of captions
    "kiwifruit": "kiwi", "avocado fruit": "avocado", "ripe, red tomato": "tomato", "chile pepper": "chili pepper",
    "green pepper": "bell pepper", "yellow pepper": "bell pepper", "lightbulb": "light bulb", "rhino": "rhinoceros",
    "dromedary": "camel", "doe": "deer", "moon as a crescent": "crescent moon",
    "hibiscus flower": "hibiscus", "our planet": "globe", "trophy cup": "trophy", "brown hen": "chicken",
}  # fmt: skip
OTHERS = (  # ends of captions of pictures that are drawings, or show something else
    "hedgehog", "baseball cap", "scarf", "t shirt", "quarter of pizza", "tooth", "bolted lettuce", "red planet",
    "sea lion", "edward bear", "glass of water", "garbage can", "soap", "fire! fire! fire", "the sun", "vw beetle",
    "hot air balloon", "rubber duck", "highlighting pen", "alien tree", "walnut sailboat",
)  # fmt: skip


def fetched(folder: Path) -> Path:
    """The package in `folder`; `apt-get download` brings it there if it is not."""
    if not (found := sorted(folder.glob(f"{PACKAGE}_*.deb"))):
        fetch(PACKAGE, folder, ["apt-get", "download", "--quiet", PACKAGE])
        found = sorted(folder.glob(f"{PACKAGE}_*.deb"))
    return found[-1]


def thing_of(caption: str, things: list[str]) -> str | None:
    """The thing that a caption such as "A Granny Smith apple." names: the longest that it ends with."""
    words = re.sub(r"[“”]", "", re.split(r"[.(!]|, (?!red)", caption)[0]).lower().strip()
    short = {re.sub("^.* of ", "", name).lower(): name for name in things}  # a bunch of grapes are grapes
    short |= {name.lower(): name for name in things} | SYNONYMS | dict.fromkeys(OTHERS)
    ends = [name for name in short if f" {words}".endswith(f" {name}")]
    name = short[max(ends, key=len)] if ends else None
    return name if name in things else None


def photographs(folder: Path, things: list[str]) -> tuple[list[tuple[str, Image.Image]], str]:
    """`(name, picture)` of all photographs of `things`, and their licence."""
    found = []
    with TemporaryDirectory() as unpacked:
        subprocess.run(["dpkg-deb", "-x", fetched(folder), unpacked], check=True)
        root = Path(unpacked, "usr/share/tuxpaint/stamps")
        files = [file for file in sorted(root.rglob("*.png")) if not {*DRAWN} & {*file.relative_to(root).parts}]
        for file in files:
            caption = file.with_suffix(".txt")
            if caption.exists() and (name := thing_of(caption.read_text(encoding="utf-8").split("\n")[0], things)):
                found.append((name, Image.open(file).convert("RGBA")))
    return found, LICENCE
