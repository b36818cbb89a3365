"""`make picture`: the animated picture of README.md, which is the overlay video of a bundled clip."""

import tempfile
from pathlib import Path

from PIL import Image

from videollm_mod.commands import cli
from videollm_mod.decoding import decode_video

DOCS = Path(__file__).resolve().parent
CLIP = DOCS.parent / "media" / "world.mp4"
PICTURE = DOCS / "images" / "overlay.webp"
QUERIES = ("How many objects are there?@5.5", "What happened last?@9")
FPS = 2.0


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "overlay.mp4"
        arguments = ["narrate", str(CLIP), "--fps", str(FPS), "--overlay", str(video)]
        if code := cli.main([*arguments, *(word for query in QUERIES for word in ("--query", query))]):
            raise SystemExit(code)
        _, first, *others = (Image.fromarray(frame) for frame in decode_video(video, FPS)[0])  # the first is empty
    durations = [round(1000 / FPS)] * len(others) + [2000]  # milliseconds; the last stays a while
    first.save(PICTURE, save_all=True, append_images=others, duration=durations, loop=0, quality=80, method=6)


if __name__ == "__main__":
    main()
