"""The overlay video shows what the model saw, which patches each routed layer kept, and what the model said."""

import random

import numpy as np
import pytest
import torch
from fresh_process import ROOT
from PIL import Image, ImageDraw, ImageFont

from videollm_mod import StreamEvent, VideoLLMMoDConfig, VideoLLMMoDVideoProcessor, WatchedFrame
from videollm_mod.decoding import decode_video
from videollm_mod.narration.overlay import (
    ACCENT,
    CURVE,
    PANEL,
    QUIET,
    SIDE,
    SIZES,
    SKIPPED,
    STRIP,
    OverlayVideo,
    frame_fit,
    kept_cells,
    lines_in,
    outlined,
    shown_time,
    square,
)

FONTS = {size: ImageFont.load_default(size) for size in SIZES}
PEN = ImageDraw.Draw(Image.new("RGB", (8, 8)))
CONFIG = VideoLLMMoDConfig.from_pretrained(ROOT)


def watched(kept, time=1.0, silence=0.3, event=None) -> WatchedFrame:
    return WatchedFrame(time, silence, tuple(None if k is None else torch.tensor(k) for k in kept), event)


@pytest.mark.parametrize("seed", range(3))
def test_cells_are_bright_where_layers_kept_them(tmp_path, seed):
    rng = random.Random(seed)
    kept = [None, *(sorted(rng.sample(range(10), 2)) for _ in range(3))]
    overlay = OverlayVideo(tmp_path / "o.mp4", CONFIG, 2.0, 0.725)
    picture = overlay.draw(np.full((90, 90, 3), 200, np.uint8), watched(kept))
    assert picture.shape == (SIDE + STRIP, SIDE + PANEL, 3)
    for cell in range(9):
        count = sum(cell + 1 in layer for layer in kept if layer)  # token 0 is the class token
        row, column = (int((index + 0.5) * SIDE / 3) for index in divmod(cell, 3))
        expected = 200 * (SKIPPED + (1 - SKIPPED) * (count / 3) ** 0.5)
        assert picture[row, column, 0] == pytest.approx(expected, abs=1)
    overlay.close()


def test_kept_cells_ignore_the_class_token():
    assert kept_cells(np.array([0, 5]), (3, 3), True).nonzero() == (np.array([1]), np.array([1]))
    assert kept_cells(np.array([0, 5]), (2, 3), False).tolist() == [[True, False, False], [False, False, True]]


def test_border_is_around_the_area_of_kept_cells():
    cells = np.array([[True, True, False], [False] * 3, [False] * 3])
    border = (outlined(np.zeros((30, 30, 3), np.uint8), cells, width=2) == ACCENT).all(-1)
    inside = np.zeros((30, 30), bool)
    inside[2:8, 2:18] = True
    assert border[:10, :20][~inside[:10, :20]].all() and not border[inside].any()  # none between the two cells
    assert not border[10:].any() and not border[:, 20:].any()


@pytest.mark.parametrize("silence, half", [(0.95, 0), (0.05, 1)])
def test_curve_is_high_where_silence_is_probable(tmp_path, silence, half):
    overlay = OverlayVideo(tmp_path / "o.mp4", CONFIG, 2.0, 0.5)
    for index in range(5):
        overlay.frame(np.zeros((20, 20, 3), np.uint8), watched([[0]] * 4, float(index), silence))
    area = overlay.draw(np.zeros((20, 20, 3), np.uint8), watched([[0]] * 4))[SIDE - CURVE + 20 : SIDE - 4, SIDE + 4 :]
    overlay.close()
    drawn = (area == QUIET).all(-1).sum(1)
    halves = drawn[: len(drawn) // 2].sum(), drawn[len(drawn) // 2 :].sum()
    assert halves[half] > 0 == halves[1 - half]


SQUARE = {"height": 96, "width": 96}
FITS = {
    "pad": {"size": SQUARE},
    "stretch": {"size": SQUARE, "do_pad": False},
    "crop": {"size": {"shortest_edge": 96}, "crop_size": SQUARE, "do_center_crop": True, "as_pictures": True},
}


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("height, width", [(30, 90), (90, 30), (64, 64)])
def test_the_frame_is_placed_as_the_processor_places_it(fit, height, width):
    frame = np.full((height, width, 3), 255, np.uint8)
    frame[: height // 2, : width // 2] = 0
    processor = VideoLLMMoDVideoProcessor(**FITS[fit], do_normalize=False)
    pixels = processor(torch.from_numpy(frame)[None], return_tensors="pt")["pixel_values_videos"][0, 0]
    assert frame_fit(processor) == fit
    assert np.array_equal(square(frame, 96, fit)[:, :, 0] > 127, pixels.numpy() > 0.5)


@pytest.mark.parametrize("fps", [0.5, 2.0, 29.97])
def test_the_video_has_one_frame_per_watched_frame(tmp_path, fps):
    overlay = OverlayVideo(tmp_path / "o.mp4", CONFIG, fps, 0.725)
    event = StreamEvent(0.0, "narration", "A red circle appears " * 8, None, 0.1)
    for index in range(7):
        shade = np.full((48, 64, 3), 20 + 30 * index, np.uint8)
        overlay.frame(shade, watched([[0, 1]] * 4, index / fps, index / 7, event if index == 2 else None))
    overlay.event(StreamEvent(1.0, "answer", "Two.", "How many?"))  # after the last frame, which is then shown again
    overlay.close()
    frames, times = decode_video(tmp_path / "o.mp4", fps)
    assert len(frames) == 8
    np.testing.assert_allclose(times, np.arange(8) / fps)
    strips = frames[:, SIDE + 40 :].reshape(8, -1).astype(int)
    changed = (np.abs(np.diff(strips, axis=0)) > 60).mean(1) > 0.005
    assert changed.tolist() == [
        False,
        True,
        True,
        False,
        False,
        False,
        True,
    ]  # the event of 2 s is no longer new at 3 s


@pytest.mark.parametrize(
    ("words", "size", "num_lines"),
    [(4, 22, 1), (12, 22, 2), (16, 22, 3), (25, 16, 3), (34, 16, 4), (44, 13, 4), (250, 13, 5)],
)
def test_long_narrations_are_wrapped_in_letters_that_fit(words, size, num_lines):
    overlay_size, lines = lines_in(PEN, " ".join(["something"] * words), FONTS, STRIP - 44)
    assert (overlay_size, len(lines)) == (size, num_lines)
    assert all(PEN.textlength(line, font=FONTS[size]) <= SIDE + PANEL for line in lines)
    assert (" ".join(lines).count("something") == words) == (words < 250) and lines[-1].endswith("…") == (words == 250)


@pytest.mark.parametrize("text", ["字" * 90, "A" * 300])
def test_words_longer_than_a_line_are_broken(text):
    _, lines = lines_in(PEN, text, FONTS, STRIP - 44)
    assert "".join(lines) == text and len(lines) > 1


@pytest.mark.parametrize(("seconds", "shown"), [(9.5, "9.5 s"), (99.9, "99.9 s"), (100, "1:40"), (3723.5, "1:02:03")])
def test_times_of_long_streams_are_short(seconds, shown):
    assert shown_time(seconds) == shown


def test_models_without_routed_layers_or_patches_are_drawn(tmp_path):
    config = VideoLLMMoDConfig(frame_token_pooled=None)
    overlay = OverlayVideo(tmp_path / "o.mp4", config, 2.0, 0.725)
    frame = np.full((20, 20, 3), 77, np.uint8)
    assert (overlay.draw(frame, watched([None, None]))[:SIDE, :SIDE] == 77).all()
    overlay.draw(frame, watched([[0]] * 40))  # as many layers as a large model has
    overlay.close()
