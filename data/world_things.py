"""The world's levels of things: everyday things appear, move, hide one another, are exchanged and leave.

What happens is in `world_things_script.py`; here are what is said of it, what is asked, and what is drawn.
"""

import random
from functools import cached_property

import numpy as np
from PIL import Image

from .backgrounds import Background
from .things import PHOTOGRAPHS, UNSEEN
from .world_basic import NUMBERS, PLACES, STEP, THERE
from .world_things_script import Key, ThingsScript, Visit, enumerated, sentence, with_article

NOTHING = "I see nothing that I know."
PATCH = 48  # pixels, side of a patch of texture
QUESTIONS = {
    "what": ("What do you see?", "What is in view?", "Which things do you see?", "What is there?"),
    "count": ("How many things that you know are there?", "How many things do you recognize?"),
    "where": ("Where is the {}?", "Where do you see the {}?", "At which place is the {}?"),
    "place": ("What do you see at the {}?", "What can you see at the {}?"),
    "last": ("What happened last?",),
}


class ThingsStream(ThingsScript):
    """A stream of everyday things in one of the styles to train on."""

    @cached_property
    def narrations(self) -> list[tuple[float, str]]:
        return [(event.time, event.text) for event in self.events if event.text]

    def is_settled(self, time: float) -> bool:
        """Whether nothing moves or waits to be named."""
        return not any(start <= time < end for start, end in self.busy)

    def questions(self, fps: float = 2.0, count: int = 1) -> list[tuple[float, str, str]]:
        """As in `BasicStream`, at moments at which nothing moves as long as there are any."""
        super().questions(fps, count)  # checks `count`
        rng = random.Random()
        rng.setstate(self._rng_state)
        times = self.frame_times(fps).tolist()
        rng.shuffle(times)
        times.sort(key=lambda time: not self.is_settled(time))
        return [(time, *self.question(rng, time)) for time in sorted(times[:count])]

    def question(self, rng: random.Random, time: float) -> tuple[str, str]:
        seen = sorted(self.things(time), key=lambda thing: thing.x)
        kind = rng.choice(("what", "what", "what", "where", "where", "count", "place", "last"))
        past = [event.text for event in self.events[1:] if event.time <= time]
        if kind == "last" and past and not past[-1]:
            kind = "what"  # a thing has moved since, which is not narrated
        asked = rng.choice(QUESTIONS[kind])
        if kind == "what":
            return asked, sentence(enumerated([with_article(each.name) for each in seen])) if seen else NOTHING
        if kind == "count":
            return asked, f"{NUMBERS[len(seen)].capitalize()}." if seen else NOTHING
        if kind == "where":
            absent = rng.choice(self.pictures.things)
            name = rng.choice([each.name for each in seen] * 2 + [absent])
            places = [each.place for each in seen if each.name == name]
            return asked.format(name), f"At the {places[0]}." if places else "It is not there."
        if kind == "place":
            place = rng.choice([each.place for each in seen] * 2 + [place for row in PLACES for place in row][::4])
            names = [with_article(each.name) for each in seen if each.place == place]
            return asked.format(place), sentence(enumerated(names)) if names else "Nothing that I know."
        return asked, past[-1] if past else "Nothing yet."

    def in_view(self, time: float) -> list[tuple[Visit, Key]]:
        """Everything that is in view, the lowest first."""
        seen = [(visit, key) for visit in self.visits if (key := visit.at(time)) is not None]
        return sorted(seen, key=lambda each: each[0].front(time))

    def look(self, visit: Visit) -> Image.Image:
        """The picture of something, RGBA."""
        if visit.picture is None:
            texture = Background.chosen(random.Random(visit.seed)).image(PATCH, PATCH)
            return texture.resize([max(1, round(PATCH * side)) for side in visit.box]).convert("RGBA")
        return self.pictures.picture(visit.picture)

    def frames(self, fps: float = 2.0, height: int = 96, width: int | None = None) -> np.ndarray:
        return self._film(self.frame_times(fps), fps, height, width or height)

    def drawn(self, height: int = 96, width: int | None = None) -> np.ndarray:
        return self._film(np.array([event.time for event in self.events]), 1 / STEP, height, width or height)

    def distinct(self, fps: float, height: int) -> tuple[np.ndarray, np.ndarray]:
        frames = self.frames(fps, height)
        return frames, np.arange(len(frames))

    def _film(self, times: np.ndarray, fps: float, height: int, width: int) -> np.ndarray:
        """The frames at `times`, uint8 `[F, H, W, 3]`."""
        behind = self.behind.image(height, width)
        sprites: dict[tuple[Visit, int], Image.Image] = {}
        film = np.empty((len(times), height, width, 3), dtype=np.uint8)
        for frame, time in zip(film, times.tolist(), strict=True):
            image = behind.copy()
            for visit, key in self.in_view(time):
                side = max(1, round(visit.size * key.scale * min(height, width)))
                if (visit, side) not in sprites:
                    sprites[visit, side] = self._sprite(visit, side)
                sprite = sprites[visit, side]
                corner = round(key.x * width - sprite.width / 2), round(key.y * height - sprite.height / 2)
                mask = sprite.getchannel("A")
                if key.alpha < 1:
                    mask = mask.point([round(key.alpha * level) for level in range(256)])
                image.paste(sprite, corner, mask)
            frame[:] = np.asarray(image)
        return film

    def _sprite(self, visit: Visit, side: int) -> Image.Image:
        image = self.look(visit)
        size = [max(1, round(side * share)) for share in visit.box]
        image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        if visit.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image.rotate(visit.tilt, Image.Resampling.BILINEAR, expand=True) if visit.tilt else image

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self.pictures.things)

    def states(self, grid: tuple[int, int] = (3, 3)) -> np.ndarray:
        """uint8 `[E, h, w, things]`: whether each of `kinds` is in each cell of a grid after each event."""
        numbers = {name: number for number, name in enumerate(self.kinds)}
        of_event = np.zeros((len(self.events), *grid, len(numbers)), dtype=np.uint8)
        for states, event in zip(of_event, self.events, strict=True):
            for thing in event.things:
                states[int(thing.y * grid[0]), int(thing.x * grid[1]), numbers[thing.name]] = THERE
        return of_event


class ThingsUnseenStream(ThingsStream):
    """Things in the style that no training stream shows."""

    STYLES = (UNSEEN,)


class ThingsPhotosStream(ThingsStream):
    """Photographs of things; there are fewer than drawings."""

    STYLES = (PHOTOGRAPHS,)


class ThingsUnknownStream(ThingsStream):
    """Nothing in view has a name."""

    UNKNOWN_STREAMS = 1.0
