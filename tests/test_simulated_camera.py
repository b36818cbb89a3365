"""The simulated camera: places, blur, light and noise are those of its physical parameters."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from videollm_mod.data.camera import NEUTRAL, Camera, Film, Pose, Shake, black_body, coefficients
from videollm_mod.data.cards import AROUND, PIXELS, Card, ground_for
from videollm_mod.data.compression import as_h264, as_jpeg

STILL = Shake(())
PLAIN = Camera(
    field_of_view=53.13, aperture=2e-3, focus=1.0, refocusing=math.inf, exposure=0.02, gain=1.0, kelvin=NEUTRAL,
    tint=1.0, falloff=0.0, slope=0.0, slope_angle=0.0, contrast=0.0, noise=0.0, shake=(STILL, STILL), seed=0,
)  # fmt: skip


def test_a_pinhole_sees_a_card_in_its_place_and_size():
    facing = PLAIN.corners(Pose(0.1, -0.2, 0.5, 0, 0, 0), 0.1, 0.2)
    # at 0.5 m the view is 0.5 m wide: 2 * tan(53.13 / 2 degrees) = 1
    assert facing == pytest.approx(np.array([(0, -0.4), (0.2, -0.4), (0.2, 0), (0, 0)]), abs=1e-4)
    turned = PLAIN.corners(Pose(0, 0, 0.5, 30, 0, 0), 0.2, 0.2)
    left, right = turned[3, 1] - turned[0, 1], turned[2, 1] - turned[1, 1]
    assert left / right == pytest.approx((0.5 + 0.05) / (0.5 - 0.05), rel=1e-4)  # the nearer side is as much larger
    upside_down = PLAIN.corners(Pose(0, 0, 0.5, 0, 0, 180), 0.1, 0.2)
    assert upside_down == pytest.approx(np.roll(PLAIN.corners(Pose(0, 0, 0.5, 0, 0, 0), 0.1, 0.2), 2, 0), abs=1e-6)


def test_a_card_is_drawn_between_its_corners():
    card = Image.new("RGBA", (40, 20), (255, 0, 0, 255))
    card.paste((0, 0, 255, 255), (20, 0, 40, 20))
    corners = np.array([(-0.25, -0.3), (0.3, -0.2), (0.25, 0.35), (-0.3, 0.2)])
    numbers = coefficients(corners, 40, 20)
    for (x, y), (u, v) in zip(corners, [(0, 0), (40, 0), (40, 20), (0, 20)], strict=True):
        scale = numbers[6] * x + numbers[7] * y + 1
        assert (numbers[0] * x + numbers[1] * y + numbers[2]) / scale == pytest.approx(u, abs=1e-6)
        assert (numbers[3] * x + numbers[4] * y + numbers[5]) / scale == pytest.approx(v, abs=1e-6)
    frame = Image.new("RGB", (200, 100))
    Film(PLAIN, 100, 200).place(frame, card.convert("RGBa"), corners, 0.0, np.zeros(2))
    pixels = np.asarray(frame).astype(int)
    assert pixels[50, 80].tolist() == [255, 0, 0] and pixels[50, 122].tolist() == [0, 0, 255]
    a, b = corners, np.roll(corners, -1, 0)
    area = abs((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()) / 2 * 100**2
    assert (pixels.sum(-1) / 255).sum() == pytest.approx(area, rel=0.02)


def test_blur_is_that_of_the_lens_until_the_focus_has_followed():
    assert PLAIN.blur(1.0, 5.0) == 0
    assert PLAIN.blur(0.25, 5.0) == pytest.approx(2e-3 * (1 / 0.25 - 1), rel=1e-4)
    following = replace(PLAIN, refocusing=0.2)
    blurs = [following.blur(0.25, held) for held in (0.0, 0.2, 0.5, 2.0)]
    assert blurs[0] == PLAIN.blur(0.25, 0.0) and blurs == sorted(blurs, reverse=True) and blurs[-1] < 1e-5


@pytest.mark.parametrize("path", [(0.2, 0.0), (-0.2, 0.0), (0.0, 0.2), (0.13, -0.1)])
def test_what_moves_is_smeared_along_its_path_only(path):
    """A card at the edge of the view leaves no traces at the other side of it."""
    card = Image.new("RGBA", (80, 80), (255, 255, 255, 0))  # with room around it, as those of `Card`
    card.paste((255, 255, 255, 255), (20, 20, 60, 60))
    card = card.convert("RGBa")
    square = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.4
    film = Film(PLAIN, 100, 100)
    for middle in ((0.0, 0.0), (-0.45, 0.1), (0.1, 0.5)):
        frame = Image.new("RGB", (100, 100))
        film.place(frame, card, square + middle, 0.0, np.array(path))
        rows, columns = np.nonzero(np.asarray(frame)[..., 0] > 12)
        for seen, side in ((columns, 0), (rows, 1)):
            half = 20 + abs(path[side]) * 50 + 5  # what is smeared is drawn with fewer pixels
            assert seen.min() >= 50 + 100 * middle[side] - half and seen.max() <= 50 + 100 * middle[side] + half
    frame = Image.new("RGB", (100, 100))
    film.place(frame, card, square, 0.0, np.array(path))
    assert np.asarray(frame)[..., 0].sum() / 255 == pytest.approx(1600, rel=0.06)  # as much light as if it rested


def test_light_colours_and_noise():
    grey = Image.new("RGB", (96, 96), (128, 128, 128))
    seen = np.asarray(Film(PLAIN, 96, 96).developed(grey, 0.0))
    assert np.abs(seen.astype(int) - 128).max() <= 1
    noisy = replace(PLAIN, noise=6.0, seed=3)
    frames = [np.asarray(Film(noisy, 96, 96).developed(grey, time)).astype(int) for time in (0.0, 0.5, 0.5)]
    assert frames[0].std() == pytest.approx(6.0, rel=0.05)
    assert (frames[0] != frames[1]).mean() > 0.5 and np.array_equal(frames[1], frames[2])
    assert black_body(NEUTRAL) == pytest.approx([1, 1, 1])
    red, _, blue = np.asarray(Film(replace(PLAIN, kelvin=2800.0), 96, 96).developed(grey, 0.0)).mean((0, 1))
    assert red > 136 > 120 > blue  # a light bulb
    vignette = np.asarray(Film(replace(PLAIN, falloff=0.4), 96, 96).developed(grey, 0.0)).astype(int)
    assert vignette[48, 48, 0] >= 127 and vignette[0, 0, 0] == pytest.approx(128 * 0.6, abs=3)
    uneven = np.asarray(Film(replace(PLAIN, slope=0.5), 96, 96).developed(grey, 0.0)).astype(int)
    assert uneven[48, 2, 0] > 124 and uneven[48, 93, 0] < 70


def test_compression_is_real_and_repeats_itself():
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8))
    frames = np.asarray(coarse.resize((65, 51), Image.BICUBIC))
    frames = np.stack([np.roll(frames, shift, 1) for shift in range(5)])
    good, bad, again = (as_h264(frames, 2.0, quality) for quality in (12, 45, 45))
    errors = [np.abs(each.astype(int) - frames).mean() for each in (good, bad)]
    assert good.shape == frames.shape and 2 * errors[0] < errors[1] + 3 < 40
    assert np.array_equal(bad, again)
    image = Image.fromarray(frames[0])
    errors = [np.abs(np.asarray(as_jpeg(image, quality)).astype(int) - frames[0]).mean() for quality in (90, 10)]
    assert 0 < errors[0] < errors[1]


def test_cards_show_their_picture_so_that_it_stands_out():
    white = Image.new("RGBA", (128, 64), (255, 255, 255, 255))
    assert ground_for(white, (250, 250, 250)) == (5, 5, 5) and ground_for(white, (20, 20, 20)) == (20, 20, 20)
    outlined = white.copy()  # with so much black that the mean of all pixels differs from a dark ground
    outlined.paste((0, 0, 0, 255), (0, 0, 80, 64))
    assert ground_for(outlined, (20, 20, 20)) == (235, 235, 235) and ground_for(outlined, (235,) * 3) == (235,) * 3
    kinds = set()
    for seed in range(20):
        card = Card.chosen(random.Random(seed))
        kinds.add((card.kind, card.hand))
        front = card.front(Image.new("RGBA", (128, 64), (255, 0, 255, 255)))
        edges = 2 * round(AROUND * PIXELS)
        assert front.size == (PIXELS + edges, round(PIXELS * card.height) + edges)
        shown = (np.asarray(front) == (255, 0, 255, 255)).all(-1)
        rows, columns = np.nonzero(shown)
        assert np.ptp(columns) + 1 == pytest.approx(card.share * PIXELS, abs=2)
        assert (rows.min() + rows.max()) / 2 == pytest.approx(front.height / 2, abs=2)
        assert card.front(None).size == front.size
    assert len(kinds) > 6
