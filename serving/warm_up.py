"""What a server prepares before it serves, so that no client waits for it: the CUDA graphs for its numbers of streams.

A graph is otherwise captured when its shape comes for the second time, and all streams wait for that. The engine's
thread captures them one after the other, while `/health` answers `starting`. Without graphs, as on a CPU, there is
nothing to prepare.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from ..static_graphs import GRAPHS, WARM_TEXT, StaticLanguageModel, static_language_model
from ..static_step import MAX_CAPTURED, Shape
from ..static_vision import MAX_FRAMES, encode
from ..steps import FIRST_FRAMES, in_normal_mode
from .pool import StreamPool

VERIFIED = (16, 32)  # tokens that are read to verify the last narration after each frame


def check_options(model, processor, options: dict) -> None:
    """Watch a frame and say a word with the options of sessions. Raises `ValueError` for wrong ones."""
    pool = StreamPool(model, processor)
    stream = pool.join(model.stream(processor, **options))
    stream.session.speak_threshold, stream.session.max_new_tokens = 1.0, 1
    stream.push(np.zeros((1, 384, 384, 3), np.uint8))
    pool.run()


def preparations(
    model, processor, options: dict, ratios: Sequence[float], sessions: int
) -> list[Callable[[], object]]:
    """What to call, one after the other, before `sessions` streams are served.

    Args:
        options (`dict`): of the sessions.
        ratios (`Sequence[float]`): keep ratios, the usual one first.
    """
    found: list[Callable[[], object]] = []
    if model.device.type == "cuda":
        found += [partial(encode_twice, model, count) for count in frame_counts(sessions)]
    static, _ = static_language_model(model)
    if static is not None and static.captures:
        verifies = (options.get("speak_rule") or model.config.speak_rule) == "verify"
        shapes = step_shapes(static, processor, verifies, ratios, sessions)
        found += [partial(in_normal_mode(static.capture), shape) for shape in shapes]
    return found


def frame_counts(sessions: int) -> list[int]:
    """How many frames go through the vision tower together when up to `sessions` streams have one each; see
    `steps.in_pieces`."""
    few, most = range(1, min(sessions + 1, 2 * FIRST_FRAMES)), min(MAX_FRAMES, sessions - FIRST_FRAMES)
    powers = [1 << power for power in range(MAX_FRAMES.bit_length())]
    return [*few, *(count for count in powers if few.stop <= count <= most)]


@in_normal_mode
def encode_twice(model, count: int) -> None:
    """Encode so many frames; their graph is captured at the second time."""
    vision = model.config.vision_config
    pixels = torch.zeros(count, vision.num_channels, vision.image_size, vision.image_size, device=model.device)
    for _ in range(2):
        encode(model, pixels)


def step_shapes(
    static: StaticLanguageModel, processor, verifies: bool, ratios: Sequence[float], sessions: int
) -> list[Shape]:
    """The captured steps of up to `sessions` streams that watch a frame each, speak, and are asked, at most as many as
    are kept. What comes last is needed least."""
    of_frames = [processor.stream_ids([0.0], in_stream)[0] for in_stream in (True, False)]
    reply = processor.reply_start_ids(True, processor.default_query)
    if verifies:
        of_frames += [of_frames[0] + [0] * count for count in VERIFIED]
    words = [[0], reply, processor.reply_end_ids + processor.start_stream_ids]
    first, *others = [[shape for ids in of_frames for shape in static.shapes(ids, ratio)] for ratio in ratios]
    own = first + [shape for ids in words for shape in static.shapes(ids, ratios[0])]
    doubled = [1 << power for power in range((sessions - 1).bit_length() + 1)]
    shapes = together(own, doubled)
    shapes += static.shapes([0] * WARM_TEXT, ratios[0]) + static.shapes([0] * (WARM_TEXT // 2), ratios[0])
    for level in others:
        shapes += together(level, doubled[::-1])  # it falls when there are many streams
    return list(dict.fromkeys(shapes))[:GRAPHS]


def together(shapes: Sequence[Shape], doubled: Sequence[int]) -> list[Shape]:
    """Steps of so many streams, where they are captured."""
    return [replace(own, streams=x) for x in doubled for own in shapes if x * own.tokens <= MAX_CAPTURED]


__all__ = ["check_options", "frame_counts", "preparations", "step_shapes"]
