"""The levels `things_camera...`: things are held up to a simulated camera, on phones, tablets and paper."""

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .camera import Camera, Film, Pose, Shake
from .cards import AROUND, Card
from .compression import as_h264, as_jpeg
from .things import UNSEEN
from .world_basic import STEP
from .world_things import ThingsStream
from .world_things_script import Key, Visit

MARGIN = 0.12  # of the background around the view, for a camera that shakes
OUT = 1.6  # what a card's nearer half may gain in size by perspective, with its fingers
SHARPEST = 0.08  # diameter of what a point of a picture becomes, of the picture's size, at most
QUALITIES = {"none": (0, 0), "jpeg": (35, 90), "h264": (20, 36)}


@dataclass(frozen=True)
class Held:
    """How a card is held."""

    card: Card
    yaw: float  # degrees
    pitch: float
    roll: float
    shakes: tuple[Shake, ...]  # in x and y, shares of the shorter side; in yaw, pitch and roll, degrees

    @classmethod
    def chosen(cls, rng: random.Random) -> "Held":
        still = rng.choice((0.2, 1.0, 1.0))
        return cls(
            Card.chosen(rng),
            rng.uniform(-28, 28),
            rng.uniform(-28, 28),
            rng.uniform(-14, 14),
            tuple(Shake.chosen(rng, still * rng.uniform(0.2, 1.0) * most) for most in (0.012, 0.012, 3.0, 3.0, 2.0)),
        )


class ThingsCameraStream(ThingsStream):
    """Up to two things, each on a card that is carried into view, held and taken away. A thing is gone when its card
    is."""

    MAX_THINGS = 2
    SIZES = (0.24, 0.75)
    INSET = 0.04
    ARRIVALS = ("slide",)

    def __init__(self, seed: int):
        rng = random.Random(f"camera/{seed}")
        self.camera = Camera.chosen(rng)
        self.codec = rng.choice(("none", "jpeg", "h264"))
        self.quality = rng.randint(*QUALITIES[self.codec])
        self._held: dict[int, Held] = {}
        super().__init__(seed)

    def held(self, visit: Visit) -> Held:
        """How something is held; what it is exchanged for is held by the same hand."""
        if visit.seed not in self._held:
            self._held[visit.seed] = Held.chosen(random.Random(f"held/{visit.seed}"))
        return self._held[visit.seed]

    def _new(self, rng: random.Random, there: list[Visit], crowded: bool) -> Visit:
        visit = super()._new(rng, there, crowded)
        visit.tilt = 0.0  # cards are turned instead
        return visit

    def _cover(self, visit: Visit) -> tuple[float, float]:
        card = self.held(visit).card
        return 1 / card.share, card.height / card.share

    def _stands_out(self, visit: Visit, x: float, y: float) -> bool:
        return True  # a card has a colour from which its picture stands out

    def _reach(self, visit: Visit) -> float:
        card = self.held(visit).card
        return OUT * visit.size / card.share * math.hypot(1, card.height) / 2

    def _edge(self, rng: random.Random, visit: Visit, x: float, y: float) -> tuple[float, float]:
        """Hands come from below and from the sides."""
        out = self._reach(visit)
        return rng.choice(((-out, y), (1 + out, y), (x, 1 + out), (x, 1 + out)))

    def _gone(self, visit: Visit, start: float, end: float) -> float:
        for step in range(round(start / STEP), round(end / STEP)):
            if (key := visit.at(STEP * step)) is None or not self._is_in_view(visit, key):
                return STEP * step
        return end

    def _is_in_view(self, visit: Visit, key: Key) -> bool:
        """Whether any of a card is in a square view."""
        corners = self._corners(visit, key, key.x - 0.5, key.y - 0.5)
        return bool((corners.max(0) > -0.5).all() and (corners.min(0) < 0.5).all())

    def _corners(self, visit: Visit, key: Key, x: float, y: float) -> np.ndarray:
        """Places in the frame of the corners of a card's front and fingers, whose centre is at `x`, `y`."""
        held = self.held(visit)
        card, shakes = held.card, [shake.at(key.time) for shake in held.shakes]
        angles = (angle + shake for angle, shake in zip((held.yaw, held.pitch, held.roll), shakes[2:], strict=True))
        pose = Pose(x + shakes[0], y + shakes[1], self._depth(visit), *angles)
        sides = (card.width * (side + 2 * AROUND) for side in (1, card.height))
        return self.camera.corners(pose, *sides)

    def _depth(self, visit: Visit) -> float:
        """Distance of a card at which its picture has its size in the frame; metres."""
        card = self.held(visit).card
        return card.share * card.width / (visit.size * self.camera.span)

    def _film(self, times: np.ndarray, fps: float, height: int, width: int) -> np.ndarray:
        film = Film(self.camera, height, width)
        around = [round((1 + 2 * MARGIN) * side) for side in (height, width)]
        behind = self.behind.image(*around)
        fronts: dict[Visit, Image.Image] = {}
        frames = np.empty((len(times), height, width, 3), dtype=np.uint8)
        for frame, time in zip(frames, times.tolist(), strict=True):
            image = self._view(film, behind, fronts, time)
            frame[:] = np.asarray(as_jpeg(image, self.quality) if self.codec == "jpeg" else image)
        return as_h264(frames, fps, self.quality) if self.codec == "h264" else frames

    def _view(self, film: Film, behind: Image.Image, fronts: dict[Visit, Image.Image], time: float) -> Image.Image:
        sway = self.camera.sway(time)
        left, top = (
            round(min(max(0.0, (full - side) / 2 - moved * film.short), full - side))
            for full, side, moved in zip(behind.size, (film.width, film.height), sway, strict=True)
        )
        image = behind.crop((left, top, left + film.width, top + film.height))
        shape = np.array([film.width, film.height]) / film.short
        held = [
            (visit, key, self._corners(visit, key, *((np.array([key.x, key.y]) - 0.5) * shape + sway)))
            for visit, key in self.in_view(time)
        ]
        for visit, _, corners in held:  # all arms are behind all cards, so that they hide no thing
            card = self.held(visit).card
            if card.hand != "none":
                x, y = card.grip
                x = -x if visit.mirrored else x
                grip = 0.5 + x / (1 + 2 * AROUND), 0.5 + y / (card.height + 2 * AROUND)
                film.arm(image, corners, grip, 1.6 * card.finger / (1 + 2 * AROUND), card.skin)
        for visit, key, corners in held:
            if visit not in fronts:
                front = self.held(visit).card.front(None if visit.picture is None else self.look(visit))
                flip = Image.Transpose.FLIP_LEFT_RIGHT
                fronts[visit] = (front.transpose(flip) if visit.mirrored else front).convert("RGBa")
            before = visit.at(time - self.camera.exposure) or key
            path = np.array([key.x - before.x, key.y - before.y]) * shape
            blur = min(self.camera.blur(self._depth(visit), time - visit.keys[0].time), SHARPEST * visit.size)
            film.place(image, fronts[visit], corners, blur, path)
        return film.developed(image, time)


class ThingsCameraUnseenStream(ThingsCameraStream):
    """Things in the style to test on."""

    STYLES = (UNSEEN,)
