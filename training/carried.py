"""Training on long streams with the memory of a bounded session in force, in constant memory.

A session that remembers so many frames lets tokens leave its cache now and then, at frames that follow from the stream
alone. Between two such evictions everything that it has read is in its cache. So a stream is cut into windows that end
where the session evicts, and each window attends to the cache that the session would have then: the same tokens, at
the same positions. The forward pass is that of the session, to rounding.

Gradients flow back through the cache over a span of windows, and end there (truncated backpropagation through time).
Streams of a batch have their own windows; shorter ones leave the batch when they end.

Shapes: B streams, T tokens of the longest one, F frames of all streams, N vision tokens per frame.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from ..containers import IGNORE_INDEX, check_count
from ..data.collator import FRAMES, StreamCollator
from ..data.turns import check_turns
from ..memory import TEXT, KeyRotation, StreamMemory
from .carried_cache import CarriedCache

NEVER = 2**31  # the eviction at which a token leaves that stays to the end


@dataclass(frozen=True)
class Carrying:
    """
    Args:
        max_cached_frames (`int`), max_cached_text (`int`, *optional*), cache_policy (`str`): as of `StreamingSession`.
        backprop_windows (`int`): length of a span. The first window has `max_cached_frames` frames, and each further
            one about a quarter of them. Memory grows with it, and not with the length of the stream.

    Raises:
        `ValueError`: for a number below 1, or another policy.
    """

    max_cached_frames: int
    cache_policy: str = "window"
    backprop_windows: int = 4
    max_cached_text: int | None = None

    def __post_init__(self):
        self.memory(1)  # checks the others
        check_count("`backprop_windows`", self.backprop_windows)

    def memory(self, num_frame_tokens: int) -> StreamMemory:
        return StreamMemory(self.max_cached_frames, num_frame_tokens, self.cache_policy, max_text=self.max_cached_text)


class Eviction(NamedTuple):
    """Where a session evicts: before a token of the stream, of which it has read all tokens and frames before. For
    `pending` and `keep_newest` see `StreamMemory.evict`."""

    token: int
    frame: int
    pending: int
    keep_newest: int


def evictions(example: dict, processor, memory: StreamMemory) -> tuple[list[Eviction], np.ndarray]:
    """Where a session evicts that sees, hears and says what is in an example, and int64 `[T]`, the number of the
    eviction at which each token leaves, `NEVER` if it stays. Under `"router"`, which tokens leave depends on scores,
    but how many does not: so where they leave is known before the model runs.

    Args:
        example (`dict`): `input_ids` and `turns`.
        processor (`VideoLLMMoDProcessor`): that made it.
        memory (`StreamMemory`): an empty one, of this stream.

    Raises:
        `ValueError`: for the prompts of another family, whose turns repeat the instruction.
    """
    if processor.sequence.one_turn:
        raise ValueError(
            "`max_cached_frames` in training needs this package's own sequence, and not the prompts of a family; "
            "models of `from_components` and `videollm-mod build --llm` have it"
        )
    check_turns(example)
    ids, turns = example["input_ids"], example["turns"]
    found: list[Eviction] = []
    leaves, held = np.full(len(ids), NEVER), np.empty(0, dtype=np.int64)  # and the tokens that are cached
    tokens = processor.video_token_id, processor.frame_separator_token_id
    read = frames = 0
    recorded = (0, 0)  # tokens and frames that the memory knows of
    free, spare = 0, 0  # frames, and tokens of text, that it surely had room for then

    def evict_if_full(pending: int, keep_newest: bool = False) -> None:
        nonlocal recorded, free, spare, held
        more = frames - recorded[1]
        words = read - recorded[0] - more * processor.num_frame_tokens + pending  # and separators
        if not read or (more < free and words <= spare):  # recording each frame would take most of the time
            return
        memory.record(ids[recorded[0] : read], *tokens, None)
        held, recorded = np.concatenate([held, np.arange(recorded[0], read)]), (read, frames)
        if memory.free_frames(pending=pending) == 0:
            leaving = memory.forget(None, pending, keep_newest).numpy()
            leaves[held[leaving]], held = len(found), held[~leaving]
            found.append(Eviction(read, frames, pending, int(keep_newest)))
        free, spare = memory.free_frames(), memory.text_budget - int((memory.kinds == TEXT).sum())

    for before, turn in zip([None, *turns], turns, strict=False):
        for start in turn.frames:
            evict_if_full(0 if start > turn.frames[0] else start - read)
            read, frames = start + processor.num_frame_tokens, frames + 1
        if turn.role == "assistant":
            if before is not None and before.role == "user":
                evict_if_full(turn.start - read + len(processor.start_stream_ids), keep_newest=True)
            read = turn.stop - len(processor.reply_end_ids)  # the end of a reply is read with what follows
    return found, leaves


@dataclass(frozen=True)
class OnHost:
    """Frames that stay in the memory of the host until their window comes."""

    frames: torch.Tensor


@dataclass
class CarriedCollator(StreamCollator):
    """A `StreamCollator` whose batches also hold `evictions`, int64 `[B, E, 4]`: those of each stream, and -1 behind;
    and `leaves`, int64 `[B, T]`, at which of them each token leaves. Uint8 frames stay on the host.

    Args:
        processor (`VideoLLMMoDProcessor`).
        carrying (`Carrying`).

    Raises:
        `ValueError`: with `packing` or `max_tokens`.
    """

    processor: Any = None
    carrying: Carrying | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.packing:
            raise ValueError("`packing` cannot be used with `max_cached_frames`: each stream has its own cache")
        if self.max_tokens is not None:
            raise ValueError("`max_tokens` cannot be used with `max_cached_frames`, with which streams are not cut")

    def collate(self, examples: list[dict]) -> dict[str, Any]:
        assert self.carrying is not None
        batch, memory = super().collate(examples), self.carrying.memory
        found = [evictions(x, self.processor, memory(self.processor.num_frame_tokens)) for x in examples]
        batch["evictions"] = torch.full((len(found), max(len(own) for own, _ in found), 4), -1)
        batch["leaves"] = torch.full_like(batch["input_ids"], -1)
        for row, (own, leaves) in enumerate(found):
            batch["evictions"][row, : len(own)] = torch.tensor(own, dtype=torch.long).view(-1, 4)
            batch["leaves"][row, -len(leaves) :] = torch.from_numpy(leaves)
        if "frames" in batch:
            batch["frames"] = OnHost(batch["frames"])
        return batch


class CarriedStreams:
    """The windows of a batch, one after the other.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`): or a `PeftModel` around it.
        carrying (`Carrying`).
        batch (`dict`): of a `CarriedCollator`.
    """

    def __init__(self, model, carrying: Carrying, batch: dict[str, Any]):
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config, self.carrying, self.batch = model.config, carrying, batch
        self.rotation = KeyRotation(model.model.language_model.rotary_emb)
        self.cache = CarriedCache(model.config)
        ids = batch["input_ids"]
        valid = batch["attention_mask"].bool()
        first = (~valid).sum(1).tolist()
        self.num_labels = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
        self.labels = torch.nn.functional.pad(batch["labels"], (0, 1), value=IGNORE_INDEX)[:, 1:]
        self.ids, self.device = ids.tolist(), ids.device
        is_frame = ids == self.config.video_token_id
        counts = (is_frame.sum(1) // self.config.num_frame_tokens).tolist()
        self.windows: list[list[tuple[Eviction, Eviction]]] = []  # of each row: where they begin and end
        self.first_frame = [sum(counts[:row]) for row in range(len(counts))]
        for row, own in enumerate(batch["evictions"].tolist()):
            cuts = [Eviction(*cut) for cut in own if cut[0] >= 0]
            cuts = [Eviction(0, 0, 0, 0), *cuts, Eviction(ids.shape[1] - first[row], counts[row], 0, 0)]
            self.windows.append(list(pairwise(cuts)))
        self.first_token = first
        self.memories = [carrying.memory(self.config.num_frame_tokens) for _ in self.windows]
        self.rows = list(range(len(self.windows)))  # of those that go on
        number, length = max(map(len, self.windows)), carrying.backprop_windows
        self.spans = [range(first, min(first + length, number)) for first in range(0, number, length)]

    def span(self, windows: range) -> Iterator[dict[str, Any]]:
        """The inputs of the model for each window of a span, with `shift_labels`. Before it takes the next one, the
        caller calls `add` with the router's scores."""
        for window in windows:
            rows = [row for row in self.rows if window < len(self.windows[row])]
            self.cache = self.cache.of_rows([self.rows.index(row) for row in rows])
            self.rows = rows
            yield self._inputs(window)

    def _inputs(self, window: int) -> dict[str, Any]:
        cuts = [self.windows[row][window] for row in self.rows]
        lengths = torch.tensor([stop.token - start.token for start, stop in cuts])
        starts = torch.tensor([self.first_token[r] + own[0].token for r, own in zip(self.rows, cuts, strict=True)])
        width = int(lengths.max())
        column = torch.arange(width) - (width - lengths)[:, None]  # below 0 is padding, on the left
        valid, index = (column >= 0).to(self.device), (starts[:, None] + column.clamp(min=0)).to(self.device)
        rows = torch.tensor(self.rows, device=self.device)
        filler = int(self.config.video_token_id == 0)  # any token that is no frame
        inputs = {
            "input_ids": self.batch["input_ids"][rows].gather(1, index).masked_fill(~valid, filler),
            "shift_labels": self.labels[rows].gather(1, index).masked_fill(~valid, IGNORE_INDEX),
            "cache": self.cache,
            "output_router_scores": self.carrying.cache_policy == "router",
        }
        if int(lengths.min()) < width:
            inputs["attention_mask"] = valid.long()
        frames = [
            torch.arange(start.frame, stop.frame) + self.first_frame[row]
            for row, (start, stop) in zip(self.rows, cuts, strict=True)
        ]
        return inputs | self._frames(torch.cat(frames))

    def _frames(self, chosen: torch.Tensor) -> dict[str, torch.Tensor]:
        """The frames of a window, int64 `[F]` of those of the batch."""
        if len(chosen) == 0:
            return {}
        batch = self.batch
        if "frame_index" in batch:  # frames repeat
            distinct, index = batch["frame_index"].cpu()[chosen].unique(return_inverse=True)
            return {"frames": batch["frames"].frames[distinct], "frame_index": index.to(self.device)}
        (name,) = (name for name in FRAMES if name in batch)
        frames = batch[name]
        return {name: frames.frames[chosen] if isinstance(frames, OnHost) else frames[chosen.to(frames.device)]}

    def add(self, window: int, router_scores: tuple | None, end_of_span: bool) -> None:
        """Let the memory of each stream record a window, and evict what the session does at its end.

        Args:
            router_scores (`tuple`, *optional*): of the model, for `"router"`.
            end_of_span (`bool`): no gradient flows back from later windows.
        """
        if all(window + 1 == len(self.windows[row]) for row in self.rows):
            return
        own = self._leaving(window) if self.carrying.cache_policy == "window" else self._scored(window, router_scores)
        self.cache = self.cache.trimmed(own, self.rotation, detach=end_of_span)

    def _leaving(self, window: int) -> torch.Tensor:
        """bool `[B, M]`: which of the cached tokens leave after a window, as was known from the beginning."""
        ends = [self.first_token[row] + self.windows[row][window][1].token for row in self.rows]
        leaves = self.batch["leaves"][torch.tensor(self.rows, device=self.device)]
        column = torch.arange(leaves.shape[1], device=self.device)
        held = (leaves >= window) & (column < torch.tensor(ends, device=self.device)[:, None])
        place = torch.where(held, held.long().cumsum(1) - 1, self.cache.seen_tokens)
        leaving = held.new_zeros(len(ends), self.cache.seen_tokens + 1).scatter_(1, place, leaves == window)
        return leaving[:, :-1]

    def _scored(self, window: int, router_scores: tuple | None) -> torch.Tensor:
        """As `_leaving`, by the scores of the router."""
        routed = [scores for scores in router_scores or () if scores is not None]
        scores = torch.stack(routed).sigmoid().mean(0).float().cpu() if routed else None
        tokens = self.config.video_token_id, self.config.frame_separator_token_id
        leaving, frame = [], 0
        for row in self.rows:
            (start, stop), memory, first = self.windows[row][window], self.memories[row], self.first_token[row]
            count = stop.frame - start.frame
            own = scores[frame : frame + count] if scores is not None and count else None
            memory.record(self.ids[row][first + start.token : first + stop.token], *tokens, own)
            frame += count
            if window + 1 < len(self.windows[row]):
                leaving.append(memory.forget(None, stop.pending, bool(stop.keep_newest)))
            else:  # it ends here
                leaving.append(torch.zeros(len(memory.kinds), dtype=torch.bool))
        return torch.nn.utils.rnn.pad_sequence(leaving, batch_first=True).to(self.device)


__all__ = ["CarriedCollator", "CarriedStreams", "Carrying", "evictions"]
