"""Draw all things of `things.json` in all styles, and write the file that the world's levels of things read.

    pip install -e '.[things]'
    python -m videollm_mod.benchmarks.things_pictures --output things.npz

The sets of icons come from npm and the photographs from the Debian package `tuxpaint-stamps-default`, both by their
ordinary clients (`npm pack`, `apt-get download`); a folder that already holds the packages needs no network. A set
whose licence does not allow it is refused.
"""

import argparse
import io
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image

from ..data.things import PHOTOGRAPHS, SIDE, UNKNOWN, Pictures
from .things_names import LIST
from .things_photos import photographs
from .things_sets import PACKAGES, IconSet

QUALITY = 85  # of WebP, at which the file has about 20 MB
FEW = 50  # of how many icons of nothing that has a name one is kept beside chosen things
OPAQUE = 24  # alpha above which a pixel belongs to what a picture shows


def cropped(image: Image.Image) -> bytes:
    """The picture as WebP, without its margin, `SIDE` pixels on its longer side.

    Raises:
        `ValueError`: if the picture is empty.
    """
    box = image.getchannel("A").point([255 * (alpha > OPAQUE) for alpha in range(256)]).getbbox()
    if box is None:
        raise ValueError("the picture shows nothing")
    image = image.crop(box)
    scale = SIDE / max(image.size)
    size = tuple(max(1, round(scale * side)) for side in image.size)
    file = io.BytesIO()
    image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA").save(file, "webp", quality=QUALITY)
    return file.getvalue()


def drawn(svg: str) -> bytes:
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE, height=2 * SIDE, skip_system_fonts=True)
    return cropped(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


def of_set(known: IconSet, listed: dict) -> list[tuple[str, str]]:
    """`(name, svg)` of all pictures of a set; of some sets several icons show the same."""
    named = [
        (name, icon) for name, thing in listed["things"].items() for icon in thing.get(known.style, thing["icons"])
    ]
    named += [(UNKNOWN, icon) for icon in listed["unknown"] if icon in known]
    return list(dict.fromkeys((name, known.svg(icon)) for name, icon in named))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("things.npz"), help="(default: things.npz)")
    parser.add_argument("--sets", type=Path, default=Path("runs/things"), help="folder of the packages")
    parser.add_argument("--styles", nargs="+", choices=(*PACKAGES, PHOTOGRAPHS), default=(*PACKAGES, PHOTOGRAPHS))
    parser.add_argument(
        "--things", nargs="+", metavar="NAME", help="only these, one picture of each, and a few of nothing"
    )
    args = parser.parse_args(argv)
    listed = json.loads(LIST.read_text(encoding="utf-8"))
    if args.things:
        if missing := [name for name in args.things if name not in listed["things"]]:
            parser.error(f"--things must be in {LIST.name}, got {', '.join(missing)}")
        chosen = {name: {key: icons[:1] for key, icons in listed["things"][name].items()} for name in args.things}
        listed = {"things": chosen, "unknown": listed["unknown"][::FEW]}
    made = Pictures([], [], [], {})
    with ProcessPoolExecutor() as pool:
        for style in args.styles:
            if style == PHOTOGRAPHS:
                found, made.licences[style] = photographs(args.sets, [*listed["things"]])
                files = map(cropped, (image for _, image in found))
            else:
                known = IconSet.fetch(style, args.sets)
                found, made.licences[style] = of_set(known, listed), f"{known.licence}, {known.author}"
                files = pool.map(drawn, [svg for _, svg in found], chunksize=16)
            made.files += files
            made.names += [name for name, _ in found]
            made.styles += [style] * len(found)
            print(f"{style}: {len(found)} pictures of {len({*made.named(style)} - {UNKNOWN})} things", flush=True)
    made.save(args.output)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
