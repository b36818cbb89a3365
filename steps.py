"""The calls of the model that sessions need, as steps: they run one by one, or those of many sessions together.

The code of a session is a generator that yields a step and continues with its result. It makes no difference to the
session who runs a step, and with which others. A step holds its inputs and its result; it does not know its session.

Shapes: F frames of a step, H and W pixels, N vision tokens per frame, k of them kept, M features of a frame and Dv
their size, V vocabulary.
"""

import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from time import perf_counter
from typing import Any, NamedTuple

import torch

from .cache import MoDCache, PackedCache
from .configuration_videollm_mod import num_kept_tokens
from .speaking import silence_probability
from .static_graphs import NOT_FINITE, StaticLanguageModel, StepsUnavailable, static_language_model
from .static_step import StepOutput
from .static_vision import MAX_FRAMES, encode

FIRST_FRAMES = 8  # of many frames, the vision tower of a GPU starts with these while the others are being copied


def in_normal_mode(function):
    """Run a function without gradients, and outside of the caller's inference mode. Tensors made in inference mode
    cannot be written to outside of it, and the model's graphs and constants are shared by all of its sessions."""
    return torch.inference_mode(False)(torch.no_grad()(function))


class Step:
    """A call of the model that is still to run: `together(steps)` runs several of one kind on one model.

    Args:
        num_frames (`int`): frames among the inputs.

    Attributes:
        times (`list[StageTime]`): the time that it took, also where it failed.
    """

    value: Any = None
    error: BaseException | None = None

    def __init__(self, num_frames: int):
        self.num_frames = num_frames
        self.times: list[StageTime] = []

    @property
    def shares(self) -> dict[str, float]:
        """The stages that the language model's time counts for, and the share of each."""
        return {"language" if self.num_frames else "generation": 1.0}

    @staticmethod
    def together(steps: Sequence) -> None:
        raise NotImplementedError

    def result(self):
        """The result, once the step has run.

        Raises:
            the error with which it failed.
        """
        if self.error is None:
            return self.value
        error, self.error = self.error, None
        try:
            raise error
        finally:
            del error  # its traceback would keep this frame, and what failed, alive


class Encode(Step):
    """Encode frames, uint8 `[F, 3, H, W]`. The result is their features, `[F, M, Dv]` as of `model.encode_frames`.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`), video_processor (`VideoLLMMoDVideoProcessor`).
        frames (uint8 `[F, 3, H, W]`): on any device.
    """

    def __init__(self, model, video_processor, frames: torch.Tensor):
        super().__init__(len(frames))
        self.model, self.video_processor, self.frames = model, video_processor, frames

    @staticmethod
    @in_normal_mode
    def together(steps: list["Encode"]) -> None:
        model, encoded = steps[0].model, []
        device = model.device
        steps = sorted(steps, key=preprocessed_alike)
        for piece in in_pieces(steps, device):
            with stage("preprocess", steps, device):
                pixels = pixels_of(piece, device)
            with stage("vision", steps, device):
                encoded.append(encode(model, pixels))
        features = encoded[0] if len(encoded) == 1 else torch.cat(encoded)
        for step, own in zip(steps, features.split([step.num_frames for step in steps]), strict=True):
            step.value = own


def preprocessed_alike(step: Encode) -> tuple:
    """A key that is equal for steps whose frames can be preprocessed together."""
    return id(step.video_processor), str(step.frames.dtype), *step.frames.shape[1:]


def pixels_of(piece: list[tuple[Encode, torch.Tensor]], device: torch.device) -> torch.Tensor:
    """Frames as pixels `[F, 3, H, W]` for the tower. A GPU preprocesses frames that are alike together, since
    launches take the time there; a CPU does not, since its caches are small."""
    if device.type == "cpu":
        groups = [[own] for own in piece]
    else:
        groups = [list(own) for _, own in groupby(piece, key=lambda own: preprocessed_alike(own[0]))]
    pixels = []
    for group in groups:
        arrived = [to_device(frames, device) for _, frames in group]  # concatenated there: a host copies slowly
        frames = arrived[0] if len(arrived) == 1 else torch.cat(arrived)
        pixels.append(group[0][0].video_processor.to_pixels(frames))
    return pixels[0] if len(pixels) == 1 else torch.cat(pixels)


def in_pieces(steps: list[Encode], device: torch.device) -> list[list[tuple[Encode, torch.Tensor]]]:
    """The steps' frames in order, cut into pieces that go through the tower together. On a GPU many frames are cut
    into a small first piece, and then pieces of the size of the largest graph."""
    total = sum(step.num_frames for step in steps)
    if device.type != "cuda" or total < 2 * FIRST_FRAMES:
        return [[(step, step.frames) for step in steps]]
    pieces: list[list[tuple[Encode, torch.Tensor]]] = [[]]
    left, rest = FIRST_FRAMES, total - FIRST_FRAMES  # of this piece, and of those after it
    for step in steps:
        frames = step.frames
        while len(frames):
            if not left:
                pieces.append([])
                left = min(rest, MAX_FRAMES if len(steps) == 1 else next_piece(rest))
                rest -= left
            pieces[-1].append((step, frames[:left]))
            left, frames = left - len(frames[:left]), frames[left:]
    return pieces


def next_piece(frames: int) -> int:
    """Of so many frames of several streams, how many go through the tower next. Their number differs from step to
    step, and each number needs a graph of its own: so many frames are cut into powers of two."""
    return frames if frames < 2 * FIRST_FRAMES else min(MAX_FRAMES, 1 << (frames.bit_length() - 1))


def to_device(frames: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`frames.to(device)`. A GPU that is busy copies on a stream of its own, beside its other work."""
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


@dataclass(frozen=True)
class FeedResult:
    """What a session gets of a `Feed`.

    Args:
        logits: `[F, V]` after each frame, `[1, V]` after the last token where there is no frame, or `[count, V]` as
            the `Verification` says.
        kept (`list[tuple]`): for each frame which of its tokens each layer kept, int64 `[k]`, or None for all.
        scores (float32 `[F, N]` on the CPU, *optional*): of the frames, the mean over the LayerExperts.
        silence (float32 `[F]` on the CPU, *optional*): how probable silence is after each frame, where the model has
            learned a separator and nothing is verified.
        gap (float32 `[]` on the CPU, *optional*): of the `Verification`.
        why_not_static (`str`, *optional*): why this was no static step, on a device where one is faster.
    """

    logits: torch.Tensor
    kept: list[tuple[torch.Tensor | None, ...]]
    scores: torch.Tensor | None
    silence: torch.Tensor | None
    gap: torch.Tensor | None
    why_not_static: str | None


@dataclass(frozen=True)
class Verification:
    """Text that is read after a frame to see how well it fits. Afterwards the caller removes it from the cache.

    Args:
        ids (`list[int]`): the tokens.
        count (`int`): the logits of so many tokens at the end are needed.
        gap (`Callable`): of these logits, `[count, V]` -> float32 `[]`; see `TokenSampler.largest_gap`.
    """

    ids: list[int]
    count: int
    gap: Callable[[torch.Tensor], torch.Tensor]


class Feed(Step):
    """Feed tokens, and the features of the frames among them, to the language model. The result is a `FeedResult`.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`).
        cache (`MoDCache`): of the stream; it holds the tokens afterwards.
        ids (`list[int]`): tokens, with a placeholder for each vision token.
        features (`[F, M, Dv]`, *optional*): of the frames.
        keep_ratio (`float`, *optional*): share of vision tokens that routed layers keep; the model's own if omitted.
        wants_scores (`bool`): whether the result holds `scores`.
        verification (`Verification`, *optional*): what is read after `ids`, which end with the only frame.
        ends (`list[int]`, *optional*): for each frame, where in `ids` the token stands after which the model speaks or
            not; if omitted, a separator stands between two frames, and nothing after the last.

    Attributes:
        image_features (`[K, D]`, *optional*): of images that are cut into tiles, as of `get_image_features`.
    """

    def __init__(
        self,
        model,
        cache: MoDCache,
        ids: list[int],
        features: torch.Tensor | None = None,
        keep_ratio: float | None = None,
        wants_scores: bool = False,
        verification: Verification | None = None,
        ends: list[int] | None = None,
    ):
        super().__init__(0 if features is None else len(features))
        self.model, self.cache, self.ids, self.features = model, cache, ids, features
        self.keep_ratio, self.wants_scores, self.verification = keep_ratio, wants_scores, verification
        self.ends = ends
        self.image_features: torch.Tensor | None = None
        if verification is not None:
            self.ids = ids + verification.ids

    @functools.cached_property
    def num_after(self) -> int:
        """Tokens of text after the last frame."""
        return 0 if self.features is None else self.ids[::-1].index(self.model.config.video_token_id)

    @property
    def is_regular(self) -> bool:
        """Whether at most one token of text stands between two frames, and equally many everywhere: static steps take
        no others together."""
        config, stop = self.model.config, len(self.ids) - self.num_after
        first = self.ids.index(config.video_token_id) if self.num_frames else stop
        between = stop - first - self.num_frames * config.num_frame_tokens
        return between in (0, self.num_frames - 1)

    @property
    def ratio(self) -> float:
        """The keep ratio of its frames."""
        return self.model.keep_ratio if self.keep_ratio is None else self.keep_ratio

    def without_filling(self, kept: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
        """What each layer kept of its frames, `[F, k]`, from `[F, any number from k on]`."""
        count = num_kept_tokens(self.ratio, self.model.config.num_frame_tokens)
        return tuple(None if tokens is None else tokens[:, :count] for tokens in kept)

    @property
    def shares(self) -> dict[str, float]:
        if self.verification is None:
            return super().shares
        share = len(self.verification.ids) / len(self.ids)
        return {"language": 1 - share, "verify": share}

    @property
    def read_at(self) -> list[int]:
        """Indices of the tokens whose logits are needed."""
        if self.verification is not None:
            return list(range(len(self.ids) - self.verification.count, len(self.ids)))
        last = len(self.ids) - 1
        if self.features is None:
            return [last]
        if self.ends is not None:
            return self.ends
        apart = self.model.config.num_frame_tokens + 1  # a separator between two frames
        return [last - apart * index for index in reversed(range(self.num_frames))]

    @staticmethod
    @in_normal_mode
    def together(steps: list["Feed"]) -> None:
        model = steps[0].model
        static, why_not = static_language_model(model)
        device = model.device if static is None else static.device
        with stage(None, steps, device):
            found, why_not = Feed._static(steps, static, why_not)
            others = [step for step in steps if step not in found]
            if others:
                found |= zip(others, Feed._one_forward(others), strict=True)
        Feed._set_results(found, why_not)

    @staticmethod
    def _static(
        steps: list["Feed"], static: StaticLanguageModel | None, why_not: str | None
    ) -> tuple[dict["Feed", StepOutput], str | None]:
        """Run the steps that can be static ones. Returns their outputs, and why there are none on a GPU."""
        if static is None:
            return {}, why_not if steps[0].model.device.type == "cuda" else None  # elsewhere it is nearly as fast
        few = [step for step in steps if len(step.ids) <= static.max_tokens and step.is_regular]
        # without graphs only frames gain: a word takes two threads of a CPU longer in a static step
        chosen = [step for step in few if static.captures or step.num_frames]
        streams = [(step.cache, step.ids, step.features) for step in chosen]
        before = [cache.get_seq_length() for cache, _, _ in streams]
        found: list[StepOutput] = []
        try:
            if chosen:
                ratios = [step.keep_ratio for step in chosen]
                found = static.feed_together(streams, ratios, [step.num_after for step in chosen])
        except StepsUnavailable as error:
            chosen, why_not = [], str(error)
            for (cache, _, _), length in zip(streams, before, strict=True):
                cache.rollback(length)
        outputs = dict(zip(chosen, found, strict=True))
        for step, fed in outputs.items():
            if step.num_after:  # there are logits of all of this text, and the silence is that before it
                outputs[step] = replace(fed, logits=fed.logits[-len(step.read_at) :], silence=None)
        return outputs, why_not

    @staticmethod
    def _one_forward(steps: list["Feed"]) -> list[StepOutput]:
        """Run the steps in one forward of the model."""
        model, device = steps[0].model, steps[0].model.device
        lengths = [len(step.ids) for step in steps]
        inputs: dict[str, Any] = {}
        starts = [sum(lengths[:index]) for index in range(len(lengths))]
        if len(steps) == 1:
            inputs["cache"] = steps[0].cache
        else:
            caches = [step.cache for step in steps]
            inputs["cache"] = PackedCache(caches, lengths)
            positions = [
                torch.arange(length) + cache.seen_tokens for cache, length in zip(caches, lengths, strict=True)
            ]
            inputs["position_ids"] = torch.cat(positions)[None].to(device)
        features = [step.features for step in steps if step.features is not None]
        if features:
            inputs |= {"video_features": torch.cat(features), "output_router_scores": True}
        if images := [step.image_features for step in steps if step.image_features is not None]:
            inputs["image_features"] = torch.cat(images)
        read_at = [start + index for start, step in zip(starts, steps, strict=True) for index in step.read_at]
        ratios = [step.ratio for step in steps for _ in range(step.num_frames)]
        output = model(
            input_ids=torch.tensor([[token for step in steps for token in step.ids]], device=device),
            logits_to_keep=torch.tensor(read_at, device=device),
            keep_ratio=ratios or None,
            **inputs,
        )
        frames = [step.num_frames for step in steps]
        logits = output.logits[0].split([len(step.read_at) for step in steps])
        kept = [(None,) * len(steps) if x is None else x.split(frames) for x in output.kept_indices or ()]
        routed = [x for x in output.router_scores or () if x is not None]
        scores = torch.stack(routed).split(frames, dim=1) if routed else (None,) * len(steps)
        own_kept = [tuple(layer[index] for layer in kept) for index in range(len(steps))]
        if len(set(ratios)) > 1:  # frames that keep fewer tokens than others are filled up
            own_kept = [step.without_filling(own) for step, own in zip(steps, own_kept, strict=True)]
        return [StepOutput(*own) for own in zip(logits, own_kept, scores, strict=True)]

    @staticmethod
    def _set_results(found: dict["Feed", StepOutput], why_not_static: str | None) -> None:
        """Give each step its result. What the host needs to see is copied from the device at once, after all else,
        since the host waits there."""
        wanted = Feed._silence(found)
        for step, fed in found.items():
            if fed.scores is not None and step.wants_scores:
                wanted[step, "scores"] = fed.scores.sigmoid().mean(0)
            if fed.finite is not None:
                wanted[step, "finite"] = fed.finite
            if step.verification is not None:
                wanted[step, "gap"] = step.verification.gap(fed.logits)
        kept = {step: kept_of_frames(fed.kept, step.num_frames) for step, fed in found.items()}
        seen = dict(zip(wanted, to_host(list(wanted.values())), strict=True))
        for step, fed in found.items():
            scores, silence, gap = (seen.get((step, name)) for name in ("scores", "silence", "gap"))
            step.value = FeedResult(fed.logits, kept[step], scores, silence, gap, why_not_static)
            if not seen.get((step, "finite"), True):
                step.error = ValueError(NOT_FINITE)

    @staticmethod
    def _silence(found: dict["Feed", StepOutput]) -> dict[tuple["Feed", str], torch.Tensor]:
        """`{(step, "silence"): [F]}` of the steps with frames and without a verification. Static steps have computed
        it already."""
        watching = [step for step in found if step.num_frames and step.verification is None]
        separator = watching[0].model.config.frame_separator_token_id if watching else None
        if separator is None:
            return {}
        silence = {
            (step, "silence"): own
            for step in watching
            if (own := found[step].silence) is not None and found[step].separator == separator
        }
        others = [step for step in watching if (step, "silence") not in silence]
        if others:
            logits = [found[step].logits for step in others]
            computed = silence_probability(logits[0] if len(logits) == 1 else torch.cat(logits), separator)
            computed = computed.split([len(own) for own in logits])
            silence |= {(step, "silence"): x for step, x in zip(others, computed, strict=True)}
        return silence


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
def stage(name: str | None, steps: Sequence[Step], device: torch.device) -> Iterator[None]:
    """Record the time of a block of code for the named stage, in equal parts for the steps. Without a name, it counts
    for the stages that a step's `shares` name. On a GPU it is the time of the device, and nobody waits for it: the
    host prepares what comes next while the device is at work."""
    begin = Timestamp(device)
    try:
        yield
    finally:
        end = Timestamp(device)
        for step in steps:
            shares = step.shares if name is None else {name: 1.0}
            step.times += [StageTime(own, begin, end, share / len(steps)) for own, share in shares.items()]


class Timestamp:
    """A point in time. On a GPU it lies in the order of the device's work, and is known once the device got there."""

    def __init__(self, device: torch.device):
        self.event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record(torch.cuda.current_stream(device))
        else:
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            self.seconds = perf_counter()

    def seconds_until(self, other: "Timestamp") -> float:
        if self.event is None or other.event is None:
            return other.seconds - self.seconds
        other.event.synchronize()
        return self.event.elapsed_time(other.event) / 1000


class StageTime(NamedTuple):
    """The time of a stage: a share of the time between two timestamps."""

    stage: str
    begin: Timestamp
    end: Timestamp
    share: float

    def seconds(self) -> float:
        return self.begin.seconds_until(self.end) * self.share


def run_together(steps: Sequence[Step]) -> None:
    """Run steps of one kind on one model. An error is raised by each step's `result()`."""
    try:
        type(steps[0]).together(steps)
    except BaseException as error:
        for step in steps:
            step.error = error


def run_steps(work: Generator, kind: type = object) -> Generator:
    """Run each step that `work` yields, and yield everything of this kind."""
    with closing(work):
        for item in work:
            if isinstance(item, Step):
                run_together([item])
            elif isinstance(item, kind):
                yield item


__all__ = [
    "Encode",
    "Feed",
    "FeedResult",
    "StageTime",
    "Step",
    "Timestamp",
    "Verification",
    "run_steps",
    "run_together",
]
