"""A simulated camera: how a flat card that is held before it looks in its frames.

Lengths are metres unless a name says otherwise, angles degrees, times seconds; places in a frame are fractions of its
shorter side from its centre, x to the right and y down.
"""

import math
import random
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

NEUTRAL = 5500.0  # kelvin, light that the camera's white balance is made for
WAVELENGTHS = (610e-9, 550e-9, 465e-9)  # of red, green and blue
CAST = 0.4  # power of the light's colour that is left by the automatic white balance
SHAKES = ((0.4, 1.4, 1.0), (5.0, 9.0, 0.12))  # lowest and highest frequency in hertz, and share, of sway and tremor
NEAREST = 0.4  # distance of a card's nearest corner, of its centre's
GRAIN = 32  # standard deviation of the picture that noise is taken from
ROOM = 64  # pixels by which that picture is larger than a frame


def black_body(kelvin: float) -> np.ndarray:
    """Planck's law at `WAVELENGTHS`, relative to `NEUTRAL` light and to green: float64 `[3]`."""
    second = 0.014388  # second radiation constant, metre kelvin
    light = [1 / (np.exp(second / np.array(WAVELENGTHS) / each) - 1) for each in (kelvin, NEUTRAL)]
    return light[0] / light[1] * light[1][1] / light[0][1]


@dataclass(frozen=True)
class Shake:
    """An unsteady value around 0: a slow sway and a fast tremor."""

    waves: tuple[tuple[float, float, float], ...]  # hertz, phase in radians, amplitude

    @classmethod
    def chosen(cls, rng: random.Random, amplitude: float) -> "Shake":
        waves = ((rng.uniform(low, high), share) for low, high, share in SHAKES)
        return cls(tuple((hertz, rng.uniform(0, 2 * math.pi), amplitude * share) for hertz, share in waves))

    def at(self, time: float) -> float:
        return sum(a * math.sin(2 * math.pi * f * time + phase) for f, phase, a in self.waves)


@dataclass(frozen=True)
class Pose:
    """Where a card is."""

    x: float  # of its centre in the frame
    y: float
    depth: float  # distance from the camera
    yaw: float  # turned about its upright axis
    pitch: float  # about its level axis
    roll: float  # about its normal


@dataclass(frozen=True)
class Camera:
    """Its lens, sensor and light; `shake` is what holds it."""

    field_of_view: float  # degrees, across the shorter side
    aperture: float  # metres, diameter of the lens's opening
    focus: float  # distance that is sharp while nothing is held before it
    refocusing: float  # seconds, time constant of autofocus; infinite for a lens with fixed focus
    exposure: float  # seconds
    gain: float  # of the light, 1 is well exposed
    kelvin: float  # colour temperature of the light
    tint: float  # gain of green, as of fluorescent lamps
    falloff: float  # share of light that is missing in the corners
    slope: float  # share of light that is missing at the darker side
    slope_angle: float  # degrees, direction of the darker side
    contrast: float  # of the tone curve, 0 for none
    noise: float  # standard deviation, in levels of 255; shot noise is the same everywhere after the tone curve
    shake: tuple[Shake, Shake]  # degrees, to the right and down
    seed: int

    @classmethod
    def chosen(cls, rng: random.Random) -> "Camera":
        unsteady = rng.choice((0.0, rng.uniform(0.1, 0.6)))
        return cls(
            field_of_view=rng.uniform(38, 62),
            aperture=rng.uniform(0.8, 2.4) * 1e-3,
            focus=rng.uniform(0.5, 1.5),
            refocusing=rng.choice((rng.uniform(0.1, 0.5), math.inf)),
            exposure=1 / rng.uniform(24, 120),
            gain=rng.uniform(0.7, 1.25),
            kelvin=NEUTRAL * 2 ** rng.uniform(-0.75, 0.5),
            tint=rng.uniform(0.94, 1.06),
            falloff=rng.uniform(0.0, 0.45),
            slope=rng.choice((0.0, rng.uniform(0.0, 0.6))),
            slope_angle=rng.uniform(0, 360),
            contrast=rng.uniform(0.0, 0.5),
            noise=rng.uniform(0.5, 9.0),
            shake=(Shake.chosen(rng, unsteady), Shake.chosen(rng, unsteady)),
            seed=rng.getrandbits(32),
        )

    @cached_property
    def span(self) -> float:
        """Length of what is seen across the shorter side, at a distance of one metre."""
        return 2 * math.tan(math.radians(self.field_of_view) / 2)

    def corners(self, pose: Pose, width: float, height: float) -> np.ndarray:
        """Places in the frame of the corners of a card, from the top left clockwise: float64 `[4, 2]`."""
        yaw, pitch, roll = (math.radians(angle) for angle in (pose.yaw, pose.pitch, pose.roll))
        x, y = np.array([-1, 1, 1, -1]) * width / 2, np.array([-1, -1, 1, 1]) * height / 2
        x, y = x * math.cos(roll) - y * math.sin(roll), x * math.sin(roll) + y * math.cos(roll)
        y, z = y * math.cos(pitch), y * math.sin(pitch)
        x, z = x * math.cos(yaw), z + x * math.sin(yaw)
        away = np.maximum(pose.depth + z, pose.depth * NEAREST) / pose.depth
        across = pose.depth * self.span
        return np.stack([(x / across + pose.x) / away, (y / across + pose.y) / away], 1)

    def blur(self, depth: float, held: float) -> float:
        """Diameter of the circle that a point at `depth` becomes, when a card has been held there for `held` seconds;
        a share of the frame's shorter side."""
        sharp = self.focus + (depth - self.focus) * (1 - math.exp(-max(0.0, held) / self.refocusing))
        return self.aperture * abs(1 / depth - 1 / sharp) / self.span

    def sway(self, time: float) -> tuple[float, float]:
        """How far the whole view is displaced at a time, to the right and down."""
        return tuple(math.radians(shake.at(time)) / self.span for shake in self.shake)  # type: ignore[return-value]


def coefficients(corners: np.ndarray, width: float, height: float) -> list[float]:
    """The eight numbers with which Pillow's perspective transform puts a `width` x `height` picture's corners at
    `corners`, pixels `[4, 2]`."""
    source = np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=float)
    rows, ones, zeros = [], np.ones(4), np.zeros(4)
    x, y = corners.T
    for axis in (0, 1):
        target = source[:, axis]
        columns = [x, y, ones, zeros, zeros, zeros] if axis == 0 else [zeros, zeros, zeros, x, y, ones]
        rows.append(np.stack([*columns, -target * x, -target * y], 1))
    return np.linalg.solve(np.concatenate(rows), source.T.ravel()).tolist()


@lru_cache(maxsize=4)
def grain(height: int, width: int) -> Image.Image:
    """RGB noise around 128, larger than a frame."""
    noise = np.random.default_rng(0).normal(128, GRAIN, (height + ROOM, width + ROOM, 3))
    return Image.fromarray(noise.clip(0, 255).round().astype(np.uint8))


class Film:
    """A camera's frames of `width` x `height` pixels."""

    def __init__(self, camera: Camera, height: int, width: int):
        self.camera, self.height, self.width, self.short = camera, height, width, min(height, width)
        levels = [round(128 + (level - 128) * camera.noise / GRAIN) for level in range(256)]
        self.noise = grain(height, width).point(levels * 3)
        self.light = self._light()
        self.tones = self._tones()

    def _light(self) -> Image.Image:
        """RGB: how much light reaches each pixel, 255 for all."""
        camera = self.camera
        x = (np.arange(self.width) + 0.5 - self.width / 2)[None] / self.short * 2
        y = (np.arange(self.height) + 0.5 - self.height / 2)[:, None] / self.short * 2
        angle = math.radians(camera.slope_angle)
        slope = (x * math.cos(angle) + y * math.sin(angle)) / 2 + 0.5
        light = (1 - camera.falloff * (x * x + y * y) / 2) * (1 - camera.slope * slope.clip(0, 1))
        return Image.fromarray((255 * light).clip(0, 255).astype(np.uint8)).convert("RGB")

    def _tones(self) -> list[int]:
        """For each colour and level, what the camera makes of it."""
        camera, level = self.camera, np.linspace(0, 1, 256)
        gains = black_body(camera.kelvin) ** CAST * np.array([1, camera.tint, 1]) * camera.gain
        tones = []
        for gain in gains:  # levels are displayed light, so gains of light are taken to the power of 1 / 2.2
            value = (level * gain ** (1 / 2.2)).clip(0, 1)
            value = value + camera.contrast * (value * value * (3 - 2 * value) - value)
            tones += (255 * value).round().astype(int).tolist()
        return tones

    def place(self, frame: Image.Image, card: Image.Image, corners: np.ndarray, blur: float, path: np.ndarray) -> None:
        """Put a card into a frame.

        Args:
            frame: RGB, changed in place.
            card: RGBa, with its colours multiplied by alpha.
            corners: places in the frame of the card's corners, `[4, 2]`.
            blur: diameter of a point, a share of the shorter side.
            path: how far it moves while the shutter is open, `[2]`, in shares of the shorter side.
        """
        pixels = corners * self.short + (self.width / 2, self.height / 2)
        margin = math.ceil(blur * self.short + np.abs(path).max() * self.short) + 1
        left, top = np.maximum(0, np.floor(pixels.min(0)).astype(int) - margin)
        right, bottom = np.minimum((self.width, self.height), np.ceil(pixels.max(0)).astype(int) + margin)
        if left >= right or top >= bottom:
            return
        size, box = float(np.ptp(pixels, 0).max()), (int(right - left), int(bottom - top))
        smeared = max(blur, float(np.abs(path).max()) / 2) * self.short
        coarse = max(1.0, size / max(card.size), min(4.0, smeared / 2))  # more pixels than the card has show nothing
        if (factor := int(coarse * max(card.size) / max(size, 1))) > 1:  # small pictures are means, not single pixels
            card = card.reduce(factor)
        small = max(1, round(box[0] / coarse)), max(1, round(box[1] / coarse))
        numbers = coefficients((pixels - (left, top)) * small / box, *card.size)
        seen = card.transform(small, Image.Transform.PERSPECTIVE, numbers, Image.Resampling.BILINEAR)
        if blur * self.short > 0.7:
            seen = seen.filter(ImageFilter.BoxBlur(blur * self.short / 2 / coarse))
        seen = self._moved(seen, path * self.short / coarse)
        seen = (seen if small == box else seen.resize(box, Image.Resampling.BILINEAR)).convert("RGBA")
        frame.paste(seen, (int(left), int(top)), seen)

    def arm(self, frame: Image.Image, corners: np.ndarray, grip: tuple[float, float], width: float, skin) -> None:
        """Draw the arm that holds a card, from below the view to its hand.

        Args:
            frame: RGB, changed in place.
            corners: places in the frame of the card's corners, `[4, 2]`.
            grip: where the hand is, in shares of the card's sides from its top left.
            width: of the hand, in shares of the card's upper side.
            skin: colour.
        """
        pixels = corners * self.short + (self.width / 2, self.height / 2)
        (u, v), (a, b, c, d) = grip, pixels
        x, y = (1 - v) * ((1 - u) * a + u * b) + v * ((1 - u) * d + u * c)
        thick = width * float(np.hypot(*(b - a)))
        draw = ImageDraw.Draw(frame)
        down, half = max(self.height, y) + 2 * thick, 0.75 * thick
        lean = x + 0.25 * (x - self.width / 2) + (u - 0.5) * 2 * thick
        draw.polygon([(x - half, y), (x + half, y), (lean + 1.2 * half, down), (lean - 1.2 * half, down)], skin)
        draw.ellipse((x - thick, y - thick, x + thick, y + thick), skin)

    @staticmethod
    def _moved(image: Image.Image, path: np.ndarray) -> Image.Image:
        """The mean of an RGBa image on its way along `path`, pixels."""
        steps = min(6, math.ceil(np.abs(path).max()))
        if steps < 2:
            return image
        moved = image
        for step in range(1, steps):
            x, y = (path * (0.5 - step / (steps - 1))).tolist()
            shifted = image.transform(image.size, Image.Transform.AFFINE, (1, 0, round(x), 0, 1, round(y)))
            moved = Image.blend(moved, shifted, 1 / (step + 1))
        return moved

    def developed(self, frame: Image.Image, time: float) -> Image.Image:
        """A frame with the light, the colours and the noise of the camera."""
        frame = ImageChops.multiply(frame, self.light).point(self.tones)
        rng = random.Random(f"{self.camera.seed}/{time:.3f}")
        left, top = rng.randrange(ROOM), rng.randrange(ROOM)
        noise = self.noise.crop((left, top, left + self.width, top + self.height))
        if rng.random() < 0.5:
            noise = noise.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return ImageChops.add(frame, noise, 1.0, -128)
