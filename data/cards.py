"""What a picture is on when it is held up to a camera: a phone, a tablet or a sheet of paper, in a hand."""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .backgrounds import Background

PIXELS = 160  # width of a card's front
SKINS = ((255, 219, 186), (232, 184, 144), (198, 142, 100), (150, 98, 66), (98, 62, 44), (70, 44, 33))
WIDTHS = {"phone": (0.065, 0.08), "tablet": (0.13, 0.2), "paper": (0.1, 0.21)}  # metres
HEIGHTS = {"phone": (1.6, 2.1), "tablet": (0.7, 1.4), "paper": (0.9, 1.45)}  # relative to the width
AROUND = 0.25  # widths of a card around it that its fingers may need
CONTRAST = 40  # difference of a pixel of a picture from what it is on, of 255 levels
SEEN = 0.6  # share of a picture's pixels that should have it
Colour = tuple[int, int, int]


def shade(rng: random.Random, low: int, high: int) -> Colour:
    return rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)


def ground_for(picture: Image.Image, ground: Colour) -> Colour:
    """`ground`, or its opposite if too little of an RGBA picture could be told from `ground` and more from that."""
    small = np.asarray(picture.reduce(max(1, min(picture.size) // 16)), dtype=np.int16)
    colours = small[small[..., 3] > 128][:, :3]

    def seen(ground: Colour) -> int:
        return int((abs(colours - np.array(ground)).mean(1) >= CONTRAST).sum())

    opposite: Colour = (255 - ground[0], 255 - ground[1], 255 - ground[2])
    return opposite if seen(ground) < min(SEEN * len(colours), seen(opposite)) else ground


@dataclass(frozen=True)
class Card:
    """A card. Its sides are relative to the width of its front."""

    kind: str
    width: float  # metres
    height: float
    border: float  # frame around the screen
    share: float  # longer side of the picture, of the front's width
    ground: Colour  # behind the picture, unless that would not be seen
    frame: Colour
    skin: Colour
    hand: str  # the side that it is held at
    finger: float  # thickness
    seed: int

    @classmethod
    def chosen(cls, rng: random.Random) -> "Card":
        kind = rng.choice(("phone", "phone", "tablet", "paper", "paper"))
        width = rng.uniform(*WIDTHS[kind])
        height = rng.uniform(*HEIGHTS[kind])
        light, dark = (shade(rng, *levels) for levels in ((215, 255), (0, 50)))
        return cls(
            kind,
            width,
            height,
            0.0 if kind == "paper" else rng.uniform(0.02, 0.07),
            rng.uniform(0.5, 0.9) * min(1.0, height),
            dark if kind != "paper" and rng.random() < 0.35 else light,
            rng.choice((dark, light, dark)),
            rng.choice(SKINS),
            rng.choice(("below", "below", "left", "right", "none")),
            rng.uniform(0.017, 0.022) / width,
            rng.getrandbits(32),
        )

    def front(self, picture: Image.Image | None) -> Image.Image:
        """RGBA, `1 + 2 * AROUND` times as wide as the card: the card in the middle and the fingers that hold it.

        Args:
            picture: RGBA, or None for a card with a texture.
        """
        rng = random.Random(self.seed)
        width, height, edge = PIXELS, round(PIXELS * self.height), round(AROUND * PIXELS)
        front = Image.new("RGB", (width, height), self.frame)
        border = round(self.border * width)
        inside = (width - 2 * border, height - 2 * border)
        if picture is None:
            front.paste(Background.chosen(rng).image(*reversed(inside)), (border, border))
        else:
            scale = self.share * width / max(picture.size)
            size = max(1, round(scale * picture.width)), max(1, round(scale * picture.height))
            picture = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
            ground = ground_for(picture, self.ground)
            front.paste(ground, (border, border, border + inside[0], border + inside[1]))
            if self.kind != "paper":
                self._messages(ImageDraw.Draw(front), rng, border, ground)
            front.paste(picture, ((width - size[0]) // 2, (height - size[1]) // 2), picture)
        mask = Image.new("L", front.size, 0)
        round_corner = 0 if self.kind == "paper" else 0.09 * width
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, width - 1, height - 1), round_corner, fill=255)
        held = Image.new("RGBA", (width + 2 * edge, height + 2 * edge), (*self.skin, 0))
        draw, (x, y) = ImageDraw.Draw(held), self.grip
        x, y, thick = (x + 0.5) * width + edge, (y + 0.5 * self.height) * width + edge, self.finger * width
        if self.hand != "none":  # fingertips that reach round from behind
            for finger in range(-1, 2) if self.hand != "below" else ():
                reach, middle = 0.45 * thick, y + 1.1 * finger * thick
                tip = (x - reach, middle - thick / 2, x + reach, middle + thick / 2)
                draw.rounded_rectangle(tip, thick / 2, self.skin)
        held.paste(front, (edge, edge), mask)
        if self.hand == "below":
            draw.rounded_rectangle((x - thick / 2, y - 1.2 * thick, x + thick / 2, y + thick), thick / 2, self.skin)
        elif self.hand != "none":
            inward = 1.3 * thick if self.hand == "left" else -1.3 * thick
            sides = sorted((x - 0.6 * inward, x + inward))
            draw.rounded_rectangle((sides[0], y, sides[1], y + thick), thick / 2, self.skin)
        return held

    @property
    def grip(self) -> tuple[float, float]:
        """Where the hand holds it, from its centre, in widths of the card."""
        place = random.Random(f"grip/{self.seed}").uniform(-0.15, 0.35)
        across = {"left": -0.5, "right": 0.5}.get(self.hand)
        return (place, self.height / 2) if across is None else (across, place * self.height)

    def _messages(self, draw: ImageDraw.ImageDraw, rng: random.Random, border: int, ground: Colour) -> None:
        """Bars and lines as on a screen, above and below the picture."""
        grey = tuple((level + 128) // 2 for level in ground)
        free = round(PIXELS * (self.height - self.share) / 2) - border
        for low, high in ((border, border + free - 8), (round(PIXELS * self.height) - border - free + 8, None)):
            high = round(PIXELS * self.height) - border if high is None else high
            y = low + 4.0
            while y + 6 < high and rng.random() < 0.7:
                left = border + rng.uniform(4, 40)
                draw.rounded_rectangle((left, y, left + rng.uniform(20, 80), y + 5), 2, fill=grey)
                y += rng.uniform(9, 20)
