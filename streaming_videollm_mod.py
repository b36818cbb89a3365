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
from contextlib import contextmanager
from itertools import accumulate
from numbers import Real
from pathlib import Path
from time import perf_counter

import torch
from transformers import GenerationConfig

from .cache_videollm_mod import MoDCache
from .configuration_videollm_mod import check_keep_ratio
from .conversation_videollm_mod import check_text
from .events_videollm_mod import StreamEvent, StreamStats, WatchedFrame
from .memory_videollm_mod import KeyTurner, StreamMemory
from .sampling_videollm_mod import TokenSampler
from .session_state_videollm_mod import load_session, save_session

FRAMES_AT_ONCE = 16  # frames of one push that go through the model together
AHEAD_AFTER_SPEECH = 4  # and after it spoke, since it may soon speak again; doubled with every block of silence


def silence_probability(logits: torch.Tensor, separator_token_id: int) -> torch.Tensor:
    """Probability of the frame separator, which means to stay silent, as the token after a frame.

    Args:
        logits (`[..., V]`): of a frame's last token.
        separator_token_id (`int`): `config.frame_separator_token_id`.

    Returns:
        float32 `[...]`.
    """
    return logits.float().softmax(-1)[..., separator_token_id]


def speaks(silence: torch.Tensor, threshold: float) -> torch.Tensor:
    """bool `[...]`: speak unless silence is at least as probable as the threshold (VideoLLM-online, section 3.3)."""
    return silence < threshold


def check_threshold(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be in [0, 1], got {value!r}")


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
        max_cached_frames (`int`, *optional*): bound of what is remembered of the frames, see `StreamMemory`; at least
            4. Everything if omitted.
        cache_policy (`str`): what leaves first then, `"window"` or `"router"`.
        max_new_tokens (`int`): tokens of one narration or answer at most.
        generation_config (`GenerationConfig`, *optional*): how replies are chosen: sampling and everything that
            changes scores, over the tokens of the reply. Greedy if omitted. Its `max_new_tokens` is a limit too.

    Raises:
        `ValueError`: for an argument out of range.
    """

    def __init__(
        self,
        model,
        processor,
        system_prompt: str | None = None,
        speak_threshold: float = 0.725,
        keep_ratio: float | None = None,
        max_cached_frames: int | None = None,
        max_new_tokens: int = 64,
        generation_config: GenerationConfig | None = None,
        cache_policy: str = "window",
    ):
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
        self.max_cached_frames, self.cache_policy = max_cached_frames, cache_policy
        self.generation_config = generation_config
        self._sampler = TokenSampler(model, processor, generation_config)
        # what `watch` or `ask_tokens` handed out last; weakly, so that leaving a loop over it closes it at once
        self._running: weakref.ref | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the stream, as if the session were new; its options stay."""
        self._break_off()
        self.cache = MoDCache(self.model.config)
        self._memory = None
        if self.max_cached_frames is not None:
            self._memory = StreamMemory(self.max_cached_frames, self.model.config.num_frame_tokens, self.cache_policy)
            KeyTurner(self._rotary_embedding)  # says if they can not be turned
        self.query: str | None = None
        self.time: float | None = None  # seconds, of the last frame
        self._in_stream = False
        self._ahead = FRAMES_AT_ONCE
        self._counts = {"frames": 0, "narrations": 0, "answers": 0}
        self._seconds = dict.fromkeys(("preprocess", "vision", "language", "generation"), 0.0)
        bos = self.processor.tokenizer.bos_token_id
        self._pending = [] if bos is None else [bos]  # ids that the model has yet to read
        if self.system_prompt is not None:
            self._pending += self.processor.encode_text(self.system_prompt, prefix="") + self.processor.system_end_ids

    def fork(self) -> "StreamingSession":
        """Another session at the same point of the stream; from here on each goes its own way. Costs no memory until
        they differ."""
        self._break_off()
        other = copy.copy(self)
        other.cache, other._sampler = self.cache.copy(), self._sampler.copy()
        other._memory = None if self._memory is None else self._memory.copy()
        other._pending = list(self._pending)
        other._counts, other._seconds = dict(self._counts), dict(self._seconds)
        return other

    def save(self, path: str | os.PathLike) -> Path:
        """Write the session to one file, from which `load` goes on as if nothing had been. The file appears whole or
        not at all. See `session_state_videollm_mod`."""
        self._break_off()
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
    def stats(self) -> StreamStats:
        """What the session did and holds so far."""
        text, tokens = self.model.config.text_config, self.cache.get_seq_length()
        per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
        itemsize = next((x.keys.element_size() for x in self.cache.layers if x.is_initialized), 0)
        return StreamStats(
            **self._counts,
            tokens=tokens + (0 if self._memory is None else self._memory.forgotten),
            kv_bytes=self.cache.num_bytes,
            kv_bytes_if_dense=tokens * per_token * itemsize,
            seconds=dict(self._seconds),
        )

    def instruct(self, text: str) -> None:
        """Put a user's turn into the stream that asks for no answer now, such as what to narrate."""
        check_text("`text`", text)
        self._break_off()
        self._close_stream()
        self._pending += self.processor.user_header_ids + self.processor.encode_text(text)
        self.query = text

    def ask(self, question: str) -> list[StreamEvent]:
        """Ask after the last frame, and get the answer; its time is 0 where there was no frame yet."""
        text = "".join(self.ask_tokens(question))
        return [StreamEvent(self.time or 0.0, "answer", text, question)]

    def ask_tokens(self, question: str) -> Iterator[str]:
        """As `ask`, with the answer's text piece by piece as it is made. Leaving the iterator (`close()`, or any other
        call of the session) cancels the rest: the answer then ends with the last piece that came out."""
        self.instruct(question)
        self._make_room()
        self._counts["answers"] += 1
        pieces = self._pieces()
        self._running = weakref.ref(pieces)
        return pieces

    def push(self, frames, times: list[float] | None = None) -> list[StreamEvent]:
        """Let the model see frames, and speak after any of them.

        Frames go through the model in blocks, on the guess that it stays silent; where it does not, those after it are
        taken back. What is said is what pushing them one by one gives.

        Args:
            frames (uint8 `[F, H, W, 3]` or `[F, 3, H, W]`): array or tensor.
            times (`list[float]`, *optional*): of the frames, in seconds; from the last one on at the processor's fps
                if omitted.

        Returns:
            What was said, in order.

        Raises:
            `ValueError`: for frames of another shape, or times that do not fit them or go back.
        """
        return [watched.event for watched in self.watch(frames, times) if watched.event is not None]

    def watch(self, frames, times: list[float] | None = None) -> Iterator[WatchedFrame]:
        """As `push`, frame by frame: what the model thought of each, as soon as it is known. Leaving the iterator
        (`close()`, or any other call of the session) drops the frames that did not come out."""
        self._break_off()
        frames = self.processor.video_processor.load_video(frames, do_sample_frames=False)
        times = self._check_times(times, len(frames))
        watched = self._watch(frames, times)
        self._running = weakref.ref(watched)
        return watched

    def watch_encoded(self, features: torch.Tensor, times: list[float] | None = None) -> Iterator[WatchedFrame]:
        """As `watch`, of frames whose features, `[F, N, Dv]` of `model.encode_frames`, are there already."""
        self._break_off()
        watched = self._watch(features, self._check_times(times, len(features)))
        self._running = weakref.ref(watched)
        return watched

    def _break_off(self) -> None:
        """End what `watch` or `ask_tokens` handed out, if somebody still holds it half used."""
        running = None if self._running is None else self._running()
        if running is not None:
            running.close()
        self._running = None

    def _check_times(self, times, num_frames: int) -> list[float]:
        if times is None:
            step = 1 / self.processor.video_processor.fps
            before = -step if self.time is None else self.time
            # one after the other, to the last bit as in calls of one frame
            return list(accumulate([step] * num_frames, initial=before))[1:]
        try:
            times = [float(time) for time in times]
        except TypeError as error:
            raise ValueError(f"`times` must be a list of seconds, got {times!r}") from error
        if len(times) != num_frames:
            raise ValueError(f"`times` must hold one time a frame, got {len(times)} for {num_frames} frames")
        before = [-math.inf if self.time is None else self.time, *times]
        for index, (earlier, time) in enumerate(zip(before, times, strict=False)):
            if not math.isfinite(time) or time < earlier:
                raise ValueError(
                    f"`times` must be finite seconds that do not go back, got {time} at index {index} after {earlier}"
                )
        return times

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Count the time of a block of code as a stage's."""
        start = perf_counter()
        try:
            yield
        finally:
            if self.model.device.type != "cpu":
                torch.accelerator.synchronize(self.model.device)
            self._seconds[name] += perf_counter() - start

    @torch.no_grad()
    def _encode(self, frames: torch.Tensor) -> torch.Tensor:
        """`[F, 3, H, W]` to features `[F, N, Dv]`."""
        with self._stage("preprocess"):
            pixels = self.processor.video_processor(
                frames.to(self.model.device), return_tensors="pt", input_data_format="channels_first"
            )["pixel_values_videos"]
        with self._stage("vision"):
            return self.model.encode_frames(pixels).pooler_output

    def _watch(self, frames: torch.Tensor, times: list[float]) -> Iterator[WatchedFrame]:
        done = encoded = 0
        while done < len(frames):
            if done == encoded:
                features = frames[done : done + FRAMES_AT_ONCE]
                if features.ndim == 4:  # pixels
                    features = self._encode(features)
                encoded += len(features)
            self._make_room()
            block = features[len(features) - (encoded - done) :][: self._frames_ahead()]
            before, watched, spoke = (self.cache.get_seq_length(), self._pending, self._in_stream), 0, False
            try:
                silence, kept = self._feed_frames(block)
                end = self.cache.get_seq_length()
                speech = speaks(silence, self.speak_threshold).tolist()
                for index, probability in enumerate(silence.tolist()):
                    if not math.isfinite(probability):
                        raise ValueError("the model's scores are not finite numbers: its weights hold nan or infinity")
                    time, event = times[done + index], None
                    if speech[index]:
                        self._rollback(self._end_of_frame(index, len(block), end))
                        event = self._narrate(time, probability)
                    # from here on the frame is part of the stream; until here a failure takes it back
                    self.time, watched, spoke = time, index + 1, event is not None
                    self._counts["frames"] += 1
                    kept_now = tuple(None if tokens is None else tokens[index] for tokens in kept)
                    yield WatchedFrame(time, probability, kept_now, event)
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
            self._ahead = AHEAD_AFTER_SPEECH if spoke else min(2 * self._ahead, FRAMES_AT_ONCE)

    def _end_of_frame(self, index: int, num_frames: int, end: int) -> int:
        """Position after frame `index` of a block of `num_frames` that ends at position `end`."""
        return end - (num_frames - 1 - index) * (len(self.processor.frame_ids) + 1)

    def _narrate(self, time: float, silence: float) -> StreamEvent:
        self._close_stream()
        text = "".join(self._pieces())
        self._counts["narrations"] += 1
        return StreamEvent(time, "narration", text, self.query, silence)

    def _feed_frames(self, features: torch.Tensor) -> tuple[torch.Tensor, tuple]:
        """Feed frames `[F, N, Dv]` with the separators between them; the probability of silence after each, `[F]`, and
        which of their tokens each layer kept."""
        processor, frame_ids = self.processor, self.processor.frame_ids
        opening = [processor.frame_separator_token_id] if self._in_stream else processor.stream_start_ids
        ids = self._pending + opening + frame_ids
        for _ in range(1, len(features)):
            ids += [processor.frame_separator_token_id, *frame_ids]
        last = len(ids) - 1 - (len(frame_ids) + 1) * torch.arange(len(features) - 1, -1, -1, device=features.device)
        with self._stage("language"):
            output = self._feed(ids, video_features=features, logits_to_keep=last, output_router_scores=True)
            silence = silence_probability(output.logits[0], processor.frame_separator_token_id).cpu()
        self._pending, self._in_stream = [], True
        return silence, output.kept_indices

    def _rollback(self, position: int) -> None:
        self.cache.rollback(position)
        if self._memory is not None:
            self._memory.rollback(position)

    @property
    def _rotary_embedding(self):
        return self.model.model.language_model.rotary_emb

    def _frames_ahead(self) -> int:
        """Frames that may be fed together: a memory is emptied at the same frames however they are pushed."""
        return self._ahead if self._memory is None else min(self._ahead, self._memory.room)

    def _make_room(self) -> None:
        if self._memory is not None and self._memory.room <= 0:
            self._memory.make_room(self.cache, self._rotary_embedding)

    def _close_stream(self) -> None:
        if self._in_stream:
            self._pending += self.processor.stream_end_ids
        self._in_stream = False

    def _reply(self) -> Iterator[int]:
        """Let the model speak, token by token, until it ends its turn."""
        eos = self.processor.tokenizer.eos_token_id
        limit = self.max_new_tokens
        if self.generation_config is not None and self.generation_config.max_new_tokens is not None:
            limit = min(limit, self.generation_config.max_new_tokens)
        self._pending, said = self._pending + self.processor.assistant_header_ids, []
        try:
            while len(said) < limit:
                with self._stage("generation"):
                    logits = self._feed(self._pending, logits_to_keep=1).logits[0, -1]
                    self._pending = []
                    token = self._sampler(said, logits)
                if token == eos:
                    break
                said.append(token)
                self._pending = [token]
                yield token
        finally:
            self._pending = [*self._pending, eos]  # a reply that was broken off ends here too

    def _pieces(self) -> Iterator[str]:
        """The text of a reply in pieces that together are the whole text, without space around it."""
        said, shown, tokens = [], "", self._reply()
        try:
            for token in tokens:
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

    @torch.no_grad()
    def _feed(self, ids: list[int], **inputs):
        """The model's output for tokens that follow all that was fed before. A call that fails leaves no trace."""
        input_ids, before = torch.tensor([ids], device=self.model.device), self.cache.get_seq_length()
        try:
            output = self.model(input_ids=input_ids, past_key_values=self.cache, keep_ratio=self.keep_ratio, **inputs)
            if self._memory is not None:
                scores = [layer.sigmoid() for layer in output.router_scores or () if layer is not None]
                worth = torch.stack(scores).mean(0).cpu() if scores else None
                self._memory.record(
                    input_ids[0].cpu(), self.processor.video_token_id, self.processor.frame_separator_token_id, worth
                )
            return output
        except BaseException:
            self._rollback(before)
            raise


__all__ = [
    "StreamEvent",
    "StreamStats",
    "StreamingSession",
    "WatchedFrame",
    "silence_probability",
    "speaks",
]
