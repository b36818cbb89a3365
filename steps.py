"""What a session wants of the model, as steps: carried out one by one, or those of many sessions together.

A session's code is a generator that yields a step and goes on with its result; who carries the step out, and beside
which others, makes no difference to it.

Shapes: F frames of a step, H and W pixels, N vision tokens per frame, k of them kept, Dv hidden size of the vision
tower, V vocabulary.
"""

import functools
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import groupby
from time import perf_counter

import torch

from .cache import PackedCache
from .speaking import silence_probability
from .static_step import MOST_TOKENS, NOT_FINITE, Fed, StepsUnavailable, fast_language_model
from .static_vision import MOST_FRAMES, encode

FIRST_FRAMES = 8  # of many: what the vision tower of a GPU begins with while the others are on their way to it


def in_normal_mode(function):
    """Without gradients, and not in the caller's inference mode: what is made then cannot be written to outside of
    it, and the model's steps, graphs and constants are for all of its sessions."""
    return torch.inference_mode(False)(torch.no_grad()(function))


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
    @in_normal_mode
    def together(steps: list["Encode"]) -> None:
        model, features = steps[0].session.model, []
        device = model.device
        steps = sorted(steps, key=preprocessed_alike)
        for piece in in_pieces(steps, device):
            with stage("preprocess", steps, device):
                pixels = pixels_of(piece, device)
            with stage("vision", steps, device):
                features.append(encode(model, pixels))
        features = features[0] if len(features) == 1 else torch.cat(features)
        for step, own in zip(steps, features.split([len(step.frames) for step in steps]), strict=True):
            step.value = own


def preprocessed_alike(step: Encode) -> tuple:
    """The same for steps whose frames can be preprocessed together."""
    return id(step.session.processor), str(step.frames.dtype), *step.frames.shape[1:]


def pixels_of(piece: list[tuple[Encode, torch.Tensor]], device: torch.device) -> torch.Tensor:
    """Frames as the tower takes them. On a GPU those that are alike together, for there launches are what takes time;
    the caches of a CPU hold little."""
    if device.type == "cpu":
        groups = [[own] for own in piece]
    else:
        groups = [list(own) for _, own in groupby(piece, key=lambda own: preprocessed_alike(own[0]))]
    pixels = []
    for group in groups:
        frames = [brought(frames, device) for _, frames in group]  # and put together there: a host copies slowly
        frames = frames[0] if len(frames) == 1 else torch.cat(frames)
        pixels.append(group[0][0].session.processor.video_processor.to_pixels(frames))
    return pixels[0] if len(pixels) == 1 else torch.cat(pixels)


def in_pieces(steps: list[Encode], device: torch.device) -> list[list[tuple[Encode, torch.Tensor]]]:
    """The steps' frames in order, cut into what goes through the tower together: of many, on a GPU, few come first,
    and then as many as a graph takes."""
    total = sum(len(step.frames) for step in steps)
    if device.type != "cuda" or total < 2 * FIRST_FRAMES:
        return [[(step, step.frames) for step in steps]]
    pieces, left = [[]], FIRST_FRAMES
    for step in steps:
        frames = step.frames
        while len(frames):
            if not left:
                pieces.append([])
                left = MOST_FRAMES
            pieces[-1].append((step, frames[:left]))
            left, frames = left - len(frames[:left]), frames[left:]
    return pieces


def brought(frames: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`frames.to(device)`; to a GPU beside what it is at, if anything."""
    if device.type != "cuda" or frames.device.type != "cpu":
        return frames.to(device)
    current = torch.cuda.current_stream(device)
    if current.query():
        return frames.to(device)
    with torch.cuda.stream(copying_stream(device)):
        arrived = frames.to(device)
    arrived.record_stream(current)
    return arrived


@functools.cache
def copying_stream(device: torch.device) -> "torch.cuda.Stream":
    return torch.cuda.Stream(device)


class Feed(Step):
    """Tokens, and the features `[F, N, Dv]` of the frames among them, into the language model and the session's cache.

    The result is `(logits, kept, worth, silence)`: `[F, V]` after each frame, or `[1, V]` after the last token where
    there is no frame; for each frame which of its tokens each layer kept, int64 `[k]` or None; the frames' scores, the
    mean over the LayerExperts, float32 `[F, N]` on the CPU, or None; and how probable silence is after each frame,
    float32 `[F]` on the CPU.
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

    @staticmethod
    @in_normal_mode
    def together(steps: list["Feed"]) -> None:
        device = steps[0].session.model.device
        with stage(None, steps, device):
            found = Feed._static(steps, device)
            others = [step for step in steps if step not in found]
            if others:
                found |= zip(others, Feed._as_it_is(others), strict=True)
            Feed._look(found)

    @staticmethod
    def _static(steps: list["Feed"], device: torch.device) -> dict["Feed", Fed]:
        """Carry out what can be as static steps of the model."""
        fast, why_not = fast_language_model(steps[0].session.model)
        if device.type != "cuda":
            why_not = None  # it is as fast as can be
        chosen = [] if fast is None else [step for step in steps if len(step.ids) <= MOST_TOKENS]
        streams = [(step.session.cache, step.ids, step.features) for step in chosen]
        before, found = [cache.get_seq_length() for cache, _, _ in streams], []
        try:
            if chosen:
                found = fast.feed_together(streams, chosen[0].session.keep_ratio)
        except StepsUnavailable as error:
            chosen, why_not = [], str(error)
            for (cache, _, _), length in zip(streams, before, strict=True):
                cache.rollback(length)
        for step in steps:
            step.session.why_not_static = why_not
        return dict(zip(chosen, found, strict=True))

    @staticmethod
    def _as_it_is(steps: list["Feed"]) -> list[Fed]:
        """One call of the model."""
        session = steps[0].session
        model, device = session.model, session.model.device
        lengths, inputs = [len(step.ids) for step in steps], {}
        starts = [sum(lengths[:index]) for index in range(len(lengths))]
        if len(steps) == 1:
            inputs["cache"] = session.cache
        else:
            caches = [step.session.cache for step in steps]
            inputs["cache"] = PackedCache(caches, lengths)
            positions = [
                torch.arange(length) + cache.seen_tokens for cache, length in zip(caches, lengths, strict=True)
            ]
            inputs["position_ids"] = torch.cat(positions)[None].to(device)
        features = [step.features for step in steps if step.features is not None]
        if features:
            inputs |= {"video_features": torch.cat(features), "output_router_scores": True}
        read_at = [start + index for start, step in zip(starts, steps, strict=True) for index in step.read_at]
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
        scores = torch.stack(scores).split(frames, dim=1) if scores else (None,) * len(steps)
        own_kept = [tuple(layer[index] for layer in kept) for index in range(len(steps))]
        return [Fed(*fed) for fed in zip(logits, own_kept, scores, strict=True)]

    @staticmethod
    def _look(found: dict["Feed", Fed]) -> None:
        """Give each step its result; what the host wants of them it gets in one look at the device, after all else:
        it waits there."""
        apart: dict[int, list[Feed]] = {}
        wanted = {}
        for step, fed in found.items():
            separator = step.session.processor.frame_separator_token_id
            if step.num_frames and fed.separator == separator:
                wanted[step, "silence"] = fed.silence
            elif step.num_frames:
                apart.setdefault(separator, []).append(step)
        for separator, own in apart.items():
            logits = [found[step].logits for step in own]
            silence = silence_probability(logits[0] if len(logits) == 1 else torch.cat(logits), separator)
            silence = silence.split([step.num_frames for step in own])
            wanted |= {(step, "silence"): x for step, x in zip(own, silence, strict=True)}
        for step, fed in found.items():
            if fed.scores is not None and step.session.most_bytes:
                wanted[step, "worth"] = fed.scores.sigmoid().mean(0)
            if fed.finite is not None:
                wanted[step, "finite"] = fed.finite
        kept = {step: kept_of_frames(fed.kept, step.num_frames) for step, fed in found.items()}
        seen = dict(zip(wanted, to_host(list(wanted.values())), strict=True))
        for step, fed in found.items():
            step.value = (fed.logits, kept[step], seen.get((step, "worth")), seen.get((step, "silence")))
            if not seen.get((step, "finite"), True):
                step.error = ValueError(NOT_FINITE)


def kept_of_frames(kept: tuple[torch.Tensor | None, ...], num_frames: int) -> list[tuple[torch.Tensor | None, ...]]:
    """For each frame what each layer kept, int64 `[k]` or None; from `[F, k]` or None for each layer."""
    layers = [(None,) * num_frames if tokens is None else tokens.unbind() for tokens in kept]
    return [tuple(layer[index] for layer in layers) for index in range(num_frames)]


def to_host(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Copies on the CPU as float32, all in one go."""
    if not tensors:
        return []
    copied = torch.cat([x.float().flatten() for x in tensors]).cpu().split([x.numel() for x in tensors])
    return [own.view(x.shape) for own, x in zip(copied, tensors, strict=True)]


@contextmanager
def stage(name: str | None, steps: list[Step], device: torch.device) -> Iterator[None]:
    """Count the time of a block of code, in equal parts, as the named stage of the steps' sessions; without a name as
    that of watching or speaking, whichever the step is for. On a GPU the time is the device's, and nobody waits for
    it: what comes next is made ready while the device is at work."""
    now = Moment(device)
    try:
        yield
    finally:
        took = now, Moment(device)
        for step in steps:
            stage_of_step = name or ("language" if step.num_frames else "generation")
            step.session.count_seconds(stage_of_step, took, len(steps))


class Moment:
    """A point in time, of the device's if that is a GPU: there it is known once the device has come so far."""

    def __init__(self, device: torch.device):
        self.event = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record(torch.cuda.current_stream(device))
        else:
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            self.seconds = perf_counter()

    def seconds_until(self, other: "Moment") -> float:
        if self.event is None:
            return other.seconds - self.seconds
        other.event.synchronize()
        return self.event.elapsed_time(other.event) / 1000


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
