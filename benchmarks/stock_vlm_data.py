"""Pictures of the world and conversations about them, for image models that never see a stream.

A picture is a scene of a stream of the world, but the pictures of a conversation come from different streams in random
order, so nothing is to be learned about time. There are two kinds of conversations: `single` has one picture and
questions about it; `conversation` has many turns with independent pictures, as models for several images are trained.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..data.world import world_stream
from ..data.world_basic import COLOURS, KINDS, NUMBERS, PLACES, SHAPES, BasicStream, Thing, inside
from .stock_vlm_families import Family

IGNORED = -100
COLOUR_NUMBERS = {colour: number for number, colour in enumerate(COLOURS)}
MAX_THINGS = BasicStream.MAX_THINGS
QUESTIONS = ("see", "what", "where", "count", "colour")
SEE = "What do you see?"
VARIANTS = ("single", "conversation")
POOL, USES = 64, 4  # streams whose scenes are shuffled together, and how often each scene is used
MAX_IMAGES = 12  # of a turn


class Scene(NamedTuple):
    """What is in a picture, and the same as float32 `[MAX_THINGS + 1, 5]`: colour, shape, x, y, radius of each thing,
    colour -1 where there is none; and the background in the last row."""

    things: tuple[Thing, ...]
    array: np.ndarray

    @classmethod
    def of(cls, things: tuple[Thing, ...], background: tuple[int, int, int]) -> "Scene":
        array = np.full((MAX_THINGS + 1, 5), -1, dtype=np.float32)
        for row, thing in zip(array, things, strict=False):
            row[:] = COLOUR_NUMBERS[thing.colour], SHAPES.index(thing.shape), thing.x, thing.y, thing.radius
        array[-1, :3] = background
        return cls(things, array)


class Reply(NamedTuple):
    """Tokens `start` to `end` of a row are the answer to a question of kind `QUESTIONS[question]`. Its turn has
    `shown` images, and it is the answer about the last of `images` so far."""

    row: int
    start: int
    end: int
    question: int
    shown: int
    images: int


@dataclass
class Batch:
    """`input_ids` and `labels`, int64 `[B, L]`, padded on the right; the arrays of the scenes of
    all images in order, float32 `[M, MAX_THINGS + 1, 5]`; and all replies, int64 `[R, 6]`."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    scenes: torch.Tensor
    replies: torch.Tensor


def describe(things: tuple[Thing, ...]) -> str:
    """All things by name, in the order of `KINDS`: "A red square and a blue circle." """
    names = [f"a {KINDS[kind]}" for kind in sorted(KINDS.index(thing.name) for thing in things)]
    if not names:
        return "Nothing."
    listed = " and ".join([*([", ".join(names[:-1])] if names[1:] else []), names[-1]])
    return f"A{listed[1:]}."


def ask(rng: random.Random, things: tuple[Thing, ...]) -> tuple[str, str, str]:
    """`(kind, question, answer)` about a picture."""
    kind = rng.choice(("see", "see", "see", "what", "where", "count", "colour"))
    if kind == "colour":
        shapes = [thing.shape for thing in things]
        single = [thing for thing in things if shapes.count(thing.shape) == 1]
        if single:
            thing = rng.choice(single)
            return kind, f"What colour is the {thing.shape}?", f"{thing.colour.capitalize()}."
        kind = "count"
    if kind == "what":
        place = rng.choice([thing.place for thing in things] + [rng.choice(rng.choice(PLACES))])
        there = [thing.name for thing in things if thing.place == place]
        return kind, f"What is at the {place}?", f"A {there[0]}." if there else "Nothing."
    if kind == "where":
        name = rng.choice([thing.name for thing in things] + [f"{rng.choice(list(COLOURS))} {rng.choice(SHAPES)}"])
        places = [thing.place for thing in things if thing.name == name]
        return kind, f"Where is the {name}?", f"At the {places[0]}." if places else "It is not there."
    if kind == "count":
        return kind, "How many objects are there?", f"{NUMBERS[len(things)].capitalize()}."
    return kind, SEE, describe(things)


def of_image(question: str, which: str = "last") -> str:
    """A question about one of several images: "What do you see in the last image?" """
    return f"{question[:-1]} in the {which} image?"


def scenes(seeds: Iterator[int], rng: random.Random) -> Iterator[Scene]:
    """The scenes of the basic streams of `seeds`, those of `POOL` streams shuffled together, `USES` times."""
    while streams := [world_stream(seed) for seed, _ in zip(seeds, range(POOL), strict=False)]:
        pool = [Scene.of(event.things, stream.background) for stream in streams for event in stream.events]
        for _ in range(USES):
            rng.shuffle(pool)
            yield from pool


def draw(scenes: torch.Tensor, side: int = 96) -> torch.Tensor:
    """uint8 `[M, 3, side, side]`: the pictures of scenes, as the world draws them, on their device."""
    colours = torch.tensor(list(COLOURS.values()), device=scenes.device, dtype=torch.uint8)
    pictures = scenes[:, -1, :3].to(torch.uint8)[:, :, None, None].repeat(1, 1, side, side)
    middle = torch.arange(side, device=scenes.device) + 0.5
    for thing in scenes[:, :-1].unbind(1):
        colour, shape, x, y, radius = (value[:, None, None] for value in thing.unbind(1))
        u, v = ((middle[line] - place * side) / (radius * side) for line, place in ((None, x), ((..., None), y)))
        covered = torch.zeros(len(scenes), side, side, dtype=torch.bool, device=scenes.device)
        for index, name in enumerate(SHAPES):
            covered |= inside_of(name, u, v) & (shape == index)
        covered &= colour >= 0
        paint = colours[colour.long().clamp(min=0).flatten()]
        pictures = torch.where(covered[:, None], paint[:, :, None, None], pictures)
    return pictures


def inside_of(shape: str, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """`data.world_basic.inside` for tensors."""
    if shape in ("circle", "triangle"):
        return inside(shape, u, v)  # type: ignore[arg-type,return-value]  # arithmetic of both
    smaller, larger = torch.minimum(abs(u), abs(v)), torch.maximum(abs(u), abs(v))
    return larger <= 0.85 if shape == "square" else (smaller <= 0.33) & (larger <= 1)


def cells(scenes: torch.Tensor) -> torch.Tensor:
    """int64 `[M, 9]`: the kind in each cell of a 3 x 3 grid, or `len(KINDS)` for an empty one."""
    colour, shape, x, y, _ = scenes[:, :-1].unbind(-1)
    kind = torch.where(colour >= 0, colour * len(SHAPES) + shape, len(KINDS)).long()
    cell = torch.where(colour >= 0, (y * 3).floor() * 3 + (x * 3).floor(), 9).long()  # one more, to be cut off
    grid = torch.full((len(scenes), 10), len(KINDS), device=scenes.device)
    return grid.scatter(1, cell, kind)[:, :9]


class Writer:
    """One row: its tokens, labels, pictures and replies. Each turn is added by `turn`."""

    def __init__(self, family: Family):
        self.family = family
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.scenes: list[Scene] = []
        self.replies: list[Reply] = []

    def turn(self, rng: random.Random, pictures: list[Scene], kind: str, question: str, answer: str) -> None:
        user = self.family.user_ids(rng, len(pictures), question, first=not self.ids)
        reply = self.family.reply_ids(answer)
        self.scenes += pictures
        start = len(self.ids) + len(user)
        place = start, start + len(reply)
        self.replies.append(Reply(0, *place, QUESTIONS.index(kind), len(pictures), len(self.scenes)))
        self.ids += user + reply
        self.labels += [IGNORED] * len(user) + reply


def single(rng: random.Random, pictures: Iterator[Scene], family: Family) -> Writer:
    """One picture and one to three questions about it."""
    row, scene = Writer(family), next(pictures)
    for turn in range(rng.randint(1, 3)):
        row.turn(rng, [] if turn else [scene], *ask(rng, scene.things))
    return row


def conversation(rng: random.Random, pictures: Iterator[Scene], family: Family, length: int) -> Writer:
    """Turns with one or several independent pictures, up to about `length` tokens. With several pictures, a question
    says which one it is about, mostly the last."""
    row = Writer(family)
    while len(row.ids) < length - 64:
        room = (length - 64 - len(row.ids)) // (family.image_tokens + 4)
        count = 1 if rng.random() < 0.5 else rng.randint(2, MAX_IMAGES)
        new = [next(pictures) for _ in range(max(1, min(count, room)))]
        which = "first" if len(new) > 1 and rng.random() < 0.15 else "last"
        told = len(new) > 1 or rng.random() < 0.5
        for turn in range(rng.choice((1, 1, 1, 2))):
            kind, question, answer = ask(rng, new[0 if which == "first" else -1].things)
            row.turn(rng, [] if turn else new, kind, of_image(question, which) if told else question, answer)
    return row


def collate(rows: list[Writer], pad_token_id: int) -> Batch:
    longest = max(len(row.ids) for row in rows)
    ids = np.full((len(rows), longest), pad_token_id, dtype=np.int64)
    labels = np.full((len(rows), longest), IGNORED, dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)], labels[index, : len(row.ids)] = row.ids, row.labels
    replies = [reply._replace(row=index) for index, row in enumerate(rows) for reply in row.replies]
    drawn = np.stack([scene.array for row in rows for scene in row.scenes])
    return Batch(*map(torch.from_numpy, (ids, labels, drawn, np.array(replies, dtype=np.int64))))


class Conversations(IterableDataset):
    """Batches without end, of about `tokens` tokens each.

    Args:
        variant (`str`): of `VARIANTS`.
        first_seed (`int`): of the world's streams. Each worker process has its own streams.
        length (`int`): of a row of `conversation`, in tokens.
    """

    def __init__(self, family: Family, variant: str, first_seed: int, tokens: int, length: int = 1024):
        self.family, self.variant, self.first_seed, self.tokens, self.length = (
            family, variant, first_seed, tokens, length,
        )  # fmt: skip

    def row(self, rng: random.Random, pictures: Iterator[Scene]) -> Writer:
        if self.variant == "single":
            return single(rng, pictures, self.family)
        return conversation(rng, pictures, self.family, rng.choice((self.length // 2, self.length, self.length)))

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        rng = random.Random(f"conversations/{self.first_seed}/{number}")
        pictures = scenes(iter(range(self.first_seed + number, self.first_seed + 10**9, workers)), rng)
        while True:
            rows: list[Writer] = []
            while len(rows) * max([len(row.ids) for row in rows], default=0) < self.tokens:
                rows.append(self.row(rng, pictures))
            yield collate(rows, self.family.pad_token_id)
