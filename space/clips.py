"""What the model can watch: an upload, an example, a random scene, or a camera."""

import json
import random
import shutil
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..containers import open_container, video_duration
from ..data.world import DOMAIN, world_stream
from ..data.world_clip import write_clip
from ..decoding import iter_video_frames
from ..loading.find import OWN_CHECKPOINT
from ..narration.sight import clip_domain

# containers and codecs that browsers play
PLAYABLE = {"mp4": {"h264", "vp9", "av1"}, "webm": {"vp8", "vp9", "av1"}}
PREVIEW_FPS, PREVIEW_HEIGHT = 8, 480  # of the copy for videos that browsers cannot play
EXAMPLES = {
    "world": ("Shapes that come and go", "world.mp4"),
    "cup": ("A hand and a cup (real)", "cup.mp4"),
}


@dataclass
class Clip:
    """
    Args:
        id (`str`): a secret id, known only to its visitor.
        title (`str`): shown to the visitor.
        folder (`Path`): folder for the visitor's files, deleted with the clip.
        path (`Path`, *optional*): file that the model watches; None for a camera.
        shown (`Path`, *optional*): file that the browser plays.
        seconds (`float`, *optional*): duration, if known.
        truth (`list[tuple[float, str]]`, *optional*): true narrations with their times.
        notice (`str`): a note for the visitor.
        domain (`str`, *optional*): what the clip shows, as `config.domain`.
    """

    id: str
    title: str
    folder: Path
    path: Path | None = None
    shown: Path | None = None
    seconds: float | None = None
    truth: list[tuple[float, str]] | None = None
    notice: str = ""
    domain: str | None = None
    touched: float = field(default_factory=time.monotonic)

    def frames(self, fps: float) -> Generator[tuple[np.ndarray, float], None, None]:
        yield from iter_video_frames(self.path, fps)

    def describe(self) -> dict:
        return {
            "clip": self.id,
            "title": self.title,
            "url": None if self.shown is None else f"media/{self.id}",
            "seconds": self.seconds,
            "notice": self.notice,
            "camera": self.path is None,
        }


def camera(clip_id: str, folder: Path) -> Clip:
    return Clip(clip_id, "Your camera", folder)


def example(clip_id: str, folder: Path, name: str) -> Clip:
    """Raises `ValueError` for an unknown name."""
    if name not in EXAMPLES:
        raise ValueError(f"there is no example {name!r}; the examples are {', '.join(EXAMPLES)}")
    title, file = EXAMPLES[name]
    path = OWN_CHECKPOINT / "media" / file
    truth = None
    if path.with_suffix(".jsonl").exists():
        turns = json.loads(path.with_suffix(".jsonl").read_text(encoding="utf-8"))["turns"]
        truth = [(turn["time"], turn["content"]) for turn in turns]
    return Clip(clip_id, title, folder, path, path, video_duration(path), truth, domain=clip_domain(path))


def scene(clip_id: str, folder: Path, seed: int | None = None) -> Clip:
    """A stream of the procedural world, with a random seed by default."""
    seed = random.SystemRandom().randrange(10**6, 10**9) if seed is None else seed
    path, _ = write_clip(folder / "scene.mp4", seed)
    stream = world_stream(seed)
    title = f"Random scene {seed}"
    return Clip(clip_id, title, folder, path, path, stream.seconds, stream.narrations, domain=DOMAIN)


def upload(clip_id: str, folder: Path, file: Path, name: str, max_seconds: float) -> Clip:
    """A visitor's file. Its first frame is decoded to check that it is a video.

    Raises:
        `ValueError`, `OSError`: for a file that is not a video; the message has the file's name, not its path.
    """
    path = folder / ("clip" + file.suffix.lower())
    try:
        path.hardlink_to(file)  # other visitors may have made the same upload
    except OSError:
        shutil.copy(file, path)
    try:
        next(iter_video_frames(path, 1.0))
        seconds, domain = video_duration(path), clip_domain(path)
        shown = path if playable(path) else write_preview(path, folder / "preview.mp4", max_seconds)
    except (ValueError, OSError) as error:
        raise type(error)(str(error).replace(str(path), name)) from error
    notice = ""
    if seconds is not None and seconds > max_seconds:
        notice = f"The model watches only the first {max_seconds / 60:g} minutes."
    return Clip(clip_id, name, folder, path, shown, seconds, notice=notice, domain=domain)


def playable(path: Path) -> bool:
    """Whether browsers can play the file."""
    container, stream = open_container(path)
    with container:
        formats, codec = set(container.format.name.split(",")), stream.codec_context
        deep = codec.pix_fmt not in ("yuv420p", "yuvj420p")
        kind = "webm" if path.suffix == ".webm" else "mp4"
        return kind in formats and codec.name.removeprefix("lib") in PLAYABLE[kind] and not deep


def write_preview(path: Path, preview: Path, max_seconds: float) -> Path:
    """Write a small copy that any browser can play."""
    import av

    with av.open(str(preview), "w") as container:
        stream = None
        for image, seconds in iter_video_frames(path, PREVIEW_FPS):
            if seconds > max_seconds:
                break
            if stream is None:
                scale = min(1.0, PREVIEW_HEIGHT / image.shape[0])
                stream = container.add_stream("libx264", rate=Fraction(PREVIEW_FPS))
                stream.height, stream.width = (max(2, int(side * scale) // 2 * 2) for side in image.shape[:2])
                stream.pix_fmt, stream.options = "yuv420p", {"preset": "ultrafast", "crf": "23"}
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())
    return preview


__all__ = ["EXAMPLES", "Clip", "camera", "example", "scene", "upload"]
