"""A video of what the model saw: the patches that routed layers kept, and below them what the model said.

On the left is the frame as the model sees it; the more routed layers kept a cell, the brighter it is. On the right are
the cells that each routed layer kept, and the probability of silence over time. Below are that of this frame with the
threshold, and what was said last.

Shapes: H and W pixels, h x w grid of pooled patches, L routed layers, k tokens kept of the N of a frame.
"""

import math
import os
from collections import deque
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..containers import readable_errors
from ..speaking import StreamEvent, WatchedFrame
from .sight import why_silent
from .writers import one_line

SIDE = 480  # pixels of the main frame
PANEL = 320  # width of the panel of layers
STRIP = 144  # height of the strip below
CURVE = 104  # height of the curve of silence below the panel of layers
SHOWN_FRAMES = 32  # of that curve
BACKGROUND, TEXT, FAINT, ACCENT, QUIET = (16, 18, 24), (240, 240, 240), (130, 135, 150), (255, 190, 60), (90, 170, 250)
BORDER = (70, 74, 88)
LONGEST = 1000  # characters; longer texts are cut
SIZES = (22, 16, 13)  # of letters, pixels
SKIPPED = 0.4  # brightness of a cell that a layer skipped


def kept_cells(kept: np.ndarray, grid: tuple[int, int], has_class_token: bool) -> np.ndarray:
    """Which cells of the grid a layer kept, bool `[h, w]`; `kept`: int `[k]`, indices of the N tokens."""
    cells = np.zeros(grid[0] * grid[1], dtype=bool)
    index = kept - int(has_class_token)
    cells[index[index >= 0]] = True
    return cells.reshape(grid)


def spread(cells: np.ndarray, side: int) -> np.ndarray:
    """Enlarge `[h, w]` to `[side, side]`; each value fills its cell."""
    rows, columns = (np.arange(side) * count // side for count in cells.shape)
    return cells[rows][:, columns]


class OverlayVideo:
    """
    An H.264 video in fragments of one second, so that even the file of a killed process plays.

    Args:
        path: of an .mp4 file.
        config (`VideoLLMMoDConfig`): of the model.
        fps (`float`): frames per second.
        speak_threshold (`float`, *optional*): marked on the bar of the probability of silence; None for a model that
            cannot describe the clip, of which neither this probability nor any words are shown.
        fit (`str`): how the model's frames become squares, see `frame_fit`.
    """

    def __init__(self, path: Path, config, fps: float, speak_threshold: float | None, fit: str = "pad"):
        import av

        self.fit = fit
        self._last: tuple[np.ndarray, WatchedFrame] | None = None  # the last frame
        self._unseen = False  # whether something was said since
        self.grid = tuple(config.frame_token_pooled or (1, 1))
        self.has_class_token, self.num_tokens = config.frame_token_cls, config.num_frame_tokens
        self.threshold, self._why_silent = speak_threshold, why_silent(config)
        self._said: deque[StreamEvent] = deque(maxlen=4)  # the last events, newest first
        # of the last frames: probability of silence, whether it spoke
        self._silence: deque[tuple[float, bool]] = deque(maxlen=SHOWN_FRAMES)
        self._fonts = {size: ImageFont.load_default(size) for size in SIZES}
        self._av, self._path = av, path
        with readable_errors(str(path), "write"):
            flags = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
            self._container = av.open(os.path.abspath(path), "w", format="mp4", options=flags)
            rate = Fraction(fps).limit_denominator(1001)
            self._stream = self._container.add_stream("libx264", rate=rate)
            self._stream.width, self._stream.height = SIDE + PANEL, SIDE + STRIP
            self._stream.pix_fmt = "yuv420p"
            # one key frame per second, and no frames held back
            self._stream.options = {"crf": "20", "preset": "veryfast", "tune": "zerolatency", "g": str(math.ceil(fps))}

    def event(self, event: StreamEvent) -> None:
        """Show an event from the next frame on."""
        self._unseen = True
        if not self._said or event is not self._said[0]:
            self._said.appendleft(event)

    def frame(self, image: np.ndarray, watched: WatchedFrame) -> None:
        """Add a frame, uint8 `[H, W, 3]`."""
        if watched.event is not None:
            self.event(watched.event)
        self._last, self._unseen = (image, watched), False
        self._silence.append((watched.silence_probability, watched.event is not None))
        drawn = self._av.VideoFrame.from_ndarray(self.draw(image, watched), format="rgb24")
        with readable_errors(str(self._path), "write"):
            self._container.mux(self._stream.encode(drawn))

    def close(self) -> None:
        """End the video; an event after the last frame is shown on a copy of that frame."""
        if self._unseen and self._last is not None:
            self.frame(self._last[0], replace(self._last[1], event=None))
        with readable_errors(str(self._path), "write"):
            self._container.mux(self._stream.encode())
            self._container.close()

    def draw(self, image: np.ndarray, watched: WatchedFrame) -> np.ndarray:
        """uint8 `[SIDE + STRIP, SIDE + PANEL, 3]`."""
        seen = square(image, SIDE, self.fit)
        layers = {i: kept.cpu().numpy() for i, kept in enumerate(watched.kept) if kept is not None}
        canvas = Image.new("RGB", (SIDE + PANEL, SIDE + STRIP), BACKGROUND)
        canvas.paste(Image.fromarray(self._highlight(seen, list(layers.values()))), (0, 0))
        pen = ImageDraw.Draw(canvas)
        pen.line((SIDE, 0, SIDE, SIDE, 0, SIDE), fill=BORDER)
        self._draw_layers(canvas, pen, seen, layers)
        pen.text((12, SIDE + 10), shown_time(watched.time), font=self._fonts[16], fill=FAINT)
        if self.threshold is None:
            self._draw_lines(pen, wrapped(pen, self._why_silent, self._fonts[16]), 16, SIDE + 44, FAINT)
        else:
            self._draw_curve(pen, self.threshold)
            self._draw_strip(pen, watched, self.threshold)
        return np.asarray(canvas)

    def _highlight(self, seen: np.ndarray, layers: list[np.ndarray]) -> np.ndarray:
        """The main frame: fully bright where every routed layer kept a cell, `SKIPPED` where none did."""
        if not layers:
            return seen
        share = np.mean([kept_cells(kept, self.grid, self.has_class_token) for kept in layers], axis=0)
        brightness = SKIPPED + (1 - SKIPPED) * np.sqrt(share)
        return outlined((seen * spread(brightness, SIDE)[:, :, None]).astype(np.uint8), share > 0, width=2)

    def _draw_layers(self, canvas, pen, seen: np.ndarray, layers: dict[int, np.ndarray]) -> None:
        pen.text((SIDE + 12, 8), "vision tokens that each routed layer keeps", font=self._fonts[13], fill=FAINT)
        columns = max(1, math.ceil(math.sqrt(len(layers) / 1.7)))
        rows = max(1, math.ceil(len(layers) / columns))
        size = min(150, (PANEL - 12) // columns - 8, (SIDE - CURVE - 30) // rows - 24)
        small = np.asarray(Image.fromarray(seen).resize((max(size, 8),) * 2))
        for number, (layer, kept) in enumerate(layers.items()):
            x, y = SIDE + 12 + number % columns * (size + 8), 30 + number // columns * (size + 24)
            cells = kept_cells(kept, self.grid, self.has_class_token)
            shade = spread(np.where(cells, 1.0, SKIPPED), len(small))[:, :, None]
            canvas.paste(Image.fromarray(outlined((small * shade).astype(np.uint8), cells)), (x, y))
            pen.rectangle((x - 1, y - 1, x + len(small), y + len(small)), outline=BORDER)
            class_token = self.has_class_token and 0 in kept
            count = f"{len(kept)} of {self.num_tokens}{', class' if class_token else ''}"
            label = f"layer {layer}: {count}"
            if pen.textlength(label, font=self._fonts[13]) > size + 6:
                label = f"{layer}: {count}"
            pen.text((x, y + len(small) + 2), label, font=self._fonts[13], fill=ACCENT if class_token else TEXT)

    def _draw_curve(self, pen, threshold: float) -> None:
        """The probability of silence after the last frames, with a dot where the model spoke."""
        left, right, bottom = SIDE + 12, SIDE + PANEL - 12, SIDE - 8
        pen.text(
            (left, SIDE - CURVE + 2), "probability of silence, and the threshold", font=self._fonts[13], fill=FAINT
        )

        def height(probability: float) -> int:
            return bottom - round((CURVE - 30) * probability)

        points = [
            (left + (right - left) * index // (SHOWN_FRAMES - 1), height(probability))
            for index, (probability, _) in enumerate(self._silence)
        ]
        pen.line((left, height(0), right, height(0)), fill=BORDER)
        pen.line((left, height(threshold), right, height(threshold)), fill=TEXT)
        if len(points) > 1:
            pen.line(points, fill=QUIET, width=2)
        for (x, y), (_, spoke) in zip(points, self._silence, strict=True):
            if spoke:
                pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=ACCENT)

    def _draw_strip(self, pen, watched: WatchedFrame, threshold: float) -> None:
        y = SIDE + 10
        # the probability of silence, and the threshold below which the model speaks
        left, width = 130, SIDE + PANEL - 130 - 12
        speaks = watched.event is not None
        pen.rectangle((left, y + 3, left + width, y + 17), outline=FAINT)
        filled = left + round(width * watched.silence_probability)
        pen.rectangle((left, y + 3, filled, y + 17), fill=ACCENT if speaks else QUIET)
        mark = left + round(width * threshold)
        pen.line((mark, y - 2, mark, y + 22), fill=TEXT, width=2)
        pen.text((left - 52, y + 3), "silence", font=self._fonts[13], fill=FAINT)
        self._draw_words(pen, y + 34, ACCENT if speaks else TEXT)

    def _draw_words(self, pen, y: int, colour: tuple[int, int, int]) -> None:
        """The last event in the largest letters in which all of it fits, and below it those before, one line each."""
        for index, event in enumerate(self._said):
            fonts, room = (self._fonts, SIDE + STRIP - y) if index == 0 else ({16: self._fonts[16]}, 22)
            size, lines = lines_in(pen, words_of(event), fonts, room)
            if y + len(lines) * (size + 6) > SIDE + STRIP:
                break
            y = self._draw_lines(pen, lines, size, y, colour if index == 0 else FAINT)

    def _draw_lines(self, pen, lines: list[str], size: int, y: int, colour: tuple[int, int, int]) -> int:
        """Write lines from `y` on; returns where the next one would be."""
        for line in lines:
            pen.text((12, y), line, font=self._fonts[size], fill=colour)
            y += size + 6
        return y


def words_of(event: StreamEvent) -> str:
    """What is shown of an event: its time, an answer after its question."""
    text = one_line(event.text)[:LONGEST]
    asked = f"{one_line(event.query)[:LONGEST]}  " if event.kind == "answer" else ""
    return f"{shown_time(event.time)}  {asked}{text}"


def shown_time(seconds: float) -> str:
    """`12.5 s`, and from 100 seconds on `1:40` or `1:02:03`."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def outlined(image: np.ndarray, cells: np.ndarray, width: int = 1) -> np.ndarray:
    """uint8 `[side, side, 3]`, with the border of the area of `cells`, bool `[h, w]`, drawn inside of it."""
    inside = spread(cells, len(image))
    core = inside.copy()
    for axis in (0, 1):
        for shift in (width, -width):
            core &= np.roll(inside, shift, axis)
    core[:width] = core[-width:] = core[:, :width] = core[:, -width:] = False
    image = image.copy()
    image[inside & ~core] = ACCENT
    return image


def frame_fit(video_processor) -> str:
    """How frames become squares: `"pad"`, `"stretch"`, or `"crop"`, which keeps the middle."""
    return "crop" if video_processor.do_center_crop else "pad" if video_processor.do_pad else "stretch"


def square(image: np.ndarray, side: int, fit: str) -> np.ndarray:
    """Make uint8 `[H, W, 3]` `[side, side, 3]`, as the video processor does it. fit: as `frame_fit`."""
    height, width = image.shape[:2]
    scale = side / (min if fit == "crop" else max)(height, width)
    size = (side, side) if fit == "stretch" else (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = Image.new("RGB", (side, side))
    canvas.paste(Image.fromarray(image).resize(size), ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(canvas)


WIDTH = SIDE + PANEL - 24  # of a line in the strip


def fitted(pen, text: str, font) -> str:
    """Cut `text` to the width of the strip, with an ellipsis."""
    if pen.textlength(text, font=font) <= WIDTH:
        return text
    return text[: max(0, num_fitting(pen, text, font) - 2)].rstrip() + "…"


def num_fitting(pen, text: str, font) -> int:
    """How many characters of `text` fit into a line, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if pen.textlength(text[:middle], font=font) <= WIDTH else (low, middle - 1)
    return low


def lines_in(pen, text: str, fonts: dict, room: int) -> tuple[int, list[str]]:
    """The size of letters and the lines of `text` in `room` pixels: the first of `fonts` (by size) in which all of it
    fits, or as much of it as fits in the last one."""
    for size, font in fonts.items():
        lines, fitting = wrapped(pen, text, font), room // (size + 6)
        if len(lines) <= fitting:
            return size, lines
    return size, [*lines[: fitting - 1], fitted(pen, " ".join(lines[fitting - 1 :]), font)]


def wrapped(pen, text: str, font) -> list[str]:
    """Break `text` into lines as wide as the strip: between words, and within a word that is longer than a line."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font=font) <= WIDTH:
            lines[-1] = longer
            continue
        lines += [word] if lines[-1] else []
        while pen.textlength(word, font=font) > WIDTH:
            count = num_fitting(pen, word, font)
            lines[-1], word = word[:count], word[count:]
            lines.append(word)
        lines[-1] = word
    return lines


__all__ = ["OverlayVideo", "frame_fit", "kept_cells"]
