"""When the model speaks, and the session that feeds it a stream: frames in, events out.

After each frame the model says how probable silence is; below a threshold it speaks. What it has said and what it was
asked is part of the stream from then on.

Shapes: F frames, H and W pixels, N vision tokens per frame, Dv hidden size of the vision tower, V vocabulary.
"""

import copy
import math
import os
import weakref
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig
from transformers.modeling_outputs import ModelOutput
from transformers.utils import logging

from .cache import MoDCache
from .configuration_videollm_mod import check_keep_ratio
from .containers import is_video_source
from .conversation import check_text
from .decoding import iter_video_frames
from .generation import TokenSampler
from .memory import KeyTurner, StreamMemory, frames_in_context
from .processing_videollm_mod import check_pair
from .session_state import load_session, save_session
from .speaking import DEFAULT_THRESHOLD, StreamEvent, WatchedFrame, check_threshold, speaks
from .steps import Encode, Feed, Moment, Step, carry_out

logger = logging.get_logger(__name__)

FRAMES_AT_ONCE = 16  # frames of one push that go through the model together
FRAMES_AT_ONCE_ON_GPU = 32  # where those that are taken back again cost less
BYTES_AT_ONCE = 16 * 1920 * 1080 * 3  # of a video's frames that are held
AHEAD_AFTER_SPEECH = 4  # and after it spoke, since it may soon speak again; doubled with every block of silence


@dataclass
class StreamStats(ModelOutput):
    """What a session did and holds; readable by name and by key.

    Args:
        frames, narrations, answers (`int`): so far.
        tokens (`int`): of the stream, vision and text.
        kv_bytes (`int`): of the cache, and `kv_bytes_if_dense` of one where every layer holds every token.
        seconds (`dict[str, float]`): spent in each stage: `preprocess`, `vision`, `language` (watching frames) and
            `generation` (narrations and answers); on a CUDA device as that counts them.
        why_not_static (`str`, *optional*): why the last call ran the model as it is, which on a GPU is slower than
            `static_step`; None where it did not.
    """

    frames: int | None = None
    narrations: int | None = None
    answers: int | None = None
    tokens: int | None = None
    kv_bytes: int | None = None
    kv_bytes_if_dense: int | None = None
    seconds: dict | None = None
    why_not_static: str | None = None


def as_block(decoded: list[tuple[np.ndarray, float]]) -> tuple[torch.Tensor, list[float]]:
    """uint8 `[F, 3, H, W]` and the times of frames `[H, W, 3]`."""
    images, times = zip(*decoded, strict=True)
    return torch.from_numpy(np.stack(images)).movedim(-1, 1), list(times)


class StreamingSession:
    """
    One stream watched by a model: push frames as they come, ask whenever you like.

    The sequence is the processor's: what is pushed, asked and said in a session is one conversation, and the session's
    cache is that of the same conversation in one pass. Whatever fails or is broken off, an error, an interrupt or an
    iterator that is left, the session stays at the last frame or token that came out of it.

    It runs where the model is: CPU, CUDA, or Apple's mps (on which it was not tried). A session belongs to one thread
    at a time; sessions of one model are independent.

    Args:
        model (`VideoLLMMoDForConditionalGeneration`), processor (`VideoLLMMoDProcessor`).
        system_prompt (`str`, *optional*): what stands before everything.
        speak_threshold (`float`): in [0, 1]; the model speaks after a frame where silence is less probable than this.
        keep_ratio (`float`, *optional*): share of vision tokens that routed layers keep in this session, in (0, 1];
            the model's own if omitted.
        max_cached_frames (`int`, *optional*), max_cached_bytes (`int`, *optional*): bounds of what is remembered, in
            frames of at least 4 and in bytes that the cache never exceeds, see `StreamMemory`. Everything if omitted;
            a session that grows past the model's `max_position_embeddings` says so in one warning.
        cache_policy (`str`): what leaves first then, `"window"` or `"router"`.
        max_new_tokens (`int`): tokens of one narration or answer at most.
        generation_config (`GenerationConfig`, *optional*): how replies are chosen: sampling and everything that
            changes scores, over the tokens of the reply. Greedy if omitted. Its `max_new_tokens` is a limit too.

    Raises:
        `ValueError`: for an argument out of range, or a processor that is not the model's.
    """

    def __init__(
        self,
        model,
        processor,
        system_prompt: str | None = None,
        speak_threshold: float = DEFAULT_THRESHOLD,
        keep_ratio: float | None = None,
        max_cached_frames: int | None = None,
        max_new_tokens: int = 64,
        generation_config: GenerationConfig | None = None,
        cache_policy: str = "window",
        max_cached_bytes: int | None = None,
    ):
        check_pair(model, processor)
        check_threshold("speak_threshold", speak_threshold)
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens` must be a whole number of at least 1, got {max_new_tokens!r}")
        if keep_ratio is not None:
            check_keep_ratio("keep_ratio", keep_ratio)
        if system_prompt is not None:
            check_text("`system_prompt`", system_prompt)
        self.model, self.processor = model, processor
        self.system_prompt, self.speak_threshold = system_prompt, float(speak_threshold)
        self.keep_ratio, self.max_new_tokens = keep_ratio, max_new_tokens
        self.max_cached_frames, self.max_cached_bytes = max_cached_frames, max_cached_bytes
        self.cache_policy = cache_policy
        self.generation_config = generation_config
        self._sampler = TokenSampler(model, processor, generation_config)
        self.why_not_static: str | None = None
        # what `watch` or `ask_tokens` handed out last; weakly, so that leaving a loop over it closes it at once
        self._running: weakref.ref | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the stream, as if the session were new; its options stay."""
        self.break_off()
        self.cache = MoDCache(self.model.config)
        self._memory = None
        if self.max_cached_frames is not None or self.max_cached_bytes is not None:
            self._memory = self._new_memory()
            KeyTurner(self._rotary_embedding)  # says if they cannot be turned
        self._warned = False  # of a stream that is too long
        self.query: str | None = None
        self.time: float | None = None  # seconds, of the last frame
        self._in_stream = False
        self._ahead = self._frames_at_once
        self._counts = {"frames": 0, "narrations": 0, "answers": 0}
        self._seconds = dict.fromkeys(("preprocess", "vision", "language", "generation"), 0.0)
        self._took = []  # times yet to be added to them
        bos = self.processor.tokenizer.bos_token_id
        self._pending = [] if bos is None else [bos]  # ids that the model has yet to read
        if self.system_prompt is not None:
            self._pending += self.processor.encode_text(self.system_prompt, prefix="") + self.processor.system_end_ids
            self._check_fits("system_prompt", 0)

    def _new_memory(self) -> StreamMemory:
        text, processor = self.model.config.text_config, self.processor
        per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * self.model.dtype.itemsize
        around = len(processor.stream_end_ids) + len(processor.assistant_header_ids) + 1  # what frames a reply
        return StreamMemory(
            self.max_cached_frames,
            self.model.config.num_frame_tokens,
            self.cache_policy,
            self.max_cached_bytes,
            per_token,
            around + self.max_new_tokens,
        )

    def fork(self) -> "StreamingSession":
        """Another session at the same point of the stream; from here on each goes its own way. Costs no memory until
        they differ."""
        self.break_off()
        self._add_up()
        other = copy.copy(self)
        other.cache, other._sampler = self.cache.copy(), self._sampler.copy()
        other._memory = None if self._memory is None else self._memory.copy()
        other._pending = list(self._pending)
        other._counts, other._seconds, other._took = dict(self._counts), dict(self._seconds), []
        return other

    def save(self, path: str | os.PathLike) -> Path:
        """Write the session to one file, from which `load` goes on as if nothing had been. The file appears whole or
        not at all. See `session_state`."""
        self.break_off()
        self._add_up()
        return save_session(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike, model, processor) -> "StreamingSession":
        """The session that `save` wrote, on the same model.

        Raises:
            `OSError`: if there is no such file.
            `ValueError`: if it is damaged, of another version, or of another model.
        """
        return load_session(cls, path, model, processor)

    @property
    def most_bytes(self) -> int | None:
        """What the cache may ever take; None for a session without bounds."""
        return None if self._memory is None else self._memory.most_bytes

    def count_seconds(self, stage: str, took: tuple[Moment, Moment], shared_by: int) -> None:
        """Count what took from one moment to another, in equal parts for `shared_by` sessions, as time of a stage."""
        self._took.append((stage, took, shared_by))
        if len(self._took) >= 64:  # most of them long past: nobody waits
            self._add_up()

    def _add_up(self) -> None:
        took, self._took = self._took, []
        for stage, (begin, end), shared_by in took:
            self._seconds[stage] += begin.seconds_until(end) / shared_by

    @property
    def stats(self) -> StreamStats:
        """What the session did and holds so far."""
        self._add_up()
        text, tokens = self.model.config.text_config, self.cache.get_seq_length()
        per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
        itemsize = next((x.keys.element_size() for x in self.cache.layers if x.is_initialized), 0)
        return StreamStats(
            **self._counts,
            tokens=tokens + (0 if self._memory is None else self._memory.forgotten),
            kv_bytes=self.cache.num_bytes,
            kv_bytes_if_dense=tokens * per_token * itemsize,
            seconds=dict(self._seconds),
            why_not_static=self.why_not_static,
        )

    def remember(self, max_cached_frames: int) -> None:
        """Change the bound of what is remembered; frames too many leave before the next one comes.

        Raises:
            `ValueError`: for a session that began without a bound, or a number below 4.
        """
        if self._memory is None:
            raise ValueError("`max_cached_frames` can be changed only where a session began with a bound")
        self.break_off()
        self._memory.resize(max_cached_frames)
        self.max_cached_frames = max_cached_frames

    def instruct(self, text: str) -> None:
        """Put a user's turn into the stream that asks for no answer now, such as what to narrate."""
        check_text("`text`", text)
        self.break_off()
        ids = self.processor.user_header_ids + self.processor.encode_text(text)
        self._check_fits("text", len(ids))
        self._close_stream()
        self._pending += ids
        self.query = text

    def _check_fits(self, name: str, more: int) -> None:
        """Text that waits to be read has to find room in a session with bounds."""
        tokens, most = len(self._pending) + more, math.inf if self._memory is None else self._memory.most_pending
        if tokens > most:
            raise ValueError(
                f"`{name}` is too long for a bounded session: {tokens} tokens would wait to be read, {most} may"
            )

    def ask(self, question: str) -> list[StreamEvent]:
        """Ask after the last frame, and get the answer; its time is 0 where there was no frame yet."""
        text = "".join(self.ask_tokens(question))
        return [StreamEvent(self.time or 0.0, "answer", text, question)]

    def ask_tokens(self, question: str) -> Iterator[str]:
        """As `ask`, with the answer's text piece by piece as it is made. Leaving the iterator (`close()`, or any other
        call of the session) cancels the rest: the answer then ends with the last piece that came out."""
        self.instruct(question)
        pieces = carry_out(self.answering())
        self._running = weakref.ref(pieces)
        return pieces

    def answering(self) -> Iterator[Step | str]:
        """The answer to the last instruction: steps, and between them its text in pieces."""
        self._make_room()
        self._counts["answers"] += 1
        return self._pieces()

    def push(self, frames, times: list[float] | None = None) -> list[StreamEvent]:
        """Let the model see frames, and speak after any of them.

        Frames go through the model in blocks, on the guess that it stays silent; where it does not, those after it are
        taken back. What is said is what pushing them one by one gives.

        Args:
            frames (uint8 `[F, H, W, 3]` or `[F, 3, H, W]`): array or tensor; or a video's path, URL or file, which is
                decoded at the processor's fps as it is watched.
            times (`list[float]`, *optional*): of the frames, in seconds; from the last one on at the processor's fps
                if omitted. A video has its own, from its beginning, or from after the last frame pushed before it.

        Returns:
            What was said, in order.

        Raises:
            `ValueError`: for frames of another shape, or times that do not fit them or go back; and as
                `iter_video_frames`.
        """
        return [watched.event for watched in self.watch(frames, times) if watched.event is not None]

    def watch(self, frames, times: list[float] | None = None) -> Iterator[WatchedFrame]:
        """As `push`, frame by frame: what the model thought of each, as soon as it is known. Leaving the iterator
        (`close()`, or any other call of the session) drops the frames that did not come out."""
        self.break_off()
        blocks = self.blocks(frames, times, self.time)
        watched = carry_out(self._watch_blocks(next(blocks), blocks))  # what is wrong with the frames is said at once
        self._running = weakref.ref(watched)
        return watched

    def blocks(self, frames, times: list[float] | None, last: float | None) -> Iterator[tuple[torch.Tensor, list]]:
        """What is pushed after the time `last`, as `[F, 3, H, W]` and a time for each frame: all together, or block by
        block where it is a video to decode."""
        video_processor = self.processor.video_processor
        if not is_video_source(frames):
            frames = video_processor.load_video(frames, do_sample_frames=False)
            yield frames, self.check_times(times, len(frames), last)
            return
        if times is not None:
            raise ValueError("`times` are for frames; those of a video are its own")
        start, decoded = 0.0 if last is None else last + 1 / video_processor.fps, []
        for image, seconds in iter_video_frames(frames, video_processor.fps):
            decoded.append((image, start + seconds))
            if len(decoded) == self._frames_at_once or len(decoded) * image.size >= BYTES_AT_ONCE:
                yield as_block(decoded)
                decoded = []
        if decoded:
            yield as_block(decoded)

    def watch_encoded(self, features: torch.Tensor, times: list[float] | None = None) -> Iterator[WatchedFrame]:
        """As `watch`, of frames whose features, `[F, N, Dv]` of `model.encode_frames`, are there already."""
        self.break_off()
        watched = carry_out(self._watch(features, self.check_times(times, len(features), self.time)))
        self._running = weakref.ref(watched)
        return watched

    def break_off(self) -> None:
        """End what `watch` or `ask_tokens` handed out, if somebody still holds it half used."""
        running = None if self._running is None else self._running()
        if running is not None:
            running.close()
        self._running = None

    def check_times(self, times, num_frames: int, last: float | None) -> list[float]:
        if times is None:
            step = 1 / self.processor.video_processor.fps
            before = -step if last is None else last
            # one after the other, to the last bit as in calls of one frame
            return list(accumulate([step] * num_frames, initial=before))[1:]
        try:
            times = [float(time) for time in times]
        except TypeError as error:
            raise ValueError(f"`times` must be a list of seconds, got {times!r}") from error
        if len(times) != num_frames:
            raise ValueError(f"`times` must hold one time a frame, got {len(times)} for {num_frames} frames")
        before = [-math.inf if last is None else last, *times]
        for index, (earlier, time) in enumerate(zip(before, times, strict=False)):
            if not math.isfinite(time) or time < earlier:
                raise ValueError(
                    f"`times` must be finite seconds that do not go back, got {time} at index {index} after {earlier}"
                )
        return times

    # What follows are generators that yield a `Step` where they want something of the model, and go on with its result
    # once somebody has carried it out, and beside the steps what they make.

    def _watch_blocks(self, block: tuple[torch.Tensor, list], blocks: Iterator) -> Iterator[Step | WatchedFrame]:
        with closing(blocks):
            while block is not None:
                yield from self._watch(*block)
                block = next(blocks, None)

    def _watch(self, frames: torch.Tensor, times: list[float]) -> Iterator[Step | WatchedFrame]:
        done, encoded, most = 0, 0, self._frames_at_once
        while done < len(frames):
            if done == encoded:
                features = frames[done : done + most]
                if features.ndim == 4:  # pixels
                    encode = Encode(self, features)
                    yield encode
                    features = encode.result()
                encoded += len(features)
            self._make_room()
            block = features[len(features) - (encoded - done) :][: self._frames_ahead()]
            before, watched, spoke = (self.cache.get_seq_length(), self._pending, self._in_stream), 0, False
            try:
                silence, kept = yield from self._feed_frames(block)
                end = self.cache.get_seq_length()
                speech = speaks(silence, self.speak_threshold).tolist()
                for index, probability in enumerate(silence.tolist()):
                    if not math.isfinite(probability):
                        raise ValueError("the model's scores are not finite numbers: its weights hold nan or infinity")
                    time, event = times[done + index], None
                    if speech[index]:
                        self._rollback(self._end_of_frame(index, len(block), end))
                        event = yield from self._narrate(time, probability)
                    # from here on the frame is part of the stream; until here a failure takes it back
                    self.time, watched, spoke = time, index + 1, event is not None
                    self._counts["frames"] += 1
                    self._note_length(self._end_of_frame(index, len(block), end))
                    yield WatchedFrame(time, probability, kept[index], event)
                    if spoke:
                        break
            finally:
                if watched == 0:
                    self._rollback(before[0])
                    _, self._pending, self._in_stream = before
                elif not spoke:
                    self._rollback(self._end_of_frame(watched - 1, len(block), end))
                    self._pending, self._in_stream = [], True
            done += watched
            self._ahead = AHEAD_AFTER_SPEECH if spoke else min(2 * self._ahead, most)

    def _end_of_frame(self, index: int, num_frames: int, end: int) -> int:
        """Position after frame `index` of a block of `num_frames` that ends at position `end`."""
        return end - (num_frames - 1 - index) * (len(self.processor.frame_ids) + 1)

    def _note_length(self, tokens: int) -> None:
        """Warn, once a stream, where it holds more tokens than the model was made for."""
        most = self.model.config.text_config.max_position_embeddings
        if tokens > most and not self._warned:
            self._warned = True
            logger.warning(
                f"the stream holds {tokens} tokens, more than the {most} (`max_position_embeddings`) that the model "
                "was made for: what it says from here on may be wrong, and the memory that it takes grows; begin the "
                f"session with `max_cached_frames={frames_in_context(self.model.config)}` or less"
            )

    def _narrate(self, time: float, silence: float):
        """Steps; returns the event."""
        self._close_stream()
        text = ""
        with closing(self._pieces()) as pieces:
            for piece in pieces:
                if isinstance(piece, Step):
                    yield piece
                else:
                    text += piece
        self._counts["narrations"] += 1
        return StreamEvent(time, "narration", text, self.query, silence)

    def _feed_frames(self, features: torch.Tensor):
        """Feed frames `[F, N, Dv]` with the separators between them. Steps; returns the probability of silence after
        each, `[F]`, and for each which of its tokens each layer kept."""
        processor, frame_ids = self.processor, self.processor.frame_ids
        opening = [processor.frame_separator_token_id] if self._in_stream else processor.stream_start_ids
        ids = self._pending + opening + frame_ids
        for _ in range(1, len(features)):
            ids += [processor.frame_separator_token_id, *frame_ids]
        _, kept, silence = yield from self._feed(ids, features)
        self._pending, self._in_stream = [], True
        return silence, kept

    def _rollback(self, position: int) -> None:
        if position == self.cache.get_seq_length():
            return
        self.cache.rollback(position)
        if self._memory is not None:
            self._memory.rollback(position)

    @property
    def _rotary_embedding(self):
        return self.model.model.language_model.rotary_emb

    @property
    def _frames_at_once(self) -> int:
        return FRAMES_AT_ONCE_ON_GPU if self.model.device.type == "cuda" else FRAMES_AT_ONCE

    def _frames_ahead(self) -> int:
        """Frames that may be fed together: a memory is emptied at the same frames however they are pushed."""
        return self._ahead if self._memory is None else max(1, min(self._ahead, self._room()))

    def _room(self) -> int:
        return self._memory.room(self.cache.num_bytes, self._text_before_next_frame)

    @property
    def _text_before_next_frame(self) -> int:
        return len(self._pending) + (0 if self._in_stream else len(self.processor.stream_start_ids))

    def _make_room(self) -> None:
        if self._memory is not None and self._room() == 0:
            self._memory.make_room(self.cache, self._rotary_embedding, self._text_before_next_frame)

    def _close_stream(self) -> None:
        if self._in_stream:
            self._pending += self.processor.stream_end_ids
        self._in_stream = False

    def _reply(self) -> Iterator[Step | int]:
        """Let the model speak, token by token, until it ends its turn."""
        eos = self.processor.tokenizer.eos_token_id
        limit = self.max_new_tokens
        if self.generation_config is not None and self.generation_config.max_new_tokens is not None:
            limit = min(limit, self.generation_config.max_new_tokens)
        self._pending, said = self._pending + self.processor.assistant_header_ids, []
        try:
            while len(said) < limit:
                logits, _, _ = yield from self._feed(self._pending)
                self._pending = []
                self._note_length(self.cache.get_seq_length())
                token = self._sampler(said, logits[-1])
                if token in self._sampler.ends:
                    break
                said.append(token)
                self._pending = [token]
                yield token
        finally:
            self._pending = [*self._pending, eos]  # a reply that was broken off ends here too

    def _pieces(self) -> Iterator[Step | str]:
        """The text of a reply in pieces that together are the whole text, without space around it."""
        said, shown, tokens = [], "", self._reply()
        try:
            for token in tokens:
                if isinstance(token, Step):
                    yield token
                    continue
                said.append(token)
                text = self.processor.decode(said, skip_special_tokens=True).strip()
                if not text.endswith("\ufffd") and text != shown and text.startswith(shown):  # whole characters only
                    yield text[len(shown) :]
                    shown = text
            text = self.processor.decode(said, skip_special_tokens=True).strip()
            if text != shown:
                yield text[len(shown) :]
        finally:
            tokens.close()

    def _feed(self, ids: list[int], features: torch.Tensor | None = None):
        """Feed tokens after all that was fed before. A call that fails leaves no trace. Steps; returns the logits
        `[F, V]` after each frame, or `[1, V]` after the last token where there is none, what the layers kept of each
        frame, and how probable silence is after each, float32 `[F]` on the CPU."""
        before, feed = self.cache.get_seq_length(), Feed(self, ids, features)
        try:
            yield feed
            logits, kept, worth, silence = feed.result()
            if self._memory is not None:
                self._memory.record(
                    torch.tensor(ids), self.processor.video_token_id, self.processor.frame_separator_token_id, worth
                )
            return logits, kept, silence
        except BaseException:
            self._rollback(before)
            raise


__all__ = ["StreamStats", "StreamingSession"]
