"""What is behind the things of the world: plain colours, generated textures, and frames of the bundled clip."""

import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

CLIP = Path(__file__).resolve().parent.parent / "media" / "cup.mp4"  # a real room, with nothing that is on the list
CLIP_FRAMES = 12
KINDS = {"plain": 3, "gradient": 2, "stripes": 1, "checks": 1, "clouds": 2, "grain": 2, "photograph": 4}  # shares


@lru_cache(maxsize=1)
def photographs() -> list[Image.Image]:
    """Frames of the clip, RGB, 320 pixels wide."""
    import av

    with av.open(str(CLIP)) as container:
        video = container.streams.video[0]
        every = max(1, video.frames // CLIP_FRAMES)
        kept = [frame for number, frame in enumerate(container.decode(video)) if number % every == 0]
        return [frame.to_image(width=320, height=round(320 * frame.height / frame.width)) for frame in kept]


@dataclass(frozen=True)
class Background:
    """One background, which looks the same at any resolution."""

    kind: str
    colours: tuple[tuple[int, ...], tuple[int, ...]]  # red, green and blue, in [0, 255]
    angle: float  # radians
    period: float  # of stripes and checks, and grain size of textures; fraction of the shorter side
    seed: int

    @classmethod
    def chosen(cls, rng: random.Random) -> "Background":
        (kind,) = rng.choices([*KINDS], [*KINDS.values()])
        first = [rng.randint(10, 245) for _ in range(3)]
        near = [min(255, max(0, value + rng.randint(-60, 60))) for value in first]
        colours = tuple(first), tuple(near)
        return cls(kind, colours, rng.uniform(0, np.pi), rng.uniform(0.04, 0.3), rng.getrandbits(32))

    def image(self, height: int, width: int) -> Image.Image:
        """RGB, `width` x `height` pixels."""
        if self.kind == "photograph":
            return self._photograph(height, width)
        short = min(height, width)
        x, y = np.meshgrid((np.arange(width) + 0.5) / short, (np.arange(height) + 0.5) / short)
        along = x * np.cos(self.angle) + y * np.sin(self.angle)
        across = y * np.cos(self.angle) - x * np.sin(self.angle)
        if self.kind == "plain":
            mixed = np.zeros((height, width))
        elif self.kind == "gradient":
            mixed = (along - along.min()) / max(np.ptp(along), 1e-9)  # of one pixel, 0
        elif self.kind == "stripes":
            mixed = np.floor(along / self.period) % 2
        elif self.kind == "checks":
            mixed = (np.floor(along / self.period) + np.floor(across / self.period)) % 2
        else:
            mixed = self._texture(height, width)
        first, second = np.array(self.colours, dtype=np.float32)
        pixels = first + mixed[..., None].astype(np.float32) * (second - first)
        return Image.fromarray(pixels.astype(np.uint8))

    def _texture(self, height: int, width: int) -> np.ndarray:
        """Noise of several scales in [0, 1], `[height, width]`; grain is drawn out along one side."""
        rng, mixed = np.random.default_rng(self.seed), np.zeros((height, width), dtype=np.float32)
        for octave in range(4):
            cells = max(2, round(2**octave / self.period))
            shape = (cells, max(2, cells // 8)) if self.kind == "grain" else (cells, cells)
            coarse = Image.fromarray((255 * rng.random(shape)).astype(np.uint8))
            mixed += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / np.float32(255 * 2**octave)
        return mixed / 1.875

    def _photograph(self, height: int, width: int) -> Image.Image:
        rng = random.Random(self.seed)
        image = rng.choice(photographs())
        side = rng.uniform(0.5, 1.0)
        scale = side * min(image.width / width, image.height / height)
        w, h = scale * width, scale * height
        left, top = rng.uniform(0, image.width - w), rng.uniform(0, image.height - h)
        image = image.resize((width, height), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        tint = [rng.uniform(0.5, 1.15) for _ in range(3)]
        image = image.point([min(255, round(level * gain)) for gain in tint for level in range(256)])
        return image.filter(ImageFilter.BoxBlur(rng.choice((0, 0, 0.01)) * min(height, width)))
