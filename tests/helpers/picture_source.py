"""A live source whose frames a test chooses."""

import time

import numpy as np

from videollm_mod.sources.live_source import LiveCounts, LiveFrame


class Pictures:
    """A live source of given pictures, two a second."""

    counts = LiveCounts()

    def __init__(self, images: np.ndarray):
        self.images = images

    def __iter__(self):
        yield from (LiveFrame(image, index / 2, time.perf_counter()) for index, image in enumerate(self.images))

    def stop(self):
        pass
