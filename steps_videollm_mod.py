"""What a session wants of the model, as steps: carried out one by one, or those of many sessions together.

A session's code is a generator that yields a step and goes on with its result; who carries the step out, and beside
which others, makes no difference to it.

Shapes: F frames of a step, H and W pixels, N vision tokens per frame, k of them kept, Dv hidden size of the vision
tower, V vocabulary.
"""

import functools
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import accumulate
from time import perf_counter

import torch

from .cache_videollm_mod import PackedCache
from .fast_step_videollm_mod import MOST_TOKENS, StepsUnavailable, fast_language_model
from .fast_vision_videollm_mod import encode

FIRST_FRAMES = 8  # of many: what the vision tower of a GPU begins with while the others are on their way to it


class Step:
    """Something to be carried out: `together(steps)` does so with several of one kind and one model."""

    value = error = None

    def result(self):
        """What came of it.

        Raises:
            what went wrong while it was carried out.
        """
        if self.error is None:
            return self.value
        error, self.error = self.error, None
        try:
            raise error
        finally:
            del error  # with its traceback it would hold this frame, and what failed, for longer than need be


class Encode(Step):
    """Frames, uint8 `[F, 3, H, W]`, to features `[F, N, Dv]`."""

    def __init__(self, session, frames: torch.Tensor):
        self.session, self.frames = session, frames

    @staticmethod
    @torch.no_grad()
    def together(steps: list["Encode"]) -> None:
        model, start, spans, features = steps[0].session.model, perf_counter(), [], []
        device = model.device
        try:
            for piece in in_pieces(steps, device):
                pixels = [
                    step.session.processor.video_processor.to_pixels(brought(frames, device)) for step, frames in piece
                ]
                begin = mark(device)
                features.append(encode(model, pixels[0] if len(pixels) == 1 else torch.cat(pixels)))
                spans.append((begin, mark(device)))
        finally:
            synchronise(device)
            vision = sum(seconds_between(*span) for span in spans)
            count(steps, "vision", vision)
            count(steps, "preprocess", perf_counter() - start - vision)  # less what the tower hides
        features = features[0] if len(features) == 1 else torch.cat(features)
        for step, own in zip(steps, features.split([len(step.frames) for step in steps]), strict=True):
            step.value = own


def in_pieces(steps: list[Encode], device: torch.device) -> list[list[tuple[Encode, torch.Tensor]]]:
    """The steps' frames in order, cut into what goes through the tower together: of many, on a GPU, few come first."""
    total = sum(len(step.frames) for step in steps)
    if device.type != "cuda" or total < 2 * FIRST_FRAMES:
        return [[(step, step.frames) for step in steps]]
    parts = [(step, frames) for step in steps for frames in step.frames.split(FIRST_FRAMES)]
    some = list(accumulate(len(frames) for _, frames in parts))
    first = 1 + next(index for index, count in enumerate(some) if count >= FIRST_FRAMES)
    return [parts[:first], parts[first:]]


def brought(frames: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`frames.to(device)`; to a GPU beside what it is at."""
    if device.type != "cuda" or frames.device.type != "cpu":
        return frames.to(device)
    with torch.cuda.stream(copying_stream(device)):
        arrived = frames.to(device)
    arrived.record_stream(torch.cuda.current_stream(device))
    return arrived


@functools.cache
def copying_stream(device: torch.device) -> "torch.cuda.Stream":
    return torch.cuda.Stream(device)


class Feed(Step):
    """Tokens, and the features `[F, N, Dv]` of the frames among them, into the language model and the session's cache.

    The result is `(logits, kept, worth)`: `[F, V]` after each frame, or `[1, V]` after the last token where there is
    no frame; for each layer which tokens of the frames it kept, int64 `[F, k]` or None; and the frames' scores, the
    mean over the LayerExperts, float32 `[F, N]` on the CPU, or None.
    """

    def __init__(self, session, ids: list[int], features: torch.Tensor | None):
        self.session, self.ids, self.features = session, ids, features

    @property
    def num_frames(self) -> int:
        return 0 if self.features is None else len(self.features)

    @property
    def read_at(self) -> list[int]:
        """Of which tokens the logits are wanted."""
        last = len(self.ids) - 1
        if self.features is None:
            return [last]
        apart = self.features.shape[1] + 1  # a separator between two frames
        return [last - apart * index for index in reversed(range(self.num_frames))]

    def alone(self) -> bool:
        """Carry the step out as static steps of the model; False where it can not be."""
        session, length = self.session, len(self.ids)
        fast, why_not = fast_language_model(session.model)
        session.why_not_static = why_not if session.model.device.type == "cuda" else None
        if fast is None or length > MOST_TOKENS:
            return False
        before = session.cache.get_seq_length()
        try:
            with stage(None, [self]):
                logits, kept, scores = fast.feed(session.cache, self.ids, self.features, session.keep_ratio)
        except StepsUnavailable as error:
            session.why_not_static = str(error)
            session.cache.rollback(before)
            return False
        worth = None if scores is None or not session.most_bytes else scores.sigmoid().mean(0).cpu()
        self.value = (logits, kept, worth)
        return True

    @staticmethod
    @torch.no_grad()
    def together(steps: list["Feed"]) -> None:
        if len(steps) == 1 and steps[0].alone():
            return
        session = steps[0].session
        model, device = session.model, session.model.device
        lengths, inputs = [len(step.ids) for step in steps], {}
        starts = [sum(lengths[:index]) for index in range(len(lengths))]
        if len(steps) == 1:
            inputs["past_key_values"] = session.cache
        else:
            caches = [step.session.cache for step in steps]
            inputs["past_key_values"] = PackedCache(caches, lengths)
            positions = [
                torch.arange(length) + cache.seen_tokens for cache, length in zip(caches, lengths, strict=True)
            ]
            inputs["position_ids"] = torch.cat(positions)[None].to(device)
        features = [step.features for step in steps if step.features is not None]
        if features:
            inputs |= {"video_features": torch.cat(features), "output_router_scores": True}
        read_at = [start + index for start, step in zip(starts, steps, strict=True) for index in step.read_at]
        with stage(None, steps):
            output = model(
                input_ids=torch.tensor([[token for step in steps for token in step.ids]], device=device),
                logits_to_keep=torch.tensor(read_at, device=device),
                keep_ratio=session.keep_ratio,
                **inputs,
            )
        frames = [step.num_frames for step in steps]
        logits = output.logits[0].split([len(step.read_at) for step in steps])
        kept = [(None,) * len(steps) if x is None else x.split(frames) for x in output.kept_indices or ()]
        scores = [x for x in output.router_scores or () if x is not None]
        worth = (None,) * len(steps)
        if scores and any(step.session.most_bytes for step in steps):
            worth = torch.stack(scores).sigmoid().mean(0).cpu().split(frames)
        for index, step in enumerate(steps):
            step.value = (logits[index], tuple(layer[index] for layer in kept), worth[index])


@contextmanager
def stage(name: str | None, steps: list[Step]) -> Iterator[None]:
    """Count the time of a block of code, in equal parts, as the named stage of the steps' sessions; without a name as
    that of watching or speaking, whichever the step is for."""
    start = perf_counter()
    try:
        yield
    finally:
        synchronise(steps[0].session.model.device)
        count(steps, name, perf_counter() - start)


def count(steps: list[Step], name: str | None, seconds: float) -> None:
    for step in steps:
        stage = name or ("language" if step.num_frames else "generation")
        step.session.count_seconds(stage, seconds / len(steps))


def synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def mark(device: torch.device):
    """A point in the device's work; on a GPU nobody waits for it."""
    if device.type != "cuda":
        synchronise(device)
        return perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def seconds_between(begin, end) -> float:
    """Of two marks that were reached."""
    return end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1000


def carry_out_together(steps: list[Step]) -> None:
    """Carry out steps of one kind; an error is raised by each step's `result()`."""
    try:
        type(steps[0]).together(steps)
    except BaseException as error:
        for step in steps:
            step.error = error


def carry_out(work: Iterator) -> Iterator:
    """What `work` yields beside its steps, each of which is carried out as it comes."""
    with closing(work):
        for item in work:
            if isinstance(item, Step):
                carry_out_together([item])
            else:
                yield item


__all__ = ["Encode", "Feed", "Step", "carry_out", "carry_out_together"]
